"""The points of a sweep: what is to be made, what each is called, and what is left to do."""

import hashlib
import json
from dataclasses import dataclass

from slimsweep.budget import RemovalPath, absolute
from slimsweep.config import Config
from slimsweep.results import read_gates_tensors, read_rows
from slimsweep.storage import Folder
from slimsweep.structure import Shape


@dataclass(frozen=True, kw_only=True)
class Point:
    """One model to make: what it is, and all that its result depends on, in its hash."""

    method: str
    budget: float  # fraction of the dense model's MACs asked for
    seed: int
    structure: str  # JSON
    hash: str

    @property
    def name(self) -> str:
        return f"{self.method}-{self.budget:.4f}-s{self.seed}-{self.hash[:4]}"


def plan_points(config: Config, run: Folder) -> list[Point]:
    """Every point that the configuration asks for, largest budget first; the search must be done.

    Raises:
        BudgetError: a budget below the least that the model can be cut to.
    """
    shape = load_shape(run)
    path = RemovalPath(shape, read_gates_tensors(run, shape), config.search.floors.model_dump(), config.search.round_to)
    dense = shape.full()
    wanted = [("dense", 1.0, dense)]
    for budget in config.sorted_budgets:
        wanted.append(
            (
                "searched",
                absolute(budget, dense.macs()) / dense.macs() if isinstance(budget, str) else budget,
                path.solve(budget),
            )
        )
    wanted.sort(key=lambda item: -item[1])
    fingerprint = config.fingerprint("retrain")
    points = []
    for method, budget, structure in wanted:
        for seed in config.retrain.seeds:
            identity = json.dumps([fingerprint, method, f"{budget:.9f}", seed])
            points.append(
                Point(
                    method=method,
                    budget=budget,
                    seed=seed,
                    structure=structure.to_json(),
                    hash=hashlib.sha256(identity.encode()).hexdigest()[:16],
                )
            )
    return points


def points_to_do(points: list[Point], run: Folder) -> list[Point]:
    """Those without an ok row."""
    rows = read_rows(run)
    done = set(rows[rows.status == "ok"].point)
    return [p for p in points if p.name not in done]


def load_shape(run: Folder) -> Shape:
    """The dense model's sizes and costs, as the search left them, without building the model."""
    return Shape.from_dict(run.read_json("search/search.json")["shape"])
