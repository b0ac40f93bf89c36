"""Models without weights, on torch's meta device: built for their names and shapes, and run to be counted."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

# By torch's names, functions that return a tensor of the shape and dtype of their first argument:
DRAWN = frozenset(("uniform_", "normal_", "erfinv_", "mul_", "add_", "clamp_", "fill_", "zero_"))  # how weights are drawn
COMPUTED = frozenset(("layer_norm", "gelu", "silu", "relu", "dropout"))  # what a transformer computes element by element


class NoValues(TorchFunctionMode):
    """Returns the first argument, itself, where only its values would change, as a tensor on the meta device has none.

    torch works out the shape of each such result in Python, which takes most of the time of building a model there, and up to
    half of that of running it.

    Args:
        functions: DRAWN to build models, COMPUTED to run them.
    """

    def __init__(self, functions: Collection[str]) -> None:
        super().__init__()
        self.functions = functions

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        name = getattr(func, "__name__", "")
        known = name in self.functions and _weightless(args)
        if known and (name != "layer_norm" or _fits(*args, **given)):
            return args[0]
        return func(*args, **given)


class ProductsOnly(NoValues):
    """Leaves out the bias of linear layers and the softmax of attention too: to count products, in half the time."""

    def __init__(self) -> None:
        super().__init__(COMPUTED)

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name, given = getattr(func, "__name__", ""), kwargs or {}
        if name == "linear" and len(args) == 3 and _weightless(args):
            x, weight, bias = args
            if bias is None or bias.shape == weight.shape[:1]:
                return func(x, weight)
        if name == "scaled_dot_product_attention" and len(args) == 3 and _weightless(args):
            queries, keys, values = args
            if given.get("attn_mask") is None and not given.get("enable_gqa"):
                return queries @ keys.transpose(-2, -1) @ values
        return super().__torch_function__(func, types, args, kwargs)


def _weightless(args: Sequence[Any]) -> bool:
    """Whether the first argument is a tensor without values."""
    return bool(args) and isinstance(args[0], Tensor) and args[0].is_meta


def _fits(x: Tensor, normalized_shape: Sequence[int], weight: Any = None, bias: Any = None, *_: Any, **__: Any) -> bool:
    """Whether a layer norm's sizes are those of its input; where they are not, torch says so."""
    wanted = tuple(x.shape[x.ndim - len(normalized_shape) :])
    return all(tuple(size) == wanted for size in (normalized_shape, *(t.shape for t in (weight, bias) if t is not None)))


@contextmanager
def weightless() -> Iterator[None]:
    """Inside, models are built without weights: tensors are on the meta device, and no values are drawn for them."""
    with torch.device("meta"), NoValues(DRAWN):
        yield
