"""From a removal path to milliseconds: some prefixes are timed, and the curve between them is monotone.

Latency does not depend on weights, so the prefixes of a path are timed as cuts that nobody trained. A curve through their times
finds the prefix of a budget; that prefix is then timed itself beside the dense model, and the curve is corrected by what was
found, until the largest structure within the budget is known.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from slimsweep.errors import RefusedInput
from slimsweep.latency.quiet_timing import Measured
from slimsweep.slimming.budget import Budget
from slimsweep.slimming.cost import NANOSECONDS
from slimsweep.slimming.removal_path import RemovalPath
from slimsweep.slimming.shape import Shape
from slimsweep.slimming.structure import Structure

DENSE = "dense"
PREFIXES = 33  # that are timed of a path
PREFIXES_OF_A_TRY = 9  # where one budget is looked for on each of several paths, and is then timed itself
BRANCH_SHARE = 1 / 3  # what a whole branch counts in the progress along a path, beside MACs
TRIES = 8  # sessions in which the prefix of a budget is looked for
NEAR = 0.03  # a prefix this share below its budget is near enough
MOST_OF_A_BRANCH = 4.0  # that a branch is taken to cost by itself, in the cost of its gates
AIM = 0.01  # how far below its budget a prefix is aimed, so that noise does not put it above

# Times structures in the same interleaved rounds. The key DENSE is always among them.
Timer = Callable[[Mapping[str, Structure]], Measured]


def progress(path: RemovalPath) -> np.ndarray:
    """(length + 1,) how much of the dense model each prefix of a path leaves, from 1 downwards: of its MACs and its branches.

    A layer that is left with few dims costs hardly any MACs, but still time: where branches leave whole (depth), their number
    counts for a third.
    """
    left = path.macs / path.macs[0]
    sizes = path.layer_sizes()
    branches = sum((layer.dims > 0).astype(np.int64) + (layer.units > 0) for layer in sizes)
    whole = branches[0]
    if not whole or branches[-1] == whole:
        return left
    found: np.ndarray = (1 - BRANCH_SHARE) * left + BRANCH_SHARE * branches / whole
    return found


def prefix_lengths(path: RemovalPath, count: int = PREFIXES) -> list[int]:
    """Which prefixes of a path are timed: both ends, and between them evenly spaced in `progress`, each structure once.

    The same path gives the same prefixes, so that times from another device are found by the structures' ids.

    Args:
        count: how many, at most; at least 2.
    """
    left = progress(path)
    wanted = np.linspace(left[0], left[-1], max(2, count))
    # The first prefix that leaves no more than is wanted; rounding must not put the last one beyond the path's end.
    found = np.minimum(np.searchsorted(-left, -wanted - 1e-12, side="left"), path.length)
    lengths: dict[str, int] = {}
    for length in [0, *found.tolist(), path.length]:
        lengths.setdefault(path.prefix(length).id, int(length))
    return sorted(lengths.values())


@dataclass(frozen=True)
class LatencyCurve:
    """The latency of every prefix of a path, from that of some: a monotone regression, interpolated in `progress`.

    Attributes:
        lengths: of the prefixes that were timed, rising, the dense model (0) first.
        ms: (len(lengths),) milliseconds of one call with a whole batch.
        spread: of each time, as in `quiet_timing`.
        busy: why the times are not to be trusted; empty where they are.

    Raises:
        ValueError: no times, or not those of the dense model.
    """

    lengths: Sequence[int]
    ms: Sequence[float]
    spread: Sequence[float] = field(default_factory=tuple)
    busy: str = ""

    def __post_init__(self) -> None:
        if not self.lengths or self.lengths[0] != 0 or len(self.lengths) != len(self.ms):
            raise ValueError("a curve needs a time for each of its prefixes, the dense model's first")

    def ms_of_path(self, path: RemovalPath) -> np.ndarray:
        """(path.length + 1,) milliseconds of each prefix; they never rise along the path."""
        left = progress(path)
        at = left[np.asarray(self.lengths, dtype=np.int64)]
        from sklearn.isotonic import IsotonicRegression  # here: a second that only budgets in ms need

        smooth = IsotonicRegression(increasing=True).fit_transform(at, np.asarray(self.ms, dtype=np.float64))
        found: np.ndarray = np.interp(left, at[::-1], smooth[::-1])
        return np.minimum.accumulate(found)

    def ns_of_path(self, path: RemovalPath) -> np.ndarray:
        """(path.length + 1,) int64 nanoseconds of each prefix, as `RemovalPath` takes a latency."""
        return np.rint(NANOSECONDS * self.ms_of_path(path)).astype(np.int64)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, which `from_dict` takes."""
        spread = [None if math.isnan(one) else one for one in self.spread]
        return {"lengths": list(self.lengths), "ms": list(self.ms), "spread": spread, "busy": self.busy}

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> "LatencyCurve":
        """The curve from what `to_dict` returned, also after a way through JSON.

        Raises:
            ValueError: it is no such curve.
        """
        try:
            times = [float(ms) for ms in data["ms"]]
            spread = [math.nan if s is None else float(s) for s in data["spread"]]
            return LatencyCurve([int(n) for n in data["lengths"]], times, spread, str(data["busy"]))
        except (KeyError, TypeError) as problem:
            raise ValueError(f"this is no curve of latencies ({problem!r})") from problem


