"""Where a run stands: what is done, running, failed and waiting, from the written plan, the rows and the curves.

Rows are the truth of what is done. Nothing is solved here and no model is built, so any reader can afford to look.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from slimsweep.ledger.lock import driver_alive
from slimsweep.ledger.points import Plan
from slimsweep.ledger.run import Run

State = Literal["done", "running", "failed", "waiting"]


@dataclass(frozen=True, kw_only=True)
class Part:
    """One stage or point."""

    name: str
    state: State
    epochs: int
    epochs_total: int
    val_top1: float | None = None  # percent
    error: str = ""
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Status:
    """A run at one moment."""

    name: str
    alive: bool  # a driver is at work on it
    stages: list[Part]
    points: list[Part] = field(default_factory=list)  # empty before the search has ended
    choosing: list[str] = field(default_factory=list)  # what is still to be chosen: points that need it are not known yet
    later: int = 0  # points that are planned once others have ended
    planned: bool = True  # whether a plan is written: an earlier version wrote none, and then only what has begun is known

    def count(self, state: State) -> int:
        """How many points are in a state."""
        return sum(p.state == state for p in self.points)

    @property
    def tried(self) -> bool:
        """Every point that is known has been tried, none is waiting or running."""
        return bool(self.points) and not self.choosing and all(p.state in ("done", "failed") for p in self.points)

    @property
    def finished(self) -> bool:
        """Every point has been tried, and no others wait for them."""
        return self.planned and self.tried and not self.later

    @property
    def live(self) -> bool:
        """A driver goes on with it: who looks now should look again."""
        return self.alive and not self.finished

    @property
    def next(self) -> str:
        """What comes next, in one sentence."""
        again = "" if self.alive else "; start the same command again to go on"
        for stage in self.stages:
            if stage.state != "done":
                return f"{stage.name} is at epoch {stage.epochs} of {stage.epochs_total}{again}"
        if not self.planned:
            return (
                f"{self.count('done')} points are done; an earlier version of slimsweep wrote this run without its plan, "
                "which the next start of the same command adds"
            )
        if self.tried:
            failed = self.count("failed")
            more = f", and {self.later} that wait for them begin" if self.later else ""
            if failed:
                return f"{failed} failed points are tried again by the same command{more}"
            if not self.later:
                return "all points are done; the report is report.html"
        if self.choosing:
            return f"{' and '.join(self.choosing)} is to be chosen{again}"
        left = self.count("waiting") + self.count("running") + self.later
        return f"{left} points are to be done{again}"


def read_status(run: Run) -> Status:
    """The status of a run; looks at its rows anew.

    Raises:
        ConfigError: the folder is no run.
    """
    config, plan = run.config, run.plan()
    # A driver that has ended its work holds the run for a moment more.
    alive = driver_alive(run) and not (plan is not None and plan.over)
    dense = _stage(run, "dense", run.dense_done, config.dense.epochs, alive)
    search = _stage(run, "search", run.search_done, config.search.epochs, alive and dense.state == "done")
    points: list[Part] = []
    if search.state == "done":
        rows: dict[str, Any] = {row["point"]: row for row in run.refresh().rows.to_dict("records")}
        points = _planned(run, plan, rows, alive) if plan is not None and plan.points else _known(run, rows, alive)
    return Status(
        name=config.name,
        alive=alive,
        stages=[dense, search],
        points=points,
        choosing=list(plan.choosing) if plan is not None and search.state == "done" else [],
        later=plan.later if plan is not None else 0,
        planned=plan is not None or search.state != "done",
    )


def _stage(run: Run, name: str, done: bool, total: int, alive: bool) -> Part:
    curve = run.curve(name)
    last = curve[-1] if curve else None
    return Part(
        name=name,
        state="done" if done else "running" if alive else "waiting",
        epochs=last["epoch"] if last else 0,
        epochs_total=total,
        val_top1=last["val_top1"] if last else None,
    )


def _planned(run: Run, plan: Plan, rows: Mapping[str, Any], alive: bool) -> list[Part]:
    """The points of the plan, in its order."""
    begun = run.begun_in(plan.attempt) if alive else set()
    curves = run.curve_names()
    # Of points that differ in their learning rate alone, the best on validation counts.
    best: dict[tuple[Any, ...], tuple[float, float]] = {}
    for point in plan.points:
        row = rows.get(point.name)
        if row is not None and row["status"] == "ok":
            best[point.place] = max(best.get(point.place, (-1.0, 0.0)), (row["val_top1"], -point.lr))
    parts = []
    for point in plan.points:
        row = rows.get(point.name)
        if row is not None and row["status"] == "ok":
            other = best[point.place] != (row["val_top1"], -point.lr)
            note = "another learning rate is better on validation" if other else ""
            parts.append(_done(point.name, row, point.epochs, note))
        else:
            curve = run.curve(point.name) if point.name in curves else []
            parts.append(_not_done(point.name, row, curve, point.epochs, point.name in begun))
    return parts


def _known(run: Run, rows: Mapping[str, Any], alive: bool) -> list[Part]:
    """What can be said without a plan: the rows, and the curves that have none."""
    parts = []
    for name, row in rows.items():
        curve = run.curve(name) if row["status"] != "ok" else []
        total = int(row["epochs"]) if row["status"] == "ok" else run.config.retrain.epochs
        parts.append(_done(name, row, total, "") if row["status"] == "ok" else _not_done(name, row, curve, total, False))
    for name in sorted(run.curve_names() - set(rows) - {"dense", "search"}):
        curve = run.curve(name)
        parts.append(_not_done(name, None, curve, run.config.retrain.epochs, alive and bool(curve)))
    return parts


def _done(name: str, row: Mapping[str, Any], epochs: int, note: str) -> Part:
    return Part(name=name, state="done", epochs=epochs, epochs_total=epochs, val_top1=row["val_top1"], note=note)


def _not_done(name: str, row: Mapping[str, Any] | None, curve: list[dict[str, Any]], total: int, running: bool) -> Part:
    return Part(
        name=name,
        state="failed" if row is not None else "running" if running else "waiting",
        epochs=curve[-1]["epoch"] if curve else 0,
        epochs_total=total,
        val_top1=curve[-1]["val_top1"] if curve else None,
        error=row["error"] if row is not None else "",
    )
