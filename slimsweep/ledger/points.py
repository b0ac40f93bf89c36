"""The points of a sweep and its plan, as plain values: the driver writes them, all others read them.

`ledger/planning.py` makes the plan, `ledger/status.py` reads it. Nothing here imports model code or solves a budget.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Point:
    """One model to make. Its hash stands for all that its result depends on."""

    method: str
    budget: float  # fraction of the dense model's cost: as asked for, or as shares leave it
    seed: int
    structure: str  # JSON; empty where the method cannot meet the budget
    hash: str
    unit: str = "macs"  # the cost that the budget counts: macs, params or ms
    budget_ms: float | None = None  # the milliseconds that were asked for, where the budget is a number of them
    terms: str = "retraining"
    shares: str = ""  # JSON: the share of gates that each family keeps; empty where a budget was asked for
    lr: float
    epochs: int
    one_of_rates: bool = False  # whether several learning rates are tried: then the name contains the rate
    start: str = ""  # the point whose trained model it starts from; empty where it starts from the search or the dense model

    @property
    def name(self) -> str:
        terms = "" if self.terms == "retraining" else f"-{self.terms}"
        budget = f"{self.budget:.4f}" if self.budget_ms is None else f"{self.budget_ms:g}ms"
        unit = "" if self.unit == "macs" or self.budget_ms is not None else f"-{self.unit}"
        shares = "".join(f"-{family}{share:g}" for family, share in json.loads(self.shares or "{}").items())
        lr = f"-lr{self.lr:g}" if self.one_of_rates else ""
        return f"{self.method}{terms}-{budget}{unit}{shares}{lr}-s{self.seed}-{self.hash[:4]}"

    @property
    def rate_group(self) -> tuple[str, str, str, str, str, int]:
        """Equal for points that differ only in learning rate or starting point: the best of them on validation counts."""
        return self.method, self.terms, f"{self.budget:.9f}", self.unit, self.shares, self.seed

    @property
    def training(self) -> tuple[Any, ...]:
        """Equal for points that are trained alike: those that differ only in the terms that they stand for."""
        return self.method, self.budget, self.unit, self.shares, self.seed, self.structure, self.lr, self.epochs, self.start


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What the driver of a run has planned, as it stands in plan.json."""

    attempt: str  # name of the driver's start: trials that an earlier start began no longer run
    points: tuple[Point, ...] = ()  # without their structures; empty before the search has ended
    later: int = 0  # number of points that can be planned only when others have ended
    choosing: tuple[str, ...] = ()  # what is still to be chosen: the pace of the families, what a method keeps
    over: bool = False  # the driver has ended: nothing begins before the next start

    def to_json(self) -> dict[str, Any]:
        """Plain data for a file, each point with its name. Structures are left out: they are long, and rows have them."""
        data = asdict(replace(self, points=tuple(replace(point, structure="") for point in self.points)))
        data["points"] = [{"name": point.name, **values} for point, values in zip(self.points, data["points"], strict=True)]
        return data

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> "Plan":
        """The plan from what `to_json` returned; fields that this version does not know are ignored.

        Raises:
            ValueError: the data is not a plan.
        """
        try:
            known = _known(Plan, data)
            known["points"] = tuple(Point(**_known(Point, point)) for point in data.get("points", ()))
            known["choosing"] = tuple(data.get("choosing", ()))
            return Plan(**known)
        except (AttributeError, TypeError) as problem:
            raise ValueError(f"this is not a plan that slimsweep wrote ({problem})") from problem


def is_in_ms(name: str) -> bool:
    """Whether a point of that name has a budget in milliseconds: searched-0.4000-ms-s0-1f09, searched-8ms-s0-1f09."""
    return re.search(r"-([0-9.e+-]*)ms-", name) is not None


def _known(kind: Any, data: Mapping[str, Any]) -> dict[str, Any]:
    names = {one.name for one in fields(kind)}
    return {key: value for key, value in data.items() if key in names}
