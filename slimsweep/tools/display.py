"""What the driver prints: a header per stage, progress bars or a live table, and the table at the end.

Progress is read from the run's folder and not from the workers, so that it is the same on every cluster. The report is
rewritten here whenever points end.
"""

import json
import logging
import threading
import time
from collections.abc import Collection, Mapping
from types import TracebackType
from typing import Any

import pandas as pd
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from slimsweep.errors import RunLost
from slimsweep.ledger.files import DAMAGED_LOG
from slimsweep.ledger.measures import R2, TOP1, images_of, measure_decimals, measure_of, recorded_images
from slimsweep.ledger.points import Plan, Point
from slimsweep.ledger.run import Run
from slimsweep.ledger.status import ENDED, Status, TrainingStatus, read_status
from slimsweep.ledger.time_left import in_words
from slimsweep.report.comparison import compare_methods, usual_cost, with_error
from slimsweep.report.page import write_report
from slimsweep.report.pareto import UNTRAINED, best_rates, by_series, trained_first, with_settings, with_units
from slimsweep.report.picture import kaleido_here
from slimsweep.report.run_tables import read_run
from slimsweep.report.uncertainty import binomial_error, cautions, told_apart
from slimsweep.slimming.cost import COSTS
from slimsweep.storage import LONGEST_PAUSE
from slimsweep.terminal import counted, fits, plain_table, say, say_path, show_fitting
from slimsweep.tools.status import status_table

log = logging.getLogger(__name__)

UPDATE_SECONDS = 1.0  # between two updates of the display, at least
UPDATE_SHARE = 0.05  # of the time may be spent on updates, which slow down training on the driver's machine
# Of a backbone whose features were probed on labelled images: title and column of the last table.
PROBED = (("k-NN %", "test_knn_top1"), ("probe %", "test_probe_top1"))


