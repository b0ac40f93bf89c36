"""Parts of a measurement that each write a table of a README, with the machine it was measured on."""

import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from markdown_tables import with_table

from slimsweep.latency.device import hardware

BUSY = 0.5  # load of the machine, before a part, beyond which its table says that it was not quiet


def measure_parts(parts: Mapping[str, Callable[[Path], str]], asked: Sequence[str], readme: Path, versions: str) -> int:
    """Do parts of a measurement, and write their tables into a README between the marks of their names.

    Args:
        parts: by name; each takes an empty folder for its files and returns Markdown.
        asked: names of parts; all where none is given.
        versions: of what is measured, for the line before each table.

    Returns:
        The exit code: 2 where a name is unknown, before anything is measured.
    """
    if unknown := sorted(set(asked) - set(parts)):
        print(f"unknown: {', '.join(unknown)}; known are {', '.join(parts)}", file=sys.stderr)
        return 2
    for name in asked or parts:
        load = os.getloadavg()[0]
        with tempfile.TemporaryDirectory(prefix="slimsweep-") as folder:
            table = parts[name](Path(folder))
        about = f"{hardware(torch.device('cpu'))}, {os.cpu_count()} threads, {versions}, {time.strftime('%Y-%m-%d')}"
        beside = f"; not quiet, the load was {load:.1f} before" if load > BUSY else ""
        marks = f"<!-- {name} -->", f"<!-- end of {name} -->"
        readme.write_text(with_table(readme.read_text(), f"{about}{beside}:\n\n{table}", *marks))
        print(table, flush=True)
    return 0
