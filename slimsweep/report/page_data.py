"""The page's data from the tables of runs: plain JSON, with one list per column, and each structure and shape once.

All that does not depend on the reader's choices is computed here: means and standard errors over seeds, hypervolumes, colours
of methods, titles of columns. `web/types.js` describes the same data for the page's modules.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pandas as pd

from slimsweep.ledger.columns import Column, shown_columns
from slimsweep.ledger.latencies import DEVICE, SWEEP, latencies, trusted
from slimsweep.ledger.measures import MEASURES, Measure, decimals_of, images_of, measure_decimals, measure_of
from slimsweep.ledger.status import Status, TrainingStatus
from slimsweep.ledger.tables import BENCH, RESULTS, with_all_columns
from slimsweep.report.about import about, differing_settings, leaving
from slimsweep.report.pareto import (
    UNTRAINED,
    best_rates,
    by_series,
    hypervolume_by_method,
    summarize,
    with_settings,
    with_units,
)
from slimsweep.report.quantized import quantized_data, with_float32_times
from slimsweep.report.run_tables import RunTables
from slimsweep.report.styles import looks, run_colours
from slimsweep.report.uncertainty import ALIKE, HANDFUL, SPLITS, cautions, with_binomial
from slimsweep.slimming.cost import COSTS
from slimsweep.slimming.cost import LATENCY as MILLISECONDS
from slimsweep.slimming.kept_masks import KeptMasks

HISTOGRAM_BINS = 40
# Times compare in one setting only, so those of the results are shown as the benchmark's are: an axis and a column per setting.
LATENCY = Column(name="latency_ms", title="latency", unit="ms", axis="x")
COLUMNS = [column for column in shown_columns(RESULTS) if column.name != LATENCY.name]
TIMINGS = [*shown_columns(BENCH), LATENCY]
SOURCES = {SWEEP: "the sweep's own timing: ", DEVICE: ""}  # what a setting's text begins with
ERROR = "_error"  # behind a column's name: how far it is from the best value


def _sent_decimals(column: Column) -> int:
    """The decimals that a column is rounded to in the page's data: two more than are shown."""
    return 4 if column.decimals is None else column.decimals + 2


# The columns of each point in the page's data, with the decimals that they are rounded to: columns that the page uses by name,
# and all that the report shows.
SENT: dict[str, int] = {
    "point": 0,
    "method": 0,
    "seed": 0,
    "budget": 6,
    "unit": 0,
    "timed_in": 0,
    "shares": 0,
    "status": 0,
    "error": 0,
    "budget_ms": 6,
    **{f"{name}_dense": 0 for name in COSTS},
    "val_top1_cut": 4,
    "lr": 9,
    "teacher": 0,
    "epochs": 0,
    "device": 0,
    "model_path": 0,
    **{column.name: _sent_decimals(column) for column in COLUMNS},
}
SEEDS = ["run", "method", "unit", "timed_in", "budget", "shares"]  # points that are equal in these differ only in their seed


def page_data(runs: Sequence[RunTables]) -> dict[str, Any]:
    """The page's data.

    Args:
        runs: at least one.
    """
    warned = [cautions(run) for run in runs]
    runs = [replace(run, results=_shown_rows(run.results)) for run in runs]
    measures = [measure_of(run.results, run.curves) for run in runs]
    runs = [
        run if measure.val in run.curves else replace(run, curves=run.curves.assign(**{measure.val: np.nan}))
        for run, measure in zip(runs, measures, strict=True)
    ]
    # Columns that only runs of other measures have would be empty.
    unused = {name for one in MEASURES.values() if one not in measures for name in one.columns}
    columns = [column for column in COLUMNS if column.name not in unused]
    images = [images_of(run.results, run.known_data) for run in runs]
    columns = [replace(column, decimals=_shown_decimals(column, images)) for column in columns]
    sent = [name for name in SENT if name not in unused]
    structures = _Structures()
    names = _unique([run.name for run in runs])
    points: dict[str, list[Any]] = {"run": [], "structure": [], **{name: [] for name in sent}}
    curves: list[dict[str, list[Any]] | None] = []
    described: list[dict[str, Any]] = []
    for index, run in enumerate(runs):
        rows = run.results
        points["run"] += [index] * len(rows)
        for name in sent:
            points[name] += _plain(rows[name])
        points["structure"] += [structures.put(text) for text in _plain(rows["structure"])]
        trained = _training(run.curves, measures[index])
        curves += [trained.get(point) for point in rows["point"]]
        described.append({**_describe(run, names[index], measures[index]), "images": images[index], "cautions": warned[index]})
    datasets = _datasets(described, runs, measures)
    methods = list(dict.fromkeys(points["method"]))
    timings = _timings([with_float32_times(run) for run in runs])
    return {
        "columns": [asdict(column) for column in columns],
        "measures": {
            one.name: _measure(one, [images[i] for i, own in enumerate(measures) if own == one])
            for one in MEASURES.values()
            if one in measures
        },
        "alike": ALIKE,
        "handful": HANDFUL,
        "errors": [
            _error(column, one) for one in MEASURES.values() if one in measures for column in _with_errors(columns, one)
        ],
        "timings": [asdict(column) for column in TIMINGS],
        "runs": described,
        "differing": differing_settings([run.config for run in runs]),
        "datasets": datasets,
        "methods": methods,
        "looks": {name: asdict(look) for name, look in looks(methods).items()},
        "untrained": [name for name in methods if name.endswith(UNTRAINED)],
        "run_colours": run_colours(),
        "points": points,
        "groups": _groups(points, timings["bench"], columns, measures, images),
        "curves": curves,
        "shapes": structures.shapes,
        "structures": structures.structures,
        **timings,
        "int8": quantized_data(runs, measures, timings),
    }


