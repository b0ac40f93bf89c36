"""How gates act in the forward pass: modules that sit on a timm model's weights and attention logits.

Attention and MLP gates sit on the weights (rows of the query, key and value projections, columns of fc2) through torch's
parametrizations, so a gated forward is the dense forward. A token gate z acts as log z on that key's attention logits:
at z = 0 the token is exactly absent, and the cut model computes the same. ViT-Slim (arXiv 2201.00814, section 3)
multiplies features instead, which leaves a zero token in the softmax.
"""

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from slimsweep.slimming.architectures import Timm


def subclass(module: Timm, mixin: type[nn.Module]) -> None:
    """Give a module's class `mixin`'s methods by a subclass of both, as torch's parametrizations do; weights and names stay.

    A module that has them already is left as it is.
    """
    if not isinstance(module, mixin):
        module.__class__ = mixed_class(mixin, type(module))


_mixed: dict[tuple[type[nn.Module], type[nn.Module]], type[nn.Module]] = {}


def mixed_class(mixin: type[nn.Module], base: type[nn.Module]) -> type[nn.Module]:
    """The subclass of both, made once. It has no name in any file, so its instances are pickled by what it is made of."""
    if (mixin, base) not in _mixed:
        body = {"__module__": mixin.__module__, "timm_class": base, "__reduce_ex__": _reduce_mixed}
        _mixed[mixin, base] = type(f"{mixin.__name__}[{base.__name__}]", (mixin, base), body)
    return _mixed[mixin, base]


def new_module(classes: Sequence[type[nn.Module]], parametrized: Sequence[str] = ()) -> nn.Module:
    """An instance of a class that is made at run time, whose attributes pickle (or copy) sets next.

    Files of torch.save name this function, so its name and arguments have to stay.

    Args:
        classes: timm's class, then the classes that were mixed in before it, the first of them first.
        parametrized: the tensors that have a parametrization.
    """
    made = functools.reduce(lambda base, mixin: mixed_class(mixin, base), classes[1:], classes[0])
    module = made.__new__(made)
    if parametrized:
        # torch makes one more class, with a property per tensor. What is registered here is replaced with the attributes.
        nn.Module.__init__(module)
        for name in parametrized:
            module.register_parameter(name, nn.Parameter(torch.empty(0)))
            parametrize.register_parametrization(module, name, nn.Identity(), unsafe=True)
        _pickle_parametrized(module)
    return module


def _classes(made: type[nn.Module]) -> tuple[type[nn.Module], ...]:
    """What `new_module` makes this class from."""
    base = vars(made).get("timm_class")
    return (made,) if base is None else (*_classes(base), made.__bases__[0])


def _reduce_mixed(module: Timm, protocol: Any) -> tuple[Any, ...]:
    """`__reduce_ex__` of a mixed class."""
    return new_module, (_classes(type(module)),), module.__getstate__()


def _reduce_parametrized(module: Timm, protocol: Any) -> tuple[Any, ...]:
    """`__reduce_ex__` of a parametrized class: torch refuses to pickle one, since it cannot know its parametrizations."""
    base = type(module).__bases__[0]
    return new_module, (_classes(base), tuple(module.parametrizations)), nn.Module.__getstate__(module)


def _pickle_parametrized(module: Timm) -> None:
    """Let a parametrized module be pickled; torch has made a class for it alone."""
    type(module).__reduce_ex__ = _reduce_parametrized  # type: ignore[assignment]


def parametrize_rows(module: Timm, name: str, gate: nn.Module) -> None:
    """Parametrize the tensor of a dotted name below `module`."""
    *path, tensor = name.split(".")
    for part in path:
        module = getattr(module, part)
    parametrize.register_parametrization(module, tensor, gate)
    _pickle_parametrized(module)


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


