"""What a run's folder holds of latencies, in the setting of its configuration: workers time them once."""

import hashlib
import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from slimsweep.ledger.files import BRANCH_COST, LATENCY

if TYPE_CHECKING:  # what is timed needs scikit-learn and torch, which readers of a run's rows do without
    from slimsweep.latency.curve import LatencyCurve, Solved, TimedStructure
    from slimsweep.ledger.run import Run
    from slimsweep.slimming.structure import Structure


class LatencyFiles:
    """The latencies of a run: of the removal path of budgets in ms, of what budgets leave of it, and of other structures."""

    def __init__(self, run: "Run") -> None:
        self._run = run
        self._branch_cost: float | None = None  # as it was read; it does not change once it was measured

    def key(self, pace: Mapping[str, float] | None = None) -> str:
        """A hash of all that latencies of a path depend on, the machine aside: eight hex digits.

        Args:
            pace: of the path; where not given, what paths of all paces have in common.
        """
        identity = self._run.identity("retrain")
        cut = {name: value for name, value in identity["cut"].items() if pace is None or name not in ("paces", "recovery")}
        known = [identity["search"], cut, self._timed_in(), self.depth, "attention stays", dict(pace or {})]
        return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:8]

    @property
    def branch_cost(self) -> float | None:
        """What a branch costs by itself, as `slimsweep.latency.curve.branch_cost` measured it; None before that."""
        if self._branch_cost is None and (found := self._run.json_or_none(BRANCH_COST, "branch_cost")) is not None:
            self._branch_cost = float(found["branch_cost"])
        return self._branch_cost

    def write_branch_cost(self, cost: float, about: Mapping[str, Any]) -> None:
        """Write what a branch costs by itself, and what it was measured with."""
        self._run.folder.write_json(BRANCH_COST, {"branch_cost": cost, "about": dict(about)})

    @property
    def depth(self) -> bool | float:
        """The `depth` of the removal path of budgets in ms (`RemovalPath`)."""
        return self._run.config.branch_cost(self.branch_cost)

    def _timed_in(self) -> list[Any]:
        return [self._run.config.latency_setting.to_dict(), self._run.config.timing.table]

    def _curve_file(self, pace: Mapping[str, float]) -> str:
        return f"{LATENCY}/curve-{self.key(pace)}.json"

    def curve(self, pace: Mapping[str, float]) -> "LatencyCurve | None":
        """The latencies of the path in ms at a pace; None where it was not timed yet."""
        from slimsweep.latency.curve import LatencyCurve

        found = self._run.json_or_none(self._curve_file(pace), "lengths", "ms", "spread", "busy")
        return None if found is None else LatencyCurve.from_dict(found)

    def about(self, pace: Mapping[str, float]) -> dict[str, Any]:
        """What the latencies of the path in ms at a pace were measured with; empty where it was not timed yet."""
        found = self._run.json_or_none(self._curve_file(pace), "about")
        return {} if found is None else dict(found["about"])

    def forget(self, pace: Mapping[str, float]) -> None:
        """Delete the latencies of the path in ms at a pace, what budgets leave by them, and those of structures."""
        for file in (self._solved_file(pace, trying=False), self._solved_file(pace, trying=True), self._times_file):
            self._run.folder.delete(file)
        # Last: what is left of a stop in between is forgotten by the next start.
        self._run.folder.delete(self._curve_file(pace))

    def write_curve(self, pace: Mapping[str, float], curve: "LatencyCurve", about: Mapping[str, Any]) -> None:
        """Write the latencies of the path in ms at a pace, and what they were measured with."""
        self._run.folder.write_json(self._curve_file(pace), {**curve.to_dict(), "pace": dict(pace), "about": dict(about)})

    def solved(self, pace: Mapping[str, float], trying: bool = False) -> "dict[str, Solved]":
        """By text of the budget, what is left of the path in ms at a pace; budgets that were not looked for yet are missing.

        Args:
            trying: what a try of the pace is cut to, not what points are.
        """
        from slimsweep.latency.curve import as_solved

        found = self._run.json_or_none(self._solved_file(pace, trying), "budgets")
        return {} if found is None else {text: as_solved(one) for text, one in found["budgets"].items()}

    def write_solved(self, pace: Mapping[str, float], solved: "Mapping[str, Solved]", trying: bool = False) -> None:
        """Write what `solved` reads."""
        from slimsweep.latency.curve import solved_as_dict

        budgets = {text: solved_as_dict(one) for text, one in solved.items()}
        self._run.folder.write_json(self._solved_file(pace, trying), {"pace": dict(pace), "budgets": budgets})

    def _solved_file(self, pace: Mapping[str, float], trying: bool) -> str:
        return f"{LATENCY}/{'try' if trying else 'budgets'}-{self.key(pace)}.json"

    @property
    def _times_file(self) -> str:
        key = hashlib.sha256(json.dumps(self._timed_in(), sort_keys=True).encode()).hexdigest()[:8]
        return f"{LATENCY}/times-{key}.json"

    def times(self) -> "dict[str, tuple[TimedStructure, dict[str, Any]]]":
        """By `Structure.id`, the latency of a structure and what it was measured with (`latency_setting` of the results)."""
        from slimsweep.latency.curve import as_timed

        found = self._run.json_or_none(self._times_file, "times", "about")
        if found is None:
            return {}
        return {name: (as_timed(one["timed"]), found["about"][one["about"]]) for name, one in found["times"].items()}

    def columns_of(self, structure: "Structure") -> dict[str, Any]:
        """The columns of a structure's latency in the results; none where the run asks for none, or has none of it."""
        asked = self._run.config.latency is not None or self._run.config.budgets_in_ms
        found = self.times().get(structure.id) if asked else None
        if found is None:
            return {}
        timed, setting = found
        return {
            "latency_ms": timed.ms,
            "latency_ms_dense": timed.ms_dense,
            "latency_spread": None if math.isnan(timed.spread) else timed.spread,
            "latency_busy": timed.busy,
            "latency_setting": json.dumps(setting),
        }

    def write_times(self, times: "Mapping[str, TimedStructure]", about: Mapping[str, Any]) -> None:
        """Add latencies of structures to those that the run has.

        Args:
            times: by `Structure.id`.
            about: what they were measured with.
        """
        from slimsweep.latency.curve import timed_as_dict

        found = self._run.json_or_none(self._times_file, "times", "about") or {"times": {}, "about": []}
        if dict(about) not in found["about"]:
            found["about"].append(dict(about))
        place = found["about"].index(dict(about))
        found["times"] |= {name: {"timed": timed_as_dict(timed), "about": place} for name, timed in times.items()}
        self._run.folder.write_json(self._times_file, found)
