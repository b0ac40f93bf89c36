"""`slimsweep list`: the runs in an output folder, one line each."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

from rich.table import Table
from rich.text import Text

from slimsweep.errors import RefusedInput
from slimsweep.ledger.run import Run
from slimsweep.report.summary import Summary, runs_in, summary_of
from slimsweep.terminal import plain_table

__all__ = ["read_lines", "runs_in", "runs_table"]

AT_ONCE = 16  # runs that are read at the same time: whether a driver on another machine is alive takes seconds to see
COLOURS = {"finished": "green", "running": "cyan", "failed": "red", "stopped": "yellow"}


def read_lines(runs: Sequence[tuple[str, Run]]) -> tuple[list[Summary], list[str]]:
    """(what is said of each run that can be read, the latest last; a sentence per run that cannot)."""
    lines, problems = [], []
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for found in pool.map(lambda one: _summary_or_problem(*one), runs):
            if isinstance(found, Summary):
                lines.append(found)
            else:
                problems.append(found)
    return sorted(lines, key=lambda line: (line.changed or datetime.min, line.name)), problems


def runs_table(lines: Sequence[Summary], title: str) -> Table:
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


def _summary_or_problem(name: str, run: Run) -> Summary | str:
    try:
        return summary_of(name, run)
    except RefusedInput as problem:  # its configuration is damaged, or of a later version
        return f"{name} is left out: {problem}"
