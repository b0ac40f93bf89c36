"""The timm model families that can be cut: where their blocks are, and which tensors an attention dim or MLP unit owns.

Everything that differs between families stands in the tables below; gates and the cut read them and know no family.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from timm.layers import Attention, AttentionRope, GluMlp, Mlp, SwiGLU
from timm.models.eva import Eva, EvaAttention, EvaBlock, EvaBlockPostNorm
from timm.models.swin_transformer import SwinTransformer, SwinTransformerBlock, WindowAttention
from timm.models.vision_transformer import (
    Block,
    DiffParallelScalingBlock,
    ParallelScalingBlock,
    ParallelThingsBlock,
    ResPostBlock,
    VisionTransformer,
)
from torch import Tensor, nn

from slimsweep.errors import RefusedInput
from slimsweep.slimming.structure import FAMILIES, Layer, Shape, Structure, macs, params

Granularity = str  # "dim", "head" or "uniform"

# timm ships without types and torch types every attribute of a Module as Tensor | Module: timm's models and blocks are Any.
Timm = Any


@dataclass(frozen=True)
class Architecture:
    """How one of timm's model classes is built."""

    model: type[nn.Module]
    block: type[nn.Module]
    attention: tuple[type[nn.Module], ...]
    blocks: Callable[[Timm], list[Timm]]
    whole_heads: str = ""  # why attention can only lose whole heads, where it can only lose whole heads
    no_tokens: str = ""  # why tokens cannot leave, where they cannot


ARCHITECTURES = (
    Architecture(VisionTransformer, Block, (Attention,), lambda m: list(m.blocks)),
    Architecture(
        Eva,
        EvaBlock,
        (EvaAttention, AttentionRope),
        lambda m: list(m.blocks),
        whole_heads="rotary embeddings couple the dims of a head in pairs",
    ),
    Architecture(
        SwinTransformer,
        SwinTransformerBlock,
        (WindowAttention,),
        lambda m: [block for stage in m.layers for block in stage.blocks],
        no_tokens="its windows and patch merging need every position",
    ),
)

REFUSED_BLOCKS = {
    ParallelScalingBlock: "its parallel blocks compute attention and MLP in one projection",
    DiffParallelScalingBlock: "its parallel differential blocks compute attention and MLP in one projection",
    ParallelThingsBlock: "its parallel blocks hold several attentions and MLPs each",
    ResPostBlock: "its post-norm blocks normalise each branch's output after the cut",
    EvaBlockPostNorm: "its post-norm blocks normalise each branch's output after the cut",
}

# The tensors with one row (or entry) for each attention dim, and how often the heads are stacked in them.
# "qkv.weight" has 3 x heads x head_dim rows; not every attention class has all of them.
ATTENTION_ROWS = {
    "qkv.weight": 3,
    "qkv.bias": 3,
    "q_proj.weight": 1,
    "q_proj.bias": 1,
    "k_proj.weight": 1,
    "k_proj.bias": 1,
    "v_proj.weight": 1,
    "v_proj.bias": 1,
    "q_bias": 1,
    "k_bias": 1,
    "v_bias": 1,
    "qkv.q_bias": 1,
    "qkv.v_bias": 1,
    "gate.weight": 1,
    "gate.bias": 1,
}
# Those whose first stack is the query's.
QUERY_FIRST = ("qkv.weight", "qkv.bias", "q_proj.weight", "q_proj.bias", "q_bias", "qkv.q_bias")

# The projections with a row for each MLP unit, and how often the units are stacked in them.
MLP_ROWS: dict[type[nn.Module], dict[str, int]] = {
    Mlp: {"fc1": 1},
    GluMlp: {"fc1": 2},
    SwiGLU: {"fc1_g": 1, "fc1_x": 1},
}


def architecture_of(model: Timm) -> Architecture:
    """The family of a timm model.

    Raises:
        ValueError: the model, or one of its blocks, is of a kind that cannot be cut exactly; says which and why.
    """
    name = model_name(model)
    architecture = next((f for f in ARCHITECTURES if isinstance(model, f.model)), None)
    if architecture is None:
        known = ", ".join(f.model.__name__ for f in ARCHITECTURES)
        raise RefusedInput(f"{name} is a {type(model).__name__}, which slimsweep cannot cut; it cuts timm's {known} models")
    if hasattr(model, "structure"):  # its blocks were looked at before the cut, which may have taken branches out of them
        return architecture
    for block in architecture.blocks(model):
        reason = REFUSED_BLOCKS.get(type(block))
        if reason is not None or not isinstance(block, architecture.block):
            raise RefusedInput(f"{name} cannot be cut: {reason or f'its blocks are {type(block).__name__}'}")
        if not isinstance(block.attn, architecture.attention):
            raise RefusedInput(
                f"{name} cannot be cut: its attention is {type(block.attn).__name__}, not {architecture.attention[0].__name__}"
            )
        if type(block.mlp) not in MLP_ROWS:
            raise RefusedInput(f"{name} cannot be cut: its MLP is {type(block.mlp).__name__}, which has units of another kind")
    return architecture


