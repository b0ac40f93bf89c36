"""The page of one run or of several: an interactive frontier and the models behind it, in one HTML file.

`build_page` is a pure function from tables to HTML; reading Parquet and writing files stand around it. The page carries its
data and plotly.js, both deflated, and asks the network for nothing.
"""

import base64
import hashlib
import importlib
import importlib.util
import json
import math
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import markupsafe
import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pyarrow as pa

import slimsweep
from slimsweep.ledger.points import pace_path
from slimsweep.ledger.tables import BENCH, CURVES, GATES, last_timed, read_bench, read_curves, read_gates, read_rows
from slimsweep.report.pareto import EQUAL_COMPUTE, best_rates, by_series, hypervolume_by_method, knee, pareto_front, summarize
from slimsweep.slimming.structure import Structure
from slimsweep.storage import Folder, parted
from slimsweep.tools.status import Status, read_config, read_status

REFRESH_SECONDS = 20
HISTOGRAM_BINS = 40
SCRIPTS = ["unpack", "format", "metrics", "state", "question", "figure", "panels", "point", "search", "table", "page", "main"]


@dataclass(frozen=True, kw_only=True)
class Part:
    """One stage or point under way."""

    name: str
    state: str  # done, running, failed or waiting
    epochs: int
    epochs_total: int
    val_top1: float | None = None  # percent


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How far a run is, in counts of points."""

    planned: int
    done: int
    failed: int = 0
    running: int = 0
    finished: bool = True  # nothing is waiting or running
    live: bool = False  # a driver goes on with it: the page looks again
    next: str = ""  # what comes next, in one sentence
    stages: list[Part] = field(default_factory=list)
    points: list[Part] = field(default_factory=list)


def _empty(schema: pa.Schema) -> pd.DataFrame:
    frame: pd.DataFrame = schema.empty_table().to_pandas()
    return frame


@dataclass(frozen=True, kw_only=True)
class RunTables:
    """All that the page shows of one run; the tables are those of `slimsweep.ledger.tables` and of the benchmark."""

    name: str
    uri: str  # where it lies, for the commands that load its models
    results: pd.DataFrame
    curves: pd.DataFrame = field(default_factory=lambda: _empty(CURVES))
    gates: pd.DataFrame = field(default_factory=lambda: _empty(GATES))
    bench: pd.DataFrame = field(default_factory=lambda: _empty(BENCH))
    standing: Standing | None = None
    pace: dict[str, Any] | None = None  # of the families: what was chosen, and what was tried for it


# From tables to HTML.


def build_page(runs: Sequence[RunTables], *, written_at: datetime | None = None, refresh_seconds: int = REFRESH_SECONDS) -> str:
    """The page, as one HTML text.

    Args:
        runs: at least one.
        written_at: shown in the page; now where not given.
        refresh_seconds: how often the page looks at itself again while a driver goes on with one of the runs.

    Raises:
        ValueError: no run was given.
    """
    if not runs:
        raise ValueError("a report needs at least one run")
    data = page_data(runs)
    live = any(run.standing is not None and run.standing.live for run in runs)
    data["refresh_seconds"] = refresh_seconds if live else None
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
            # Written in this repository, or base64: nothing in these comes from a run as it is.
            style=_markup(_template("report.css")),
            script=_markup(script),
            data=_markup(_packed(text.encode(), level=6)),
            plotly=_markup(plotly),
        )
    )


def page_data(runs: Sequence[RunTables]) -> dict[str, Any]:
    """What the page's script works on, as plain JSON data: a column a list, and each structure and shape once."""
    runs = [replace(run, results=by_series(best_rates(run.results))) for run in runs]
    shelf = _Shelf()
    names = _unique([run.name for run in runs])
    columns: dict[str, list[Any]] = {"run": [], "structure": [], **{name: [] for name in POINT_COLUMNS}}
    curves: list[dict[str, list[Any]] | None] = []
    described: list[dict[str, Any]] = []
    for index, run in enumerate(runs):
        rows = run.results
        columns["run"] += [index] * len(rows)
        for name in POINT_COLUMNS:
            columns[name] += _plain(rows[name])
        columns["structure"] += [shelf.put(text) for text in _plain(rows["structure"])]
        trained = _training(run.curves)
        curves += [trained.get(point) for point in rows["point"]]
        described.append(_describe(run, names[index]))
    datasets = _datasets(described, runs)
    return {
        "runs": described,
        "datasets": datasets,
        "methods": list(dict.fromkeys(columns["method"])),
        "points": columns,
        "curves": curves,
        "shapes": shelf.shapes,
        "structures": shelf.structures,
        **_benchmarks(runs),
    }


