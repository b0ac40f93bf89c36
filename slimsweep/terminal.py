"""Tables and words for a terminal or a log."""

from collections.abc import Sequence

from rich.console import JustifyMethod
from rich.table import Table


def counted(number: int, thing: str) -> str:
    """A number of things: "1 thread", "2 threads"."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def plain_table(title: str, columns: Sequence[tuple[str, JustifyMethod]]) -> Table:
    """An empty table without lines, with its title in bold above.

    Args:
        columns: (heading, alignment) of each column.
    """
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name, justify in columns:
        table.add_column(
            name, justify=justify, overflow="fold"
        )  # long names of points wrap and stay whole, so that they can be copied
    return table
