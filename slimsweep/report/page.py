"""The page of one run or of several: an interactive Pareto front and the models behind it, in one HTML file.

`build_page` is a pure function from tables to HTML; `write_report` and `write_page` read folders and write files around it. The
page carries its data and plotly.js, both deflated, and asks the network for nothing. Its own script is the modules of `web/`;
`npm install && npm run check` lints and tests them, and needs node, which the page does not.
"""

import base64
import hashlib
import json
import zlib
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import jinja2
import markupsafe

import slimsweep
from slimsweep.errors import RefusedInput
from slimsweep.ledger.run import Run
from slimsweep.ledger.status import Status, read_status
from slimsweep.report.bundle import bundle
from slimsweep.report.page_data import page_data
from slimsweep.report.picture import write_picture
from slimsweep.report.run_tables import RunTables, read_run
from slimsweep.storage import Folder, parted

REFRESH_SECONDS = 20


def build_page(runs: Sequence[RunTables], *, written_at: datetime | None = None, refresh_seconds: int = REFRESH_SECONDS) -> str:
    """The page, as one HTML text.

    Args:
        runs: at least one.
        written_at: shown in the page; now where not given.
        refresh_seconds: how often the page loads itself again while a driver goes on with one of the runs.

    Raises:
        ValueError: no run was given.
    """
    if not runs:
        raise RefusedInput("a report needs at least one run")
    data = page_data(runs)
    data["refresh_seconds"] = refresh_seconds if any(run.live for run in runs) else None
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    script = _script()
    plotly, plotly_hash = _plotly()
    policy = (
        f"default-src 'none'; script-src {_source(script)} {plotly_hash}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            policy=policy,
            title=_title(data),
            subtitle=_subtitle(data),
            version=slimsweep.__version__,
            written_at=(written_at or datetime.now(UTC)).astimezone(UTC).isoformat(timespec="seconds"),
            # Written in this repository, or base64: no text of a run is in these.
            style=_markup(_web().joinpath("report.css").read_text(encoding="utf-8")),
            script=_markup(script),
            data=_markup(_packed(text.encode(), level=6)),
            plotly=_markup(plotly),
        )
    )


def write_report(run: Run, status: Status) -> str | None:
    """Write report.html in the run's folder, whole or not at all, and where nothing more comes report.svg and report.png.

    Returns:
        One sentence on why there is no static picture, where nothing more comes and there is none; else None.
    """
    tables = read_run(run, status)
    run.write_report("html", build_page([tables]).encode())
    return None if tables.live else write_picture(run, tables)


def write_page(runs: Sequence[Run], output: str | Path) -> None:
    """Write one page of several runs.

    Raises:
        ValueError: a folder holds no run.
        OSError: nothing can be written there.
    """
    page = build_page([read_run(run, read_status(run)) for run in runs])
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
    return f"{runs[0]['model']} on {runs[0]['data']}, searched once and cut to every budget"


# What the page is made of.


def _web() -> Traversable:
    return files("slimsweep.report").joinpath("web")


@cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("slimsweep.report", "web"), autoescape=True, undefined=jinja2.StrictUndefined
    )


@cache
def _script() -> str:
    """The page's own script: the modules of the web folder as one classic script."""
    modules = {file.name: file.read_text(encoding="utf-8") for file in _web().iterdir() if file.name.endswith(".js")}
    return bundle(modules, "main.js")


@cache
def _plotly() -> tuple[str, str]:
    """plotly.js of the installed plotly package, deflated and in base64, and its hash for the page's policy."""
    text = files("plotly").joinpath("package_data", "plotly.min.js").read_text(encoding="utf-8")
    return _packed(text.encode(), level=9), _source(text)


def _packed(data: bytes, level: int) -> str:
    return base64.b64encode(zlib.compress(data, level)).decode()


def _source(script: str) -> str:
    """A script as a source of a Content-Security-Policy: only a script of exactly this text may run."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _markup(text: str) -> markupsafe.Markup:
    return markupsafe.Markup(text)