class RowGate(nn.Module):
    """Multiplies the rows of a projection to q, k and v, stacked `stacks` times, by the gate of their head and dim."""

    def __init__(self, gate: nn.Parameter, heads: int, head_dim: int, stacks: int) -> None:
        super().__init__()
        self.gate = gate
        self.heads, self.head_dim, self.stacks = heads, head_dim, stacks

    def forward(self, rows: Tensor) -> Tensor:
        """(stacks x heads x head_dim, ...) to the same shape."""
        # By broadcasting: a gate in the shape of the rows would take a GPU as many kernels again to make.
        apart = rows.view(self.stacks, self.heads, self.head_dim, *rows.shape[1:])
        return (apart * self.gate.view(*self.gate.shape, *[1] * (rows.ndim - 1))).view(rows.shape)


class ColumnGate(nn.Module):
    """Multiplies the columns of fc2, (embed_dim, hidden), by the gate of their MLP unit: the unit, after its activation."""

    def __init__(self, gate: nn.Parameter) -> None:
        super().__init__()
        self.gate = gate

    def forward(self, columns: Tensor) -> Tensor:
        return columns * self.gate


class GuardedLog(torch.autograd.Function):
    """power x log z, -inf at z = 0 whatever the power, and a gradient that is finite there too: power / max(z, 1e-4).

    An absent key has no weight in the softmax, so the gradient that comes back to its gate is 0: a token that has reached 0
    stays absent. Without the guard it would be 0 x inf, NaN, as would 0 x -inf at power 0.
    """

    @staticmethod
    def forward(ctx: Any, gate: Tensor, power: Tensor) -> Tensor:
        ctx.save_for_backward(gate, power)
        return torch.where(gate == 0, -torch.inf, gate.log() * power)  # NaN stays, and is seen in the loss

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        gate, power = ctx.saved_tensors
        return gradients[0] * power / gate.clamp(min=1e-4), None


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

    def parameter_of(self, value: Tensor) -> Tensor:
        """What the parameter has to be for the gates to be `value`, (patches,).

        Raises:
            ValueError: gates below 0, or above 1 as a tanh.
        """
        most = 1.0 if self.kind == "tanh" else torch.inf
        if not ((value >= 0) & (value <= most)).all():
            raise ValueError(f"token gates are at least 0 and at most {most}; got {float(value.min())} to {float(value.max())}")
        # The tanh of 10 is 1 in float32; the parameter behind a gate of 1 has to be finite to be trained.
        return value.atanh().clamp(max=10) if self.kind == "tanh" else value

    def forward(self, dtype: torch.dtype) -> Tensor:
        """(1, 1, 1, prefix + patches), -inf for an absent token."""
        gate = self.effective()
        if self.never_empty:
            gate = gate + (gate.amax() == 0)
        bias = GuardedLog.apply(gate, self.power)
        return nn.functional.pad(bias, (self.prefix, 0)).to(dtype).view(1, 1, 1, -1)


def fused_is_fast(weight: Tensor) -> bool:
    """Whether torch's attention is the fastest form for a bias with a gradient on the device of `weight`."""
    return weight.is_cuda


class BiasedAttention(nn.Module):
    """Mixed in before timm's attention class: the fastest of its two forms for a bias with a gradient.

    On a CPU torch computes such a bias by a general form that guards against rows without any key: 12.8 ms per layer of
    DeiT-S and step, where timm's own products and softmax take 10.1 (reports/training). A GPU's kernels take the bias as it
    is. `fused_attn` is an attribute of timm's attention classes without documentation; it chooses between the two.
    """

    proj: nn.Linear
    # timm's own choice for this module. An attribute of another name: torch.compile before 2.15 takes `__dict__["fused_attn"]`
    # for the property itself, without end. Models that earlier versions pickled lack it, and have timm's default.
    fused_on_gpu: bool = True

    @property
    def fused_attn(self) -> bool:
        return self.fused_on_gpu and fused_is_fast(self.proj.weight)


class TokenGatedBlock(nn.Module):
    """Mixed in before timm's block class: the layer's token gates as its attention mask."""

    token_bias: TokenBias

    def forward(self, x: Tensor, *args: Any, attn_mask: Tensor | None = None, **kwargs: Any) -> Tensor:
        if attn_mask is not None:
            raise ValueError("a model with token gates makes its own attention mask; call it without attn_mask")
        return super().forward(x, *args, attn_mask=self.token_bias(x.dtype), **kwargs)
