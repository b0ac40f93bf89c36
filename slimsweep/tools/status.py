"""`slimsweep status`: the stages and points of a run as a table."""

from rich.console import JustifyMethod
from rich.table import Table
from rich.text import Text

from slimsweep.ledger.status import Status
from slimsweep.terminal import plain_table

COLOURS = {"done": "green", "running": "cyan", "failed": "red", "stopped": "yellow", "waiting": "dim"}


def status_table(status: Status, columns: int = 5) -> Table:
    """The status as a table for a terminal, with what comes next as its title.

    Args:
        columns: how many to show: the name first, then state, epoch, accuracy and a note.
    """
    headings: list[tuple[str, JustifyMethod]] = [("stage or point", "left"), ("state", "left"), ("epoch", "right")]
    of_backbone = any(training.val_r2 is not None for training in [*status.stages, *status.points])
    headings += [("val R2" if of_backbone else "val top-1 %", "right"), ("", "left")]
    left = f", {status.time_left_of}" if status.time_left_of else ""
    table = plain_table(f"{status.name}: {status.next}{left}", headings[:columns])
    for training in [*status.stages, *status.points]:
        measure, value = training.measured
        quality = "" if value is None else f"{value:.{measure.decimals_for(training.val_images)}f}"
        colour = COLOURS[training.state]
        cells = (
            Text(training.name),
            Text(training.state, style=colour),
            f"{training.epochs}/{training.epochs_total}",
            quality,
            Text(training.error[:100] or training.note),  # what a worker raised may look like rich's markup
        )
        table.add_row(*cells[:columns])
    return table
