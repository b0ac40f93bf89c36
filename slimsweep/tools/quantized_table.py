"""What is said of INT8 models: a table beside float32, and which models lose much and what to do about it."""

import json
from collections.abc import Sequence
from typing import Any

from rich.table import Table

from slimsweep.ledger.measures import R2, TOP1, Measure
from slimsweep.terminal import counted

NAMED = 3  # layers that a sentence names

Row = dict[str, Any]


def loses(row: Row, measure: Measure) -> bool:
    """Whether INT8 loses more than a point on validation, or has no accuracy at all."""
    lost = row[f"{measure.val}_fp32"] - row[measure.val]
    return not lost <= measure.point


def measure_of_row(row: Row) -> Measure:
    """What a row's model is judged by."""
    return R2 if row.get(R2.val) is not None else TOP1


def warning(row: Row, measure: Measure, command: str) -> str:
    """One sentence where INT8 loses more than a point on validation: the worst layers, and how they stay float32.

    Args:
        command: that quantized the model, without --points and --keep-fp32.
    """
    if not loses(row, measure):
        return ""
    before, after = row[f"{measure.val}_fp32"], row[measure.val]
    kept = json.loads(row["keep_fp32"])
    worst = list(json.loads(row["worst_layers"] or "{}"))[:NAMED]
    points = f" --points {row['point']}" if row["run"] else ""
    return (
        f"{row['point']}: INT8 loses {before - after:.{measure.decimals}f}{measure.points} of {measure.title} on validation "
        f"({measure.text(before)} to {measure.text(after)}); the layers that change its output most are {', '.join(worst)}; to "
        f"leave them in float32: {command}{points} --keep-fp32 {' '.join([*kept, *worst])}"
    )


def busy_sentence(rows: Sequence[Row], command: str) -> str:
    """One sentence where times are not to be trusted; empty where all are."""
    busy = [row for row in rows if row.get("busy")]
    if not busy:
        return ""
    return (
        f"machine busy: the times of {counted(len(busy), 'model')} are not to be trusted ({busy[0]['busy']}); end other "
        f"programs, and the same command times them again: {command}"
    )


def table(rows: Sequence[Row]) -> Table:
    """The rows as a table for a terminal: float32 beside INT8."""
    first = rows[0]
    measure = measure_of_row(first)
    title = (
        f"INT8 by onnxruntime {first['onnxruntime_version']}; {first['hardware']}, {counted(int(first['threads']), 'thread')}, "
        f"batch {first['batch_size']}"
    )
    shown = Table(title=title)
    shown.add_column("model")
    of = ("size", f"val {measure.title}", f"test {measure.title}", "ms")
    for heading in [*(f"{kind} {what}" for what in of for kind in ("fp32", "INT8")), "faster"]:
        shown.add_column(heading, justify="right")
    any_busy = any(row.get("busy") for row in rows)
    if any_busy:
        shown.add_column("not to be trusted")
    for row in rows:
        before, after = row["latency_p50_ms_fp32"], row["latency_p50_ms"]
        cells = [row["point"]]
        cells += [f"{row[name] / 2**20:.2f} MiB" for name in ("model_bytes_fp32", "model_bytes")]
        cells += [measure.text(row.get(name)) for one in (measure.val, measure.test) for name in (f"{one}_fp32", one)]
        cells += [f"{before:.2f}", f"{after:.2f}", f"{before / after:.2f}x"]
        if any_busy:
            cells.append("machine busy" if row.get("busy") else "")
        shown.add_row(*cells)
    return shown
