"""The status of a run: what is done, running, failed and waiting, from the written plan, the rows and the curves.

A point is done when it has an ok row. No budget is solved here and no model is built, so that reading a status is cheap.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from slimsweep.ledger.files import PLAN, REPORT_PAGE
from slimsweep.ledger.lock import driver_alive
from slimsweep.ledger.measures import R2, TOP1, Measure, recorded_images
from slimsweep.ledger.points import Plan
from slimsweep.ledger.run import Run
from slimsweep.ledger.time_left import Pending, epoch_seconds, in_words, sweep_seconds

EARLIER_VERSION = (
    "an earlier version of slimsweep wrote this run without its plan, which the next start of the same command adds"
)
PLAN_LOST = (
    f"{PLAN} is damaged, so points that have not begun are not known; the next start of the same command writes it again"
)
DAMAGED_ROW = "its row is damaged"  # notes of points
UNTRAINED = "untrained"  # note of a point of 0 epochs
NOT_YET = "the points are planned next"

State = Literal["done", "running", "failed", "stopped", "waiting"]
ENDED = ("done", "failed", "stopped")  # states of a point that this start does not train any more


@dataclass(frozen=True, kw_only=True)
class TrainingStatus:
    """How far one training is: that of the dense model, of the search or of a point."""

    name: str
    state: State
    epochs: int  # that have ended
    epochs_total: int
    val_top1: float | None = None  # percent, after the last epoch that has ended
    val_r2: float | None = None  # of a backbone, in place of val_top1
    error: str = ""  # why it failed
    note: str = ""
    epoch_seconds: float | None = None  # of one epoch, where one has been measured
    val_images: int | None = None  # of the validation split, where they are known: few images have fewer decimals

    @property
    def seconds_left(self) -> float | None:
        """Seconds that it will still take while it runs; None where that is not known."""
        if self.state != "running" or self.epoch_seconds is None:
            return None
        return (self.epochs_total - self.epochs) * self.epoch_seconds

    @property
    def quality(self) -> str:
        """What it is on validation, in words: "val top-1 81.20 %" or "val R2 0.9731"; empty while it is not known."""
        measure, value = self.measured
        return "" if value is None else f"val {measure.title} {measure.text(value, self.val_images)}"

    @property
    def measured(self) -> tuple[Measure, float | None]:
        """What it is judged by, and how good it is on validation; None while that is not known."""
        return (TOP1, self.val_top1) if self.val_r2 is None else (R2, self.val_r2)


@dataclass(frozen=True, kw_only=True)
class Status:
    """The status of a run at one moment."""

    name: str
    alive: bool  # whether a driver works on it
    stages: list[TrainingStatus]
    points: list[TrainingStatus] = field(default_factory=list)  # empty before the search has ended
    choosing: list[str] = field(default_factory=list)  # what is still to be chosen before further points can be planned
    later: int = 0  # number of points that can be planned only when others have ended
    damaged: list[str] = field(default_factory=list)  # a sentence per file that was read and is damaged
    waiting: str = ""  # which room on the cluster its driver waits for, such as "waiting for 1 CPU (0 of 8 free)"
    unplanned: str = ""  # why there is no plan, where there is none: only points that have begun are known then
    sweep_seconds_left: float | None = None  # of all planned points, while a driver works on them; None where it is not known

    @property
    def time_left(self) -> str:
        """How long the stage or the sweep under way will still take, in words; empty where that is not known."""
        for stage in self.stages:
            if stage.state != "done":
                return in_words(stage.seconds_left)
        return in_words(self.sweep_seconds_left)

    @property
    def time_left_of(self) -> str:
        """`time_left`, and of what: more stages may follow the one under way."""
        stage = next((stage.name for stage in self.stages if stage.state != "done"), "sweep")
        what = "dense training" if stage == "dense" else stage
        return f"{self.time_left} of the {what}" if self.time_left else ""

    def count(self, state: State) -> int:
        """How many points are in a state."""
        return sum(p.state == state for p in self.points)

    @property
    def planned(self) -> int:
        """How many points there will be, as far as that is known."""
        return len(self.points) + self.later

    @property
    def bar(self) -> dict[str, int]:
        """Lengths of the parts of a progress bar: numbers of points per state; before there are points, of epochs."""
        if self.planned:
            bar = {state: self.count(state) for state in ("done", "stopped", "failed", "running")}
            return {**bar, "waiting": self.planned - sum(bar.values())}
        trained = sum(stage.epochs for stage in self.stages)
        total = sum(stage.epochs_total for stage in self.stages)
        return {"done": trained, "waiting": max(total - trained, 0) if total else 1}

    @property
    def tried(self) -> bool:
        """Whether all known points have ended: done, failed or stopped."""
        return bool(self.points) and not self.choosing and all(p.state in ENDED for p in self.points)

    @property
    def finished(self) -> bool:
        """Whether all points have ended, and none is still to be planned."""
        return self.tried and not self.later and not (self.unplanned and self.alive)

    @property
    def live(self) -> bool:
        """Whether a driver still works on unfinished points, so that the status will change."""
        return self.alive and not self.finished

    @property
    def next(self) -> str:
        """What comes next, as one sentence."""
        again = "; start the same command again to go on" if not self.alive else f"; {self.waiting}" if self.waiting else ""
        for stage in self.stages:
            if stage.state != "done":
                return f"{stage.name} is at epoch {stage.epochs} of {stage.epochs_total}{again}"
        if self.unplanned:
            also = f", {self.count('failed')} failed" if self.count("failed") else ""
            return f"{self.count('done')} points are done{also}; {self.unplanned}"
        if self.tried:
            failed = self.count("failed")
            more = f", and {self.later} that wait for them begin" if self.later else ""
            if failed:
                which = "1 failed point is" if failed == 1 else f"{failed} failed points are"
                return f"{which} tried again by the same command{more}"
            if not self.later:
                stopped = self.count("stopped")
                but = f" but {stopped} that {'was' if stopped == 1 else 'were'} stopped" if stopped else ""
                return f"all points{but} are done; the report is {REPORT_PAGE}"
        if self.choosing:
            return f"to be chosen: {' and '.join(self.choosing)}{again}"
        left = self.count("waiting") + self.count("running") + self.later
        return f"{left} points are to be done{again}"


def read_status(run: Run, *, alive: bool | None = None) -> Status:
    """The status of a run; refreshes its rows.

    Args:
        alive: whether a driver works on it, where that is known (`slimsweep.ledger.pulse`); it is found out where not given,
            which may take seconds.

    Raises:
        ConfigError: the folder is not a run.
    """
    config, plan = run.config, run.plan()
    # A driver that has ended its work keeps its heartbeat for a moment longer.
    alive = (driver_alive(run) if alive is None else alive) and not (plan is not None and plan.over)
    waiting = run.waiting() if alive else ""
    dense = _stage(run, "dense", run.dense_done, config.dense.epochs, alive, waiting)
    search = _stage(run, "search", run.search_done, config.search.epochs, alive and dense.state == "done", waiting)
    points: list[TrainingStatus] = []
    unplanned = ""
    if search.state == "done":
        unplanned = PLAN_LOST if PLAN in run.damaged else EARLIER_VERSION if plan is None else "" if plan.points else NOT_YET
        rows: dict[str, Any] = {row["point"]: row for row in run.refresh().rows.to_dict("records")}
        points = _planned(run, plan, rows, alive) if plan is not None and not unplanned else _known(run, rows, alive)
    choosing = list(plan.choosing) if plan is not None and search.state == "done" else []
    if plan is not None and plan.over and points and all(point.state in ENDED for point in points):
        choosing = []  # what the driver could not choose by its end has failed with the points that need it
    images = recorded_images(run.known_data).get("val")
    return Status(
        name=config.name,
        alive=alive,
        stages=[replace(stage, val_images=images) for stage in (dense, search)],
        points=[replace(point, val_images=images) for point in points],
        choosing=choosing,
        later=plan.later if plan is not None else 0,
        damaged=list(run.damaged.values()),
        waiting=waiting,
        unplanned=unplanned,
        sweep_seconds_left=_sweep_seconds_left(plan, points) if plan is not None and alive and not unplanned else None,
    )


def _sweep_seconds_left(plan: Plan, points: list[TrainingStatus]) -> float | None:
    """Seconds until all planned points have ended, from the epochs measured so far."""
    return sweep_seconds(
        [
            Pending(
                budget=point.budget,
                epochs_left=0 if one.state in ENDED else one.epochs_total - one.epochs,
                running=one.state == "running",
                epoch_seconds=one.epoch_seconds,
            )
            for point, one in zip(plan.points, points, strict=True)
        ]
    )


def _stage(run: Run, name: str, done: bool, total: int, alive: bool, waiting: str) -> TrainingStatus:
    """The status of a stage. All its workers have their places at the same time: where some wait for room, none trains."""
    curve = run.curve(name)
    last = curve[-1] if curve else None
    return TrainingStatus(
        name=name,
        state="done" if done else "running" if alive and not waiting else "waiting",
        epochs=last["epoch"] if last else 0,
        epochs_total=total,
        **_quality(last),
        note=waiting if alive and not done else "",
        epoch_seconds=epoch_seconds(curve),
    )


def _planned(run: Run, plan: Plan, rows: Mapping[str, Any], alive: bool) -> list[TrainingStatus]:
    """The status of each point of the plan, in the plan's order."""
    begun = run.begun_in(plan.attempt) if alive else set()
    curves, quality = run.curve_names(), run.config.quality
    # Of points that differ in their learning rate alone, the best on validation counts.
    best: dict[tuple[Any, ...], tuple[float, float]] = {}
    for point in plan.points:
        row = rows.get(point.name)
        if row is not None and row["status"] == "ok":
            best[point.rate_group] = max(best.get(point.rate_group, (-math.inf, 0.0)), (row[quality], -point.lr))
    found = []
    for point in plan.points:
        row = rows.get(point.name)
        if row is not None and row["status"] == "ok":
            other = best[point.rate_group] != (row[quality], -point.lr)
            note = "another learning rate is better on validation" if other else UNTRAINED if row["epochs"] == 0 else ""
            found.append(_done(point.name, row, point.epochs, note))
        else:
            curve = run.curve(point.name) if point.name in curves else []
            found.append(_not_done(run, point.name, row, curve, point.epochs, point.name in begun))
    return found


