"""Learnable gates on every attention dim, MLP unit and token position of a timm vision transformer.

Attention and MLP gates sit on the weights (rows of the query, key and value projections, columns of fc2) through torch's
parametrizations, so a gated forward is the dense forward. A token gate z acts as log z on that key's attention logits:
at z = 0 the token is exactly absent, and the cut model computes the same. ViT-Slim (arXiv 2201.00814, section 3)
multiplies features instead, which leaves a zero token in the softmax.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from slimsweep.errors import RefusedInput
from slimsweep.slimming.architectures import (
    Timm,
    architecture_of,
    attention_rows,
    model_name,
    refused_families,
    shape_of,
    whole_heads_reason,
)
from slimsweep.slimming.structure import FAMILIES, Shape, macs, params

Gates = dict[str, list[Tensor]]


def add_gates(
    model: Timm,
    granularity: Literal["dim", "head", "uniform"] = "dim",
    families: Sequence[str] | None = None,
    token_gate: Literal["linear", "tanh"] = "linear",
) -> "GatedModel":
    """A copy of `model` with a gate on everything that can be cut; the given model is left alone.

    Args:
        model: a timm VisionTransformer (DeiT, CLIP, SigLIP, DINOv2, ...), Eva (EVA-02, DINOv3) or SwinTransformer.
        granularity: of attention gates: "dim" one a head and dim, "head" one a head, "uniform" one a dim, shared by the
            layer's heads. Families that can only lose whole heads (rotary embeddings, qk-norm) get "head" for "dim".
        families: of gates: "attention", "mlp", "token"; all that this model can lose exactly where not given.
        token_gate: how a token gate is stored: as it is, from 1, or as the tanh of a parameter that starts at 3 (the paper's).

    Raises:
        ValueError: the model, or a family asked for by name, cannot be cut exactly; says why.
    """
    chosen, finest = _what_to_gate(model, granularity, families)
    shape = shape_of(model, finest, chosen)
    gated: Timm = copy.deepcopy(model)
    weight = next(gated.parameters())
    for index, block in enumerate(architecture_of(gated).blocks(gated)):
        gates = {f: nn.Parameter(weight.new_ones(shape.gate_shapes[f][index])) for f in chosen}
        if "token" in gates:
            subclass(block.attn, BiasedAttention)  # before its weights are parametrized, which makes classes of its class
        if "attention" in gates:
            block.attention_gate = gates["attention"]
            sizes = shape.layers[index]
            for name, stacks in attention_rows(block.attn).items():
                if not name.startswith(("gate.", "k_bias")):  # neither is read once q, k and v are zero
                    parametrize_rows(block.attn, name, RowGate(block.attention_gate, sizes.heads, sizes.head_dim, stacks))
        if "mlp" in gates:
            block.mlp_gate = gates["mlp"]
            parametrize.register_parametrization(block.mlp.fc2, "weight", ColumnGate(block.mlp_gate))
        if "token" in gates:
            if token_gate == "tanh":
                gates["token"].data.fill_(3.0)
            block.token_gate = gates["token"]
            block.token_bias = TokenBias(block.token_gate, gated.num_prefix_tokens, token_gate, shape.least_tokens > 0)
            subclass(block, TokenGatedBlock)
    subclass(gated, GatedModel)
    gated.shape = shape
    gated.granularity = finest
    return gated


def _what_to_gate(model: Timm, granularity: str, families: Sequence[str] | None) -> tuple[tuple[str, ...], str]:
    """The families that get gates and the granularity that this model allows; raises ValueError as `add_gates` says."""
    if hasattr(model, "structure"):
        raise RefusedInput(
            f"this {model_name(model)} has been cut already; add gates to its dense model, and solve for a smaller budget"
        )
    if granularity not in ("dim", "head", "uniform"):
        raise RefusedInput(f"granularity is {granularity!r}; it can be 'dim', 'head' or 'uniform'")
    reasons = refused_families(model)
    for family in families or ():
        if family not in FAMILIES:
            raise RefusedInput(f"{family!r} is no family of gates; they are {', '.join(FAMILIES)}")
        if family in reasons:
            raise RefusedInput(
                f"{model_name(model)} cannot have {family} gates: {reasons[family]}; leave {family!r} out of families"
            )
    chosen = tuple(f for f in FAMILIES if (f in families if families is not None else f not in reasons))
    if (reason := whole_heads_reason(model)) and granularity != "head":
        if granularity == "uniform" and "attention" in chosen:
            raise RefusedInput(f"{model_name(model)} cannot have uniform attention gates: {reason}; use granularity='head'")
        granularity = "head"
    return chosen, granularity


def subclass(module: Timm, mixin: type[nn.Module]) -> None:
    """Give a module's class `mixin`'s methods by a subclass of both, as torch's parametrizations do; weights and names stay.

    A module that has them already is left as it is.
    """
    if isinstance(module, mixin):
        return
    base = type(module)
    body = {"__module__": mixin.__module__, "timm_class": base}
    module.__class__ = type(f"{mixin.__name__}[{base.__name__}]", (mixin, base), body)


def parametrize_rows(module: Timm, name: str, gate: nn.Module) -> None:
    """Parametrize the tensor of a dotted name below `module`."""
    *path, tensor = name.split(".")
    for part in path:
        module = getattr(module, part)
    parametrize.register_parametrization(module, tensor, gate)


class RowGate(nn.Module):
    """Multiplies the rows of a projection to q, k and v, stacked `stacks` times, by the gate of their head and dim."""

    def __init__(self, gate: nn.Parameter, heads: int, head_dim: int, stacks: int) -> None:
        super().__init__()
        self.gate = gate
        self.heads, self.head_dim, self.stacks = heads, head_dim, stacks

    def forward(self, rows: Tensor) -> Tensor:
        gate = self.gate.expand(self.heads, self.head_dim).reshape(-1).repeat(self.stacks)
        return rows * gate.view(-1, *[1] * (rows.ndim - 1))


class ColumnGate(nn.Module):
    """Multiplies the columns of fc2, (embed_dim, hidden), by the gate of their MLP unit: the unit, after its activation."""

    def __init__(self, gate: nn.Parameter) -> None:
        super().__init__()
        self.gate = gate

    def forward(self, columns: Tensor) -> Tensor:
        return columns * self.gate


class GuardedLog(torch.autograd.Function):
    """log z with log 0 = -inf, and a gradient that is finite there too: 1 / max(z, 1e-4).

    An absent key has no weight in the softmax, so the gradient that comes back to its gate is 0: a token that has reached 0
    stays absent. Without the guard it would be 0 x inf, NaN.
    """

    @staticmethod
    def forward(ctx: Any, gate: Tensor) -> Tensor:
        ctx.save_for_backward(gate)
        return gate.log()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (gate,) = ctx.saved_tensors
        return gradients[0] / gate.clamp(min=1e-4)


class TokenBias(nn.Module):
    """A layer's token gates as a bias on the attention logits of its keys, prefix tokens first.

    `power` moves kept tokens to where the cut will have them: weights are z ** power, so at power 0 every gate above 0
    acts as 1 while a gate of 0 still removes its token. With `never_empty`, for models that pool patches and have no
    value without one, the gates of a layer act as 1 while all of them are 0.
    """

    power: Tensor

    def __init__(self, gate: nn.Parameter, prefix: int, kind: str, never_empty: bool) -> None:
        super().__init__()
        self.gate = gate
        self.prefix, self.kind, self.never_empty = prefix, kind, never_empty
        self.register_buffer("power", torch.ones(()))

    def effective(self) -> Tensor:
        """The gates z, (patches,), at least 0."""
        return (self.gate.tanh() if self.kind == "tanh" else self.gate).clamp(min=0)

    def forward(self, dtype: torch.dtype) -> Tensor:
        """(1, 1, 1, prefix + patches), -inf for an absent token."""
        gate = self.effective()
        if self.never_empty:
            gate = gate + (gate.amax() == 0)
        log = GuardedLog.apply(gate)
        # 0 x -inf is NaN: an absent token stays absent at power 0.
        bias = torch.where(log == -torch.inf, log, log * self.power)
        return nn.functional.pad(bias, (self.prefix, 0)).to(dtype).view(1, 1, 1, -1)


class BiasedAttention(nn.Module):
    """Before timm's attention class: the fastest of its two forms for a bias with a gradient.

    On a CPU torch computes such a bias by a general form that guards against rows without any key: 12.8 ms a layer of DeiT-S
    and step, where timm's own products and softmax take 10.1 (reports/training). A GPU's kernels take the bias as it is.
    """

    proj: nn.Linear

    @property
    def fused_attn(self) -> bool:
        return bool(self.proj.weight.is_cuda and self.__dict__["fused_attn"])


class TokenGatedBlock(nn.Module):
    """Before timm's block class: the layer's token gates as its attention mask."""

    token_bias: TokenBias

    def forward(self, x: Tensor, *args: Any, attn_mask: Tensor | None = None, **kwargs: Any) -> Tensor:
        if attn_mask is not None:
            raise ValueError("a model with token gates makes its own attention mask; call it without attn_mask")
        return super().forward(x, *args, attn_mask=self.token_bias(x.dtype), **kwargs)


class GatedModel(nn.Module):
    """Before timm's model class: the gates of the whole network.

    Attributes:
        shape: the dense sizes and costs (`slimsweep.slimming.structure.Shape`).
        granularity: of the attention gates.
    """

    shape: Shape
    granularity: str
    timm_class: type[nn.Module]
    # timm's own attributes that are read here.
    global_pool: str
    attn_pool: nn.Module | None
    num_prefix_tokens: int

    def gated_blocks(self) -> list[Timm]:
        return architecture_of(self).blocks(self)

    @property
    def gates(self) -> Gates:
        """Effective gates, copied: attention (heads, head_dim), (heads, 1) or (1, head_dim); mlp (units,); token (patches,)."""
        with torch.no_grad():
            return {f: [effective_gates(b, f).detach().clone() for b in self.gated_blocks()] for f in self.shape.gate_shapes}

    def set_gates(self, gates: Mapping[str, Sequence[Tensor]]) -> None:
        """Set effective gates, in the shapes of `gates`; a family that is not given stays.

        Raises:
            ValueError: an unknown family, values of another shape, or token gates below 0 (or above 1, as a tanh). Nothing
                is set then.
        """
        for family, values in gates.items():
            if family not in self.shape.gate_shapes:
                raise ValueError(f"this model has no {family} gates; it has {', '.join(self.shape.gate_shapes)}")
            got, wanted = [tuple(v.shape) for v in values], list(self.shape.gate_shapes[family])
            if got != wanted:
                raise ValueError(f"{family} gates of shapes {got} were given, the model's have {wanted}")
        for block, value in zip(self.gated_blocks(), gates.get("token", ()), strict=False):
            most = 1.0 if block.token_bias.kind == "tanh" else torch.inf
            if not ((value >= 0) & (value <= most)).all():
                raise ValueError(
                    f"token gates are at least 0 and at most {most}; got {float(value.min())} to {float(value.max())}"
                )
        with torch.no_grad():
            for family, values in gates.items():
                for block, value in zip(self.gated_blocks(), values, strict=True):
                    tanh = family == "token" and block.token_bias.kind == "tanh"
                    # The tanh of 10 is 1 in float32; the parameter behind a gate of 1 has to be finite to be trained.
                    getattr(block, f"{family}_gate").copy_(value.atanh().clamp(max=10) if tanh else value)

    def gate_parameters(self) -> dict[str, list[nn.Parameter]]:
        """The parameters behind the gates, a list a family, in the order of the layers."""
        return {f: [getattr(b, f"{f}_gate") for b in self.gated_blocks()] for f in self.shape.gate_shapes}

    def set_token_power(self, power: float) -> None:
        """1: token gates act as they are. 0: every token gate above 0 acts as 1, as it will after the cut."""
        for block in self.gated_blocks():
            if hasattr(block, "token_bias"):
                block.token_bias.power.fill_(power)

    def pool(self, x: Tensor, pool_type: str | None = None) -> Tensor:
        """timm's pooling over what is left in the last layer: (batch, prefix + patches, embed_dim) to (batch, embed_dim)."""
        kind = self.global_pool if pool_type is None else pool_type
        last = self.gated_blocks()[-1]
        if not hasattr(last, "token_bias") or kind in ("token", ""):
            return super().pool(x, pool_type)  # type: ignore[misc]  # timm's class comes next
        bias: Tensor = last.token_bias(x.dtype)
        # Eva pools prefix tokens by attention too, but not by mean; VisionTransformer says so in an attribute.
        with_prefix = getattr(self, "pool_include_prefix", self.attn_pool is not None)
        skip = 0 if with_prefix else self.num_prefix_tokens
        x, bias = x[:, skip:], bias[..., skip:]
        if self.attn_pool is not None:
            return self.attn_pool(x, attn_mask=bias)
        mean = (x * bias.exp().view(1, -1, 1)).sum(1) / bias.exp().sum()
        largest = (x + bias.view(1, -1, 1)).amax(1)
        return {"avg": mean, "max": largest, "avgmax": 0.5 * (mean + largest)}[kind]


@macs.register
def _(what: GatedModel) -> int:
    return what.shape.full().macs()


@params.register
def _(what: GatedModel) -> int:
    return what.shape.full().params()


def effective_gates(block: Timm, family: str) -> Tensor:
    """One layer's gates of one family as they act."""
    return block.token_bias.effective() if family == "token" else getattr(block, f"{family}_gate")


def fold_gates(gated: GatedModel) -> nn.Module:
    """A copy as timm built it: attention and MLP gates multiplied into the weights, token gates gone, gate parameters gone."""
    model: Timm = copy.deepcopy(gated)
    model.zero_grad(set_to_none=True)  # a deep copy takes the search's last gradients along
    for block in architecture_of(model).blocks(model):
        for module in [m for m in block.modules() if parametrize.is_parametrized(m)]:
            unparametrize(module)
        for name in ("attention_gate", "mlp_gate", "token_gate", "token_bias"):
            if hasattr(block, name):
                delattr(block, name)
        for module in (block, block.attn):
            module.__class__ = getattr(module, "timm_class", type(module))
    model.__class__ = model.timm_class
    del model.shape, model.granularity
    return model


def unparametrize(module: Timm) -> None:
    """Make a parametrized module plain, with the values it computes.

    torch's own remove_parametrizations deletes the property from the class, which a deep copy shares with its original.
    """
    with torch.no_grad():
        values = {name: getattr(module, name).clone() for name in module.parametrizations}
    trained = {name: p.original.requires_grad for name, p in module.parametrizations.items()}
    del module.parametrizations
    module.__class__ = type(module).__bases__[0]
    for name, value in values.items():
        module.register_parameter(name, nn.Parameter(value, requires_grad=trained[name]))