def refused_families(model: Timm) -> dict[str, str]:
    """The gate families that this model cannot lose exactly, and why."""
    architecture = architecture_of(model)
    blocks = architecture.blocks(model)
    reasons: dict[str, str] = {}
    if any(not isinstance(getattr(b.attn, "norm", nn.Identity()), nn.Identity) for b in blocks):
        reasons["attention"] = "a norm over all attention dims would change when some leave"
    elif any(getattr(b.attn, "num_kv_groups", 1) > 1 for b in blocks):
        reasons["attention"] = "grouped queries share keys and values between heads"
    if any(not isinstance(b.mlp.norm, nn.Identity) for b in blocks):
        reasons["mlp"] = "a norm over the MLP units would change when some leave"
    pool = getattr(model, "global_pool", "token")
    if architecture.no_tokens:
        reasons["token"] = architecture.no_tokens
    elif model.dynamic_img_size:
        reasons["token"] = "with dynamic_img_size a patch has no fixed position"
    elif not isinstance(model.patch_drop, nn.Identity | None):
        reasons["token"] = "patch dropout already removes tokens at random"
    elif pool in ("prr", ""):
        reasons["token"] = f"global_pool={pool!r} returns or refines every token"
    return reasons


def whole_heads_reason(model: Timm) -> str:
    """Why attention can only lose whole heads; empty where single dims can leave."""
    architecture = architecture_of(model)
    if any(not isinstance(getattr(b.attn, "q_norm", nn.Identity()), nn.Identity) for b in architecture.blocks(model)):
        return "norms of queries and keys share statistics over the dims of a head"
    return architecture.whole_heads


def shape_of(model: Timm, granularity: Granularity, families: tuple[str, ...]) -> Shape:
    """The sizes of a dense model whose `families` carry gates of `granularity`, and its costs."""
    architecture = architecture_of(model)
    windowed = architecture.model is SwinTransformer
    patches = model.patch_embed.num_patches
    layers = []
    names = {block: name for name, block in model.named_modules()}
    for block in architecture.blocks(model):
        attention, mlp = block.attn, block.mlp
        heads = attention.num_heads
        inner = attention.proj.in_features
        hidden = mlp.fc2.in_features
        rows = [tensor_at(attention, name) for name in attention_rows(attention)]
        attention_params = sum(r.numel() for r in rows if isinstance(r, nn.Parameter)) + attention.proj.weight.numel()
        mlp_params = mlp.fc2.weight.numel() + _size(*(getattr(mlp, name) for name in MLP_ROWS[type(mlp)]))
        tables = attention.relative_position_bias_table.numel() if windowed else 0
        layers.append(
            Layer(
                name=names[block],
                embed_dim=attention.proj.out_features,
                heads=heads,
                head_dim=inner // heads,
                hidden=hidden,
                tokens=math.prod(block.input_resolution) if windowed else patches,
                prefix=0 if windowed else model.num_prefix_tokens,
                window=block.window_area if windowed else 0,
                attention_rows=_padded_positions(block) if windowed else 0,
                attention_matrices=4 + (getattr(attention, "gate", None) is not None),
                mlp_matrices=1 + sum(MLP_ROWS[type(mlp)].values()),
                attention_params_per_dim=attention_params // inner,
                attention_params_per_head=tables // heads,
                attention_params_fixed=_size(block.norm1, *(getattr(attention, n, None) for n in ("q_norm", "k_norm"))),
                mlp_params_per_unit=mlp_params // hidden,
                mlp_params_fixed=_size(block.norm2),
            )
        )
    pool: Timm = getattr(model, "attn_pool", None)
    pooled = 2 * pool.kv.in_features * (pool.kv.out_features // 2 + pool.latent_len) if hasattr(pool, "kv") else 0
    shapes = {
        "attention": tuple(
            (1 if granularity == "uniform" else x.heads, 1 if granularity == "head" else x.head_dim) for x in layers
        ),
        "mlp": tuple((x.hidden,) for x in layers),
        "token": tuple((x.tokens,) for x in layers),
    }
    grid = model.patch_embed.grid_size
    # What the gates cannot change is the rest of what is counted; so stems, merging layers and heads need no formula.
    draft = Shape(
        layers=tuple(layers),
        grid=(grid[0], grid[1]),
        gate_shapes={f: shapes[f] for f in FAMILIES if f in families},
        fixed_macs=0,
        fixed_params=0,
        pool_macs_per_token=pooled,
        least_tokens=0 if windowed or (model.num_prefix_tokens and getattr(model, "global_pool", "") == "token") else 1,
    )
    blocks = Structure(draft, {})
    return replace(draft, fixed_macs=macs(model) - blocks.macs(), fixed_params=params(model) - blocks.params())


def attention_rows(attention: Timm) -> dict[str, int]:
    """The entries of ATTENTION_ROWS that this attention has."""
    return {name: stacks for name, stacks in ATTENTION_ROWS.items() if tensor_at(attention, name) is not None}


def tensor_at(module: Timm, name: str) -> Tensor | None:
    """The tensor of a dotted name, or None where the module has none."""
    for part in name.split("."):
        module = getattr(module, part, None)
    return module


def model_name(model: nn.Module) -> str:
    """timm's name of a model, or its class where timm did not make it."""
    return (getattr(model, "pretrained_cfg", None) or {}).get("architecture") or type(model).__name__


def _padded_positions(block: Timm) -> int:
    """Positions that windowed attention computes: the resolution, padded to whole windows."""
    rows, columns = (
        -(-size // window) * window for size, window in zip(block.input_resolution, block.window_size, strict=True)
    )
    return rows * columns


def _size(*modules: nn.Module | None) -> int:
    return sum(p.numel() for module in modules if module is not None for p in module.parameters())
