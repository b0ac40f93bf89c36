"""The best model of a run under a limit, chosen by validation; the test split is not used."""

import math
from collections.abc import Callable, Mapping

import pandas as pd

from slimsweep.errors import RefusedInput
from slimsweep.ledger.damage import description_problem, weights_problem
from slimsweep.ledger.files import MODEL_CONFIG, MODEL_WEIGHTS
from slimsweep.ledger.latencies import latencies
from slimsweep.ledger.measures import MEASURES, measure_of
from slimsweep.ledger.run import Run
from slimsweep.ledger.tables import SETTING, of_latest, trusted
from slimsweep.report.pareto import best_rates, trained_first
from slimsweep.slimming.budget import Budget, BudgetLike
from slimsweep.slimming.cost import COSTS, LATENCY
from slimsweep.tools.pick_int8 import FILE, PRECISIONS, Precision, versions


class NothingFits(RefusedInput):
    """No point of the run is within the limits; the text names the nearest."""


def pick(
    rows: pd.DataFrame,
    bench: pd.DataFrame | None = None,
    *,
    limits: Mapping[str, BudgetLike | None] | None = None,
    min_top1: float | None = None,
    min_r2: float | None = None,
    max_latency_ms: float | None = None,
    max_ms: BudgetLike | None = None,
    device: str | None = None,
    device_times: pd.DataFrame | None = None,
    batch_size: int | None = None,
    precision: Precision = "float32",
    quantized: pd.DataFrame | None = None,
) -> pd.Series:
    """The row of the best point within the limits; with only `min_top1` or `min_r2`, of the cheapest point.

    The best is that of the highest top-1 on validation; of models without a head, whose rows have `val_r2`, that of the highest
    R2. A point that was not trained after its cut (retrain.epochs: 0) is taken where no trained one is within the limits.

    Args:
        rows: `Run.rows`.
        bench: `Run.products.bench()`; needed for `max_latency_ms`. Timings of a busy machine do not count.
        limits: the most that a point may have of each cost (`slimsweep.slimming.cost.COSTS`), as a fraction of dense or
            absolute: {"macs": "1.2G", "params": 0.6}.
        min_top1: percent on validation.
        min_r2: R2 of the features on validation, of models without a head.
        max_latency_ms: median of one call at `batch_size` (ms), on the device and with the settings of the latest benchmark.
        max_ms: latency in one setting, in ms or as a share of the dense model's there ("40%"): as the sweep itself timed it, or
            as times of another device say that were added to the run. The setting must be the only one there, or be named by
            `device` and `batch_size`.
        device: any part of the setting's name, in either case.
        device_times: `Run.products.device_times()`, for `max_ms`.
        batch_size: images per call; of `max_latency_ms` the smallest that was timed where not given.
        precision: float32 for the models as they were trained, int8 for their INT8 versions, any for both. Of an INT8 version
            the row has its accuracy on validation, its time in place of the benchmark's, and its file as `int8_file`.
        quantized: `Run.products.quantized()`, for INT8 versions; `max_latency_ms` counts its times then, of float32 too.

    Raises:
        NothingFits: no ok point is within the limits; says which is nearest.
        RefusedInput: a ValueError: no limit was given, or a limit is not a number, or nothing was timed for `max_latency_ms` or
            `max_ms`, or in several settings of which none was named; `min_top1` where the run's models are judged by R2, or
            `min_r2` where they are not; INT8 versions where there is none, or for `max_ms`.
    """
    most_of = {unit: most for unit, most in (limits or {}).items() if most is not None}
    measure = measure_of(rows)
    example = {"top1": "--min-top1 80", "r2": "--min-r2 0.95"}
    least_of = {"top1": min_top1, "r2": min_r2}
    limited = bool(most_of) or max_latency_ms is not None or max_ms is not None
    if not limited and all(least is None for least in least_of.values()):
        raise RefusedInput(
            f"give a limit: --max-macs 1.2G, --max-params 11.5M, --max-ms 8, {example[measure.name]} or --max-latency-ms 5"
        )
    if max_ms is not None and max_latency_ms is not None:
        raise RefusedInput(
            "--max-ms counts what the sweep or another device measured, --max-latency-ms what slimsweep bench did: give one "
            "of them"
        )
    if max_latency_ms is not None and not 0 < max_latency_ms < math.inf:
        raise RefusedInput(f"--max-latency-ms is {max_latency_ms:g}, which no call takes: give milliseconds, such as 8")
    most_ms = None if max_ms is None else _budget_of(LATENCY.name, max_ms)
    if most_ms is not None and precision != "float32":
        raise RefusedInput(
            f"--max-ms counts times of float32 models, and --precision is {precision}: give --max-latency-ms, which "
            "counts what `slimsweep quantize` timed"
        )
    if precision not in PRECISIONS:
        raise RefusedInput(f"--precision is {precision!r}; it can be {', '.join(PRECISIONS)}")
    if device is not None and max_ms is None:
        raise RefusedInput(f"--device is {device!r}, which names the setting of --max-ms: give --max-ms 8 too")
    ok = best_rates(rows)
    ok = ok[ok.status == "ok"].copy()
    if ok.empty:
        raise NothingFits(
            "no point of this run is done yet, so there is nothing to pick from; `slimsweep status` shows how far it is"
        )
    for name, least in least_of.items():
        if least is not None and name != measure.name:
            raise RefusedInput(
                f"--min-{name} is {least:g}, but the models of this run have no {MEASURES[name].title}: they are judged by "
                f"{measure.title}, so give {example[measure.name]}"
            )
    least = least_of[measure.name]
    if least is not None and not least <= measure.best:
        raise RefusedInput(
            f"--min-{measure.name} is {least:g}, which no model reaches: give at most {measure.best:g}, such as "
            f"{example[measure.name]}"
        )
    if least is not None and measure.unit == "%" and least < 1 and least != 0:
        raise RefusedInput(f"--min-{measure.name} is {least:g} %: give percent, such as {example[measure.name]}")
    timed = None if most_ms is None else _timed(ok, device_times, device, batch_size)
    if precision == "float32":
        ok["latency_ms"] = float("nan") if max_latency_ms is None else ok.point.map(_latencies(bench, batch_size))
        ok[FILE] = ""
    else:
        ok = versions(ok, quantized, precision, measure, batch_size, timed=max_latency_ms is not None)
    # Each limit in words, and how far a row is above it.
    tests: list[tuple[str, Callable[[pd.DataFrame], pd.Series]]] = []
    for unit, most in most_of.items():
        tests.append(_cost_limit(unit, most, int(ok[f"{unit}_dense"].iloc[0])))
    if max_latency_ms is not None:
        ok = ok[ok.latency_ms.notna()]
        if ok.empty:
            raise RefusedInput(_no_latency(bench, batch_size))
        tests.append((f"at most {max_latency_ms:g} ms", lambda t: t.latency_ms - max_latency_ms))
    if most_ms is not None and timed is not None:
        ok = ok[ok.point.isin(timed.index)].copy()
        ok["latency_ms"] = ok.point.map(timed.ms)
        ok["latency_ms_dense"] = ok.point.map(timed.dense_ms)
        tests.append(_ms_limit(most_ms, ok.latency_ms_dense))
    if least is not None:
        words = f"{least:g} %" if measure.unit == "%" else f"{measure.title} {least:g}"
        tests.append((f"at least {words} on validation", lambda t: least - t[measure.val]))
    fits = ok
    for words, excess in tests:
        left = fits[excess(fits) <= 0]
        if left.empty:
            near = fits.iloc[int(excess(fits).to_numpy().argmin())]
            raise NothingFits(f"no point fits {' and '.join(w for w, _ in tests)}; the nearest to {words} is {describe(near)}")
        fits = left
    fits = trained_first(fits)
    fits = fits.assign(is_float=fits[FILE] == "")  # of equals the INT8 version, which is smaller
    by = (
        {"macs": True, measure.val: False, "is_float": True}
        if not limited
        else {measure.val: False, "macs": True, "is_float": True}
    )
    return fits.sort_values(list(by), ascending=list(by.values())).drop(columns="is_float").iloc[0]