# Columns of the results that the page gets as they are, with the decimals that they are rounded to.
POINT_COLUMNS: dict[str, int] = {
    "point": 0,
    "method": 0,
    "seed": 0,
    "budget": 6,
    "shares": 0,
    "status": 0,
    "error": 0,
    "macs": 0,
    "macs_dense": 0,
    "params": 0,
    "params_dense": 0,
    "model_bytes": 0,
    "val_top1_cut": 4,
    "val_top1": 4,
    "test_top1": 4,
    "test_top5": 4,
    "test_loss": 5,
    "lr": 9,
    "epochs": 0,
    "train_seconds": 2,
    "device": 0,
    "model_path": 0,
}


class _Shelf:
    """Structures and shapes, each kept once: seeds of a budget share theirs, all points of a run their shape."""

    def __init__(self) -> None:
        self.shapes: list[dict[str, Any]] = []
        self.structures: list[dict[str, Any]] = []
        self._places: dict[str, int | None] = {}
        self._shape_places: dict[tuple[Any, ...], int] = {}

    def put(self, text: str | None) -> int | None:
        """The place of a structure given as JSON; None where the row holds none, or none that can be read."""
        if text is None:
            return None
        if text not in self._places:
            try:
                structure = Structure.from_json(text)
            except ValueError:  # written by a version whose structures are gone: the page says so at the point
                self._places[text] = None
            else:
                self._places[text] = len(self.structures)
                self.structures.append(self._view(structure))
        return self._places[text]

    def _view(self, structure: Structure) -> dict[str, Any]:
        shape = structure.shape
        key = (shape.layers, shape.grid)
        if key not in self._shape_places:
            self._shape_places[key] = len(self.shapes)
            self.shapes.append(
                {
                    "names": [layer.name for layer in shape.layers],
                    "heads": [layer.heads for layer in shape.layers],
                    "head_dim": [layer.head_dim for layer in shape.layers],
                    "hidden": [layer.hidden for layer in shape.layers],
                    "tokens": [layer.tokens for layer in shape.layers],
                    "grid": list(shape.grid),
                }
            )
        layers = range(len(shape.layers))
        sizes = [structure.sizes(i) for i in layers]
        tokens = structure.masks.get("token")
        return {
            "shape": self._shape_places[key],
            "heads": [structure.attention_mask(i).sum(1).tolist() for i in layers],
            "units": [size[2] for size in sizes],
            "tokens": [size[3] for size in sizes],
            # A token that left does not come back: how many layers keep it says in which.
            "last": np.sum([mask.numpy() for mask in tokens], axis=0).tolist() if tokens else None,
        }


def _describe(run: RunTables, name: str) -> dict[str, Any]:
    """What the page says of one run beside its points."""
    rows = run.results
    config = {column: _first(rows[column]) for column in ("model", "data")}
    return {
        "name": name,
        "uri": run.uri,
        "model": config["model"] or "unknown model",
        "data": config["data"] or "unknown data",
        "points": int((rows["status"] == "ok").sum()),
        "untouched": _first(rows["test_top1_untouched"]),
        "standing": asdict(run.standing) if run.standing is not None else None,
        "search": _search(run.curves),
        "gates": _histograms(run.gates),
        "pace": _pace(run.pace),
    }