@dataclass(frozen=True, kw_only=True)
class TimedStructure:
    """A structure's latency, and that of the dense model in the same rounds."""

    ms: float
    ms_dense: float
    spread: float
    busy: str = ""


@dataclass(frozen=True, kw_only=True)
class Solved:
    """What a budget in milliseconds leaves of a path: the longest structure that was timed within it.

    Attributes:
        length: of the prefix; None where the budget cannot be reached.
        timed: its latency; of the path's end where the budget cannot be reached.
        error: why there is no structure, in one sentence; empty where there is one.
    """

    length: int | None
    timed: TimedStructure
    error: str = ""


def measure_curve(path: RemovalPath, timer: Timer, count: int = PREFIXES) -> LatencyCurve:
    """Time prefixes of a path as untrained cuts, all in the same interleaved rounds.

    Args:
        timer: times structures of the path's dense model (`slimsweep.latency.calls.DeviceTimer`).
        count: of prefixes, at most.
    """
    lengths = prefix_lengths(path, count)
    found = timer({DENSE if length == 0 else str(length): path.prefix(length) for length in lengths})
    calls = [found.calls[DENSE if length == 0 else str(length)] for length in lengths]
    busy = next((timed.busy for timed in calls if timed.busy), "")
    return LatencyCurve(lengths, [1e3 * timed.median for timed in calls], [timed.spread for timed in calls], busy)


