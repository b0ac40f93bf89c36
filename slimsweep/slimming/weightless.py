"""Models without weights, on torch's meta device: built and run for their names, shapes and counts alone."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

# Functions whose result is of the shape and dtype of their first argument, by torch's names: how weights are drawn, and what
# a transformer computes element by element.
DRAWN = ("uniform_", "normal_", "erfinv_", "mul_", "add_", "clamp_", "fill_", "zero_")
COMPUTED = ("layer_norm", "gelu", "silu", "relu", "dropout")
SAME_SHAPE = frozenset(DRAWN + COMPUTED)


class NoValues(TorchFunctionMode):
    """Returns the first argument where only values would change, as there are none.

    torch works out the shape of each such result in Python, which takes most of the time of building a model on the meta
    device, and half of that of running it there.
    """

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if args and getattr(func, "__name__", "") in SAME_SHAPE and isinstance(args[0], Tensor) and args[0].is_meta:
            return args[0]
        return func(*args, **(kwargs or {}))


@contextmanager
def weightless() -> Iterator[None]:
    """Inside, tensors that are made are on the meta device, and what changes only values of such tensors is not computed."""
    with torch.device("meta"), NoValues():
        yield
