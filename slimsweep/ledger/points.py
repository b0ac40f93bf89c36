"""A point of a sweep and the written plan: plain values, which the driver writes and everybody else reads.

No solver and no model code is behind them: `ledger/planning.py` makes the plan, `ledger/status.py` reads it.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Point:
    """One model to make: what it is, and all that its result depends on, in its hash."""

    method: str
    budget: float  # fraction of the dense model's cost asked for; where shares were asked for, the fraction that is left
    seed: int
    structure: str  # JSON; empty where the method cannot meet the budget
    hash: str
    unit: str = "macs"  # the cost that the budget counts: macs or params
    terms: str = "retraining"
    shares: str = ""  # the share that each family keeps, as JSON, where that was asked for
    lr: float
    epochs: int
    one_of_rates: bool = False  # whether other learning rates are tried: then the name tells this one
    start: str = ""  # the point whose trained model it starts from; empty where it starts from the search or the dense model

    @property
    def name(self) -> str:
        terms = "" if self.terms == "retraining" else f"-{self.terms}"
        unit = "" if self.unit == "macs" else f"-{self.unit}"
        shares = "".join(f"-{family}{share:g}" for family, share in json.loads(self.shares or "{}").items())
        lr = f"-lr{self.lr:g}" if self.one_of_rates else ""
        return f"{self.method}{terms}-{self.budget:.4f}{unit}{shares}{lr}-s{self.seed}-{self.hash[:4]}"

    @property
    def place(self) -> tuple[str, str, str, str, str, int]:
        """Equal for points that differ in their learning rate, or in what they start from, alone."""
        return self.method, self.terms, f"{self.budget:.9f}", self.unit, self.shares, self.seed


@dataclass(frozen=True, kw_only=True)
class Stage:
    """The training of the dense model, or the search."""

    name: str
    epochs: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What the driver of a run has planned, as it writes it down."""

    attempt: str  # the driver's start: what a trial of an earlier start began is not under way any more
    stages: tuple[Stage, ...] = ()
    points: tuple[Point, ...] = ()  # without their structures; empty before the search has ended
    later: int = 0  # points that are planned once others have ended
    waits_for: str = ""  # what those wait for
    choosing: tuple[str, ...] = ()  # what is still to be chosen: the pace of the families, what a method keeps
    over: bool = False  # the driver has ended: nothing more begins before the next start

    def to_json(self) -> dict[str, Any]:
        """Plain data for a file, each point with its name; structures, which are long and stand in the rows, stay out."""
        data = asdict(replace(self, points=tuple(replace(point, structure="") for point in self.points)))
        data["points"] = [{"name": point.name, **values} for point, values in zip(self.points, data["points"], strict=True)]
        return data

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> "Plan":
        """The plan that `to_json` gave; what a later version added is left out.

        Raises:
            ValueError: the data is no plan.
        """
        try:
            known = _known(Plan, data)
            known["stages"] = tuple(Stage(**_known(Stage, stage)) for stage in data.get("stages", ()))
            known["points"] = tuple(Point(**_known(Point, point)) for point in data.get("points", ()))
            known["choosing"] = tuple(data.get("choosing", ()))
            return Plan(**known)
        except (AttributeError, TypeError) as problem:
            raise ValueError(f"this is not a plan that slimsweep wrote ({problem})") from problem


def _known(kind: Any, data: Mapping[str, Any]) -> dict[str, Any]:
    names = {one.name for one in fields(kind)}
    return {key: value for key, value in data.items() if key in names}
