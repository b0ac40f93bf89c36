"""The timm architectures that can be cut, one entry each: blocks, tokens, and the tensors of attention dims and MLP units.

All that differs between architectures stands in the tables below. Gates, structures and the cut read them and know no model
class.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

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
from slimsweep.slimming.eva_attention import as_attention_rope, with_fewer_key_heads
from slimsweep.slimming.wrapped_models import is_compiled

# timm ships without types and torch types every attribute of a Module as Tensor | Module: timm's models and blocks are Any.
Timm = Any


class BlockTokens(NamedTuple):
    """The tokens that one block sees."""

    patches: int  # at its input
    prefix: int  # tokens that never leave: class, distillation, registers
    window: int = 0  # keys that a query sees; 0 where attention is over all tokens
    padded: int = 0  # tokens that windowed attention computes, its padding included; 0 where it is over all tokens


Scale = Tensor | float | None


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """How one of timm's model classes is built.

    Attributes:
        model: the class.
        block: the class that all its blocks must have.
        attention: the classes that its blocks' attention may have, each with what completes a cut: a function that takes the
            attention, whose tensors and sizes are cut already, and returns the module that takes its place.
        blocks: (model) to its blocks, in order.
        before: (model, index of a block) to what its input passes through on the way from the block before.
        refused_blocks: block classes that cannot be cut exactly, and why.
        whole_heads: why attention can only lose whole heads; "" where single dims can leave.
        no_tokens: why tokens cannot leave; "" where they can.
        tokens: (model, block) to the tokens that the block sees.
        rotary: (model) to its rotary embeddings: none, one that all heads of a block share, or one per head.
        pools_prefix: (model) to whether its pooling takes prefix tokens in, where it pools.
        scales: (block) to what the outputs of its attention and of its MLP are multiplied by before they are added to the
            residual stream: (embed_dim,) or 1; None where the branch's last layer has its tokens in another order.
    """

    model: type[nn.Module]
    block: type[nn.Module]
    attention: Mapping[type[nn.Module], Callable[[Timm], nn.Module]]
    blocks: Callable[[Timm], list[Timm]] = lambda model: list(model.blocks)
    before: Callable[[Timm, int], nn.Module] = lambda model, index: nn.Identity()
    refused_blocks: Mapping[type[nn.Module], str] = field(default_factory=dict)
    whole_heads: str = ""
    no_tokens: str = ""
    tokens: Callable[[Timm, Timm], BlockTokens] = lambda model, block: BlockTokens(
        model.patch_embed.num_patches, model.num_prefix_tokens
    )
    rotary: Callable[[Timm], Literal["none", "shared", "per head"]] = lambda model: "none"
    pools_prefix: Callable[[Timm], bool] = lambda model: False
    scales: Callable[[Timm], tuple[Scale, Scale]] = lambda block: (1.0, 1.0)


def as_it_is(attention: Timm) -> Timm:
    """Attention that is complete once its tensors and sizes are cut."""
    return attention


def tokens_in_windows(model: Timm, block: Timm) -> BlockTokens:
    """Of a Swin block, which computes its resolution padded to whole windows."""
    rows, columns = (
        -(-size // window) * window for size, window in zip(block.input_resolution, block.window_size, strict=True)
    )
    return BlockTokens(math.prod(block.input_resolution), prefix=0, window=block.window_area, padded=rows * columns)


def merging_before(model: Timm, index: int) -> nn.Module:
    """What merges the patches in front of a Swin block: the first block of each stage but the first one has it."""
    for stage in model.layers:
        if index == 0:
            return stage.downsample
        index -= len(stage.blocks)
    return nn.Identity()


def layer_scales(block: Timm) -> tuple[Scale, Scale]:
    """Of a ViT block, whose LayerScale modules are identities where it has none."""
    return getattr(block.ls1, "gamma", 1.0), getattr(block.ls2, "gamma", 1.0)


def eva_scales(block: Timm) -> tuple[Scale, Scale]:
    """Of an Eva block, which holds them as parameters of its own."""
    return tuple(1.0 if gamma is None else gamma for gamma in (block.gamma_1, block.gamma_2))  # type: ignore[return-value]


POST_NORM = "its post-norm blocks normalise each branch's output after the cut"

ARCHITECTURES = (
    Architecture(
        model=VisionTransformer,
        block=Block,
        attention={Attention: as_it_is},
        refused_blocks={
            ParallelScalingBlock: "its parallel blocks compute attention and MLP in one projection",
            DiffParallelScalingBlock: "its parallel differential blocks compute attention and MLP in one projection",
            ParallelThingsBlock: "its parallel blocks hold several attentions and MLPs each",
            ResPostBlock: POST_NORM,
        },
        pools_prefix=lambda model: model.pool_include_prefix,
        scales=layer_scales,
    ),
    Architecture(
        model=Eva,
        block=EvaBlock,
        attention={EvaAttention: as_attention_rope, AttentionRope: with_fewer_key_heads},
        refused_blocks={EvaBlockPostNorm: POST_NORM},
        whole_heads="rotary embeddings couple the dims of a head in pairs",
        rotary=lambda model: "per head" if model.rope_mixed else "shared",
        pools_prefix=lambda model: model.attn_pool is not None,  # pooling by attention takes them in, the mean does not
        scales=eva_scales,
    ),
    Architecture(
        model=SwinTransformer,
        block=SwinTransformerBlock,
        attention={WindowAttention: as_it_is},
        blocks=lambda model: [block for stage in model.layers for block in stage.blocks],
        before=merging_before,
        no_tokens="its windows and patch merging need every position",
        tokens=tokens_in_windows,
        scales=lambda block: (None, 1.0),
    ),
)

# The tensors with one row (or entry) per attention dim, and how often the heads are stacked in them.
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

# The tensors with one column per head, whatever the head's width: Swin's table of relative positions.
HEAD_COLUMNS = ("relative_position_bias_table",)

# The projections with a row per MLP unit, and how often the units are stacked in them.
MLP_ROWS: dict[type[nn.Module], dict[str, int]] = {
    Mlp: {"fc1": 1},
    GluMlp: {"fc1": 2},
    SwiGLU: {"fc1_g": 1, "fc1_x": 1},
}


def architecture_of(model: Timm) -> Architecture:
    """The architecture of a timm model.

    Raises:
        ValueError: the model, or one of its blocks, is of a kind that cannot be cut exactly; says which and why.
    """
    name = model_name(model)
    architecture = next((a for a in ARCHITECTURES if isinstance(model, a.model)), None)
    if architecture is None:
        known = ", ".join(a.model.__name__ for a in ARCHITECTURES)
        kinds = tuple(a.model for a in ARCHITECTURES)
        inside = next((path for path, module in model.named_modules() if isinstance(module, kinds)), "")
        hint = f"; its {inside} is one: give model.{inside}" if inside else ""
        raise RefusedInput(
            f"{name} is a {type(model).__name__}, which slimsweep cannot cut; it cuts timm's {known} models{hint}"
        )
    if hasattr(model, "structure"):  # its blocks were looked at before the cut, which may have taken branches out of them
        return architecture
    for block in architecture.blocks(model):
        reason = architecture.refused_blocks.get(type(block))
        if is_compiled(block):
            reason = (
                "its blocks are wrapped by torch.compile(block): compile them in place with block.compile(), or after the cut"
            )
        if reason is not None or not isinstance(block, architecture.block):
            raise RefusedInput(f"{name} cannot be cut: {reason or f'its blocks are {type(block).__name__}'}")
        if not isinstance(block.attn, tuple(architecture.attention)):
            wanted = next(iter(architecture.attention)).__name__
            raise RefusedInput(f"{name} cannot be cut: its attention is {type(block.attn).__name__}, not {wanted}")
        if type(block.mlp) not in MLP_ROWS:
            raise RefusedInput(f"{name} cannot be cut: its MLP is {type(block.mlp).__name__}, which has units of another kind")
    return architecture


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