def refuse_missing_model(run: Run, row: pd.Series) -> None:
    """Refuse a point whose model is gone or damaged.

    Raises:
        RefusedInput: names the folder and the way out.
    """
    folder = run.folder / row.model_path
    problem = description_problem(folder, MODEL_CONFIG) or weights_problem(folder, MODEL_WEIGHTS)
    if not folder.exists():
        raise RefusedInput(
            f"{folder.uri} is gone, the model of {describe(row)}: restore it, give a limit that another point meets, or delete "
            f"{run.row_uri(row.point)} and start the same command again, which trains the point again"
        )
    if problem is not None:
        raise RefusedInput(
            f"{folder.uri} is damaged ({problem}), the model of {describe(row)}: the same command trains the point again"
        )


def _cost_limit(unit: str, most: BudgetLike, dense: int) -> tuple[str, Callable[[pd.DataFrame], pd.Series]]:
    """A limit on a cost: in words, and as a function that says how far each row is above it.

    Raises:
        RefusedInput: `most` is not a limit, or is in another unit.
    """
    limit = _budget_of(unit, most).limit(dense)
    return f"at most {COSTS[unit].text(limit)}", lambda table: table[unit] - limit


def _budget_of(unit: str, most: BudgetLike) -> Budget:
    """A limit as a budget.

    Raises:
        RefusedInput: it is not a limit, or is in another unit.
    """
    budget = Budget.parse(most, unit)
    if budget.unit != unit:
        raise RefusedInput(f"--max-{unit} is {most!r}, which counts {budget.unit}: give it as --max-{budget.unit}")
    return budget


