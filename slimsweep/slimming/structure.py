"""What is kept of a vision transformer, and what that costs in multiply-accumulates and parameters.

A `Structure` adds to a dense model's `Shape` what is kept of it: one boolean mask per gate family and layer. Both are plain
data (no weights), so budgets can be solved, stored and priced without building a model.
"""

import copy
from collections.abc import Mapping, Sequence
from functools import singledispatch
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from slimsweep.errors import RefusedInput
from slimsweep.slimming.cost import COSTS
from slimsweep.slimming.kept_masks import KeptMasks
from slimsweep.slimming.shape import FAMILIES, Layer, LayerSizes, Shape, check_families  # noqa: F401  # old pickles name Layer here
from slimsweep.slimming.timm_arguments import arguments_of
from slimsweep.slimming.weightless import ProductsOnly
from slimsweep.slimming.wrapped_models import inner_model

Masks = Mapping[str, Sequence[Tensor]]


class Structure:
    """What is kept: `masks` in bool, of the shapes of the gates.

    Heads of one layer have one width, that of its widest head: masks from the solver never differ in width; in masks
    made by hand the narrower heads are padded with zeros, and the zeros are counted.

    Args:
        shape: the dense model's sizes.
        masks: for each family that can be cut, one bool tensor per layer: attention (heads, head_dim), mlp (hidden,),
            token (patches,). A family without a key is kept whole.

    Raises:
        ValueError: a mask of the wrong shape, a token kept after a layer that dropped it, or too few tokens left.
    """

    def __init__(self, shape: Shape, masks: Masks) -> None:
        check_families(masks)
        self.shape = shape
        self.masks: dict[str, list[Tensor]] = {f: [m.bool().cpu() for m in masks[f]] for f in FAMILIES if f in masks}
        self.validate()

    def validate(self) -> None:
        """Raise ValueError, in one sentence, where the masks do not describe a model that can be cut."""
        _ = self.kept  # which is checked when it is made

    @property
    def kept(self) -> KeptMasks:
        """The masks as arrays, which share the tensors' memory."""
        return KeptMasks(self.shape, {family: [mask.numpy() for mask in masks] for family, masks in self.masks.items()})

    # Per layer: what is kept.

    def attention_mask(self, layer: int) -> Tensor:
        """Kept dims of one layer, (heads, head_dim), whatever the granularity; a copy."""
        return torch.from_numpy(self.kept.attention(layer).copy())

    def mlp_mask(self, layer: int) -> Tensor:
        """Kept MLP units of one layer, (hidden,); a copy."""
        return torch.from_numpy(self.kept.mlp(layer).copy())

    def token_mask(self, layer: int) -> Tensor:
        """Kept patch tokens of one layer, (patches,); a copy."""
        return torch.from_numpy(self.kept.token(layer).copy())

    def holds(self, other: "Structure") -> bool:
        """Whether `other` is of the same dense model and keeps nothing that this one does not keep."""
        if self.shape != other.shape:
            return False
        own, others, layers = self.kept, other.kept, range(len(self.shape.layers))
        masks = (KeptMasks.attention, KeptMasks.mlp, KeptMasks.token)
        return all(not (mask(others, index) & ~mask(own, index)).any() for mask in masks for index in layers)

    def sizes(self, layer: int) -> tuple[int, int, int, int]:
        """(heads, head dim, MLP units, patch tokens) that one layer keeps."""
        return self.kept.sizes(layer)

    def layer_sizes(self) -> list[LayerSizes]:
        """What each layer keeps, as costs take it."""
        return self.kept.layer_sizes()

    def summary(self) -> list[dict[str, int | str]]:
        """One dict per layer: heads, head_dim, mlp_units, tokens (patches) kept, and each beside its dense size (*_dense)."""
        rows: list[dict[str, int | str]] = []
        kept = self.kept
        for index, layer in enumerate(self.shape.layers):
            heads, head_dim, units, tokens = kept.sizes(index)
            rows.append(
                {
                    "layer": layer.name,
                    "heads": heads,
                    "heads_dense": layer.heads,
                    "head_dim": head_dim,
                    "head_dim_dense": layer.head_dim,
                    "mlp_units": units,
                    "mlp_units_dense": layer.hidden,
                    "tokens": tokens,
                    "tokens_dense": layer.tokens,
                }
            )
        return rows

    # Costs.

    def macs(self) -> int:
        """Multiply-accumulates of one image through the cut model."""
        return COSTS["macs"].of(self)

    def params(self) -> int:
        """Parameters of the cut model."""
        return COSTS["params"].of(self)

    # Text.

    @property
    def id(self) -> str:
        """12 hex digits that are equal for structures of equal sizes in every layer, which have equal latency."""
        return self.kept.id

    def to_json(self) -> str:
        """Text that `from_json` takes: the shape, and each mask as its bits in hex, row-major."""
        return self.kept.to_json()

    @staticmethod
    def from_json(text: str) -> "Structure":
        """The structure that `to_json` wrote.

        Raises:
            ValueError: the text is not such a structure.
        """
        kept = KeptMasks.from_json(text)
        return Structure(kept.shape, {family: list(map(torch.from_numpy, masks)) for family, masks in kept.masks.items()})

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Structure) and self.to_json() == other.to_json()

    def __hash__(self) -> int:
        return hash(self.to_json())

    def __repr__(self) -> str:
        rows = ", ".join(f"{r['heads']}x{r['head_dim']}/{r['mlp_units']}/{r['tokens']}" for r in self.summary())
        return f"Structure({self.macs() / 1e6:.1f} MMACs; heads x dims/units/tokens: {rows})"


