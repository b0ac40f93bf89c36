"""The page of one run or of several: an interactive Pareto front and the models behind it, in one HTML file.

`build_page` makes HTML from tables; `write_report` and `write_page` read runs and write files. The page contains its data and
plotly.js, both compressed, and loads nothing from the network. Its script is joined from the modules of `web/`, which
`npm install && npm run check` lints and tests; only that needs node.
"""

import hashlib
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache, cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

import slimsweep
from slimsweep.errors import RefusedInput
from slimsweep.ledger.latencies import latencies, left_out
from slimsweep.ledger.run import Run
from slimsweep.ledger.status import Status, read_status
from slimsweep.report.about import read_settings
from slimsweep.report.page_data import page_data
from slimsweep.report.page_parts import environment, joined_script, joined_styles, markup, packed, policy, source_of
from slimsweep.report.picture import write_picture
from slimsweep.report.run_tables import RunTables, read_run
from slimsweep.storage import Folder, parted

STYLES = ("report.css", "screens.css")  # later rules come over earlier ones
REFRESH_SECONDS = 20  # between two reloads of the page while a driver works on one of its runs


def build_page(runs: Sequence[RunTables], *, written_at: datetime | None = None, shelf_at: str = "") -> str:
    """The page, as one HTML text.

    Args:
        runs: at least one.
        written_at: shown in the page; now where not given.
        shelf_at: the relative address of the page of all runs, where a service shows the page: it has a link to that then, and
            takes the figure library from the file beside it (`FigureLibrary.name`). Else the page is one file with all in it.

    Raises:
        RefusedInput: a ValueError: no run was given.
    """
    if not runs:
        raise RefusedInput("a report needs at least one run")
    data = page_data(runs)
    data["refresh_seconds"] = REFRESH_SECONDS if any(run.live for run in runs) else None
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    script = joined_script("main.js")
    library = figure_library()
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            policy=policy(source_of(script), source_of(library.text), connect=bool(shelf_at)),
            title=_title(data),
            subtitle=_subtitle(data),
            notices=[
                notice
                for run in runs
                for notice in (run.not_trusted, left_out(latencies(run.results, run.device_times)))
                if notice
            ],
            version=slimsweep.__version__,
            shelf_at=shelf_at,
            written_at=(written_at or datetime.now(UTC)).astimezone(UTC).isoformat(timespec="seconds"),
            style=markup(joined_styles(STYLES)),
            script=markup(script),
            data=markup(packed(text.encode(), level=6)),
            plotly=markup("" if shelf_at else library.packed),
            plotly_at=f"{shelf_at}{library.name}" if shelf_at else "",
        )
    )


def write_report(run: Run, status: Status) -> str | None:
    """Write report.html to the run's folder; if no driver works on the run any more, also report.svg and report.png.

    What was read for it is collected for later readers (`Run.collect`).

    Returns:
        One sentence that says why pictures could not be written; None where they were, or while a driver works on the run.
    """
    tables = read_run(run, status)
    run.write_report("html", build_page([tables]).encode())
    run.collect()
    return None if tables.live else write_picture(run, tables)


def write_page(runs: Sequence[Run | RunTables], output: str | Path) -> None:
    """Write one page of several runs, or of tables alone.

    Raises:
        ConfigError: a folder is not a run.
        OSError: `output` cannot be written.
    """
    page = build_page([read_run(run, read_status(run)) if isinstance(run, Run) else run for run in runs])
    parent, name = parted(str(output))
    Folder(parent).write_bytes(name, page.encode())


def _title(data: dict[str, Any]) -> str:
    names = [run["name"] for run in data["runs"]]
    return names[0] if len(names) == 1 else ", ".join(names) if len(names) <= 3 else f"{len(names)} runs"


def _subtitle(data: dict[str, Any]) -> str:
    runs = data["runs"]
    if len(runs) > 1:
        points = sum(run["points"] for run in runs)
        sets = [entry["name"] for entry in data["datasets"]]
        return f"{len(runs)} runs, {points} points, on {', '.join(sets)}"
    if not data["points"]["point"]:
        return "Accuracy against multiply-accumulates"
    return f"{runs[0]['model']}{_changed_sizes(runs[0])} on {runs[0]['data']}, searched once and cut to every budget"


def _changed_sizes(run: dict[str, Any]) -> str:
    """What the configuration changes of the model that the name stands for, in brackets: such as its depth."""
    model = read_settings(run["about"]["config"]).get("model")
    kwargs = model.get("kwargs") if isinstance(model, dict) else None
    said = ", ".join(f"{name} {value}" for name, value in kwargs.items()) if isinstance(kwargs, dict) else ""
    return f" ({said})" if said else ""


# Parts of the page.


class FigureLibrary:
    """plotly.js of the installed plotly package."""

    def __init__(self) -> None:
        self.text = files("plotly").joinpath("package_data", "plotly.min.js").read_text(encoding="utf-8")

    @cached_property
    def name(self) -> str:
        """A file name that changes with the content, so that browsers may keep the file for good."""
        return f"plotly-{hashlib.sha256(self.text.encode()).hexdigest()[:16]}.js"

    @cached_property
    def packed(self) -> str:
        """As pages hold it (`page_parts.packed`)."""
        return packed(self.text.encode(), level=9)


@cache
def figure_library() -> FigureLibrary:
    """It is read once."""
    return FigureLibrary()
