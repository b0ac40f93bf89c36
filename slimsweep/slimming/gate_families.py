"""The families of gates: attention dims, MLP units, tokens. All that differs between them stands in one entry each."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from slimsweep.slimming.architectures import Architecture, Timm, attention_rows
from slimsweep.slimming.gate_modules import (
    BiasedAttention,
    ColumnGate,
    RowGate,
    TokenBias,
    TokenGatedBlock,
    parametrize_rows,
    subclass,
)
from slimsweep.slimming.removal_order import Steps, attention_steps, mlp_steps, token_steps
from slimsweep.slimming.shape import Layer, Shape

KEEPS_TOKENS = ("prr", "")  # timm's names of poolings that need every token
Granularity = Literal["dim", "head", "uniform"]
TokenGate = Literal["linear", "tanh"]


@dataclass(frozen=True, kw_only=True)
class GateFamily:
    """One family of gates. Each block of a gated model holds the parameter behind its gates as `{name}_gate`.

    Attributes:
        gate_shape: (layer, granularity of attention gates) to the shape of that layer's gates.
        macs: (layer) to the multiply-accumulates that the layer's gates of this family can remove.
        refusal: (dense model, its architecture) to the reason why the model cannot lose this family exactly; "" if it can.
        attach: (block, parameter, shape, index of the layer, kind of token gate) makes the gates act in a block.
        effective: (block) to its gates as they act, in their shape.
        parameter_of: (block, gates) to the parameter that makes its gates act so; raises ValueError for impossible gates.
        steps: (shape, scores per layer, floor, round_to, depth) to the order in which the family leaves; attention takes
            keep_one too.
        modules: what `attach` adds to a block.
    """

    gate_shape: Callable[[Layer, str], tuple[int, ...]]
    macs: Callable[[Layer], Any]
    refusal: Callable[[Timm, Architecture], str]
    attach: Callable[[Timm, nn.Parameter, Shape, int, str], None]
    effective: Callable[[Timm], Tensor]
    parameter_of: Callable[[Timm, Tensor], Tensor]
    steps: Callable[..., Steps]
    modules: tuple[str, ...] = ()


def attention_gate_shape(layer: Layer, granularity: str) -> tuple[int, ...]:
    """One gate per head and dim ("dim"), per head ("head"), or per dim, shared by the layer's heads ("uniform")."""
    return (1 if granularity == "uniform" else layer.heads, 1 if granularity == "head" else layer.head_dim)


def attention_refusal(model: Timm, architecture: Architecture) -> str:
    attentions = [block.attn for block in architecture.blocks(model)]
    if any(not isinstance(getattr(attention, "norm", nn.Identity()), nn.Identity) for attention in attentions):
        return "a norm over all attention dims would change when some leave"
    if any(getattr(attention, "num_kv_groups", 1) > 1 for attention in attentions):
        return "grouped queries share keys and values between heads"
    return ""


def mlp_refusal(model: Timm, architecture: Architecture) -> str:
    if any(not isinstance(block.mlp.norm, nn.Identity) for block in architecture.blocks(model)):
        return "a norm over the MLP units would change when some leave"
    return ""


def token_refusal(model: Timm, architecture: Architecture) -> str:
    if architecture.no_tokens:
        return architecture.no_tokens
    if model.dynamic_img_size:
        return "with dynamic_img_size a patch has no fixed position"
    if not isinstance(model.patch_drop, nn.Identity | None):
        return "patch dropout already removes tokens at random"
    pool = getattr(model, "global_pool", "token")
    return f"global_pool={pool!r} returns or refines every token" if pool in KEEPS_TOKENS else ""


def attach_attention(block: Timm, gate: nn.Parameter, shape: Shape, index: int, token_gate: str) -> None:
    layer = shape.layers[index]
    for name, stacks in attention_rows(block.attn).items():
        if not name.startswith(("gate.", "k_bias")):  # neither is read once q, k and v are zero
            parametrize_rows(block.attn, name, RowGate(gate, layer.heads, layer.head_dim, stacks))


def attach_mlp(block: Timm, gate: nn.Parameter, shape: Shape, index: int, token_gate: str) -> None:
    parametrize_rows(block.mlp, "fc2.weight", ColumnGate(gate))


def attach_token(block: Timm, gate: nn.Parameter, shape: Shape, index: int, token_gate: str) -> None:
    if token_gate == "tanh":
        gate.data.fill_(3.0)
    block.token_bias = TokenBias(gate, shape.layers[index].prefix, token_gate, never_empty=shape.least_tokens > 0)
    block.attn.fused_on_gpu = bool(block.attn.fused_attn)
    subclass(block.attn, BiasedAttention)
    subclass(block, TokenGatedBlock)


GATE_FAMILIES: dict[str, GateFamily] = {
    "attention": GateFamily(
        gate_shape=attention_gate_shape,
        macs=lambda layer: layer.attention_macs(layer.heads, layer.head_dim, layer.tokens),
        refusal=attention_refusal,
        attach=attach_attention,
        effective=lambda block: block.attention_gate,
        parameter_of=lambda block, gates: gates,
        steps=attention_steps,
    ),
    "mlp": GateFamily(
        gate_shape=lambda layer, granularity: (layer.hidden,),
        macs=lambda layer: layer.mlp_macs(layer.hidden, layer.tokens),
        refusal=mlp_refusal,
        attach=attach_mlp,
        effective=lambda block: block.mlp_gate,
        parameter_of=lambda block, gates: gates,
        steps=mlp_steps,
    ),
    "token": GateFamily(
        gate_shape=lambda layer, granularity: (layer.tokens,),
        macs=lambda layer: (
            layer.attention_macs(layer.heads, layer.head_dim, layer.tokens) + layer.mlp_macs(layer.hidden, layer.tokens)
        ),
        refusal=token_refusal,
        attach=attach_token,
        effective=lambda block: block.token_bias.effective(),
        parameter_of=lambda block, gates: block.token_bias.parameter_of(gates),
        steps=token_steps,
        modules=("token_bias",),
    ),
}
