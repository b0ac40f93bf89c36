"""The values of gates as they are read: copies, which refuse to be part of a loss."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from slimsweep.errors import RefusedInput

# What makes a tensor learn. (torch's types have the property's value in the place of the property.)
LEARNING = (Tensor.requires_grad_, Tensor.requires_grad.__set__)  # type: ignore[attr-defined]
USE_PARAMETERS = "use gated.gate_parameters(), or detach() where constants are meant"


class GateValues(Tensor):
    """A copy of one layer's gates. A penalty over it would train nothing, so a loss that holds it is refused.

    It works as any tensor does, but for sums, products and the like with something that learns. `detach()` says that the
    values are meant as constants.
    """

    is_constant = False

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Compute as torch does; what comes from copies alone is a copy too.

        Raises:
            RefusedInput: what comes out would be learned from, while the gates in it would not; or a gradient is asked for.
        """
        if func in LEARNING and all(args[1:]) and not args[0].is_constant:
            raise RefusedInput(f"gated.gates are copies, so training them changes nothing in the model: {USE_PARAMETERS}")
        with torch._C.DisableTorchFunctionSubclass():
            found = func(*args, **(kwargs or {}))
            if func is Tensor.detach:
                constant: GateValues = found.as_subclass(cls)
                constant.is_constant = True
                return constant
            outcome = [leaf for leaf in tree_leaves(found) if isinstance(leaf, Tensor)]
            own = [leaf for leaf in tree_leaves([args, dict(kwargs or {})]) if isinstance(leaf, GateValues)]
            own = [leaf for leaf in own if not leaf.is_constant and not leaf.requires_grad]
            if not own:  # all are constants by now, or something that learns
                return found
            if torch.is_grad_enabled() and any(leaf.grad_fn is not None for leaf in outcome):
                raise RefusedInput(f"gated.gates are copies, so a loss or penalty over them trains nothing: {USE_PARAMETERS}")
            return tree_map_only(Tensor, lambda leaf: leaf.as_subclass(cls) if type(leaf) is Tensor else leaf, found)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        return self.detach().clone()

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Saved as a plain tensor, which torch.load reads with weights_only."""
        return self.detach().clone().__reduce_ex__(protocol)
