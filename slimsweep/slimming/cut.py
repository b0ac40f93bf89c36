"""The cut: a model of smaller matrices and fewer tokens that computes what the gated one computes.

The blocks stay timm's own, with smaller linear layers. `hub.py` saves and loads what comes out.
"""

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import to_2tuple
from torch import Tensor, nn

from slimsweep.errors import RefusedInput
from slimsweep.slimming.architectures import (
    HEAD_COLUMNS,
    MLP_ROWS,
    QUERY_FIRST,
    Architecture,
    Timm,
    architecture_of,
    attention_rows,
    model_name,
    tensor_at,
)
from slimsweep.slimming.gate_families import token_refusal
from slimsweep.slimming.gate_modules import subclass
from slimsweep.slimming.gates import GatedModel, fold_gates
from slimsweep.slimming.plain_layers import check_layers
from slimsweep.slimming.structure import Structure
from slimsweep.slimming.timm_arguments import arguments_of, set_arguments
from slimsweep.slimming.wrapped_models import unwrapped

CUT_ARCHITECTURE = "slimmed_vit"  # timm's name of all cut models


def slim(gated: nn.Module, structure: Structure) -> nn.Module:
    """The cut model: gate values folded into the weights, what the structure drops gone.

    Args:
        gated: what `add_gates` returned, a plain timm model, or one that has been cut already; left alone.
        structure: what to keep of the dense model.

    Raises:
        ValueError: the structure is of another model, or keeps what has been cut already.
    """
    gated = unwrapped(gated)
    if not isinstance(structure, Structure):
        raise RefusedInput(
            f"the structure is a {type(structure).__name__}: give what solve returns, slim(gated, solve(gated, 0.5))"
        )
    model: Timm = fold_gates(gated) if isinstance(gated, GatedModel) else copy.deepcopy(gated)
    check_layers(model)  # of a gated model too: its layers may have been replaced since gates were added
    model.zero_grad(set_to_none=True)  # a deep copy takes the last gradients along
    base, args = model_name(model), arguments_of(model)
    cut_before = hasattr(model, "structure")
    cut(model, structure)
    set_arguments(model, args if cut_before else {"base": base, "base_args": args})
    if getattr(model, "pretrained_cfg", None):
        model.pretrained_cfg = {**model.pretrained_cfg, "architecture": CUT_ARCHITECTURE}
        model.default_cfg = model.pretrained_cfg
    return model


def cut(model: Timm, structure: Structure) -> None:
    """Cut a timm model in place, a plain one or one that has been cut. What is kept of its weights is kept exactly.

    Raises:
        ValueError: the structure is of another model, or keeps what has been cut already.
    """
    structure.validate()
    architecture = architecture_of(model)
    blocks, rotary = architecture.blocks(model), architecture.rotary(model)
    before: Structure | None = getattr(model, "structure", None)
    if before is None:
        check_sizes(model, structure)
        before = structure.shape.full()
    elif not before.holds(structure):
        raise ValueError(
            f"this {model_name(model)} has been cut already, to a structure that does not hold all of this one; "
            "cut its dense model instead"
        )
    arriving, device = structure.token_mask(0).new_ones(()), next(model.parameters()).device
    with torch.no_grad():
        for index, block in enumerate(blocks):
            tokens, attention = structure.token_mask(index), structure.attention_mask(index)
            if arriving.shape != tokens.shape:  # the first layer, and Swin's stages, which lose no tokens but merge them
                arriving = torch.ones_like(tokens)
            cut_attention(block, architecture, remaining_dims(attention, before.attention_mask(index)))
            cut_mlp(block, structure.mlp_mask(index)[before.mlp_mask(index)])
            lost = not tokens.all()
            heads = attention.any(1).nonzero().flatten()
            own_embedding = rotary == "per head" and 0 < len(heads) < len(attention)
            if not torch.equal(tokens, arriving) or own_embedding or (rotary != "none" and lost):
                subclass(block, SelectingBlock)
            if isinstance(block, SelectingBlock):
                block.select(arriving, tokens, model.num_prefix_tokens, heads if own_embedding else None, device)
            arriving = tokens
    if not arriving.all():
        subclass(model, FewerTokens)
    model.structure = structure