def _datasets(described: list[dict[str, Any]], runs: Sequence[RunTables]) -> list[dict[str, Any]]:
    """Data sets and their runs; gives each run its data set, its place in it, and the hypervolumes of its methods.

    The reference of a data set's hypervolumes is 0 % at the MACs of its largest dense model. Areas are divided by those
    MACs, which makes them the test top-1 averaged over all limits on MACs.
    """
    found: dict[str, list[int]] = {}
    for index, run in enumerate(described):
        found.setdefault(run["data"], []).append(index)
    datasets = []
    for place, (name, members) in enumerate(found.items()):
        largest = max((m for i in members for m in _plain(runs[i].results["macs_dense"]) if m is not None), default=None)
        for index in members:
            table = hypervolume_by_method(runs[index].results, (float(largest or 0), 0.0))
            described[index]["dataset"] = place
            described[index]["hypervolume"] = [
                {
                    "method": row["method"],
                    "budgets": row["budgets"],
                    "seeds": row["seeds"],
                    "mean": round(row["mean"] / largest, 4),
                    "se": None if math.isnan(row["se"]) else round(row["se"] / largest, 4),
                }
                for row in table.to_dict("records")
                if row["method"] != "dense"  # one point at the reference itself has no area
            ]
        datasets.append({"name": name, "runs": members, "reference_macs": largest})
    return datasets


def _training(curves: pd.DataFrame) -> dict[str, dict[str, list[Any]]]:
    """The retraining of each point: epochs, validation top-1 (percent), loss (nats)."""
    retrained = curves[curves["stage"] == "retrain"].sort_values("epoch", kind="stable")
    return {
        str(point): {"epoch": _plain(rows["epoch"]), "val": _plain(rows["val_top1"], 3), "loss": _plain(rows["loss"], 4)}
        for point, rows in retrained.groupby("point")
    }


def _search(curves: pd.DataFrame) -> dict[str, Any] | None:
    """Accuracy and gates by epoch of the search: for each family a list of epochs a layer; None before it began."""
    rows = curves[curves["stage"] == "search"].sort_values("epoch")
    if rows.empty:
        return None
    gated = rows[rows["gates"].notna()]
    families: dict[str, dict[str, dict[int, list[float | None]]]] = {}
    for place, gates in enumerate(gated["gates"]):
        for gate in gates:
            for name, column in (("mean", "mean"), ("below", "below_1e-2")):
                layers = families.setdefault(gate["family"], {"mean": {}, "below": {}})[name]
                layers.setdefault(gate["layer"], [None] * len(gated))[place] = _number(gate[column], 4)
    return {
        "epoch": _plain(rows["epoch"]),
        "val": _plain(rows["val_top1"], 3),
        "gate_epoch": _plain(gated["epoch"]),
        "families": {
            family: {name: [layers[i] for i in sorted(layers)] for name, layers in series.items()}
            for family, series in families.items()
        },
    }


def _histograms(gates: pd.DataFrame) -> dict[str, dict[str, list[float]]]:
    """How the final gates of each family are spread: the edges of equal bins from 0, and the gates in each."""
    found = {}
    for family, rows in gates.groupby("family"):
        values = rows["value"].abs().dropna().to_numpy()
        counts, edges = np.histogram(values, bins=HISTOGRAM_BINS, range=(0.0, float(values.max(initial=0.0)) or 1.0))
        found[str(family)] = {"edges": np.round(edges, 6).tolist(), "counts": counts.tolist()}
    return found


def _pace(found: dict[str, Any] | None) -> dict[str, Any] | None:
    """The pace that was chosen, at which budget, and the validation top-1 (percent) of all tries that ended, the best first."""
    if found is None:
        return None
    val = sorted((round(one["val_top1"], 2) for one in found["tried"] if not one["error"]), reverse=True)
    return {"chosen": found["pace"], "budget": found["tried"][0]["budget"], "val": val}


