"""What a structure costs, in each unit that a budget can count.

A cost is one formula over the sizes that every layer keeps: with plain numbers it prices one structure, with arrays all
prefixes of a removal path at once. A further cost is a formula, here or in a file of its own, and an entry in COSTS.
Milliseconds have no formula: they are measured on a device (`slimsweep.latency.curve`), and a path is told what was found.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # budgets are parsed without torch, and need this table
    import numpy as np

    from slimsweep.slimming.removal_path import RemovalPath
    from slimsweep.slimming.shape import LayerSizes, Shape
    from slimsweep.slimming.structure import Structure


NANOSECONDS = 1e6  # per millisecond: latencies are compared in whole nanoseconds, as other costs are in whole units


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one call on a device: the unit that no formula gives.

    Attributes are those of `Cost`.
    """

    name: str = "ms"
    label: str = "ms"
    title: str = "latency"
    families: tuple[str, ...] = ("attention", "mlp", "token")
    example: str = "12ms"

    def text(self, amount: int) -> str:
        """Nanoseconds for people: "12.3 ms"."""
        return self.quantity(f"{amount / NANOSECONDS:.4g}")

    def quantity(self, number: str, prefix: str = "") -> str:
        """A number with its unit: "12.3 ms"."""
        return f"{number} {prefix}{self.label}"


@dataclass(frozen=True)
class Cost:
    """One unit of cost.

    Attributes:
        name: as budgets and result columns write it.
        label: as budgets' texts and messages write it.
        title: as the report writes it, beside its numbers too.
        families: the gate families whose removal lowers it; the others stay whole under a budget in this unit.
        formula: (shape of the dense model, sizes that each layer keeps) to the cost, of the sizes' kind: int or int64 array.
        prefix_joins_label: whether a prefix is written onto the label ("GMACs") and not before it ("M params").
        example: an amount as a budget writes it, for help texts.
    """

    name: str
    label: str
    title: str
    families: tuple[str, ...]
    formula: Callable[[Shape, Sequence[LayerSizes]], Any]
    prefix_joins_label: bool = False
    example: str = "10M"

    def of(self, structure: Structure) -> int:
        """The cost of the model that a structure describes."""
        return int(self.formula(structure.shape, structure.layer_sizes()))

    def of_path(self, path: RemovalPath) -> np.ndarray:
        """(path.length + 1,) int64: the cost that is left after each prefix of a removal path."""
        found: np.ndarray = self.formula(path.shape, path.layer_sizes())
        return found

    def of_dense(self, shape: Shape) -> int:
        """The cost of the dense model."""
        return self.of(shape.full())

    def text(self, amount: int) -> str:
        """An amount for people, in millions, or thousands where it is small: "1,234.56 MMACs", "11.50 M params"."""
        prefix, size = ("M", 1e6) if amount >= 1e5 else ("K", 1e3)
        return self.quantity(f"{amount / size:,.2f}", prefix)

    def quantity(self, number: str, prefix: str = "") -> str:
        """A number with its unit: "2.3 GMACs", "11.5 M params", "20 MACs"."""
        return f"{number} {prefix}{' ' if prefix and not self.prefix_joins_label else ''}{self.label}"


def macs_formula(shape: Shape, kept: Sequence[LayerSizes]) -> Any:
    """Multiply-accumulates of one image, which ViT papers call FLOPs."""
    total: Any = shape.fixed_macs
    for layer, sizes in zip(shape.layers, kept, strict=True):
        total = total + layer.attention_macs(sizes.dims, 1, sizes.tokens) + layer.mlp_macs(sizes.units, sizes.tokens)
    return total + shape.pool_macs_per_token * (kept[-1].tokens + shape.layers[-1].prefix)


def params_formula(shape: Shape, kept: Sequence[LayerSizes]) -> Any:
    """Parameters of the model."""
    total: Any = shape.fixed_params
    for layer, sizes in zip(shape.layers, kept, strict=True):
        total = total + sizes.dims * layer.attention_params_per_dim + sizes.heads * layer.attention_params_per_head
        total = total + (sizes.dims > 0) * layer.attention_params_fixed
        total = total + sizes.units * layer.mlp_params_per_unit + (sizes.units > 0) * layer.mlp_params_fixed
    return total


COSTS: dict[str, Cost] = {
    cost.name: cost
    for cost in (
        Cost("macs", "MACs", "MACs", ("attention", "mlp", "token"), macs_formula, prefix_joins_label=True, example="1.2G"),
        Cost("params", "params", "parameters", ("attention", "mlp"), params_formula, example="11.5M"),
    )
}
LATENCY = Latency()


def units() -> list[str]:
    """The names of all units that a budget can count."""
    return [*COSTS, LATENCY.name]


def unit_named(name: str) -> Cost | Latency:
    """A unit that a budget can count.

    Raises:
        KeyError: there is none of that name.
    """
    return LATENCY if name == LATENCY.name else COSTS[name]