def remaining_dims(kept: Tensor, before: Tensor) -> Tensor:
    """Which attention dims of a layer that was cut to `before` are `kept`: (heads, head_dim) of what it has now.

    Args:
        kept: (heads, head_dim) of the dense layer.
        before: the same; a head narrower than the widest was padded by zeros, which nothing keeps.
    """
    width = int(before.sum(1).max())
    rows = [F.pad(kept[head][before[head]], (0, width - int(before[head].sum()))) for head in before.any(1).nonzero().flatten()]
    return torch.stack(rows) if rows else kept.new_zeros(0, 0)


def check_sizes(model: Timm, structure: Structure) -> None:
    """Raise ValueError, in one sentence, where a structure's dense sizes are not this model's."""
    layers = structure.shape.layers
    architecture = architecture_of(model)
    blocks = architecture.blocks(model)
    if len(blocks) != len(layers):
        raise ValueError(f"the structure has {len(layers)} layers, {model_name(model)} has {len(blocks)}")
    for block, layer in zip(blocks, layers, strict=True):
        attention = block.attn
        sizes = attention.proj.out_features, attention.num_heads, attention.proj.in_features, block.mlp.fc2.in_features
        if sizes != (layer.embed_dim, layer.heads, layer.heads * layer.head_dim, layer.hidden):
            raise ValueError(f"the structure is of another model: its {layer.name} does not have the sizes of this one's")
    tokens = architecture.tokens(model, blocks[0])
    if layers[0].prefix != tokens.prefix:
        raise ValueError(f"the structure is of a model of {layers[0].prefix} prefix tokens, this one has {tokens.prefix}")
    last = structure.token_mask(len(layers) - 1)
    if last.all():
        return
    if (grid := tuple(model.patch_embed.grid_size)) != structure.shape.grid:
        raise ValueError(
            f"the structure chooses among {len(last)} patches ({words(structure.shape.grid)}), "
            f"this model has {math.prod(grid)} ({words(grid)}); keep its image size"
        )
    if reason := token_refusal(model, architecture):
        raise ValueError(f"the structure drops tokens, which this {model_name(model)} cannot lose: {reason}")
    if not last.any() and needs_patches(model):
        raise ValueError(
            f"the structure keeps no patch in the last layer, so global_pool={model.global_pool!r} has none to pool; "
            "keep its pooling"
        )


def words(grid: Sequence[int]) -> str:
    """A grid of patches in words."""
    return " x ".join(str(side) for side in grid)


def needs_patches(model: Timm, pool: str | None = None) -> bool:
    """Whether a model has no output without a patch token, under its own pooling or another.

    Args:
        model: one whose tokens can leave.
        pool: timm's name of a pooling.
    """
    kind = model.global_pool if pool is None else pool
    return kind not in ("token", "") and not (model.num_prefix_tokens and architecture_of(model).pools_prefix(model))


