"""`slimsweep list`: the runs in an output folder, one line each."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime

import pandas as pd
from rich.table import Table
from rich.text import Text

from slimsweep.config import ConfigError
from slimsweep.errors import RefusedInput
from slimsweep.ledger.measures import images_of, measure_of
from slimsweep.ledger.run import Run
from slimsweep.ledger.status import Status, read_status
from slimsweep.report.pareto import best_rates, trained_first, with_settings, with_units
from slimsweep.slimming.cost import unit_named
from slimsweep.storage import Folder
from slimsweep.terminal import plain_table

AT_ONCE = 16  # runs that are read at the same time: whether a driver on another machine is alive takes seconds to see
COLOURS = {"finished": "green", "running": "cyan", "failed": "red", "stopped": "yellow"}


@dataclass(frozen=True, kw_only=True)
class Line:
    """What the list says of one run."""

    name: str  # of its folder; "group/model" where a sweep over several models has a folder of runs
    state: str  # finished, running, failed (all points were tried and some failed), stopped
    stage: str  # what is at work, or comes next: "dense 3/40", "search 5/20" (epochs), "points 4/6"; or "-"
    budgets: str  # "3/5": how many of the budgets and shares that were asked for have a searched model
    best: str  # the best cut model on validation, and its budget; "-" before there is one
    changed: datetime | None  # local time of the last epoch or result


def runs_in(output: str) -> list[tuple[str, Run]]:
    """(name, run) of all runs in an output folder, also those in the folder of a sweep over several models.

    Raises:
        ConfigError: there are none.
        RefusedInput: a URI of an unknown scheme.
    """
    folder = Folder(output)
    if (itself := Run(folder)).is_begun:
        return [(folder.name, itself)]
    found: list[tuple[str, Run]] = []
    for name in folder.list() if folder.is_folder else []:
        if (run := Run(folder / name)).is_begun:
            found.append((name, run))
        elif (folder / name).is_folder:
            inner = ((f"{name}/{model}", Run(folder / name / model)) for model in (folder / name).list())
            found += [(both, run) for both, run in inner if run.is_begun]
    if not found:
        raise ConfigError(f"{folder.uri} holds no run of slimsweep: give the folder that --output names, such as runs")
    return found


def read_lines(runs: Sequence[tuple[str, Run]]) -> tuple[list[Line], list[str]]:
    """(a line per run that can be read, the latest last; a sentence per run that cannot)."""
    lines, problems = [], []
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for found in pool.map(lambda one: _line_or_problem(*one), runs):
            if isinstance(found, Line):
                lines.append(found)
            else:
                problems.append(found)
    return sorted(lines, key=lambda line: (line.changed or datetime.min, line.name)), problems


def runs_table(lines: Sequence[Line], title: str) -> Table:
    """The list as a table for a terminal."""
    table = plain_table(
        title,
        [
            ("run", "left"),
            ("state", "left"),
            ("stage", "left"),
            ("budgets", "right"),
            ("best cut, on validation", "left"),
            ("last result", "left"),
        ],
    )
    for line in lines:
        changed = "-" if line.changed is None else f"{line.changed:%Y-%m-%d %H:%M}"
        state = Text(line.state, style=COLOURS[line.state])
        table.add_row(Text(line.name), state, line.stage, line.budgets, line.best, changed)
    return table


def _line_or_problem(name: str, run: Run) -> Line | str:
    try:
        return _line(name, run)
    except RefusedInput as problem:  # its configuration is damaged, or of a later version
        return f"{name} is left out: {problem}"


def _line(name: str, run: Run) -> Line:
    status = read_status(run)
    changed = run.changed_at()
    return Line(
        name=name,
        state=_state(status),
        stage=_stage(status),
        budgets=_budgets(run),
        best=_best(run.rows, images_of(run.rows, run.known_data).get("val")),
        changed=None if changed is None else changed.astimezone().replace(tzinfo=None),
    )


def _state(status: Status) -> str:
    if status.live:
        return "running"
    if status.finished:
        return "failed" if status.count("failed") else "finished"
    return "stopped"


def _stage(status: Status) -> str:
    for stage in status.stages:
        if stage.state != "done":
            return f"{stage.name} {stage.epochs}/{stage.epochs_total}"
    if status.finished and not status.count("failed"):
        return "-"
    return f"points {status.count('done')}/{len(status.points) + status.later}"


def _budgets(run: Run) -> str:
    rows = run.rows
    done = with_settings(with_units(rows[(rows.status == "ok") & (rows.method == "searched")]))
    columns = zip(done["unit"], done["timed_in"], done["budget"], done["shares"].fillna(""), strict=True)
    keys = {(unit, timed_in, f"{budget:.9f}", shares) for unit, timed_in, budget, shares in columns}
    # The configuration is that of the last start, which may have named fewer budgets than earlier ones.
    return f"{len(keys)}/{max(len(keys), run.config.target_count)}"


def _best(rows: pd.DataFrame, images: int | None) -> str:
    """The best model of the results that was cut, by the mean on validation over its seeds; untrained ones where none was.

    Args:
        images: of the validation split, where they are known.
    """
    measure = measure_of(rows)
    cut = trained_first(best_rates(with_settings(with_units(rows[(rows.status == "ok") & (rows.method != "dense")]))))
    if cut.empty:
        return "-"
    points = cut.groupby(["method", "unit", "timed_in", "budget"])[measure.val].mean().dropna().reset_index()
    if points.empty:
        return "-"
    best = points.sort_values(measure.val, ascending=False, kind="stable").iloc[0]
    cost = unit_named(str(best["unit"])).title
    by = "" if best["method"] == "searched" else f" ({best['method']})"
    return f"{measure.title} {measure.text(best[measure.val], images)} at {100 * best['budget']:.3g} % of {cost}{by}"