def _shown_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows that the page shows, with all columns."""
    return with_settings(with_units(by_series(best_rates(with_all_columns(rows, RESULTS)))))


def _measure(measure: Measure, images: Sequence[Mapping[str, int]]) -> dict[str, Any]:
    """What the page says of a measure, and the names of its columns; their titles, units and decimals are the columns'.

    Args:
        images: numbers of images of the splits of each run that is judged by it.
    """
    names = ("name", "title", "word", "highest", "val", "test", "cut", "unit", "point", "points", "untouched")
    decimals = max(max(measure_decimals(measure, own)) for own in images)
    return {**{name: getattr(measure, name) for name in names}, "decimals": decimals}


def _shown_decimals(column: Column, images: Sequence[Mapping[str, int]]) -> int | None:
    """The decimals that a column is shown with: of percentages as many as the images of the largest split give a meaning to."""
    if column.name not in SPLITS or column.decimals is None:
        return column.decimals
    return max(decimals_of(own.get(SPLITS[column.name]), column.decimals) for own in images)


def _with_errors(columns: Sequence[Column], measure: Measure) -> list[Column]:
    """The columns of a measure whose distance from the best value is an axis too."""
    return [column for column in columns if measure.error is not None and column.name in (measure.val, measure.test)]


def _error(column: Column, measure: Measure) -> dict[str, Any]:
    """How far a column is from the best value, as an axis: `best` less the column `of`."""
    error = replace(column, name=column.name + ERROR, title=f"{measure.error}{column.title}", decimals=None, more=False)
    return {**asdict(error), "of": column.name, "best": measure.best}


def _groups(
    points: dict[str, list[Any]],
    bench: list[list[Any]],
    columns: Sequence[Column],
    measures: Sequence[Measure],
    images: Sequence[Mapping[str, int]],
) -> dict[str, Any]:
    """Groups of points that differ only in their seed: their members, the best of them, means and standard errors.

    The standard error of one seed is that of its number of images, where that is known (`uncertainty.with_binomial`).

    The best is chosen by validation, so that the test split takes no part; by test only where validation is not known.

    Args:
        bench: (place of the point, place of the setting, a value per column of TIMINGS) per timing.
        columns: those of the results that are shown.
        measures: of each run.
        images: numbers of images of each run's splits.
    """
    numbers = [column.name for column in columns]
    rows = pd.DataFrame({name: points[name] for name in ["status", *SEEDS]})
    rows["shares"] = rows["shares"].fillna("")
    measured = {name: pd.Series(points[name], dtype="float64") for name in numbers}
    for place, setting, values in bench:
        for column, value in zip(TIMINGS, values, strict=True):
            name = f"{column.name}:{setting}"
            series = measured.setdefault(name, pd.Series(np.nan, index=rows.index, dtype="float64"))
            series[place] = math.nan if value is None else value
    judged = pd.Series(np.nan, index=rows.index, dtype="float64")
    for measure in {one.name: one for one in measures}.values():
        own = rows["run"].map(lambda run, measure=measure: measures[run] == measure).astype(bool)
        judged = judged.where(~own, measured[measure.val].fillna(measured[measure.test]))
        for column in _with_errors(columns, measure):
            measured[column.name + ERROR] = measure.best - measured[column.name]
    rows = pd.concat([rows, pd.DataFrame(measured)], axis=1)
    rows["place"] = rows.index
    rows["judged"] = judged.fillna(-np.inf)
    means = summarize(rows, SEEDS, list(measured))
    for name in SPLITS.keys() & measured.keys():
        counted = means["run"].map(lambda run, split=SPLITS[name]: images[run].get(split, np.nan))
        means[f"{name}_se"] = with_binomial(means[f"{name}_mean"], means[f"{name}_se"], counted)
    grouped = rows[rows["status"] == "ok"].groupby(SEEDS, sort=True, dropna=False)
    members = [group["place"].tolist() for _, group in grouped]
    best = [int(group["place"].iloc[int(group["judged"].to_numpy().argmax())]) for _, group in grouped]
    order = sorted(range(len(members)), key=lambda i: members[i][0])  # in the order of their points
    means = means.iloc[order]
    digits = {column.name: _sent_decimals(column) for column in (*COLUMNS, *TIMINGS)}
    numbers_of = {
        kind: {
            name: [_number(v, digits[name.split(":")[0].removesuffix(ERROR)]) for v in means[f"{name}_{kind}"]]
            for name in measured
        }
        for kind in ("mean", "se")
    }
    return {
        **{name: _plain(means[name], SENT.get(name, 0)) for name in SEEDS},
        "budget_ms": [points["budget_ms"][members[i][0]] for i in order],
        "members": [members[i] for i in order],
        "best": [best[i] for i in order],
        **numbers_of,
    }


class _Structures:
    """Lists of structures and shapes, each once: the seeds of a budget share a structure, all points of a run a shape."""

    def __init__(self) -> None:
        self.shapes: list[dict[str, Any]] = []
        self.structures: list[dict[str, Any]] = []
        self._places: dict[str, int | None] = {}
        self._shape_places: dict[tuple[Any, ...], int] = {}

    def put(self, text: str | None) -> int | None:
        """Add a structure (JSON) if it is new; returns its place, None where there is no structure or it cannot be read."""
        if text is None:
            return None
        if text not in self._places:
            try:
                structure = KeptMasks.from_json(text)
            except ValueError:  # of a version of slimsweep with other structures; the page says so at the point
                self._places[text] = None
            else:
                self._places[text] = len(self.structures)
                self.structures.append(self._view(structure))
        return self._places[text]

    def _view(self, structure: KeptMasks) -> dict[str, Any]:
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
            "heads": [structure.attention(i).sum(1).tolist() for i in layers],
            "units": [size[2] for size in sizes],
            "tokens": [size[3] for size in sizes],
            # A dropped token does not come back, so the number of layers that keep it says which layers do.
            "last": np.sum(tokens, axis=0).tolist() if tokens else None,
        }


def _describe(run: RunTables, name: str, measure: Measure) -> dict[str, Any]:
    """What the page shows of one run besides its points."""
    rows = run.results
    config = {column: _first(rows[column]) for column in ("model", "data")}
    return {
        "name": name,
        "uri": run.uri,
        "model": config["model"] or "unknown model",
        "data": config["data"] or "unknown data",
        "points": int((rows["status"] == "ok").sum()),
        "measure": measure.name,
        "untouched": measure.untouched if measure.untouched_column is None else _first(rows[measure.untouched_column]),
        "untouched_val": _untouched_val(run, measure),
        "progress": _progress(run.status, measure) if run.status is not None else None,
        "search": _search(run.curves, measure),
        "gates": _histograms(run.gates),
        "pace": _pace(run.pace, measure),
        "about": about(run),
        "leaving": leaving(run),
    }


def _untouched_val(run: RunTables, measure: Measure) -> float | None:
    """What the dense model that the search started from has on validation; None where it is not known."""
    if measure.untouched is not None:
        return measure.untouched
    if run.untouched_val is not None:
        return _number(run.untouched_val, 4)
    before = run.curves[(run.curves["stage"] == "search") & (run.curves["epoch"] == 0)]  # no gate has moved yet
    return _first(before[measure.val].round(4))


def _progress(status: Status, measure: Measure) -> dict[str, Any]:
    """The progress of a run: counts of points, lengths of the progress bar's parts, trainings under way, what comes next."""
    under_way = [stage for stage in status.stages if stage.state != "done"] + [p for p in status.points if p.state == "running"]
    return {
        "planned": status.planned,
        "done": status.count("done"),
        "failed": status.count("failed"),
        "stopped": status.count("stopped"),
        "running": status.count("running"),
        "finished": status.finished,
        "next": status.next,
        "bar": status.bar,
        "under_way": [_under_way(training, measure) for training in under_way],
    }


