"""Where a run stands, read from its folder alone: stages and points done, running, failed, waiting, and what comes next."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import yaml
from rich.console import JustifyMethod
from rich.table import Table

from slimsweep.config import Config
from slimsweep.errors import RefusedInput
from slimsweep.ledger.lock import driver_alive
from slimsweep.ledger.points import Point, plan_points, points_to_come, to_choose
from slimsweep.ledger.tables import read_curve, read_rows
from slimsweep.report.pareto import best_rates
from slimsweep.storage import Folder

State = Literal["done", "running", "failed", "waiting"]
COLOURS = {"done": "green", "running": "cyan", "failed": "red", "waiting": "dim"}


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
    choosing: bool = False  # what the baselines keep is still to be chosen: their points are not known yet
    later: int = 0  # points that are known once others have ended

    def count(self, state: State) -> int:
        return sum(p.state == state for p in self.points)

    @property
    def tried(self) -> bool:
        """Every point that is known has been tried, none is waiting or running."""
        return bool(self.points) and not self.choosing and all(p.state in ("done", "failed") for p in self.points)

    @property
    def finished(self) -> bool:
        """Every point has been tried, and no others wait for them."""
        return self.tried and not self.later

    @property
    def next(self) -> str:
        """What comes next, in one sentence."""
        for stage in self.stages:
            if stage.state != "done":
                return f"{stage.name} is at epoch {stage.epochs} of {stage.epochs_total}" + (
                    "" if self.alive else "; start the same command again to go on"
                )
        if self.tried:
            failed = self.count("failed")
            more = f", and {self.later} that wait for them begin" if self.later else ""
            if failed:
                return f"{failed} failed points are tried again by the same command{more}"
            if not self.later:
                return "all points are done; the report is report.html"
        if self.choosing:
            return "what the baselines keep is to be chosen" + ("" if self.alive else "; start the same command again to go on")
        left = self.count("waiting") + self.count("running") + self.later
        return f"{left} points are to be done" + ("" if self.alive else "; start the same command again to go on")


def read_config(run: Folder) -> Config:
    """The configuration that a run was started with.

    Raises:
        ValueError: the folder is no run.
    """
    if not run.exists("config.yaml"):
        runs = [name for name in run.list() if run.exists(f"{name}/config.yaml")]  # of several models, or of one --output
        mend = f"give one of the runs in it: {', '.join(runs)}" if runs else "give the folder that --output and --name made"
        raise RefusedInput(f"{run.uri} is not a run of slimsweep: it has no config.yaml; {mend}")
    return Config(**yaml.safe_load(run.read_bytes("config.yaml")))


def read_status(
    run: Folder, config: Config | None = None, points: list[Point] | None = None, later: int | None = None
) -> Status:
    """The status of a run.

    Args:
        config: read from the run where not given.
        points: solved from the gates where not given.
        later: points that are not planned yet; solved from the gates where not given.
    """
    config = config or read_config(run)
    alive = driver_alive(run)
    dense = _stage(run, "dense", run.exists("dense/config.json"), config.dense.epochs, alive)
    search = _stage(run, "search", run.exists("search/search.json"), config.search.epochs, alive and dense.state == "done")
    parts = []
    if search.state == "done":
        table = read_rows(run)
        rows = {row["point"]: row for row in table.to_dict("records")}
        best = set(best_rates(table)["point"])
        curves = {n.removesuffix(".parquet") for n in run.list("curves")}
        points = points if points is not None else plan_points(config, run)
        later = points_to_come(config, run, points) if later is None else later
        for point in points:
            part = _point(run, point, rows, curves, point.epochs, alive)
            other = part.state == "done" and point.name not in best
            parts.append(replace(part, note="another learning rate is better on validation") if other else part)
    choosing = search.state == "done" and bool(to_choose(config, run))
    return Status(name=config.name, alive=alive, stages=[dense, search], points=parts, choosing=choosing, later=later or 0)


def _stage(run: Folder, name: str, done: bool, total: int, alive: bool) -> Part:
    curve = read_curve(run, name)
    last = curve[-1] if curve else None
    state: State = "done" if done else "running" if alive else "waiting"
    return Part(
        name=name,
        state=state,
        epochs=last["epoch"] if last else 0,
        epochs_total=total,
        val_top1=last["val_top1"] if last else None,
    )


def _point(run: Folder, point: Point, rows: dict[Any, dict[Any, Any]], curves: set[str], total: int, alive: bool) -> Part:
    row = rows.get(point.name)
    if row is not None and row["status"] == "ok":
        return Part(name=point.name, state="done", epochs=total, epochs_total=total, val_top1=row["val_top1"])
    curve = read_curve(run, point.name) if point.name in curves else []
    epochs, top1 = (curve[-1]["epoch"], curve[-1]["val_top1"]) if curve else (0, None)
    if row is not None:
        return Part(
            name=point.name,
            state="failed",
            epochs=epochs,
            epochs_total=total,
            val_top1=top1,
            error=row["error"],
        )
    state: State = "running" if curve and alive else "waiting"
    return Part(name=point.name, state=state, epochs=epochs, epochs_total=total, val_top1=top1)


def plain_table(title: str, columns: Sequence[tuple[str, JustifyMethod]]) -> Table:
    """A table without lines, its title in bold above; for a terminal or a log."""
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name, justify in columns:
        table.add_column(name, justify=justify, overflow="fold")  # names of points are to be copied
    return table


def status_table(status: Status) -> Table:
    """The status for a terminal."""
    table = plain_table(
        f"{status.name}: {status.next}",
        [("stage or point", "left"), ("state", "left"), ("epoch", "right"), ("val top-1 %", "right"), ("", "left")],
    )
    for part in [*status.stages, *status.points]:
        top1 = "" if part.val_top1 is None else f"{part.val_top1:.2f}"
        colour = COLOURS[part.state]
        table.add_row(
            part.name,
            f"[{colour}]{part.state}[/{colour}]",
            f"{part.epochs}/{part.epochs_total}",
            top1,
            part.error[:100] or part.note,
        )
    return table
