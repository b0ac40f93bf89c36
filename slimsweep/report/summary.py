"""What is said of one run among others: its state, how far it is, and its best models.

`slimsweep list` and the service show it.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pandas as pd

from slimsweep.config import ConfigError
from slimsweep.errors import RefusedInput, reason_of
from slimsweep.ledger.measures import Measure, images_of, measure_of
from slimsweep.ledger.run import Run
from slimsweep.ledger.status import Status, read_status
from slimsweep.report.pareto import best_rates, by_series, trained_first, with_settings, with_units
from slimsweep.slimming.cost import unit_named
from slimsweep.storage import Folder, parted

WHY_LENGTH = 300  # characters of a reason that are shown


@dataclass(frozen=True, kw_only=True)
class Model:
    """One of a run's models, as means over its seeds."""

    method: str
    share: float  # of the dense model's MACs
    macs: float
    quality: float  # on validation, or on test where validation is not known
    quality_text: str
    difference: float | None  # from the dense model; None where that is not known
    difference_text: str


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What is said of one run."""

    name: str  # of its folder; "group/model" where a sweep over several models has a folder of runs
    state: str  # finished, running, failed (all points were tried and some failed), stopped
    stage: str  # what is at work, or comes next: "dense 3/40", "search 5/20" (epochs), "points 4/6"; or "-"
    budgets: str  # "3/5": how many of the budgets and shares that were asked for have a searched model
    best: str  # the best cut model on validation, and its budget; "-" before there is one
    changed: datetime | None  # local time of the last epoch or result
    model: str
    data: str
    done: int  # points
    failed: int
    running: int
    planned: int
    bar: dict[str, int]  # as `Status.bar`
    measure: str  # what its models are judged by: "top-1", "R2"
    near: Model | None  # the smallest model within a point of dense
    smallest: Model | None
    why: str  # why points failed, or the driver ended; empty where nothing did
    next: str
    time_left: str


def run_folders(output: Folder, refused: Callable[[str, str], None], known: Collection[str] = ()) -> list[tuple[str, Folder]]:
    """(name, folder) of all runs in an output folder, also those in the folder of a sweep over several models.

    Args:
        refused: is told of a folder that cannot be read, or may not be (`Folder.confined`): its name, and why.
        known: names of folders that count as runs' without a look into them, for who looks into them anyway.
    """

    def runs_at(parent: Folder, name: str, shown: str, deeper: bool) -> list[tuple[str, Folder]]:
        try:
            folder = parent / name
            if shown in known or Run(folder).is_begun:
                return [(shown, folder)]
            inside = folder.list() if deeper else []
        except RefusedInput as problem:
            refused(shown, str(problem))
            return []
        except OSError as problem:  # such as lost+found on a volume
            refused(shown, f"it cannot be read ({reason_of(problem)})")
            return []
        return [found for model in inside for found in runs_at(folder, model, f"{shown}/{model}", deeper=False)]

    if Run(output).is_begun:
        return [(output.name, output)]
    of_each = output.each(lambda name: runs_at(output, name, name, deeper=True), output.list())
    return [found for runs in of_each for found in runs]


def runs_in(output: str, refused: Callable[[str, str], None]) -> list[tuple[str, Run]]:
    """(name, run) of all runs in an output folder, as `run_folders` finds them.

    Raises:
        ConfigError: there are none.
        RefusedInput: a URI of an unknown scheme.
    """
    folder = Folder(output)
    found = [(name, Run(inner)) for name, inner in run_folders(folder, refused)]
    if not found:
        raise ConfigError(f"{folder.uri} holds no run of slimsweep: give the folder that --output names, such as runs")
    return found


def summary_of(name: str, run: Run, status: Status | None = None) -> Summary:
    """What is said of a run.

    Args:
        name: as `run_folders` gives it.
        status: where it was read already.

    Raises:
        RefusedInput: its configuration is damaged, or of a later version.
    """
    status = read_status(run) if status is None else status
    rows, changed = run.rows, run.changed_at()
    images = images_of(rows, run.known_data).get("val")
    measure = measure_of(rows)
    near, smallest = _sizes(rows, measure, images)
    state = _state(status)
    return Summary(
        name=name,
        state=state,
        stage=_stage(status),
        budgets=_budgets(run),
        best=_best(rows, images),
        changed=None if changed is None else changed.astimezone().replace(tzinfo=None),
        model=_written(rows, "model") or run.config.model.name,
        data=_written(rows, "data") or _data(run),
        done=status.count("done"),
        failed=status.count("failed"),
        running=status.count("running"),
        planned=status.planned,
        bar=status.bar,
        measure=measure.title,
        near=near,
        smallest=smallest,
        why=_why(status, "" if state != "stopped" else run.logs.last_error()),
        next=status.next,
        time_left=status.time_left_of,
    )


def _written(rows: pd.DataFrame, column: str) -> str:
    """What rows say in a column; empty where none says anything."""
    said = rows[column].dropna()
    return str(said.iloc[0]) if len(said) else ""


def _data(run: Run) -> str:
    """What the configuration calls the data, before there are rows; of a folder the last part of its path as well."""
    data = run.config.data
    return " ".join([data.name, *([parted(data.root)[1]] if data.root else [])])


def _state(status: Status) -> str:
    if status.live:
        return "running"
    if status.finished:
        return "failed" if status.count("failed") else "finished"
    return "stopped"


def _why(status: Status, last_error: str) -> str:
    """Why the first of the failed points failed; else the last error of a driver that has ended."""
    errors = [point.error for point in status.points if point.state == "failed"]
    said = next((" ".join(error.split()) for error in errors if error.strip()), "")
    if not errors:
        said = last_error
    elif not said:
        said = "no error text"
    return said if len(said) <= WHY_LENGTH else f"{said[:WHY_LENGTH]} …"


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


def _sizes(rows: pd.DataFrame, measure: Measure, images: int | None) -> tuple[Model | None, Model | None]:
    """(the smallest cut model within a point of dense, the smallest of all): as the page's headline chooses them.

    Trained models count, and untrained ones where none was trained. A model is the mean over its seeds.
    """
    ok = by_series(best_rates(with_settings(with_units(rows[rows["status"] == "ok"]))))
    if ok.empty:
        return None, None
    keys = ["method", "unit", "timed_in", "budget", "shares"]
    columns = ["macs", "macs_dense", measure.val, measure.test]
    means = ok.groupby(keys, dropna=False, sort=False)[columns].mean().reset_index()
    means["quality"] = means[measure.val].fillna(means[measure.test])
    means = means[means["quality"].notna() & means["macs"].notna()]
    is_dense = (means["method"] == "dense") | means["method"].str.startswith("dense, ")
    dense = means[is_dense].sort_values("method", kind="stable")  # the retrained one first
    known = None if dense.empty else float(dense.iloc[0]["quality"])
    cut = trained_first(means[~is_dense]).sort_values(["macs", "quality"], ascending=[True, False], kind="stable")
    if cut.empty:
        return None, None
    close = cut[cut["quality"] >= known - measure.point] if known is not None else cut.head(0)
    near = None if close.empty else _model(close.iloc[0], measure, known, images)
    return near, _model(cut.iloc[0], measure, known, images)


def _model(row: Any, measure: Measure, dense: float | None, images: int | None) -> Model:
    quality = float(row["quality"])
    decimals = measure.decimals_for(images)
    difference = None if dense is None else quality - dense
    return Model(
        method=str(row["method"]),
        share=float(row["macs"] / row["macs_dense"]) if row["macs_dense"] > 0 else float("nan"),
        macs=float(row["macs"]),
        quality=quality,
        quality_text=measure.text(quality, images),
        difference=difference,
        difference_text="" if difference is None else f"{difference:+.{decimals}f}".replace("-", "\N{MINUS SIGN}"),
    )