def _under_way(training: TrainingStatus, measure: Measure) -> dict[str, Any]:
    return {
        "name": training.name,
        "state": training.state,
        "epochs": training.epochs,
        "epochs_total": training.epochs_total,
        "val": _number(getattr(training, measure.val), measure.decimals + 1),
    }


def _datasets(described: list[dict[str, Any]], runs: Sequence[RunTables], measures: Sequence[Measure]) -> list[dict[str, Any]]:
    """The data sets and their runs. Also adds to each run its data set and the hypervolumes of its methods.

    Runs on one data set that are judged by different measures do not compare: they count as of two data sets.

    The reference point of a data set's hypervolumes is 0 (% of top-1, or R2) at the MACs of its largest dense model. Areas are
    divided by those MACs: then they are the test top-1, or R2, averaged over all limits on MACs.
    """
    found: dict[tuple[str, str], list[int]] = {}
    for index, run in enumerate(described):
        found.setdefault((run["data"], measures[index].title), []).append(index)
    names = [name for name, _ in found]
    datasets = []
    for place, ((name, title), members) in enumerate(found.items()):
        said = f"{name}, by {title}" if names.count(name) > 1 else name
        largest = max((m for i in members for m in _plain(runs[i].results["macs_dense"]) if m is not None), default=None)
        for index in members:
            table = hypervolume_by_method(runs[index].results, (float(largest or 0), 0.0), y=measures[index].test)
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
                if row["method"].removesuffix(UNTRAINED) != "dense"  # one point at the reference itself has no area
            ]
        datasets.append({"name": said, "runs": members, "reference_macs": largest})
    return datasets