def _ms_limit(most: Budget, dense_ms: pd.Series) -> tuple[str, Callable[[pd.DataFrame], pd.Series]]:
    """A limit on latency: in words, and as a function that says how far each row is above it (ms).

    Args:
        dense_ms: by row, of the dense model in the same setting; the rows' `latency_ms_dense`.

    Raises:
        RefusedInput: it is a share of the dense model's time, which is not known.
    """
    if not most.relative:
        return f"at most {most.amount:g} ms", lambda table: table.latency_ms - most.amount
    if dense_ms.isna().any():
        raise RefusedInput(
            f"--max-ms is {str(most)!r}, and the dense model was not timed in that setting, or not on a quiet machine: give a "
            "number of ms"
        )
    dense = f"{dense_ms.min():.4g}" if dense_ms.nunique() == 1 else f"{dense_ms.min():.4g} to {dense_ms.max():.4g}"
    return f"at most {most.label} (dense: {dense} ms)", lambda table: table.latency_ms - most.amount * table.latency_ms_dense


def describe(row: pd.Series) -> str:
    """A point in one line: name, costs, latency (ms) if it was timed, top-1 or R2 on validation, a mark if untrained."""
    measure = measure_of(row.to_frame().T)
    said = measure.text(row[measure.val], row.get("val_images"))
    quality = said if measure.unit else f"{measure.title} {said}"
    latency = f", {row.latency_ms:.2f} ms" if row.latency_ms == row.latency_ms else ""
    costs = ", ".join(cost.text(row[name]) for name, cost in COSTS.items())
    mark = ", not trained after the cut" if row.get("epochs") == 0 and row.get("method") != "dense" else ""
    kind = " in INT8" if row.get(FILE) else ""
    return f"{row.point}{kind} ({costs}{latency}, {quality} on validation{mark})"


def _timed(rows: pd.DataFrame, device_times: pd.DataFrame | None, device: str | None, batch_size: int | None) -> pd.DataFrame:
    """`ms` and `dense_ms` by point in the one setting that is meant; times of a busy machine do not count.

    Raises:
        RefusedInput: nothing was timed, all was timed on a busy machine, or several settings are meant.
    """
    found = latencies(rows.reset_index(drop=True), device_times)
    if found.empty:
        raise RefusedInput(
            "--max-ms needs latencies, and no point of this run has one: set latency in its configuration, or bring times of "
            "another device by `slimsweep latency export` and `add`; for times of `slimsweep bench RUN`, give --max-latency-ms"
        )
    there = sorted(set(found.setting))
    if device is not None:
        found = found[found.setting.str.contains(device, case=False, regex=False)]
    if batch_size is not None:
        found = found[found.batch_size == batch_size]
    asked = " and ".join(
        [f"--device {device!r}"] * (device is not None) + [f"--batch-size {batch_size}"] * (batch_size is not None)
    )
    if found.empty:
        raise RefusedInput(f"no latency was measured with {asked}; there are those of {'; '.join(there)}")
    settings = sorted(set(found.setting))
    if len(settings) > 1:
        raise RefusedInput(
            f"{f'{asked} means' if asked else 'this run has'} latencies of {len(settings)} settings, which do not compare: "
            f"name one by a part that no other has, with --device or --batch-size: {'; '.join(settings)}"
        )
    quiet = found[found.busy == ""]
    if quiet.empty:
        raise RefusedInput(
            f"--max-ms needs times that can be trusted, and the machine was busy when {settings[0]} was timed "
            f"({found.busy.iloc[-1]}): time again when nothing else runs"
        )
    return quiet.drop_duplicates("point", keep="last").set_index("point")[["ms", "dense_ms"]]


def _latencies(bench: pd.DataFrame | None, batch_size: int | None) -> dict[str, float]:
    """Median latency (ms) per point at a batch size, with the settings of the latest benchmark: others do not compare.

    Timings of a busy machine do not count. Without a batch size, it is the smallest of that benchmark's setting.
    """
    quiet = None if bench is None else trusted(bench)
    if quiet is None or quiet.empty:
        return {}
    chosen = of_latest(quiet if batch_size is None else quiet[quiet.batch_size == batch_size], SETTING)
    chosen = chosen[chosen.batch_size == chosen.batch_size.min()]
    return dict(zip(chosen.point, chosen.latency_p50_ms, strict=True))


def _no_latency(bench: pd.DataFrame | None, batch_size: int | None) -> str:
    """Why no latency is known, and the way out."""
    timed = bench if bench is None or batch_size is None else bench[bench.batch_size == batch_size]
    if timed is None or timed.empty:
        return "no point of this run was timed at that batch size; run `slimsweep bench RUN` first"
    busy = timed["busy"].fillna("").iloc[-1] if "busy" in timed else ""
    if not busy:
        return "no point of this run that is done was timed; run `slimsweep bench RUN` first"
    return (
        f"--max-latency-ms needs times that can be trusted, and the machine was busy when this run was timed ({busy}): run "
        "`slimsweep bench RUN` again when nothing else runs"
    )