def cut_attention(block: Timm, architecture: Architecture, mask: Tensor) -> None:
    """Keep some attention dims of a block.

    Args:
        block: cut in place.
        architecture: the model's; says what completes the cut of its attention.
        mask: (heads, head_dim) bool, of the sizes that the block has now.
    """
    attention = block.attn
    if bool(mask.all()):
        return
    heads = mask.any(1).nonzero().flatten()
    if len(heads) == 0:
        block.attn = RemovedBranch(attention.proj.bias)
        block.norm1 = nn.Identity()
        return
    width = int(mask.sum(1).max())
    # A head narrower than the widest (only in masks made by hand) is padded with rows of zeros: negative in every stack.
    dims = [mask[h].nonzero().flatten() + h * mask.shape[1] for h in heads]
    order = torch.stack([F.pad(d, (0, width - len(d)), value=-4 * mask.numel()) for d in dims])
    # timm's attention divides logits by sqrt(width); the gated one divided them by sqrt(head_dim).
    stretch = math.sqrt(width / mask.shape[1])
    stack_size = mask.numel()
    for name, stacks in attention_rows(attention).items():
        rows = torch.cat([order.flatten() + stack * stack_size for stack in range(stacks)])
        *path, tensor = name.split(".")
        module = attention.get_submodule(".".join(path))
        value = select_rows(getattr(module, tensor), rows)
        if name in QUERY_FIRST:
            value[: order.numel()] *= stretch
        replace_tensor(module, tensor, value)
    replace_tensor(attention.proj, "weight", select_rows(attention.proj.weight.T, order.flatten()).T.contiguous())
    for name in HEAD_COLUMNS:
        if (columns := tensor_at(attention, name)) is not None:
            replace_tensor(attention, name, columns[:, heads].clone())
    attention.num_heads, attention.head_dim, attention.attn_dim = len(heads), width, order.numel()
    attention.scale = width**-0.5
    block.attn = next(complete for kind, complete in architecture.attention.items() if isinstance(attention, kind))(attention)


def cut_mlp(block: Timm, mask: Tensor) -> None:
    """Keep some MLP units of a block.

    Args:
        block: cut in place.
        mask: (hidden,) bool, of the units that the block has now.
    """
    mlp = block.mlp
    if bool(mask.all()):
        return
    units = mask.nonzero().flatten()
    if len(units) == 0:
        block.mlp = RemovedBranch(mlp.fc2.bias)
        block.norm2 = nn.Identity()
        return
    for name, stacks in MLP_ROWS[type(mlp)].items():
        linear = getattr(mlp, name)
        rows = torch.cat([units + stack * len(mask) for stack in range(stacks)])
        replace_tensor(linear, "weight", select_rows(linear.weight, rows))
        if linear.bias is not None:
            replace_tensor(linear, "bias", select_rows(linear.bias, rows))
    replace_tensor(mlp.fc2, "weight", mlp.fc2.weight[:, units].clone())


def select_rows(tensor: Tensor, rows: Tensor) -> Tensor:
    """Rows of a tensor in a copy; zeros for a negative row."""
    rows = rows.to(tensor.device)
    return tensor[rows.clamp(min=0)] * (rows >= 0).to(tensor.dtype).view(-1, *[1] * (tensor.ndim - 1))


def replace_tensor(module: nn.Module, name: str, value: Tensor) -> None:
    """Replace a parameter or buffer by one of another size, and update the sizes that a linear layer states."""
    old = getattr(module, name)
    if isinstance(old, nn.Parameter):
        setattr(module, name, nn.Parameter(value, requires_grad=old.requires_grad))
    else:
        setattr(module, name, value)
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape


class RemovedBranch(nn.Module):
    """What a branch without units still adds: the bias of its last projection, (embed_dim,), to every token."""

    def __init__(self, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.bias = bias

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """(batch, tokens, embed_dim) to the same shape; further arguments of the branch are ignored."""
        return torch.zeros_like(x) if self.bias is None else self.bias.to(x.dtype).expand_as(x)


class SelectingBlock(nn.Module):
    """Mixed in before timm's block class: drops the tokens that leave here, and the rotary embeddings of those that left."""

    token_index: Tensor
    patch_index: Tensor
    head_index: Tensor | None
    expected: int | None

    def select(self, arriving: Tensor, kept: Tensor, prefix: int, heads: Tensor | None, device: torch.device) -> None:
        """Set what stays.

        Args:
            arriving: (patches,) bool, on the dense grid: the patch tokens at the block's input.
            kept: (patches,) bool: those of them that stay.
            prefix: how many prefix tokens come first; they stay.
            heads: (kept heads,) indices of the dense heads, where each head has its own rotary embedding and some left.
            device: of the model: a block that lost both branches may have no parameter left.
        """
        among = kept[arriving].nonzero().flatten()  # positions among the tokens that arrive
        index = torch.cat([torch.arange(prefix), among + prefix]) if not torch.equal(arriving, kept) else torch.arange(0)
        self.register_buffer("token_index", index.to(device), persistent=False)
        # Where all are there, none are chosen: the model may go on to other image sizes.
        self.register_buffer(
            "patch_index", (torch.arange(0) if kept.all() else kept.nonzero().flatten()).to(device), persistent=False
        )
        self.expected = None if kept.all() else prefix + int(arriving.sum())
        self.register_buffer("head_index", None if heads is None else heads.to(device), persistent=False)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.expected is not None and x.shape[1] != self.expected:
            raise ValueError(
                f"this block drops tokens by their position among {self.expected}, and got {x.shape[1]}: "
                "keep the image size that the model was cut for, and drop no other tokens"
            )
        if len(self.token_index):
            x = x.index_select(1, self.token_index)
        rope = kwargs.get("rope")
        if rope is not None:  # (patches, dims), or (heads, patches, dims) where each head has its own
            if len(self.patch_index):
                rope = rope.index_select(-2, self.patch_index)
            if self.head_index is not None:
                rope = rope.index_select(0, self.head_index)
            kwargs["rope"] = rope
        return super().forward(x, *args, **kwargs)


class FewerTokens(nn.Module):
    """Mixed in before timm's model class: says what a model that lost tokens can no longer do."""

    structure: Structure
    patch_embed: Timm
    global_pool: str

    def _keep_grid(self, grid: Sequence[int], size: Sequence[int]) -> None:
        wanted = self.structure.shape.grid
        if tuple(grid) != wanted:
            raise ValueError(
                f"this model lost some of its {words(wanted)} patches, so it cannot take images of {words(size)} pixels, which "
                f"have {words(grid)}: cut its dense model again at that size, or keep all tokens "
                "(add_gates(model, families=['attention', 'mlp']))"
            )

    def set_input_size(self, img_size: Any = None, patch_size: Any = None, **kwargs: Any) -> None:
        """timm's, where the grid of patches stays.

        Raises:
            ValueError: it would change.
        """
        embed = self.patch_embed
        size = tuple(embed.img_size) if img_size is None else to_2tuple(img_size)
        patch = tuple(embed.patch_size) if patch_size is None else to_2tuple(patch_size)
        if (size, patch) != (tuple(embed.img_size), tuple(embed.patch_size)):
            self._keep_grid([pixels // side for pixels, side in zip(size, patch, strict=True)], size)
        super().set_input_size(img_size, patch_size, **kwargs)  # type: ignore[misc]  # timm's class comes next

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """timm's.

        Raises:
            ValueError: the new pooling needs patch tokens, and none is left.
        """
        if global_pool and needs_patches(self, global_pool) and not self.structure.token_mask(-1).any():
            raise ValueError(
                f"no patch token is left in this model's last layer, so global_pool={global_pool!r} has none to pool: "
                "keep its pooling"
            )
        super().reset_classifier(num_classes, global_pool)  # type: ignore[misc]

    def forward_features(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        self._keep_grid(self.patch_embed.dynamic_feat_size(x.shape[-2:]), x.shape[-2:])
        return super().forward_features(x, *args, **kwargs)  # type: ignore[misc]

    def forward_intermediates(self, x: Tensor, *args: Any, output_fmt: str = "NCHW", **kwargs: Any) -> Any:
        if output_fmt == "NCHW":
            raise ValueError("this model lost tokens, so its features are no full grid: ask for output_fmt='NLC'")
        self._keep_grid(self.patch_embed.dynamic_feat_size(x.shape[-2:]), x.shape[-2:])
        return super().forward_intermediates(x, *args, output_fmt=output_fmt, **kwargs)  # type: ignore[misc]
