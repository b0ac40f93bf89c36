"""From gates to structures: one fixed removal path, of which every budget's structure is a prefix.

Gates leave in one order for all budgets, so structures are nested and a hundred budgets cost one sort and a hundred
binary searches. Each family gives up its share at a pace of its own along the path, whatever its gates' values: those do not
compare across families, for any single token or MLP unit looks useless beside the others of its kind.
"""

import copy
import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, overload

import numpy as np
import torch

from slimsweep.errors import RefusedInput
from slimsweep.slimming.budget import Budget, BudgetError, BudgetLike
from slimsweep.slimming.cost import COSTS, LATENCY, unit_named, units
from slimsweep.slimming.gate_families import GATE_FAMILIES
from slimsweep.slimming.removal_order import Steps
from slimsweep.slimming.shape import LayerSizes, Shape, check_families
from slimsweep.slimming.structure import Structure
from slimsweep.slimming.wrapped_models import unwrapped

Scores = Mapping[str, Sequence[Any]]


class PricesPath(Protocol):
    """What knows the latency of every prefix of a path (`slimsweep.latency.curve.LatencyCurve`)."""

    def ns_of_path(self, path: "RemovalPath") -> np.ndarray:
        """(path.length + 1,) int64 nanoseconds of one call, which never rise."""


# Matrix products and attention are fastest on sizes that are multiples of 16 (measured in reports/speed). Heads narrower than
# 64 dims come from small models, where such steps would be too coarse for a budget.
FAST_SIZE_MULTIPLE, LEAST_HEAD_DIM_TO_ROUND = 16, 64


def size_multiple(shape: Shape, round_to: int | None) -> int:
    """`round_to`, or where it is None a multiple that is fast: 16 where heads are at least 64 wide, 1 in smaller models."""
    if round_to is not None:
        return round_to
    return FAST_SIZE_MULTIPLE if min(layer.head_dim for layer in shape.layers) >= LEAST_HEAD_DIM_TO_ROUND else 1


def equal_gates(shape: Shape) -> dict[str, list[torch.Tensor]]:
    """Gates of 1: for what does not depend on which gates leave, or before a search has ranked them."""
    return {family: [torch.ones(s) for s in shapes] for family, shapes in shape.gate_shapes.items()}


