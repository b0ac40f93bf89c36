"""What a person sees while a run goes on: a header a stage, progress bars or a live table, and the table at the end.

It watches the run folder, not the workers, so it shows the same wherever the work happens; the report is rewritten from
here as points land.
"""

import json
import logging
import threading
import time
from types import TracebackType

import pandas as pd
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from slimsweep.config import Config
from slimsweep.ledger.points import Point, points_to_come
from slimsweep.report.page import write_report
from slimsweep.report.pareto import best_rates, by_series
from slimsweep.storage import Folder, joined
from slimsweep.tools.status import Part, Status, plain_table, read_status, status_table

log = logging.getLogger(__name__)

EVERY_SECONDS = 1.0
LOOKING = 0.05  # share of the time that is spent on looking, at most: where the driver trains too, it is taken from that


class Progress:
    """Shows a stage while the block runs: live in a terminal, a line for each change in a log."""

    def __init__(self, run: Folder, config: Config, console: Console, title: str, points: list[Point] | None = None) -> None:
        self.run, self.config, self.console, self.points = run, config, console, points
        self.title = title
        self.stop = threading.Event()
        self.later = None if points is None else points_to_come(config, run, points)
        self.written = False
        began = self._read()  # what is done before is no news
        self.seen: dict[str, tuple[str, int]] = {
            p.name: (p.state, p.epochs) for p in began.points if points is not None and p.state == "done"
        }
        self.bars = Bars(
            TextColumn("{task.description:8}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[top1]}"),
            console=console,
        )
        self.tasks = (
            {s.name: self.bars.add_task(s.name, total=max(s.epochs_total, 1), top1="") for s in began.stages}
            if points is None
            else {}
        )
        self.live = Live(console=console, refresh_per_second=4, transient=points is not None)
        self.thread = threading.Thread(target=self._watch, daemon=True, name="progress")

    def __enter__(self) -> "Progress":
        self.console.rule(f"[bold]{self.title}", align="left")
        if self.console.is_terminal:
            self.live.start()
        self.thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.stop.set()
        self.thread.join()
        try:
            self._show_if_readable()
        finally:
            if self.console.is_terminal:
                self.live.stop()

    def _read(self) -> Status:
        return read_status(self.run, self.config, self.points, self.later)

    def _watch(self) -> None:
        pause = EVERY_SECONDS
        while not self.stop.wait(pause):
            began = time.monotonic()
            self._show_if_readable()
            # Looking takes the longer the more points there are, and a page of a thousand some seconds to write.
            pause = max(EVERY_SECONDS, (time.monotonic() - began) / LOOKING)

    def _show_if_readable(self) -> None:
        """A store that is away for a moment must not end the display, much less the run."""
        try:
            self._show()
        except OSError as problem:
            log.warning("the run's folder could not be read or written just now (%s)", problem)

    def _show(self) -> None:
        status = self._read()
        landed = False
        for part in [*status.stages, *status.points] if self.points is not None else status.stages:
            before = self.seen.get(part.name)
            self.seen[part.name] = (part.state, part.epochs)
            landed |= part in status.points and part.state in ("done", "failed") and (before is None or before[0] != part.state)
            if not self.console.is_terminal and before != self.seen[part.name] and self._worth_a_line(part, before):
                top1 = "" if part.val_top1 is None else f", val top-1 {part.val_top1:.2f} %"
                self.console.print(
                    f"{time.strftime('%H:%M:%S')} {part.name}: {part.state}, epoch {part.epochs}/{part.epochs_total}{top1}",
                    soft_wrap=True,
                )
        if self.console.is_terminal:
            self.live.update(self._picture(status))
        # What an earlier start or round left is shown too; the finished page is written at the end, with its picture.
        landed |= not self.written and status.count("done") > 0
        if landed and not status.finished:
            self.written = True
            write_report(self.run, status)

    def _worth_a_line(self, part: Part, before: tuple[str, int] | None) -> bool:
        """In a log: every change of state, and a few lines of progress a stage or point."""
        if before is None or before[0] != part.state:
            return part.state != "waiting" and not (
                self.points is not None and before is None and part.name in ("dense", "search")
            )
        step = max(1, part.epochs_total // (2 if self.points is not None else 5))
        return part.epochs // step != before[1] // step

    def _picture(self, status: Status) -> RenderableType:
        if self.points is not None:
            return status_table(status)
        for stage in status.stages:
            top1 = "" if stage.val_top1 is None else f"val top-1 {stage.val_top1:.2f} %"
            epochs = stage.epochs if stage.state != "done" else max(stage.epochs_total, 1)
            self.bars.update(self.tasks[stage.name], completed=epochs, top1=top1)
        return Group(self.bars)


def final_table(rows: pd.DataFrame, config: Config, run: Folder, seconds: float) -> Group:
    """The points of a run as a short table, and where the report and the best models are."""
    ok = by_series(best_rates(rows))
    ok = ok[ok.status == "ok"].sort_values(["budget", "method", "seed"], ascending=[False, True, True])
    retrained = ok.test_top1[ok.method == "dense"]
    rates = len(config.retrain.rates) > 1
    figures = ("budget", "MMACs", "of dense", "params", *(("lr",) if rates else ()), "test top-1 %", "vs dense")
    table = plain_table(f"{config.name} in {seconds:.0f} s", [("method", "left"), *((name, "right") for name in figures)])
    for row in ok.to_dict("records"):
        table.add_row(
            row["method"]
            + "".join(f" {family} {share:g}" for family, share in json.loads(row["shares"] or "{}").items())
            + (f" (seed {row['seed']})" if len(config.retrain.seeds) > 1 else ""),
            f"{row['budget']:.2f}",
            f"{row['macs'] / 1e6:,.2f}",
            f"{100 * row['macs'] / row['macs_dense']:.1f} %",
            f"{int(row['params']):,}",
            *((f"{row['lr']:g}",) if rates else ()),
            f"{row['test_top1']:.2f}",
            f"{row['test_top1'] - (row['test_top1_untouched'] if retrained.empty else retrained.mean()):+.2f}",
        )
    untouched = f"The dense model before the sweep: {ok.test_top1_untouched.iloc[0]:.2f} % on test." if len(ok) else ""
    return Group(
        "", table, "", untouched, f"Report: {joined(run.uri, 'report.html')}", f"Models: {joined(run.uri, 'models/')}", ""
    )