def _training(curves: pd.DataFrame, measure: Measure) -> dict[str, dict[str, list[Any]]]:
    """The retraining of each point: epochs, the measure on validation, loss."""
    retrained = curves[curves["stage"] == "retrain"].sort_values("epoch", kind="stable")
    return {
        str(point): {
            "epoch": _plain(rows["epoch"]),
            "val": _plain(rows[measure.val], measure.decimals + 1),
            "loss": _plain(rows["loss"], 4),
        }
        for point, rows in retrained.groupby("point")
    }


def _search(curves: pd.DataFrame, measure: Measure) -> dict[str, Any] | None:
    """The measure on validation and gates over the epochs of the search; None before it has begun.

    Per family the mean gate and the share of gates below 0.01, per epoch: for each layer, and as the mean over layers.
    """
    rows = curves[curves["stage"] == "search"].sort_values("epoch", kind="stable")
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
        "val": _plain(rows[measure.val], measure.decimals + 1),
        "gate_epoch": _plain(gated["epoch"]),
        "families": {
            family: {
                name: {"layers": [layers[i] for i in sorted(layers)], "mean": _over_layers(list(layers.values()))}
                for name, layers in series.items()
            }
            for family, series in families.items()
        },
    }


def _over_layers(layers: list[list[float | None]]) -> list[float | None]:
    """The mean over layers at each epoch; missing values are ignored."""
    return [_number(mean, 5) for mean in pd.DataFrame(layers, dtype="float64").mean().tolist()]


def _histograms(gates: pd.DataFrame) -> dict[str, dict[str, list[float]]]:
    """A histogram of the final gates of each family: edges of equal bins from 0, and the number of gates in each."""
    found = {}
    for family, rows in gates.groupby("family"):
        values = rows["value"].abs().dropna().to_numpy()
        counts, edges = np.histogram(values, bins=HISTOGRAM_BINS, range=(0.0, float(values.max(initial=0.0)) or 1.0))
        found[str(family)] = {"edges": np.round(edges, 6).tolist(), "counts": counts.tolist()}
    return found


def _pace(found: dict[str, Any] | None, measure: Measure) -> dict[str, Any] | None:
    """The chosen pace, the budget of the tries, and the measure on validation of all tries that ended, best first."""
    if found is None:
        return None
    val = sorted((round(one[measure.val], measure.decimals) for one in found["tried"] if not one["error"]), reverse=True)
    tried = found["tried"][0]
    return {"chosen": found["pace"], "budget": tried["budget"], "unit": tried.get("unit") or "macs", "val": val}


