"""INT8 versions of models (`slimsweep quantize`) in the page's data: beside the points that they were made from."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import pandas as pd

from slimsweep.ledger.columns import Column, shown_columns
from slimsweep.ledger.measures import MEASURES, Measure
from slimsweep.ledger.tables import BENCH, QUANTIZED
from slimsweep.report.run_tables import RunTables

COLUMNS = shown_columns(QUANTIZED)
TIMED = ("latency_p50_ms", "latency_p50_ms_fp32")
BY_ONNXRUNTIME = "float32 by onnxruntime"  # in the setting of the float32 times beside INT8, which makes it an axis


def with_float32_times(run: RunTables) -> RunTables:
    """The run with the float32 ONNX files that were timed beside INT8 as timings of a setting of their own."""
    rows = run.quantized[(run.quantized["busy"] == "") & run.quantized["latency_p50_ms_fp32"].notna()]
    if rows.empty:
        return run
    same = ["run", "point", "device", "hardware", "threads", "batch_size", "torch_version", "created_at"]
    times = rows[same].assign(dtype=BY_ONNXRUNTIME, compile=False, latency_p50_ms=rows["latency_p50_ms_fp32"])
    times = times.reindex(columns=BENCH.names)
    return replace(run, bench=times if run.bench.empty else pd.concat([run.bench, times], ignore_index=True))


def quantized_data(runs: Sequence[RunTables], measures: Sequence[Measure], timings: Mapping[str, Any]) -> dict[str, Any]:
    """The shown columns of `tables.QUANTIZED` and, per point that has an INT8 version, its numbers.

    The untouched dense model is no point, so that its row is not shown. Times of a busy machine are left out.

    Args:
        measures: what each run's models are judged by.
        timings: settings and timings of the page, with those of `with_float32_times`.
    """
    settings = {
        place: timings["settings"][setting]
        for place, setting, _ in timings["bench"]
        if timings["settings"][setting].endswith(BY_ONNXRUNTIME)
    }
    names = {name for one in measures for name in (one.val, one.test)}
    unused = {name for one in MEASURES.values() for name in (one.val, one.test)} - names
    columns = [_of_int8(column) for column in COLUMNS if column.name not in unused]
    found: list[dict[str, Any]] = []
    start = 0
    for run in runs:
        places = {point: start + place for place, point in enumerate(run.results["point"])}
        start += len(run.results)
        for row in run.quantized.to_dict("records"):
            if row["point"] not in places:
                continue
            busy = bool(row["busy"]) and not pd.isna(row["busy"])
            numbers = [None if busy and column.name in TIMED else _number(row[column.name]) for column in columns]
            place = places[row["point"]]
            found.append({"point": place, "file": row["file"], "setting": settings.get(place, ""), "numbers": numbers})
    return {"columns": [asdict(column) for column in columns], "models": found}


def _of_int8(column: Column) -> Column:
    return column if column.name.endswith("_fp32") else replace(column, title=f"{column.title}, INT8")


def _number(value: Any) -> float | None:
    return None if pd.isna(value) else round(float(value), 6)
