"""Backbones, models without a head: what they give for an image, and what of them may be cut by default."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from slimsweep.config import Config, ConfigError
from slimsweep.slimming.architectures import ARCHITECTURES
from slimsweep.slimming.dense_shape import refused_families
from slimsweep.slimming.gates import GatedModel
from slimsweep.slimming.structure import image_size

KINDS = tuple(architecture.model for architecture in ARCHITECTURES)


class Tokens(NamedTuple):
    """What a backbone gives for B images, after its last norm; a kind that it does not have is empty."""

    embedding: Tensor  # (B, dims), as model(images): of the class token, or pooled
    class_token: Tensor  # (B, dims), where the embedding is another one; else (B, 0)
    patches: Tensor  # (B, patches that are left, dims); (B, 0, dims) where they are no tokens
    patch_weights: Tensor  # (patches of the dense model,), 0 where a patch is gone; no gradient


class WithTokens(nn.Module):
    """A timm model without a head that answers with its `Tokens`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tokens:
        return tokens_of(self.model, images)


def tokens_of(model: nn.Module, images: Tensor) -> Tokens:
    """What a timm model gives before its head.

    Args:
        model: dense, gated or cut; of another architecture than those that can be cut, the embedding alone is given.
        images: (B, C, H, W), as it takes them.
    """
    timms: Any = model
    features: Tensor = timms.forward_features(images)
    embedding: Tensor = timms.forward_head(features, pre_logits=True)
    none = embedding.new_zeros(len(embedding), 0)
    if not isinstance(model, KINDS) or features.ndim not in (3, 4):
        return Tokens(embedding, none, none.unsqueeze(2), embedding.new_zeros(0))
    tokens = features.flatten(1, 2) if features.ndim == 4 else features  # Swin's (B, rows, columns, dims)
    prefix = getattr(model, "num_prefix_tokens", 0)
    own = getattr(model, "cls_token", None) is not None and getattr(model, "global_pool", "") != "token"
    patches = tokens[:, prefix:]
    return Tokens(embedding, tokens[:, 0] if own else none, patches, patch_weights(model, patches))


def patch_weights(model: nn.Module, patches: Tensor) -> Tensor:
    """How much each patch of the dense model counts in what a model gives after its last layer: (patches,), no gradient.

    Args:
        model: gated: the gates of the last layer, as they act; cut: 1 for a patch that stays, 0 for one that is gone.
        patches: (B, patches that are left, dims).
    """
    if isinstance(model, GatedModel):
        last = model.gated_blocks()[-1]
        if hasattr(last, "token_bias"):
            bias: Tensor = last.token_bias(torch.float32)
            return bias.detach().exp().flatten()[-patches.shape[1] :]
    structure: Any = getattr(model, "structure", None)
    if structure is not None and "token" in structure.masks:
        kept: Tensor = structure.token_mask(len(structure.shape.layers) - 1)
        if int(kept.sum()) == patches.shape[1]:
            return kept.to(patches.device, torch.float32)
    return torch.ones(patches.shape[1], device=patches.device)


def families_to_cut(config: Config, model: nn.Module) -> list[str] | None:
    """The families of gates that a model gets: search.families, or for a backbone attention and mlp, where they can be cut.

    So all patches stay, and the features of an image are a whole grid.

    Args:
        model: the dense model; it may be on the meta device.

    Returns:
        None for all that the model can lose exactly.

    Raises:
        ValueError: the model cannot be cut.
    """
    asked = config.search.families
    if asked is not None or not config.backbone:
        return None if asked is None else list(asked)
    refused = refused_families(model)
    return [family for family in ("attention", "mlp") if family not in refused]


@torch.no_grad()
def shape_of_answer(model: nn.Module) -> tuple[int, ...] | str:
    """The shape of what a model gives per image, (dims,) for a vector; the name of its type where it is no tensor."""
    found = model.eval()(torch.zeros(2, *image_size(model), device=next(model.parameters()).device))
    return tuple(found.shape[1:]) if isinstance(found, Tensor) else type(found).__name__


def check_embedding(config: Config, model: nn.Module) -> None:
    """Refuse a backbone that gives more than one vector per image; its weights are not looked at.

    Raises:
        ConfigError: says which shape it gives, and what to do.
    """
    shape = shape_of_answer(model)
    if isinstance(shape, str) or len(shape) != 1:
        raise ConfigError(
            f"model {config.model.name} gives features of shape {shape} per image, not one vector, by which it is compared "
            "with the dense model: set model.kwargs.global_pool to token or avg"
        )