def _benchmarks(runs: Sequence[RunTables]) -> dict[str, Any]:
    """Timings by point and setting; a setting is all that a timing depends on beside the model."""
    places: dict[str, int] = {}
    timings: list[list[Any]] = []
    dense: dict[str, float | None] = {}
    hardware: dict[str, set[str]] = {}  # of each kind of device: named where there are several
    for run in runs:
        for device, name in zip(run.bench["device"], _plain(run.bench["hardware"]), strict=True):
            hardware.setdefault(device, set()).add(name or device)
    start = 0
    for index, run in enumerate(runs):
        where = {point: start + i for i, point in enumerate(run.results["point"])}
        start += len(run.results)
        for row in run.bench.to_dict("records"):
            compiled = ", compiled" if row["compile"] else ""
            device = row["device"] if len(hardware[row["device"]]) == 1 else row["hardware"] or row["device"]
            threads = f", {_number(row['threads'])} threads" if _number(row["threads"]) else ""
            setting = f"{device}{threads}, batch {_number(row['batch_size'])}, {row['dtype']}{compiled}"
            place = places.setdefault(setting, len(places))
            numbers = [
                _number(row[name], 4) for name in ("latency_p50_ms", "latency_p90_ms", "images_per_second", "peak_memory_bytes")
            ]
            if row["point"] in where:
                timings.append([where[row["point"]], place, numbers])
            if str(row["point"]).split("-")[0] == "dense":
                dense[f"{index}|{place}"] = numbers[0]
    return {"settings": list(places), "bench": timings, "bench_dense": dense}


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


def _unique(names: list[str]) -> list[str]:
    """Names that tell runs apart, for choices on the page are kept by name."""
    seen: dict[str, int] = {}
    unique = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        unique.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return unique


def _plain(column: pd.Series, decimals: int | None = None) -> list[Any]:
    """A column as JSON values; what is missing or not finite is None."""
    digits = POINT_COLUMNS.get(str(column.name), 6) if decimals is None else decimals
    return [_number(value, digits) for value in column.tolist()]


def _number(value: Any, digits: int = 0) -> Any:
    """A cell as a JSON value: whole numbers as int, others rounded, missing and not finite ones None, text as it is."""
    if value is None or value is pd.NA or isinstance(value, str):
        return None if value is pd.NA else value
    number = float(value)
    if not math.isfinite(number):
        return None
    return int(number) if number.is_integer() else round(number, digits)


def _first(column: pd.Series) -> Any:
    known = [value for value in _plain(column) if value is not None]
    return known[0] if known else None


# What the page is made of.


@cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("slimsweep.report", "web"), autoescape=True, undefined=jinja2.StrictUndefined
    )


def _template(name: str) -> str:
    return files("slimsweep.report").joinpath("web", name).read_text(encoding="utf-8")


@cache
def _script() -> str:
    """The page's own script: the modules of the web folder in one scope."""
    names = [f"{name}.js" for name in SCRIPTS]
    return "(() => {\n'use strict';\n" + "\n".join(_template(name) for name in names) + "\n})();"


@cache
def _plotly() -> tuple[str, str]:
    """plotly.js of the installed plotly package, deflated and in base64, and its hash for the page's policy."""
    text = files("plotly").joinpath("package_data", "plotly.min.js").read_text(encoding="utf-8")
    return _packed(text.encode(), level=9), _source(text)


def _packed(data: bytes, level: int) -> str:
    return base64.b64encode(zlib.compress(data, level)).decode()


