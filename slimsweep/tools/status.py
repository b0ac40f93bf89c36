"""`slimsweep status`: the stages and points of a run as a table."""

from rich.table import Table

from slimsweep.ledger.status import Status
from slimsweep.terminal import plain_table

COLOURS = {"done": "green", "running": "cyan", "failed": "red", "waiting": "dim"}


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