def branch_cost(shape: Shape, timer: Timer) -> float:
    """What a whole branch (attention or MLP of a layer) costs by itself on a device, as a share of what its gates cost there.

    From the dense model, one that keeps half of each branch, and one without every second layer: if a branch takes
    c + g x (share of its gates), the three times give c / g. 0 where only the gates cost time, at most 4.

    Args:
        timer: times structures of the dense model.
    """
    masks: dict[str, list[Tensor]] = dict(shape.full().masks)
    branches: list[str] = [family for family in ("attention", "mlp") if family in masks]
    if not branches:
        return 0.0
    half = {family: [_half(mask) for mask in masks[family]] for family in branches}
    layers = len(shape.layers)
    fewer = {family: [mask & bool(index % 2 == 0) for index, mask in enumerate(masks[family])] for family in branches}
    structures = {DENSE: shape.full(), "half": Structure(shape, masks | half), "fewer": Structure(shape, masks | fewer)}
    empty = Structure(shape, masks | {family: [mask & False for mask in masks[family]] for family in branches})
    macs = {name: structure.macs() for name, structure in structures.items()}
    of_gates = macs[DENSE] - empty.macs()
    found = {name: timed.median for name, timed in timer(structures).calls.items()}
    gates = (found[DENSE] - found["half"]) * of_gates / (macs[DENSE] - macs["half"])
    own = (found[DENSE] - found["fewer"] - gates * (macs[DENSE] - macs["fewer"]) / of_gates) * layers / (layers // 2 or layers)
    return MOST_OF_A_BRANCH if gates <= 0 else min(max(own / gates, 0.0), MOST_OF_A_BRANCH)


def _half(mask: Tensor) -> Tensor:
    """A mask of half of a layer's gates: of the dims of each head, or of the heads where they have one gate each."""
    kept = mask.clone()
    along = mask.ndim - 1 if mask.shape[-1] > 1 else 0
    kept.narrow(along, mask.shape[along] // 2, mask.shape[along] - mask.shape[along] // 2).fill_(False)
    return kept


def time_structures(structures: Mapping[str, Structure], timer: Timer) -> dict[str, TimedStructure]:
    """The latency of each structure, all timed in the same interleaved rounds.

    Args:
        structures: by name, with the dense model's under DENSE.
    """
    found = timer(structures)
    dense = 1e3 * found.calls[DENSE].median
    return {
        name: TimedStructure(ms=1e3 * timed.median, ms_dense=dense, spread=timed.spread, busy=timed.busy)
        for name, timed in found.calls.items()
    }


@dataclass
class _Search:
    """The prefix that is looked for, for one budget."""

    budget: Budget
    length: int  # that is timed next
    exceeds: int = -1  # the longest prefix that is known to be above the budget
    fits: int | None = None  # the shortest that is known to be within it
    timed: TimedStructure | None = None  # of `fits`
    ended: bool = False


def solve_ms(
    path: RemovalPath,
    curve: LatencyCurve,
    budgets: Sequence[Budget],
    timer: Timer,
    tries: int = TRIES,
    say: Callable[[str], None] = lambda text: None,
) -> list[Solved]:
    """For each budget in milliseconds the largest prefix of a path that was timed within it.

    The prefixes that the curve names are timed beside the dense model; where one is above its budget, or more than 3 % below
    it, the curve is scaled by what was measured and asked again. Structures of smaller budgets are prefixes that are at least
    as long, so all are nested. A relative budget is of the dense model's latency in the same rounds.

    Args:
        budgets: of the unit ms, in any order.
        tries: how often prefixes are timed, at most; the last of them are halvings between what fits and what does not.
        say: is told which prefixes are timed.
    """
    predicted = curve.ms_of_path(path)
    searches = [_Search(budget, _longest(predicted, _limit(budget, predicted[0]) * (1 - AIM))) for budget in budgets]
    ends: dict[int, TimedStructure] = {}
    for attempt in range(tries + 1):
        open_ = [search for search in searches if not search.ended]
        if attempt == tries:  # nothing fits yet: is there anything that does?
            open_ = [search for search in open_ if search.fits is None]
            for search in open_:
                search.length = path.length
        if not open_:
            break
        lengths = sorted({search.length for search in open_})
        say(f"try {attempt + 1}: {len(lengths)} structures beside the dense model")
        found = time_structures({DENSE: path.prefix(0)} | {str(n): path.prefix(n) for n in lengths if n}, timer)
        for search in open_:
            timed = found[str(search.length) if search.length else DENSE]
            if search.length == path.length:
                ends[path.length] = timed
            _learn(search, timed, predicted, path.length, halve=attempt >= tries // 2)
    solved: list[Solved] = []
    for search in searches:
        if search.fits is None or search.timed is None:
            solved.append(Solved(length=None, timed=ends[path.length], error=_unreachable(search.budget, ends[path.length])))
        elif search.fits == 0:
            solved.append(Solved(length=None, timed=search.timed, error=_not_below(search.budget, search.timed.ms_dense)))
        else:
            solved.append(Solved(length=search.fits, timed=search.timed))
    return _nested(budgets, solved, float(predicted[0]))


def _learn(search: _Search, timed: TimedStructure, predicted: np.ndarray, end: int, halve: bool) -> None:
    """Take in the latency of the prefix that was timed, and choose the next one or end.

    Args:
        predicted: (length + 1,) milliseconds by the curve.
        end: the longest prefix.
        halve: whether the next prefix lies in the middle of those that are still possible.
    """
    limit, length = _limit(search.budget, timed.ms_dense), search.length
    if timed.ms <= limit:
        if search.fits is None or length <= search.fits:
            search.fits, search.timed = length, timed
        search.ended = timed.ms >= (1 - NEAR) * limit
    else:
        search.exceeds = max(search.exceeds, length)
        if length == end:
            search.ended = True
            return
    first, last = search.exceeds + 1, end if search.fits is None else search.fits - 1
    if first > last:
        search.ended = True
        return
    if halve:
        if search.fits is None and search.exceeds >= 0:
            last = end
        search.length = (first + last) // 2
        return
    # The curve is right in its form: where this prefix takes longer than it says, others do too.
    wanted = (1 - AIM) * limit * predicted[length] / timed.ms if timed.ms else limit
    search.length = min(max(_longest(predicted, wanted), first), last)


def _limit(budget: Budget, ms_dense: float) -> float:
    """The most milliseconds that a budget allows."""
    return budget.amount * ms_dense if budget.relative else budget.amount


def _longest(predicted: np.ndarray, limit: float) -> int:
    """The first prefix that takes at most `limit` milliseconds; the last one where none does."""
    return min(int(np.searchsorted(-predicted, -limit, side="left")), len(predicted) - 1)


def _unreachable(budget: Budget, end: TimedStructure) -> str:
    return (
        f"budget {str(budget)!r} cannot be reached: the least that this model was timed at is {end.ms:.4g} ms "
        f"({100 * end.ms / end.ms_dense:.3g} % of the dense model's {end.ms_dense:.4g} ms); give a larger budget, more "
        "families to cut, or lower floors"
    )


def _not_below(budget: Budget, ms_dense: float) -> str:
    return f"budget {str(budget)!r} is not below the dense model's {ms_dense:.4g} ms: take a smaller one"


def _nested(budgets: Sequence[Budget], solved: Sequence[Solved], ms_dense: float) -> list[Solved]:
    """The solutions, where no budget has a smaller structure than a smaller budget.

    Noise can turn the order of two budgets that are near each other: the larger structure, which was timed within the smaller
    budget, then serves both.

    Args:
        ms_dense: of the dense model, to compare numbers of milliseconds with fractions.
    """
    found = list(solved)
    reached = [index for index, one in enumerate(found) if one.length is not None]
    rising = sorted(reached, key=lambda index: _limit(budgets[index], ms_dense))
    for smaller, larger in itertools.pairwise(rising):
        first, second = found[smaller], found[larger]
        if first.length is not None and second.length is not None and first.length < second.length:
            fits = first.timed.ms <= _limit(budgets[larger], first.timed.ms_dense)
            found[larger if fits else smaller] = first if fits else second
    return found


def curve_of_times(
    path: RemovalPath, ms: Mapping[str, float], where: str, count: int = PREFIXES, busy: str = ""
) -> LatencyCurve:
    """The curve of a path from times that were measured elsewhere.

    Args:
        ms: milliseconds by `Structure.id`.
        where: they come from, for messages, such as "latency.table is 'jetson.csv'".
        count: prefixes that were timed, as in `prefix_lengths`.
        busy: why the times are not to be trusted; empty where they are.

    Raises:
        RefusedInput: none of the path's structures is among them, or the dense model is not.
    """
    lengths = prefix_lengths(path, count)
    known = [(length, ms[path.prefix(length).id]) for length in lengths if path.prefix(length).id in ms]
    if not known or known[0][0] != 0 or len(known) < 2:
        lacking = "none of this run's structures" if not known else "too few of this run's structures, or not the dense model"
        raise RefusedInput(
            f"{where}, which has times of {lacking}: export the structures of this run (`slimsweep latency export`), time "
            "those, and give that table"
        )
    return LatencyCurve([length for length, _ in known], [value for _, value in known], busy=busy)


def solved_by_curve(path: RemovalPath, curve: LatencyCurve, budgets: Sequence[Budget]) -> list[Solved]:
    """For each budget in milliseconds the largest prefix that is within it by the curve; nothing is timed."""
    predicted = curve.ms_of_path(path)
    dense = float(predicted[0])
    found: list[Solved] = []
    for budget in budgets:
        limit = _limit(budget, dense)
        length = _longest(predicted, limit)
        timed = TimedStructure(ms=float(predicted[length]), ms_dense=dense, spread=math.nan, busy=curve.busy)
        error = _unreachable(budget, timed) if timed.ms > limit else "" if length else _not_below(budget, dense)
        found.append(Solved(length=None if error else length, timed=timed, error=error))
    return found


def as_solved(data: Mapping[str, Any]) -> Solved:
    """A solution from what `solved_as_dict` made of it, also after a way through JSON."""
    return Solved(length=data["length"], timed=as_timed(data["timed"]), error=data["error"])


def as_timed(data: Mapping[str, Any]) -> TimedStructure:
    """A latency from what `timed_as_dict` made of it, also after a way through JSON."""
    return TimedStructure(**{**data, "spread": math.nan if data["spread"] is None else data["spread"]})


def timed_as_dict(timed: TimedStructure) -> dict[str, Any]:
    """Plain values for a JSON file: no number where there is none."""
    return {**asdict(timed), "spread": None if math.isnan(timed.spread) else timed.spread}


def solved_as_dict(solved: Solved) -> dict[str, Any]:
    """Plain values, which `as_solved` takes."""
    return {"length": solved.length, "timed": timed_as_dict(solved.timed), "error": solved.error}
