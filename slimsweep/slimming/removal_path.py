"""From gates to structures: one fixed removal path, of which every budget's structure is a prefix.

Gates leave in one order for all budgets, so structures are nested and a hundred budgets cost one sort and a hundred
binary searches. Each family gives up its share at a pace of its own along the path, whatever its gates' values: those do not
compare across families, for any single token or MLP unit looks useless beside the others of its kind.
"""

import copy
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import torch

from slimsweep.slimming.budget import Budget, BudgetError, BudgetLike
from slimsweep.slimming.cost import COSTS
from slimsweep.slimming.structure import FAMILIES, LayerSizes, Shape, Structure

Scores = Mapping[str, Sequence[Any]]
NEVER = np.iinfo(np.int64).max
NEAR = 0.01  # of the dense model's MACs: a model is near its budget that is short of it by no more
# Matrix products and attention are fastest on sizes that are multiples of 16, measured in reports/speed. Heads that are
# narrower than this come from small models, where such steps would be too coarse for a budget.
FAST_MULTIPLE, WIDE_HEAD = 16, 64


def absolute(budget: BudgetLike, dense: int) -> int:
    """`Budget.parse(budget).limit(dense)`."""
    return Budget.parse(budget).limit(dense)


def multiple(shape: Shape, round_to: int | None) -> int:
    """`round_to`, or what is fast for a model where that is None: 16 where heads are at least 64 wide, 1 in smaller models."""
    if round_to is not None:
        return round_to
    return FAST_MULTIPLE if min(layer.head_dim for layer in shape.layers) >= WIDE_HEAD else 1


def alike(shape: Shape) -> dict[str, list[torch.Tensor]]:
    """Gates of 1, for what does not depend on which gates leave, or before a search has told."""
    return {family: [torch.ones(s) for s in shapes] for family, shapes in shape.gate_shapes.items()}


@dataclass(frozen=True)
class Steps:
    """The order in which one family's gates leave; a step is what leaves together (units, or a dim of every kept head)."""

    layer: np.ndarray  # (steps,)
    removed: np.ndarray  # (steps,) attention dims, MLP units or tokens that leave
    heads: np.ndarray  # (steps,) heads that leave
    leave: list[np.ndarray]  # a layer: each gate's step, NEVER for those of the floor; shapes of the gates
    total: int  # dims, units or tokens of the dense model

    @property
    def progress(self) -> np.ndarray:
        """(steps,) share of the family that is gone after each step."""
        return np.cumsum(self.removed) / max(self.total, 1)


