"""The cut: a model of smaller matrices and fewer tokens that computes what the gated one computes.

The blocks stay timm's own, with smaller linear layers. `hub.py` saves and loads what comes out.
"""

import copy
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
    model: Timm = fold_gates(gated) if isinstance(gated, GatedModel) else copy.deepcopy(gated)
    if not hasattr(model, "structure"):
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
    arriving = structure.token_mask(0).new_ones(())
    with torch.no_grad():
        for index, block in enumerate(blocks):
            tokens, attention = structure.token_mask(index), structure.attention_mask(index)
            if arriving.shape != tokens.shape:  # the first layer, and Swin's stages, which lose no tokens but merge them
                arriving = torch.ones_like(tokens)
            cut_attention(block, architecture, remaining_dims(attention, before.attention_mask(index)))
            cut_mlp(block, structure.mlp_mask(index)[before.mlp_mask(index)])
            heads = attention.any(1).nonzero().flatten()
            own_embedding = rotary == "per head" and 0 < len(heads) < len(attention)
            if not torch.equal(tokens, arriving) or own_embedding or (rotary != "none" and not tokens.all()):
                subclass(block, SelectingBlock)
            if isinstance(block, SelectingBlock):
                block.select(arriving, tokens, model.num_prefix_tokens, heads if own_embedding else None)
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
    tokens, wanted = architecture.tokens(model, blocks[0]), structure.token_mask(0)
    if layers[0].prefix != tokens.prefix:
        raise ValueError(f"the structure is of a model of {layers[0].prefix} prefix tokens, this one has {tokens.prefix}")
    if not wanted.all() and len(wanted) != tokens.patches:
        raise ValueError(
            f"the structure chooses among {len(wanted)} patches, this model has {tokens.patches}; keep its image size"
        )


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

    def select(self, arriving: Tensor, kept: Tensor, prefix: int, heads: Tensor | None) -> None:
        """Set what stays.

        Args:
            arriving: (patches,) bool, on the dense grid: the patch tokens at the block's input.
            kept: (patches,) bool: those of them that stay.
            prefix: how many prefix tokens come first; they stay.
            heads: (kept heads,) indices of the dense heads, where each head has its own rotary embedding and some left.
        """
        among = kept[arriving].nonzero().flatten()  # positions among the tokens that arrive
        device = next(self.parameters()).device
        index = torch.cat([torch.arange(prefix), among + prefix]) if not torch.equal(arriving, kept) else torch.arange(0)
        self.register_buffer("token_index", index.to(device), persistent=False)
        self.register_buffer("patch_index", kept.nonzero().flatten().to(device), persistent=False)
        self.register_buffer("head_index", None if heads is None else heads.to(device), persistent=False)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if len(self.token_index):
            x = x.index_select(1, self.token_index)
        rope = kwargs.get("rope")
        if rope is not None:  # (patches, dims), or (heads, patches, dims) where each head has its own
            if len(self.patch_index) < rope.shape[-2]:
                rope = rope.index_select(-2, self.patch_index)
            if self.head_index is not None:
                rope = rope.index_select(0, self.head_index)
            kwargs["rope"] = rope
        return super().forward(x, *args, **kwargs)


class FewerTokens(nn.Module):
    """Mixed in before timm's model class: says what a model that lost tokens can no longer give."""

    def forward_intermediates(self, x: Tensor, *args: Any, output_fmt: str = "NCHW", **kwargs: Any) -> Any:
        if output_fmt == "NCHW":
            raise ValueError("this model lost tokens, so its features are no full grid: ask for output_fmt='NLC'")
        return super().forward_intermediates(x, *args, output_fmt=output_fmt, **kwargs)  # type: ignore[misc]