def _timings(runs: Sequence[RunTables]) -> dict[str, Any]:
    """Timings by point and setting, with one number per column of TIMINGS: of `slimsweep bench`, of the sweep, of devices.

    Settings are texts that also say who measured, where there is more than the benchmark. `limits` are budgets in milliseconds:
    the place of a run and of a setting, the milliseconds, and the budget in words.
    """
    places: dict[str, int] = {}
    timings: list[list[Any]] = []
    dense: dict[str, float | None] = {}
    limits: list[list[Any]] = []
    measured = [trusted(latencies(run.results, run.device_times)) for run in runs]
    by_bench = "slimsweep bench: " if any(len(found) for found in measured) else ""
    hardware: dict[str, set[str]] = {}  # per kind of device; settings contain it where there are several
    for run in runs:
        for device, name in zip(run.bench["device"], _plain(run.bench["hardware"]), strict=True):
            hardware.setdefault(device, set()).add(name or device)
    start = 0
    for index, run in enumerate(runs):
        where = {point: start + i for i, point in enumerate(run.results["point"])}
        first, start = start, start + len(run.results)
        for row in run.bench.to_dict("records"):
            compiled = ", compiled" if row["compile"] else ""
            device = row["device"] if len(hardware[row["device"]]) == 1 else row["hardware"] or row["device"]
            threads = f", {_number(row['threads'])} threads" if _number(row["threads"]) else ""
            runtime = f", {row['runtime']}" if row.get("runtime") not in (None, "torch") else ""
            setting = f"{by_bench}{device}{threads}, batch {_number(row['batch_size'])}, {row['dtype']}{compiled}{runtime}"
            place = places.setdefault(setting, len(places))
            if row["point"] in where:
                timings.append([where[row["point"]], place, [_number(row.get(column.name), 4) for column in TIMINGS]])
            if str(row["point"]).split("-")[0] == "dense":
                dense[f"{index}|{place}"] = _number(row["latency_p50_ms"], 4)
        for row in measured[index].to_dict("records"):
            place = places.setdefault(f"{SOURCES[row['source']]}{row['setting']}", len(places))
            point = where[row["point"]]
            timings.append([point, place, [_number(row["ms"], 4) if c is LATENCY else None for c in TIMINGS]])
            if (ms := _number(row["dense_ms"], 4)) is not None:
                dense.setdefault(f"{index}|{place}", ms)
            if row["of_row"]:
                limits += _limit(run.results.iloc[point - first], index, place, ms)
    once = {json.dumps([run, place, text]): [run, place, ms, text] for run, place, ms, text in limits}
    return {"settings": list(places), "bench": timings, "bench_dense": dense, "limits": list(once.values())}


def _limit(row: pd.Series, run: int, setting: int, dense_ms: float | None) -> list[list[Any]]:
    """The budget in milliseconds of a point as `limits` has it; empty where its budget counts something else.

    Args:
        run, setting: places in the page's lists.
        dense_ms: of the dense model, timed beside the point.
    """
    if row["unit"] != MILLISECONDS.name or row["method"].removesuffix(UNTRAINED) == "dense":
        return []
    if (asked := _number(row["budget_ms"], 6)) is not None:
        return [[run, setting, asked, f"{asked:g} ms"]]
    if dense_ms is None or _number(row["budget"], 6) is None:
        return []
    return [[run, setting, _number(row["budget"] * dense_ms, 4), f"{100 * row['budget']:.4g} % of dense"]]


def _unique(names: list[str]) -> list[str]:
    """The names, with a number added where they repeat: the page remembers the reader's choices by name."""
    seen: dict[str, int] = {}
    unique = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        unique.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return unique


def _plain(column: pd.Series, decimals: int | None = None) -> list[Any]:
    """A column as JSON values; missing and infinite values are None."""
    digits = SENT.get(str(column.name), 6) if decimals is None else decimals
    return [_number(value, digits) for value in column.tolist()]


def _number(value: Any, digits: int = 0) -> Any:
    """A cell as a JSON value: whole numbers as int, others rounded, missing and infinite ones None, text unchanged."""
    if value is None or value is pd.NA or isinstance(value, str):
        return None if value is pd.NA else value
    number = float(value)
    if not math.isfinite(number):
        return None
    return int(number) if number.is_integer() else round(number, digits)


def _first(column: pd.Series) -> Any:
    """The first value that is known, or None."""
    known = [value for value in _plain(column) if value is not None]
    return known[0] if known else None