class RemovalPath:
    """The order in which gates leave, and what is left to pay after each step.

    Args:
        shape: of the dense model.
        scores: for each family a value a gate, in the gates' shapes: the smallest leaves first. Usually `gated.gates`.
        floors: for each family the share of every layer that never leaves.
        round_to: kept head dims, MLP units and tokens (with the prefix) of a layer are multiples of this, the dense sizes
            excepted. None takes what is fast: 16 where heads are at least 64 wide, 1 in smaller models.
        paces: for each family, how fast it leaves: where one of pace 1 keeps a share s, one of pace p keeps s ** p. All
            leave alike where not given.
    """

    def __init__(
        self,
        shape: Shape,
        scores: Scores,
        floors: Mapping[str, float] | None = None,
        round_to: int | None = 1,
        paces: Mapping[str, float] | None = None,
    ) -> None:
        round_to = multiple(shape, round_to)
        if round_to < 1:
            raise ValueError(f"round_to is {round_to}; it must be at least 1")
        self.shape = shape
        self.families: dict[str, Steps] = {}
        for given in (scores, floors or {}, paces or {}):
            if unknown := sorted(set(given) - set(FAMILIES)):
                raise ValueError(f"{unknown[0]!r} is no family of gates; they are {', '.join(FAMILIES)}")
        for family in (f for f in FAMILIES if f in scores):
            values = [np.abs(np.asarray(torch.as_tensor(s).detach().cpu(), dtype=np.float64)) for s in scores[family]]
            if not all(np.isfinite(v).all() for v in values):
                raise ValueError(f"{family} gates hold values that are not finite; the search that made them went wrong")
            got, wanted = tuple(v.shape for v in values), shape.gate_shapes.get(family, ())
            if got != wanted:
                raise ValueError(f"{family} scores have the shapes {got}, the model's gates have {wanted}")
            floor = (floors or {}).get(family, 0.0)
            if not 0 <= floor < 1:
                raise ValueError(f"the floor of {family} gates is {floor}; it must be at least 0 and below 1")
            make = {"attention": _attention_steps, "mlp": _mlp_steps, "token": _token_steps}[family]
            self.families[family] = make(shape, values, floor, round_to)
        self.paces = dict(paces or {})
        self._merge()

    def _merge(self) -> None:
        """Interleave the families by progress at their paces."""
        if any(pace <= 0 for pace in self.paces.values()):
            raise ValueError(f"the paces are {self.paces}; they must be above 0")
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
        shape = self.shape
        gone = {f: np.zeros((self.length + 1, len(shape.layers)), dtype=np.int64) for f in (*FAMILIES, "heads")}
        for name, steps in self.families.items():
            np.add.at(gone[name], (self.position[name], steps.layer), steps.removed)
            if name == "attention":
                np.add.at(gone["heads"], (self.position[name], steps.layer), steps.heads)
        gone = {name: np.cumsum(g, axis=0) for name, g in gone.items()}
        return [
            LayerSizes(
                heads=layer.heads - gone["heads"][:, index],
                dims=layer.heads * layer.head_dim - gone["attention"][:, index],
                units=layer.hidden - gone["mlp"][:, index],
                tokens=layer.tokens - gone["token"][:, index],
            )
            for index, layer in enumerate(shape.layers)
        ]

    def cost(self, unit: str) -> np.ndarray:
        """(length + 1,) int64: what is left to pay after each prefix, in a unit of COSTS."""
        if unit not in self._costs:
            self._costs[unit] = COSTS[unit].of_path(self)
        return self._costs[unit]

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
        names = tuple(f for f in self.families if f in COSTS[unit].families)
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
            metric: the unit where the budget does not say, "macs" or "params"; "macs" where not given.

        Raises:
            BudgetError: the budget means nothing, counts something else than `metric`, or is below what is left at the path's
                end; says the least there is.
        """
        if metric is not None and metric not in COSTS:
            raise ValueError(f"metric is {metric!r}; it can be {' or '.join(map(repr, COSTS))}")
        asked = Budget.parse(budget, metric or "macs")
        said = repr(str(asked) if isinstance(budget, Budget) else budget)
        if metric is not None and asked.unit != metric:
            raise BudgetError(f"budget {said} counts {asked.unit}, but metric is {metric!r}: leave metric out")
        path, cost = self.for_unit(asked.unit), COSTS[asked.unit]
        left = path.cost(asked.unit)
        limit = asked.limit(int(left[0]))
        if left[-1] > limit:
            least = int(left[-1])
            raise BudgetError(
                f"budget {said} cannot be reached: the least this model can be cut to is {least / left[0]:.4f} "
                f"of its {cost.label} ({least:,}); give a larger budget, more families to cut, or lower floors"
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
) -> Structure | list[Structure]:
    """The structure that a budget leaves of a gated model; for a list of budgets a list.

    Args:
        gated: what `add_gates` returned.
        budget: a fraction of the dense model (0.5, "50%"), an amount ("2.3G"), either with a unit ("60% params"), or a list.
        per_family: instead of a budget, the share of gates to keep in each family ({"attention": 0.7, "mlp": 0.7}).
        metric: what a budget counts that does not say: "macs" (where not given), or "params", which leaves tokens alone,
            since they cost none.
        scores: other values than the gates to rank by, in the gates' shapes.
        floors: for each family the share of every layer that never leaves ({"mlp": 0.1}); none where not given.
        round_to: kept head dims, MLP units and tokens (with the prefix) of a layer are multiples of this; None takes what is
            fast: 16 where heads are at least 64 wide, 1 in smaller models.
        paces: how fast each family leaves ({"mlp": 1.4, "token": 0.7}); all alike where not given.

    Raises:
        BudgetError: a budget that means nothing or cannot be reached; says the least that can.
    """
    if (budget is None) == (per_family is None):
        raise ValueError("give either a budget or per_family shares")
    if per_family is not None and metric not in (None, "macs"):
        raise ValueError("metric says what a budget counts, and shares count gates: leave it out beside per_family")
    path = RemovalPath(gated.shape, gated.gates if scores is None else scores, floors, round_to, paces)
    if per_family is not None:
        return path.shares(per_family)
    asked: Any = budget
    single = isinstance(asked, str | numbers.Real | Budget)
    found = [path.solve(one, metric) for one in ([asked] if single else asked)]
    return found[0] if single else found


# The order within one family. Ties go by rank within the layer and then by layer, so gates that are all alike leave every
# layer evenly. A step of several gates counts their mean, rounded to float32: alike stay alike however they are summed.


def _order(layer: list[np.ndarray], score: list[np.ndarray], rank: list[np.ndarray]) -> np.ndarray:
    """The family's order of all layers' steps: by score, then relative rank within the layer, then layer."""
    return np.lexsort((np.concatenate(layer), np.concatenate(rank), np.concatenate(score)))


def _mlp_steps(shape: Shape, scores: list[np.ndarray], floor: float, round_to: int) -> Steps:
    layers, values, ranks, removed, groups = [], [], [], [], []
    for index, score in enumerate(scores):
        size = len(score)
        order = np.argsort(score, kind="stable")
        least = _rounded_up(floor * size, round_to)
        # The first group may be smaller, so that all later sizes are multiples.
        ends = np.arange(size - least, 0, -round_to)[::-1]
        starts = np.concatenate([[0], ends[:-1]]) if len(ends) else ends
        units = ends - starts
        group = np.full(size, NEVER)
        group[order[: units.sum()]] = np.repeat(np.arange(len(ends)), units)
        leaving = score[order[: units.sum()]]
        mean = np.add.reduceat(leaving, starts) / units if len(ends) else np.zeros(0)
        layers.append(np.full(len(ends), index))
        values.append(np.maximum.accumulate(mean.astype(np.float32)))
        removed.append(units)
        ranks.append(ends / size)
        groups.append(group)
    heads = [np.zeros_like(r) for r in removed]
    total = sum(len(s) for s in scores)
    return _assemble(layers, values, ranks, removed=removed, heads=heads, groups=groups, total=total)


def _attention_steps(shape: Shape, scores: list[np.ndarray], floor: float, round_to: int) -> Steps:
    """Dims and heads of each layer, so that its kept heads always have one width, each with its own best dims.

    A step takes either the worst dim of every kept head or the worst head, whichever loses less a dim.
    """
    layers, values, ranks, removed, lost, groups = [], [], [], [], [], []
    for index, score in enumerate(scores):
        layer = shape.layers[index]
        rows, columns = score.shape  # (heads, head_dim), (heads, 1) or (1, head_dim)
        dims_per_gate = layer.heads * layer.head_dim // (rows * columns)
        order = np.argsort(-score, axis=1, kind="stable")  # best dims first
        best = np.cumsum(np.take_along_axis(score, order, axis=1), axis=1)
        best = np.concatenate([np.zeros((rows, 1)), best], axis=1)  # best[h, w]: what the w best dims of head h add up to
        heads, width = list(range(rows)), columns
        least = max(floor * rows * columns, 0)
        group = np.full(score.shape, NEVER)
        steps: list[tuple[float, int, int]] = []
        while heads and width:
            # A narrower width must be a multiple of round_to; the first step to one may be smaller.
            narrower = (width - 1) // round_to * round_to if columns > 1 else width
            options = []
            if columns > 1 and len(heads) * narrower >= least:
                loss = (best[heads, width] - best[heads, narrower]).mean() / (width - narrower)
                options.append((float(np.float32(loss)), 0, narrower))
            if rows > 1 and (len(heads) - 1) * width >= least:
                worst = min(heads, key=lambda h: (best[h, width], h))
                options.append((float(np.float32(best[worst, width] / width)), 1, worst))
            if not options:
                break
            loss, kind, which = min(options)
            number = len(steps)
            if kind == 0:
                for head in heads:
                    group[head, order[head, which:width]] = number
                steps.append((loss, len(heads) * (width - which), len(heads) if which == 0 else 0))
                width = which
            else:
                group[which, order[which, :width]] = number
                steps.append((loss, width, 1))
                heads.remove(which)
        # Heads of the uniform granularity are all the layer's heads.
        lost_heads = [s[2] * (layer.heads if rows == 1 else 1) for s in steps]
        size = rows * columns
        layers.append(np.full(len(steps), index))
        values.append(np.maximum.accumulate([s[0] for s in steps]) if steps else np.zeros(0))
        removed.append(np.array([s[1] * dims_per_gate for s in steps], dtype=np.int64))
        ranks.append(np.cumsum([s[1] for s in steps]) / size if steps else np.zeros(0))
        lost.append(np.array(lost_heads, dtype=np.int64))
        groups.append(group)
    total = sum(x.heads * x.head_dim for x in shape.layers)
    return _assemble(layers, values, ranks, removed=removed, heads=lost, groups=groups, total=total)


def _token_steps(shape: Shape, scores: list[np.ndarray], floor: float, round_to: int) -> Steps:
    """Tokens leave in an order in which each leaves the last layer first; a layer gives them up `round_to` at a time.

    A token's rank in a layer is its best one there or later, so that a token kept in a layer is kept in all earlier ones.
    Those that make the number of rows odd leave first, from all layers.
    """
    score = np.stack(scores)  # (layers, patches)
    depth, patches = score.shape
    lasting = np.maximum.accumulate(score[::-1], axis=0)[::-1]
    least = max(int(np.ceil(floor * patches - 1e-9)), shape.least_tokens)
    # Equal tokens leave from the border inwards; all layers agree on that order, so that what left stays away.
    rows, columns = shape.grid
    row, column = np.divmod(np.arange(patches), columns)
    outwards = np.maximum(np.abs(row - (rows - 1) / 2), np.abs(column - (columns - 1) / 2))
    tie = np.empty(patches, dtype=np.int64)
    tie[np.lexsort((np.arange(patches), -outwards))] = np.arange(patches)
    # Rows beyond a multiple are a group of their own to a matrix product: a few tokens less in every layer save most.
    if round_to > 1:
        lasting[:, np.lexsort((tie, lasting[0]))[: (patches + shape.layers[0].prefix) % round_to]] = -1.0
    layer_of, patch_of = np.divmod(np.arange(depth * patches), patches)
    order = np.lexsort((-layer_of, tie[patch_of], lasting.reshape(-1)))
    # The floor: each layer's last `least` tokens in that order, and those that a later layer's floor needs.
    stays = np.zeros(depth * patches, dtype=bool)
    for index in range(depth):
        mine = order[layer_of[order] == index]
        stays[mine[patches - least :]] = True
    for index in range(depth - 2, -1, -1):
        stays[index * patches : (index + 1) * patches] |= stays[(index + 1) * patches : (index + 2) * patches]
    order = order[~stays[order]]
    # A matrix product's rows are all tokens, the prefix too: those are what is kept to multiples.
    waits = [_excess(patches + layer.prefix, round_to) for layer in shape.layers]  # tokens that the next step takes
    ready: list[list[int]] = [[] for _ in range(depth)]  # tokens whose turn has come, and which no later layer has any more
    due = np.zeros((depth, patches), dtype=bool)
    leave = np.full((depth, patches), NEVER)
    layers: list[int] = []
    removed: list[int] = []
    for layer, patch in zip(layer_of[order].tolist(), patch_of[order].tolist(), strict=True):
        due[layer, patch] = True
        if layer == depth - 1 or leave[layer + 1, patch] < NEVER:
            ready[layer].append(patch)
        at = layer
        while at >= 0 and len(ready[at]) >= waits[at]:
            group, ready[at] = ready[at][: waits[at]], ready[at][waits[at] :]
            leave[at, group] = len(layers)
            layers.append(at)
            removed.append(len(group))
            waits[at] = round_to
            at -= 1  # where those that left here, if it is their turn, are now free to leave
            if at >= 0:
                ready[at] += [token for token in group if due[at, token]]
    return Steps(np.array(layers, int), np.array(removed, int), np.zeros(len(layers), int), list(leave), depth * patches)


def _assemble(
    layers: list[np.ndarray],
    values: list[np.ndarray],
    ranks: list[np.ndarray],
    *,
    removed: list[np.ndarray],
    heads: list[np.ndarray],
    groups: list[np.ndarray],
    total: int,
) -> Steps:
    """One order over all layers, and each gate's place in it from its place in its layer."""
    order = _order(layers, values, ranks)
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    leave, start = [], 0
    for layer, group in zip(layers, groups, strict=True):
        mine = np.append(place[start : start + len(layer)], NEVER)
        leave.append(mine[np.minimum(group, len(layer))])
        start += len(layer)
    return Steps(np.concatenate(layers)[order], np.concatenate(removed)[order], np.concatenate(heads)[order], leave, total)


def _excess(size: int, multiple: int) -> int:
    """What leaves first, so that all later sizes are multiples."""
    return size % multiple or multiple


def _rounded_up(size: float, multiple: int) -> int:
    return int(-(-np.ceil(size - 1e-9) // multiple) * multiple)