class RemovalPath:
    """The order in which gates are removed, and the cost of the model after each step.

    Args:
        shape: of the dense model.
        scores: for each family one value per gate, in the gates' shapes: the smallest leaves first. Usually `gated.gates`.
        floors: for each family the share of every layer that never leaves.
        round_to: kept head dims, MLP units and tokens (with the prefix) of a layer are multiples of this, the dense sizes
            excepted. None takes what is fast: 16 where heads are at least 64 wide, 1 in smaller models.
        paces: for each family, how fast it leaves: where one of pace 1 keeps a share s, one of pace p keeps s ** p.
            Default: 1 for all.
        depth: what the floor keeps of a layer's attention or MLP leaves too, as the last step of that branch: fewer layers. A
            number of at least 0 is what a branch costs by itself, as a share of what its gates cost: its rest then leaves as
            soon as it is worth less per cost than the next gates alone.
        keep_attention: the layer whose attention is worth most keeps some of its dims, whatever floors and depth say: a model
            without any attention cannot be trained.

    Attributes:
        length: how many steps there are.
        macs, params: (length + 1,) int64, the cost that is left after each number of steps; `cost` gives that of any unit.

    Raises:
        ValueError: scores of other shapes, not finite or on the meta device, an unknown family, or a floor, pace or round_to
            out of bounds.
    """

    def __init__(
        self,
        shape: Shape,
        scores: Scores,
        floors: Mapping[str, float] | None = None,
        round_to: int | None = 1,
        paces: Mapping[str, float] | None = None,
        depth: bool | float = False,
        keep_attention: bool = False,
    ) -> None:
        if not isinstance(depth, bool) and not 0 <= depth < math.inf:
            raise ValueError(f"depth is {depth}; it must be true, false, or a number of at least 0")
        round_to = size_multiple(shape, round_to)
        if round_to < 1 or round_to != int(round_to):
            raise ValueError(f"round_to is {round_to}; it must be a whole number of at least 1")
        round_to = int(round_to)
        self.shape = shape
        self.families: dict[str, Steps] = {}
        for given in (scores, floors or {}, paces or {}):
            check_families(given)
        for family in (f for f in GATE_FAMILIES if f in scores):
            if any(isinstance(s, torch.Tensor) and s.is_meta for s in scores[family]):
                raise ValueError(f"{family} gates are on the meta device and have no values: give scores, or load the model")
            # float64 holds every float16, bfloat16 and float32 exactly; numpy has no bfloat16.
            values = [torch.as_tensor(s).detach().cpu().double().abs().numpy() for s in scores[family]]
            if not all(np.isfinite(v).all() for v in values):
                raise ValueError(f"{family} gates hold values that are not finite; the search that made them went wrong")
            got, wanted = tuple(v.shape for v in values), shape.gate_shapes.get(family, ())
            if got != wanted:
                raise ValueError(f"{family} scores have the shapes {got}, the model's gates have {wanted}")
            floor = (floors or {}).get(family, 0.0)
            if not 0 <= floor < 1:
                raise ValueError(f"the floor of {family} gates is {floor}; it must be at least 0 and below 1")
            more = {"keep_one": True} if keep_attention and family == "attention" else {}
            self.families[family] = GATE_FAMILIES[family].steps(shape, values, floor, round_to, depth, **more)
        self.paces = dict(paces or {})
        self._merge()

    def _merge(self) -> None:
        """Interleave the families by progress at their paces."""
        if not all(0 < pace < math.inf for pace in self.paces.values()):
            raise ValueError(f"the paces are {self.paces}; they must be finite numbers above 0")
        names = list(self.families)
        kept = [(1 - self.families[f].progress).clip(min=0) ** (1 / self.paces.get(f, 1.0)) for f in names]
        progress = 1 - np.concatenate(kept) if names else np.zeros(0)
        family = np.repeat(np.arange(len(names)), [len(self.families[f].layer) for f in names])
        order = np.lexsort((family, progress))
        # Where on the path a family's steps lie, from 1.
        self.position = {name: np.flatnonzero(family[order] == index) + 1 for index, name in enumerate(names)}
        self.length = len(order)
        self._costs: dict[str, np.ndarray] = {}
        self._of_families: dict[tuple[str, ...], RemovalPath] = {}

    def layer_sizes(self) -> list[LayerSizes]:
        """What each layer keeps after each prefix, in arrays of (length + 1,)."""
        layers = self.shape.layers
        gone = {size: np.zeros((self.length + 1, len(layers)), dtype=np.int64) for size in LayerSizes._fields}
        for name, steps in self.families.items():
            for size, removed in steps.removed.items():
                np.add.at(gone[size], (self.position[name], steps.layer), removed)
        left = {size: np.array([getattr(layer.sizes, size) for layer in layers]) - g.cumsum(0) for size, g in gone.items()}
        return [LayerSizes(**{size: value[:, index] for size, value in left.items()}) for index in range(len(layers))]

    def cost(self, unit: str) -> np.ndarray:
        """(length + 1,) int64: the cost of the model after each prefix of the path, in a unit of COSTS, or in ns for "ms".

        Raises:
            BudgetError: the unit is ms, and the path has no latency (`take_latency`).
        """
        if unit not in self._costs:
            if unit == LATENCY.name:
                raise BudgetError(
                    "milliseconds are measured, and this path has none: time it first (slimsweep.latency.curve.measure_curve, "
                    "then take_latency), or give a budget of MACs or parameters"
                )
            self._costs[unit] = COSTS[unit].of_path(self)
        return self._costs[unit]

    def take_latency(self, curve: PricesPath) -> "RemovalPath":
        """Price budgets in ms by a curve of measured latencies from now on; returns the path."""
        self._costs[LATENCY.name] = curve.ns_of_path(self)
        return self

    @property
    def macs(self) -> np.ndarray:
        """(length + 1,) multiply-accumulates of one image left after each prefix."""
        return self.cost("macs")

    @property
    def params(self) -> np.ndarray:
        """(length + 1,) parameters left after each prefix."""
        return self.cost("params")

    def for_unit(self, unit: str) -> "RemovalPath":
        """The path of the families whose removal lowers a cost; the others (tokens, where parameters count) stay whole.

        The path itself where that is all of its families.
        """
        names = tuple(f for f in self.families if f in unit_named(unit).families)
        if names == tuple(self.families):
            return self
        if names not in self._of_families:
            fewer = copy.copy(self)
            fewer.families = {name: self.families[name] for name in names}
            fewer._merge()
            self._of_families[names] = fewer
        return self._of_families[names]

    def tensors(self) -> dict[str, torch.Tensor]:
        """For each gate, in the gates' shapes, the step at which it leaves (-1: never), and what each prefix costs."""
        found = {"macs": torch.from_numpy(self.macs), "params": torch.from_numpy(self.params)}
        for name, steps in self.families.items():
            position = np.append(self.position[name], -1)
            for index, leave in enumerate(steps.leave):
                found[f"{name}.{index}"] = torch.from_numpy(position[np.minimum(leave, len(steps.layer))])
        return found

    def prefix(self, length: int) -> Structure:
        """The structure left after `length` steps."""
        masks = self.shape.full().masks
        for name, steps in self.families.items():
            # Steps of one family keep their order on the path, so the prefix of the path is a prefix of the family.
            taken = int(np.searchsorted(self.position[name], length, side="right"))
            masks[name] = [torch.from_numpy(leave >= taken) for leave in steps.leave]
        return Structure(self.shape, masks)

    def solve(self, budget: BudgetLike, metric: str | None = None) -> Structure:
        """The longest structure within the budget: below it by less than the path's next step.

        Structures of one unit are nested. A family that a unit does not price stays whole under budgets in it.

        Args:
            budget: as `Budget.parse` reads it; it says in which unit it counts.
            metric: the unit where the budget does not say, "macs", "params" or "ms"; "macs" where not given.

        Raises:
            BudgetError: the budget means nothing, counts something else than `metric`, or is below what is left at the path's
                end; says the least there is.
        """
        if metric is not None and metric not in units():
            raise ValueError(f"metric is {metric!r}; it can be {' or '.join(map(repr, units()))}")
        asked = Budget.parse(budget, metric or "macs")
        said = repr(str(asked) if isinstance(budget, Budget) else budget)
        if metric is not None and asked.unit != metric:
            raise BudgetError(f"budget {said} counts {asked.unit}, but metric is {metric!r}: leave metric out")
        path, cost = self.for_unit(asked.unit), unit_named(asked.unit)
        left = path.cost(asked.unit)
        limit = asked.limit(int(left[0]))
        if left[-1] > limit:
            least = int(left[-1])
            amount = cost.text(least) if asked.is_latency else f"{least:,}"
            raise BudgetError(
                f"budget {said} cannot be reached: the least this model can be cut to is {least / left[0]:.4f} "
                f"of its {cost.label} ({amount}); give a larger budget, more families to cut, or lower floors"
            )
        return path.prefix(int(np.searchsorted(-left, -limit, side="left")))

    def shares(self, shares: Mapping[Any, float]) -> Structure:
        """The structure that keeps, over the whole network, a share of each named family's gates; the others stay whole.

        The paper's way (section 4): it promises nothing about MACs.

        Raises:
            BudgetError: a share outside (0, 1], or below what the floors leave.
            ValueError: a family without gates.
        """
        masks = self.shape.full().masks
        for name, share in shares.items():
            if name not in self.families:
                raise ValueError(f"this model has no {name} gates; it has {', '.join(self.families)}")
            if not 0 < share <= 1:
                raise BudgetError(f"the share of {name} is {share}; it must be above 0 and at most 1")
            steps = self.families[name]
            kept = np.concatenate([[1.0], 1 - steps.progress])
            taken = int(np.argmin(np.abs(kept - share)))
            if taken == len(kept) - 1 and kept[-1] - share > 0.01:
                raise BudgetError(f"a share of {share} of the {name} gates cannot be reached: the floors keep {kept[-1]:.4f}")
            masks[name] = [torch.from_numpy(leave >= taken) for leave in steps.leave]
        return Structure(self.shape, masks)