@singledispatch
def macs(what: Structure | nn.Module) -> int:
    """Multiply-accumulates of one image: analytic for a Structure, counted operator by operator for a model.

    ViT papers call this number FLOPs. Counts matrix products, convolutions and attention, as
    torch.utils.flop_counter does (whose count is twice this one), not element-wise work.
    """
    raise TypeError(f"macs() takes a Structure or a model, not {type(what).__name__}")


@macs.register
def _(what: Structure) -> int:
    return what.macs()


@macs.register
def _(what: nn.Module) -> int:
    if (inside := inner_model(what)) is not what:
        return macs(inside)
    # A copy without weights: counting needs shapes only, costs no memory, and cannot touch the model.
    meta = torch.device("meta")
    tensors: dict[int, Any] = {id(b): torch.empty_like(b, device=meta) for b in what.buffers()}
    tensors |= {id(p): nn.Parameter(torch.empty_like(p, device=meta), requires_grad=False) for p in what.parameters()}
    model = copy.deepcopy(what, tensors).eval()
    image = torch.zeros(1, *image_size(what), device=meta, dtype=next(what.parameters()).dtype)
    with torch.no_grad(), ProductsOnly(), FlopCounterMode(display=False) as counter:
        try:
            model(image)
        except (AssertionError, RuntimeError) as problem:
            reason = (str(problem).strip().splitlines() or [type(problem).__name__])[0]
            raise RefusedInput(
                f"this {type(what).__name__} cannot compute an image of its own size, {tuple(image.shape[1:])} (channels, "
                f"height, width), so its MACs cannot be counted: {reason}"
            ) from problem
    return counter.get_total_flops() // 2


@singledispatch
def params(what: Structure | nn.Module) -> int:
    """Number of parameters of a model, or of the model that a Structure describes."""
    raise TypeError(f"params() takes a Structure or a model, not {type(what).__name__}")


@params.register
def _(what: Structure) -> int:
    return what.params()


@params.register
def _(what: nn.Module) -> int:
    return sum(p.numel() for p in what.parameters())


def image_size(model: Any) -> tuple[int, int, int]:
    """(channels, height, width) of the image that a timm model takes."""
    usual, arguments = getattr(model, "pretrained_cfg", None) or {}, arguments_of(model)
    channels, *size = usual.get("input_size", (3, 224, 224))
    # Not every model keeps the size that it was made for where timm's ViTs do.
    known = getattr(getattr(model, "patch_embed", None), "img_size", None) or arguments.get("img_size") or size
    height, width = (known, known) if isinstance(known, int) else known
    return getattr(model, "in_chans", arguments.get("in_chans") or channels), height, width