def _source(script: str) -> str:
    """A script as a source of a Content-Security-Policy: only a script of this very text may run."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _markup(text: str) -> markupsafe.Markup:
    return markupsafe.Markup(text)


# Reading runs and writing pages.


def read_run(folder: Folder, status: Status | None = None, last: bool = False) -> RunTables:
    """The tables of a run folder; those that are not there yet are empty.

    Args:
        status: where the run stands; without one the page says nothing of points to come and does not refresh.
        last: nothing more comes for now, though a driver holds the run: it is about to end.
    """
    results = read_rows(folder)
    name = status.name if status is not None else _first(results["run"]) or folder.uri.rsplit("/", 1)[-1]
    return RunTables(
        name=name,
        uri=folder.uri,
        results=results,
        curves=read_curves(folder),
        gates=read_gates(folder),
        bench=last_timed(read_bench(folder)),
        standing=_standing(status, last) if status is not None else None,
        pace=_read_pace(folder),
    )


def _read_pace(folder: Folder) -> dict[str, Any] | None:
    if not folder.exists("config.yaml") or not folder.exists(path := pace_path(read_config(folder))):
        return None
    found: dict[str, Any] = folder.read_json(path)
    return found


def _standing(status: Status, last: bool) -> Standing:
    def parts(of: Sequence[Any]) -> list[Part]:
        return [
            Part(name=p.name, state=p.state, epochs=p.epochs, epochs_total=p.epochs_total, val_top1=_number(p.val_top1, 3))
            for p in of
        ]

    return Standing(
        planned=len(status.points) + status.later,
        done=status.count("done"),
        failed=status.count("failed"),
        running=status.count("running"),
        finished=status.finished,
        live=status.alive and not status.finished and not last,
        next=status.next,
        stages=parts(status.stages),
        points=parts(status.points),
    )


def write_report(run: Folder, status: Status, last: bool = False) -> str | None:
    """Write report.html in the run's folder, whole or not at all, and where nothing more comes report.svg and report.png.

    Args:
        last: nothing more comes, though a driver holds the run and points may be left: it failed, or its time is over.

    Returns:
        One sentence on why there is no static picture, where nothing more comes and there is none; else None.
    """
    tables = read_run(run, status, last)
    run.write_bytes("report.html", build_page([tables]).encode())
    return None if tables.standing is not None and tables.standing.live else write_picture(run, tables)


def write_page(runs: Sequence[Folder], output: str | Path) -> None:
    """Write one page of several runs.

    Raises:
        ValueError: a folder holds no run.
        OSError: nothing can be written there.
    """
    page = build_page([read_run(run, read_status(run)) for run in runs])
    parent, name = parted(str(output))
    Folder(parent).write_bytes(name, page.encode())


# The static picture.


def write_picture(run: Folder, tables: RunTables) -> str | None:
    """Write report.svg and report.png, the frontier for READMEs and chat, through kaleido and the browser that it finds.

    Returns:
        None, or one sentence on why there is no picture.
    """
    if tables.results["test_top1"].notna().sum() == 0:
        return "no static picture was written: no point has a result"
    if not kaleido_here():
        return "no static picture was written: it needs kaleido (pip install kaleido) and a Chrome or Chromium"
    kaleido = importlib.import_module("kaleido")
    figure = frontier_figure(tables).to_plotly_json()
    try:
        for kind, scale in (("svg", 1), ("png", 2)):
            options = {"format": kind, "width": 900, "height": 520, "scale": scale}
            # Without mathjax: kaleido would fetch it from the network.
            run.write_bytes(f"report.{kind}", kaleido.calc_fig_sync(figure, opts=options, kopts={"mathjax": False}))
    except Exception as problem:  # whatever kaleido or the browser raise: a picture is no reason to lose a finished sweep
        lines = str(problem).strip().splitlines() or [type(problem).__name__]
        return f"no static picture was written: {lines[0]}"
    return None


def kaleido_here() -> bool:
    """Whether kaleido is installed; it is no dependency, for it needs a browser too."""
    return importlib.util.find_spec("kaleido") is not None


# Marker and colour of a method, as in the page (web/figure.js).
PICTURE_STYLE = {
    "searched": ("#0b62b0", "circle"),
    "dense": ("#1d2024", "diamond"),
    "uniform": ("#e2500c", "square"),
    "random": ("#7d7f83", "triangle-up"),
    "taylor": ("#10a86c", "triangle-down"),
    "scratch": ("#e368d0", "cross"),
    "small": ("#6a1fd0", "pentagon"),
    "torch-pruning": ("#5f3d12", "star"),
}


def frontier_figure(tables: RunTables) -> go.Figure:
    """The frontier of one run as a plotly figure: test top-1 (percent) against MACs, means and standard errors over seeds."""
    means = summarize(by_series(best_rates(tables.results)))
    means = means[means["test_top1_mean"].notna()]
    scale, unit = next(((s, u) for s, u in ((1e9, "GMACs"), (1e6, "MMACs")) if means["macs_mean"].max() >= s), (1.0, "MACs"))
    x, y = "macs_mean", "test_top1_mean"
    front = pareto_front(means, x, y)
    figure = go.Figure()
    figure.add_scatter(
        x=front[x] / scale,
        y=front[y],
        mode="lines",
        line={"shape": "hv", "width": 11, "color": "#1d2024"},
        opacity=0.09,
        showlegend=False,
    )
    for method, group in means.groupby("method"):
        colour, symbol = PICTURE_STYLE.get(str(method).removesuffix(EQUAL_COMPUTE), ("#3d6b35", "hexagon"))
        hollow = str(method).endswith(EQUAL_COMPUTE)
        own = pareto_front(group, x, y)
        figure.add_scatter(
            x=own[x] / scale,
            y=own[y],
            mode="lines",
            line={"shape": "hv", "width": 2, "color": colour, "dash": "dash" if hollow else "solid"},
            showlegend=False,
        )
        figure.add_scatter(
            x=group[x] / scale,
            y=group[y],
            mode="markers",
            name=_plotly_text(method),
            marker={
                "size": 12,
                "color": colour,
                "symbol": f"{symbol}-open" if hollow else symbol,
                "opacity": np.where(group.index.isin(front.index), 1.0, 0.42).tolist(),
            },
            error_y={"type": "data", "array": group["test_top1_se"].fillna(0).tolist(), "thickness": 1.5, "width": 4},
        )
    untouched = _first(tables.results["test_top1_untouched"])
    if untouched is not None:
        figure.add_hline(
            y=untouched,
            line={"color": "#5c646e", "dash": "dot", "width": 1.25},
            annotation={"text": f"dense, untouched: {untouched:.2f} %", "font": {"color": "#5c646e"}},
            annotation_position="bottom right",
        )
    bend = knee(means, x, y)
    if bend is not None:
        figure.add_annotation(
            x=bend[x] / scale, y=bend[y], text="knee", ax=-34, ay=-32, arrowhead=0, arrowcolor="#5c646e", standoff=9
        )
    axis = {"gridcolor": "#e2e5e9", "zeroline": False}
    figure.update_layout(
        template="none",
        title={
            "text": _plotly_text(f"{tables.name}: {_first(tables.results['model'])} on {_first(tables.results['data'])}"),
            "font": {"size": 17},
            "x": 0,
            "xref": "paper",
        },
        font={"family": "Inter, Segoe UI, Helvetica Neue, Arial, Liberation Sans, sans-serif", "size": 14, "color": "#1d2024"},
        margin={"l": 66, "r": 24, "t": 64, "b": 64},
        xaxis={**axis, "title": {"text": f"{unit} of one image"}},
        yaxis={**axis, "title": {"text": "test top-1, %"}},
        legend={"orientation": "h", "x": 1, "xanchor": "right", "y": 1, "yanchor": "bottom"},
        paper_bgcolor="#ffffff",
        plot_bgcolor="#ffffff",
    )
    return figure


def _plotly_text(text: Any) -> str:
    """Text that plotly shows as it is: it reads a little HTML in labels."""
    return str(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