@overload
def solve(
    gated: Any,
    budget: BudgetLike,
    *,
    metric: str | None = None,
    scores: Scores | None = None,
    floors: Mapping[str, float] | None = None,
    round_to: int | None = 1,
    paces: Mapping[str, float] | None = None,
    depth: bool | float = False,
) -> Structure: ...
@overload
def solve(
    gated: Any,
    budget: Sequence[BudgetLike],
    *,
    metric: str | None = None,
    scores: Scores | None = None,
    floors: Mapping[str, float] | None = None,
    round_to: int | None = 1,
    paces: Mapping[str, float] | None = None,
    depth: bool | float = False,
) -> list[Structure]: ...
@overload
def solve(
    gated: Any,
    budget: None = None,
    *,
    per_family: Mapping[str, float],
    metric: str | None = None,
    scores: Scores | None = None,
    floors: Mapping[str, float] | None = None,
    round_to: int | None = 1,
    paces: Mapping[str, float] | None = None,
    depth: bool | float = False,
) -> Structure: ...


def solve(
    gated: Any,
    budget: BudgetLike | Sequence[BudgetLike] | None = None,
    *,
    per_family: Mapping[str, float] | None = None,
    metric: str | None = None,
    scores: Scores | None = None,
    floors: Mapping[str, float] | None = None,
    round_to: int | None = 1,
    paces: Mapping[str, float] | None = None,
    depth: bool | float = False,
) -> Structure | list[Structure]:
    """The structure that a budget leaves of a gated model; for a list of budgets a list.

    Args:
        gated: what `add_gates` returned.
        budget: a fraction of the dense model (0.5, "50%"), an amount ("2.3G"), either with a unit ("60% params"), or a list.
        per_family: instead of a budget, the share of gates to keep in each family ({"attention": 0.7, "mlp": 0.7}).
        metric: what a budget counts that does not say: "macs" (where not given), or "params", which leaves tokens alone,
            since they cost none.
        scores: other values than the gates to rank by, in the gates' shapes.
        floors: for each family the share of every layer that never leaves ({"mlp": 0.1}). Default: none.
        round_to: kept head dims, MLP units and tokens (with the prefix) of a layer are multiples of this; None takes what is
            fast: 16 where heads are at least 64 wide, 1 in smaller models.
        paces: how fast each family leaves ({"mlp": 1.4, "token": 0.7}). Default: all at one pace.
        depth: what floors keep of a layer's attention or MLP may leave too, all at once; a number as for `RemovalPath`.

    Raises:
        BudgetError: `budget` is not a budget, or cannot be reached; the text names the smallest that can.
    """
    if (budget is None) == (per_family is None):
        raise ValueError("give either a budget or per_family shares")
    if per_family is not None and metric not in (None, "macs"):
        raise ValueError("metric says what a budget counts, and shares count gates: leave it out beside per_family")
    gated = gated if isinstance(getattr(gated, "shape", None), Shape) else unwrapped(gated)
    if not isinstance(getattr(gated, "shape", None), Shape):
        raise RefusedInput(f"this {type(gated).__name__} has no gates to rank: give what add_gates returns")
    path = RemovalPath(gated.shape, gated.gates if scores is None else scores, floors, round_to, paces, depth)
    if per_family is not None:
        return path.shares(per_family)
    asked: Any = budget.item() if isinstance(budget, torch.Tensor) and budget.ndim == 0 else budget
    single = isinstance(asked, str | numbers.Real | Budget)
    found = [path.solve(one, metric) for one in ([asked] if single else asked)]
    return found[0] if single else found
