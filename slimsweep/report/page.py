"""The page of one run or of several: an interactive Pareto front and the models behind it, in one HTML file.

`build_page` makes HTML from tables; `write_report` and `write_page` read runs and write files. The page contains its data and
plotly.js, both compressed, and loads nothing from the network. Its script is joined from the modules of `web/`, which
`npm install && npm run check` lints and tests; only that needs node.
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
import yaml

import slimsweep
from slimsweep.errors import RefusedInput
from slimsweep.ledger.latencies import latencies, left_out
from slimsweep.ledger.run import Run
from slimsweep.ledger.status import Status, read_status
from slimsweep.report.bundle import bundle
from slimsweep.report.page_data import page_data
from slimsweep.report.picture import write_picture
from slimsweep.report.run_tables import RunTables, read_run
from slimsweep.storage import Folder, parted

STYLES = ("report.css", "screens.css")  # later rules come over earlier ones
REFRESH_SECONDS = 20  # between two reloads of the page while a driver works on one of its runs


def build_page(runs: Sequence[RunTables], *, written_at: datetime | None = None) -> str:
    """The page, as one HTML text.

    Args:
        runs: at least one.
        written_at: shown in the page; now where not given.

    Raises:
        RefusedInput: a ValueError: no run was given.
    """
    if not runs:
        raise RefusedInput("a report needs at least one run")
    data = page_data(runs)
    data["refresh_seconds"] = REFRESH_SECONDS if any(run.live for run in runs) else None
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
            notices=[
                notice
                for run in runs
                for notice in (run.not_trusted, left_out(latencies(run.results, run.device_times)))
                if notice
            ],
            version=slimsweep.__version__,
            written_at=(written_at or datetime.now(UTC)).astimezone(UTC).isoformat(timespec="seconds"),
            # Unescaped: these come from this repository or are base64, and contain no text of a run.
            style=_markup("".join(_web().joinpath(name).read_text(encoding="utf-8") for name in STYLES)),
            script=_markup(script),
            data=_markup(_packed(text.encode(), level=6)),
            plotly=_markup(plotly),
        )
    )


def write_report(run: Run, status: Status) -> str | None:
    """Write report.html to the run's folder; if no driver works on the run any more, also report.svg and report.png.

    Returns:
        One sentence that says why pictures could not be written; None where they were, or while a driver works on the run.
    """
    tables = read_run(run, status)
    run.write_report("html", build_page([tables]).encode())
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
    try:
        settings = yaml.safe_load(run["about"]["config"] or "{}")
    except yaml.YAMLError:  # of a table of somebody else's; the page shows the text below as it is
        return ""
    model = settings.get("model") if isinstance(settings, dict) else None
    kwargs = model.get("kwargs") if isinstance(model, dict) else None
    said = ", ".join(f"{name} {value}" for name, value in kwargs.items()) if isinstance(kwargs, dict) else ""
    return f" ({said})" if said else ""


# Parts of the page.


def _web() -> Traversable:
    return files("slimsweep.report").joinpath("web")


@cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("slimsweep.report", "web"), autoescape=True, undefined=jinja2.StrictUndefined
    )


@cache
def _script() -> str:
    """The page's own script: the modules of `web/` joined into one."""
    modules = {file.name: file.read_text(encoding="utf-8") for file in _web().iterdir() if file.name.endswith(".js")}
    return bundle(modules, "main.js")


@cache
def _plotly() -> tuple[str, str]:
    """plotly.js of the installed plotly package, compressed and in base64, and its hash for the page's policy."""
    text = files("plotly").joinpath("package_data", "plotly.min.js").read_text(encoding="utf-8")
    return _packed(text.encode(), level=9), _source(text)


def _packed(data: bytes, level: int) -> str:
    return base64.b64encode(zlib.compress(data, level)).decode()


def _source(script: str) -> str:
    """The hash of a script for a Content-Security-Policy: only a script with exactly this text may run."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _markup(text: str) -> markupsafe.Markup:
    return markupsafe.Markup(text)
