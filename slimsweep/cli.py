"""The `slimsweep` command: everything beside running a sweep, which is `python -m slimsweep.run`."""

import argparse
import sys
from collections.abc import Sequence

from rich.console import Console

from slimsweep.status import read_status, status_table
from slimsweep.storage import Folder


def main(argv: Sequence[str] | None = None) -> int:
    """Dispatch a subcommand; returns the exit code: 0, or 2 with one sentence on what was wrong with the input."""
    parser = argparse.ArgumentParser(prog="slimsweep", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add = commands.add_parser("run", help="run a sweep; the same as python -m slimsweep.run", add_help=False)
    add.add_argument("arguments", nargs=argparse.REMAINDER)
    add = commands.add_parser("status", help="stages and points of a run: done, running, failed, what comes next")
    add.add_argument("run", help="the run's folder: a local path or a URI")
    add = commands.add_parser("report", help="write the page of one run, or of several on one page")
    add.add_argument("runs", nargs="+", metavar="RUN")
    add.add_argument("--output", help="the page's file; report.html in the run's folder where not given")

    words = list(sys.argv[1:] if argv is None else argv)
    console = Console(highlight=False)
    if words[:1] == ["run"]:
        from slimsweep.run import main as run

        return run(words[1:])
    chosen = parser.parse_args(words)
    try:
        return {"status": status, "report": report}[chosen.command](chosen, console)
    except ValueError as problem:
        console.print(f"slimsweep: {problem}", style="red", soft_wrap=True, markup=False)
        return 2


def status(chosen: argparse.Namespace, console: Console) -> int:
    console.print(status_table(read_status(Folder(chosen.run))))
    return 0


def report(chosen: argparse.Namespace, console: Console) -> int:
    from slimsweep.report import write_page, write_report

    runs = [Folder(r) for r in chosen.runs]
    if len(runs) == 1 and chosen.output is None:
        write_report(runs[0], read_status(runs[0]))
        console.print(f"{runs[0].uri}/report.html")
    else:
        output = chosen.output or "report.html"
        write_page(runs, output)
        console.print(output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
