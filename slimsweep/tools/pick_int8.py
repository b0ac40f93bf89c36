"""INT8 versions as choices of `slimsweep pick`: rows of points with their INT8 version's accuracy, time and file."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from slimsweep.errors import RefusedInput
from slimsweep.ledger.files import MODEL_WEIGHTS
from slimsweep.ledger.measures import Measure
from slimsweep.ledger.run import Run
from slimsweep.ledger.tables import of_latest

Precision = Literal["float32", "int8", "any"]
PRECISIONS: tuple[Precision, ...] = ("float32", "int8", "any")

FILE = "int8_file"  # column of a row's ONNX file, empty of a float32 model
SETTING = ["device", "hardware", "threads", "onnxruntime_version"]  # times compare within one only, at one batch size


def versions(
    rows: pd.DataFrame,
    quantized: pd.DataFrame | None,
    precision: Precision,
    measure: Measure,
    batch_size: int | None,
    *,
    timed: bool,
) -> pd.DataFrame:
    """The rows of INT8 versions; with the precision "any" those of the float32 models too.

    Args:
        rows: of points that are done.
        quantized: of schema `tables.QUANTIZED`.
        measure: what the models are judged by.
        batch_size: of the times; the smallest there is where not given.
        timed: whether times are needed. Both kinds have those that `slimsweep quantize` took beside each other; those of a busy
            machine do not count.

    Returns:
        The columns of `rows`, `latency_ms` (nan where that is not known) and `int8_file` (empty of float32 models). The measure
        on validation is the version's own; there is none on test, which is no ground for a choice.

    Raises:
        RefusedInput: no point has an INT8 version, or none was timed.
    """
    found = None if quantized is None else quantized[quantized.point.isin(rows.point)]
    if found is None or found.empty:
        raise RefusedInput(
            f"--precision is {precision}, and no point of this run has an INT8 version: run `slimsweep quantize RUN` first"
        )
    by_point = {str(row["point"]): row for row in found.to_dict("records")}
    times = _in_one_setting(found, batch_size)
    if timed and times.empty:
        size = "" if batch_size is None else f" with --batch-size {batch_size}"
        busy = next(filter(None, found.busy.fillna("")), "")
        why = f", as the machine was busy ({busy}): run `slimsweep quantize RUN` again when nothing else runs"
        raise RefusedInput(
            f"--max-latency-ms needs times of INT8 versions that can be trusted{size}, and there are none"
            + (why if busy else ": run `slimsweep quantize RUN`")
        )
    kept: list[pd.DataFrame] = []
    if precision == "any":
        plain: Mapping[str, Any] = {"latency_ms": rows.point.map(times.latency_p50_ms_fp32), FILE: ""}
        kept.append(rows.assign(**plain))
    own = rows[rows.point.isin(by_point)]
    of_int8: Mapping[str, Any] = {
        measure.val: own.point.map(lambda point: by_point[point][measure.val]),
        "latency_ms": own.point.map(times.latency_p50_ms),
        FILE: own.point.map(lambda point: by_point[point]["file"]),
        measure.test: float("nan"),
    }
    kept.append(own.assign(**of_int8))
    return pd.concat(kept, ignore_index=True)


def int8_file(run: Run, row: pd.Series) -> str:
    """Where the INT8 version of a row is that `pick` returned.

    Raises:
        RefusedInput: the file is gone, or was made of other weights than the point's model has now.
    """
    file = str(row[FILE])
    absolute = Path(file).is_absolute()
    again = f"`slimsweep quantize {run.uri} --points {row.point}` makes it again"
    if not (Path(file).is_file() if absolute else (run.folder / file).exists()):
        raise RefusedInput(f"{file}, the INT8 version of {row.point}, is gone: {again}")
    known = run.products.quantized()
    made_of = str(known.weights[known.point == row.point].iloc[0])
    if made_of != hashlib.sha256((run.models / row.point).read_bytes(MODEL_WEIGHTS)).hexdigest()[:16]:
        raise RefusedInput(f"{file} was made before {row.point} was trained again: {again}")
    return file if absolute else (run.folder / file).uri


def _in_one_setting(found: pd.DataFrame, batch_size: int | None) -> pd.DataFrame:
    """The rows whose times can be trusted and are of the setting of the latest of them, by point.

    Without a batch size, it is the smallest of that setting.
    """
    quiet = found[found.latency_p50_ms.notna() & (found.busy.fillna("") == "")]
    latest = of_latest(quiet if batch_size is None else quiet[quiet.batch_size == batch_size], SETTING)
    return latest[latest.batch_size == latest.batch_size.min()].set_index("point")