class Progress:
    """Shows progress while the block runs: live in a terminal, or one line per change in a log.

    Args:
        run: the driver's run; a thread reads it through a `Run` of its own.
        sweep: whether points are trained, and not the dense model and the search.
    """

    def __init__(self, run: Run, console: Console, title: str, sweep: bool = False) -> None:
        self.run = Run(run.folder.at_once(), run.config, run.holder)
        self.console, self.title, self.sweep = console, title, sweep
        self.stop = threading.Event()
        self.written = False
        self.waiting = ""  # what the page says that the run waits for
        self.unreadable = False  # whether the last update found a store that fails
        began = read_status(self.run)  # points that are done already are not announced
        self.seen: dict[str, tuple[str, int]] = {
            p.name: (p.state, p.epochs) for p in began.points if sweep and p.state == "done"
        }
        self.driver = run
        self.damaged = {*began.damaged, *run.damaged.values()}  # the driver has said these
        self.bars = Bars(
            TextColumn("{task.description:8}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[quality]}"),
            console=console,
        )
        shown = [] if sweep else began.stages
        self.tasks = {s.name: self.bars.add_task(s.name, total=max(s.epochs_total, 1), quality="") for s in shown}
        # Drawn when something was read anew and not in between: a table of a thousand points takes a quarter of a second.
        self.live = Live(console=console, auto_refresh=False, transient=sweep)
        self.is_live = console.is_terminal  # asked once: a terminal that was closed is none any more
        self.thread = threading.Thread(target=self._watch, daemon=True, name="progress")

    def __enter__(self) -> "Progress":
        self.console.print(Rule(Text(self.title, style="bold"), align="left"))
        if self.is_live:
            self.live.start()
        self.thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.stop.set()
        self.thread.join()
        try:
            self._show_if_readable()
            self.driver.damaged.update(self.run.damaged)  # so that the next display does not say it again
        finally:
            if self.is_live:
                self.live.stop()

    def _watch(self) -> None:
        pause = UPDATE_SECONDS
        while not self.stop.wait(pause):
            began = time.monotonic()
            self._show_if_readable()
            # An update takes longer with more points: writing a page of a thousand takes some seconds.
            share = (time.monotonic() - began) / UPDATE_SHARE
            # A store that fails is asked less and less often.
            pause = min(2 * pause, LONGEST_PAUSE) if self.unreadable else max(UPDATE_SECONDS, share)

    def _show_if_readable(self) -> None:
        """Update the display; neither a store that fails for a while nor a bug in the display must end the run.

        An outage is one line when it begins and one when it ends.
        """
        try:
            self._show()
            if self.unreadable:
                say(self.console, f"{self.run.uri} can be read and written again", "yellow")
            self.unreadable = False
        except OSError as problem:
            if not self.unreadable:
                reason = " ".join(str(problem).split())
                text = f"{self.run.uri} cannot be read or written just now ({reason}); the run tries again"
                say(self.console, text, "yellow")
            self.unreadable = True
        except RunLost:  # the driver is about to end, and says why
            self.stop.set()
        except Exception:
            log.exception("the display could not be updated; the run goes on")

    def _show(self) -> None:
        status = read_status(self.run)
        ended, stages = False, {stage.name for stage in status.stages}
        for training in [*status.stages, *status.points] if self.sweep else status.stages:
            before = self.seen.get(training.name)
            self.seen[training.name] = (training.state, training.epochs)
            ended |= training.name not in stages and training.state in ENDED and (before is None or before[0] != training.state)
            if not self.is_live and before != self.seen[training.name] and self._worth_a_line(training, before):
                quality = f", {training.quality}" if training.quality else ""
                epochs = f"epoch {training.epochs}/{training.epochs_total}"
                left = f", {status.time_left_of}" if training.state in ("running", "done") and status.time_left else ""
                of_sweep = f"; {status.count('done')} of {len(status.points)} points are done" if self.sweep else ""
                line = f"{training.name}: {training.state}, {epochs}{quality}{of_sweep}{left}"
                say(self.console, f"{time.strftime('%H:%M:%S')} {line}")
        for sentence in status.damaged:
            if sentence not in self.damaged:
                self.damaged.add(sentence)
                say(self.console, sentence, "yellow")
        if self.is_live:
            self.live.update(self._picture(status), refresh=True)
        # The first page shows the results of earlier starts; `show_end` writes the finished page, with its picture.
        ended |= status.count("done") > 0 and (not self.written or status.waiting != self.waiting)
        self.waiting = status.waiting
        if ended and not status.finished:
            self.written = True
            write_report(self.run, status)

    def _worth_a_line(self, training: TrainingStatus, before: tuple[str, int] | None) -> bool:
        """Whether a log gets a line: at each change of state, and a few times per stage or point in between."""
        if before is None or before[0] != training.state:
            return training.state != "waiting" and not (self.sweep and before is None and training.name in ("dense", "search"))
        step = max(1, training.epochs_total // (2 if self.sweep else 5))
        return training.epochs // step != before[1] // step

    def _picture(self, status: Status) -> RenderableType:
        if self.sweep:
            # A narrow terminal shows less of each point, and not its name in pieces.
            shorter = (status_table(status, columns) for columns in (5, 4, 3, 2, 1))
            return next((table for table in shorter if fits(self.console, table)), status_table(status, 1))
        for stage in status.stages:
            quality = stage.note or ", ".join(filter(None, [in_words(stage.seconds_left), stage.quality]))
            epochs = stage.epochs if stage.state != "done" else max(stage.epochs_total, 1)
            self.bars.update(self.tasks[stage.name], completed=epochs, quality=quality)
        return Group(self.bars)


# Messages of the driver.


def paces_to_try(count: int, epochs: int, unit: str = "macs") -> str:
    """One line that says how many paces will be tried.

    Args:
        epochs: of the retraining that tries one; 0 where none does.
        unit: "ms" where they are compared at equal latency.
    """
    smallest = "the smallest budget in ms, which is timed first" if unit == "ms" else "the smallest budget"
    what = f"Trying {counted(count, 'pace')} (how fast each of attention dims, MLP units and tokens is removed)"
    if not epochs:
        return f"{what}, each right after the cut to {smallest}"
    each = f"{epochs} epoch{'s' if epochs > 1 else ''}"
    return f"{what}, {each} each at {smallest}"


def pace_tried(run: Run, tried: Mapping[str, Any], ended: int, count: int) -> str:
    """One line that says how good a pace is that was tried, and how many of all have been.

    Args:
        tried: what `cluster.choose_job.try_pace` returned.
        ended: tries that have ended, this one among them.
        count: all tries.
    """
    measure = R2 if run.config.backbone else TOP1
    said = measure.text(tried[measure.val], recorded_images(run.known_data).get("val"))
    why = "the budget cannot be reached" if tried["error"].startswith("budget ") else "diverged"
    quality = why if tried["error"] else f"val {measure.title} {said}"
    return f"{time.strftime('%H:%M:%S')} pace {_in_words(tried['pace'])}: {quality}; {ended} of {count} tried"


def _in_words(pace: Mapping[str, float]) -> str:
    return ", ".join(f"{family} {value:g}" for family, value in pace.items())


def latency_to_time(run: Run) -> str:
    """One line that says that budgets in ms are timed, or looked up in a table."""
    table, budgets = run.config.timing.table, counted(len(run.config.budgets_in_ms), "budget")
    if table is not None:
        return f"Latency: {budgets} in ms, by the times of {table}"
    return f"Latency: timing {budgets} in ms, alone on a worker ({run.config.latency_setting.label})"


def points_to_time(run: Run, count: int) -> str:
    """One line that says that points of earlier starts are timed."""
    setting = run.config.latency_setting.label
    return f"Latency: timing {counted(count, 'point')} of earlier starts, alone on a worker ({setting})"


def pace_chosen(run: Run, unit: str = "macs") -> str:
    """One line that says which pace was chosen.

    Args:
        unit: "ms" for that of the budgets in ms.
    """
    found = run.pace_choice(unit)
    assert found is not None
    pace = _in_words(found["pace"])
    images = recorded_images(run.known_data).get("val")
    measure = R2 if run.config.backbone else TOP1
    diverged = sum(bool(one["error"]) for one in found["tried"])
    # The R2 of a try that diverged is not known.
    values = sorted(one[measure.val] for one in found["tried"] if one[measure.val] is not None)
    decimals = measure.decimals_for(images)
    others = f"; others {values[0]:.{decimals}f} to {values[-2]:.{decimals}f}" if len(values) > 1 else ""
    best = f"{'' if measure.unit else f'{measure.title} '}{measure.text(values[-1], images)}"
    which = " under budgets in ms" if unit == "ms" else ""
    return f"Chosen pace{which}: {pace} ({best} on validation{others})" + (
        f"; {diverged} diverged, {run.pace_file_of(unit)} in the run's folder says how" if diverged else ""
    )


def hours_over(run: Run, console: Console, what: str) -> None:
    """Say that resources.max_hours are over, and what is left. This is no failure: the configuration asked for it.

    Args:
        what: what could not be finished.
    """
    say(
        console,
        f"resources.max_hours ({run.config.resources.max_hours:g}) are over, and {what} could not be finished; what is done is "
        "kept, and the same command goes on from the last epoch",
        "yellow",
    )


# The end.


def show_end(run: Run, plan: Plan, failed: Collection[Point], console: Console, seconds: float) -> None:
    """Write the report, and print the results, and the points that failed or were not begun.

    Args:
        plan: the driver's last plan.
        failed: the points that failed.
        seconds: since the driver started.
    """
    no_picture = write_report(run, read_status(run))
    rows = run.rows
    say(console, "")
    show_fitting(console, final_table(run, rows, seconds), drop=("of dense", "params", "lr"))
    compared = comparison_table(rows)
    if compared is not None:
        say(console, "")
        show_fitting(console, compared)
    ok = rows[rows.status == "ok"]
    untouched = measure_of(rows).untouched_column
    measure, images = measure_of(rows), images_of(ok, run.known_data)
    val_decimals, test_decimals = measure_decimals(measure, images)
    before = f"{ok[untouched].iloc[0]:.{test_decimals}f}" if untouched and len(ok) else ""
    say(console, f"\nThe dense model before the sweep: {before} % on test." if before else "")
    for sentence in cautions(read_run(run)):
        say(console, sentence, "yellow")
    took = ok.repair_seconds[ok.repair_seconds > 0]
    if len(took):
        span = f"{took.min():.1f} to {took.max():.1f}" if len(took) > 1 else f"{took.min():.1f}"
        say(console, f"Principal axes and repair took {span} s per point.")
    if len(worse := worse_than_cut(rows, images.get("val"))):
        row = worse.iloc[0]
        cut, after = (f"{row[column]:.{val_decimals}f}{measure.unit and ' %'}" for column in (measure.cut, measure.val))
        a_point = f"{measure.point:g}{' point' if measure.points else ''}"
        say(
            console,
            f"{counted(len(worse), 'point')} lost more than {a_point} on validation by retraining, "
            f"such as {row.point} ({cut} right after the cut, {after} in the end): a lower retrain.lr may help",
            "yellow",
        )
    if run.config.retrain.epochs == 0 and len(ok):
        train = "--retrain.epochs N" + ("" if run.config.search.epochs else " and --search.epochs 0")
        say(
            console,
            f"Before retraining: not trained after the cut. The same command without --quick, with {train}, trains these "
            "points too.",
        )
    say_path(console, "Report: ", run.report_uri)
    say(console, f"Models: {run.models.uri}/\n")
    if no_picture and kaleido_here():  # who has not installed it asked for no picture
        say(console, no_picture, "dim")
    if damaged := run.logs.damaged_images():
        first = f"{len(damaged)} damaged images were" if len(damaged) > 1 else "One damaged image was"
        say(console, f"{first} skipped; {DAMAGED_LOG} in the run's folder says which", "yellow")
    stopped = set(rows.point[rows.status == "stopped"]) & {point.name for point in plan.points}
    if stopped:
        was = "point was" if len(stopped) == 1 else "points were"
        say(console, f"{len(stopped)} {was} stopped early, as another learning rate was ahead (retrain.stopping)", "dim")
    done = set(rows.point[rows.status == "ok"]) | stopped
    missing = [point for point in plan.points if point.name not in done]
    total = len(plan.points) + plan.later
    if len(missing) > len(failed):
        hours_over(run, console, f"{len(missing) - len(failed) + plan.later} of {total} points")
    if failed:
        say(console, f"{len(failed)} of {total} points failed; the same command tries them again:", "red")
        for point in failed:
            error = rows.loc[rows.point == point.name, "error"]
            say(console, f"  {point.name}: {error.iloc[0] if len(error) else 'no row'}")
        if plan.later and len(missing) == len(failed):
            say(console, f"{plan.later} more wait for them and were not begun", "red")


def worse_than_cut(rows: pd.DataFrame, images: int | None = None) -> pd.DataFrame:
    """The points, at their best learning rates, that are worse on validation after retraining than right after the cut.

    Args:
        images: of the validation split, where they are known: with few images, a loss within the error is none.
    """
    measure = measure_of(rows)
    ok = best_rates(rows[rows.status == "ok"])
    worse = ok[(ok.epochs > 0) & (ok.method != "dense") & (ok[measure.cut] - ok[measure.val] > measure.point)]
    if measure.unit != "%" or images is None:
        return worse
    values = zip(worse[measure.cut], worse[measure.val], strict=True)
    return worse[[told_apart(cut - val, binomial_error(cut, images), binomial_error(val, images)) for cut, val in values]]


def final_table(run: Run, rows: pd.DataFrame, seconds: float) -> Table:
    """The points of a run as a short table.

    Args:
        rows: `Run.rows`.
        seconds: that the run took, for the title.
    """
    config = run.config
    ok = by_series(best_rates(rows))
    ok = with_settings(with_units(ok[ok.status == "ok"])).sort_values(
        ["budget", "method", "seed"], ascending=[False, True, True]
    )
    measure = measure_of(ok)
    retrained = ok[measure.test][ok.method == "dense"]
    images = images_of(ok, run.known_data).get("test")
    decimals = measure_decimals(measure, {"test": images} if images else {})[1]
    counted = measure.unit == "%" and images is not None  # then the error of each number is known
    within = False
    rates = len(config.retrain.rates) > 1
    timed = "latency_ms" in ok and bool(ok.latency_ms.notna().any())
    probed = [(title, column) for title, column in PROBED if column in ok and bool(ok[column].notna().any())]
    figures = (
        "budget",
        "MMACs",
        "of dense",
        "params",
        *(("ms (of dense)",) if timed else ()),
        *(("lr",) if rates else ()),
        f"test {measure.title} {measure.unit}".rstrip(),
        "vs dense",
        *(title for title, _ in probed),
    )
    table = plain_table(f"{config.name} in {seconds:.0f} s", [("method", "left"), *((name, "right") for name in figures)])
    for row in ok.to_dict("records"):
        untouched = measure.untouched if measure.untouched_column is None else row[measure.untouched_column]
        dense = float(untouched if retrained.empty else retrained.mean())  # type: ignore[arg-type]
        gap = row[measure.test] - dense
        errors = [binomial_error(value, images) for value in (row[measure.test], dense)] if counted else []
        told = row["method"] == "dense" or told_apart(gap, *errors)
        within |= not told
        table.add_row(
            row["method"]
            + "".join(f" {family} {share:g}" for family, share in json.loads(row["shares"] or "{}").items())
            + (f" (seed {row['seed']})" if ok.seed.nunique() > 1 else ""),
            _budget_of(row),
            f"{row['macs'] / 1e6:,.2f}",
            f"{100 * row['macs'] / row['macs_dense']:.1f} %",
            f"{int(row['params']):,}",
            *((_latency_of(row),) if timed else ()),
            *((f"{row['lr']:g}",) if rates else ()),
            f"{row[measure.test]:.{decimals}f}",
            # Brackets too, since a log has no colours; the space keeps the digits below each other.
            Text(f"{gap:+.{decimals}f} ") if told else Text(f"({gap:+.{decimals}f})", style="dim"),
            *("-" if pd.isna(row[column]) else f"{row[column]:.1f}" for _, column in probed),
        )
    if counted:
        unsure = "; in brackets: no clear difference" if within else ""
        table.caption = f"test: {images:,} images, so ±{binomial_error(float(ok[measure.test].median()), images):.1f}{unsure}"
        table.caption_justify = "left"
    return table


def _latency_of(row: Mapping[Any, Any]) -> str:
    """A row's milliseconds, and their share of the dense model's in the same rounds: "1.68 (51 %)"."""
    if pd.isna(row["latency_ms"]):
        return "-"
    share = "" if pd.isna(row["latency_ms_dense"]) else f" ({100 * row['latency_ms'] / row['latency_ms_dense']:.0f} %)"
    return f"{row['latency_ms']:.3g}{share}"


def _budget_of(row: Mapping[Any, Any]) -> str:
    """A row's budget: a fraction of the dense model's cost, or the milliseconds that were asked for.

    Where budgets in ms are of several settings, it is said which.
    """
    setting = f", {row['timed_in']}" if row.get("timed_in") else ""
    if not pd.isna(row.get("budget_ms")):
        return f"{row['budget_ms']:g} ms{setting}"
    if row["unit"] == "ms":  # 0.60 ms would be another budget
        return f"{100 * row['budget']:.3g} % of ms{setting}"
    return f"{row['budget']:.2f}" + ("" if row["unit"] == "macs" else f" {row['unit']}")


def comparison_table(rows: pd.DataFrame) -> Table | None:
    """The search compared with each other method at equal cost and at equal accuracy or R2; None where there is no other one.

    Where there are trained points, untrained ones take no part.

    Args:
        rows: of one run.
    """
    # Untrained points compare with each other: beside trained ones they only show what a training adds.
    ok = trained_first(by_series(best_rates(rows[rows.status == "ok"])))
    ok = ok[ok.method != f"dense{UNTRAINED}"]  # the dense model takes no part
    searched = next((name for name in ("searched", f"searched{UNTRAINED}") if (ok.method == name).any()), "searched")
    cost = COSTS[usual_cost(ok)]
    measure = measure_of(ok)
    found = compare_methods(ok, searched, x=cost.name, y=measure.test)
    if found.empty:
        return None
    title = f"{searched} compared with each method (+: ahead; below 1x: fewer {cost.title})"
    figures = (f"at equal {cost.title}", f"{cost.title} for the same {measure.word}")
    table = plain_table(title, [("method", "left"), *((name, "right") for name in figures)])
    for row in found.to_dict("records"):
        told = told_apart(row["difference"], row["difference_se"])
        gained = with_error(row["difference"], row["difference_se"], measure.decimals, measure.points, sign=True)
        table.add_row(
            Text(row["method"]),
            Text(gained, style="" if told else "dim"),
            with_error(row["ratio"], row["ratio_se"], 2, "x"),
        )
    if found["difference_seeds"].max() <= 1:
        table.caption = "one seed: the error is not known"
        table.caption_justify = "left"
    return table