def _known(run: Run, rows: Mapping[str, Any], alive: bool) -> list[TrainingStatus]:
    """The status of the points that are known without a plan: those with a row, and those with a curve only."""
    found = []
    for name, row in rows.items():
        curve = run.curve(name) if row["status"] != "ok" else []
        total = int(row["epochs"]) if row["status"] == "ok" else run.config.retrain.epochs
        note = UNTRAINED if row["epochs"] == 0 else ""
        found.append(_done(name, row, total, note) if row["status"] == "ok" else _not_done(run, name, row, curve, total, False))
    tries_of_paces = {name for name in run.curve_names() if name.startswith("pace-")}
    others = (run.curve_names() | run.damaged_rows) - tries_of_paces - {"dense", "search"}
    for name in sorted(others - set(rows)):
        curve = run.curve(name)
        found.append(_not_done(run, name, None, curve, run.config.retrain.epochs, alive and bool(curve)))
    return found


def _done(name: str, row: Mapping[str, Any], epochs: int, note: str) -> TrainingStatus:
    took = row.get("train_seconds")
    known = epochs > 0 and took is not None and math.isfinite(took)  # the table's missing values are nan
    return TrainingStatus(
        name=name,
        state="done",
        epochs=epochs,
        epochs_total=epochs,
        note=note,
        epoch_seconds=took / epochs if known and took is not None else None,
        **_quality(row),
    )


def _quality(row: Mapping[str, Any] | None) -> dict[str, Any]:
    """The fields of a status that say how good a training is, from a row of its curve or of the results."""
    found: dict[str, Any] = {}
    for name in ("val_top1", "val_r2"):
        value = None if row is None else row.get(name)  # rows of earlier versions lack val_r2
        found[name] = None if value is None or math.isnan(value) else value
    return found


def _not_done(
    run: Run, name: str, row: Mapping[str, Any] | None, curve: list[dict[str, Any]], total: int, running: bool
) -> TrainingStatus:
    if row is not None and row["status"] == "stopped":
        state: State = "stopped"
    else:
        state = "failed" if row is not None else "running" if running else "waiting"
    return TrainingStatus(
        name=name,
        state=state,
        epochs=curve[-1]["epoch"] if curve else 0,
        epochs_total=total,
        **_quality(curve[-1] if curve else None),
        error=row["error"] if state == "failed" and row is not None else "",
        note=row["error"] if state == "stopped" and row is not None else DAMAGED_ROW if name in run.damaged_rows else "",
        epoch_seconds=epoch_seconds(curve),
    )
