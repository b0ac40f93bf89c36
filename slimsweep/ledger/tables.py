"""The tables of a run, typed here and nowhere else: results (a row a point), curves (a row an epoch), gates.

`pandas.read_parquet(RUN + "/results")` is the whole table; each row is a file of its own, so trials on many nodes
write without a lock and a kill loses at most the row that was being written.
"""

import json
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from slimsweep.ledger.columns import shown
from slimsweep.slimming.structure import Shape
from slimsweep.storage import Folder

SCHEMA_VERSION = "3"  # 1 had no terms and lr, 2 no shares

METHODS = ("searched", "dense", "uniform", "random", "taylor", "scratch", "small", "torch-pruning")

RESULTS = pa.schema(
    [
        ("run", pa.string()),
        ("point", pa.string()),
        ("model", pa.string()),  # timm name
        ("data", pa.string()),
        ("method", pa.string()),  # one of METHODS
        ("terms", pa.string()),  # retraining: as long as searched points; compute: longer by a share of the search
        ("seed", pa.int64()),
        ("budget", pa.float64()),  # fraction of the dense model's MACs asked for, or that shares leave; 1.0 for dense
        ("shares", pa.string()),  # JSON: the share of its gates that each family keeps, where that was asked for, or empty
        ("status", pa.string()),  # ok or failed
        ("error", pa.string()),
        shown("macs", pa.int64(), "MACs", "MACs", axis="x"),  # multiply-accumulates of one image
        ("macs_dense", pa.int64()),
        shown("params", pa.int64(), "parameters", "parameters", axis="x"),
        ("params_dense", pa.int64()),
        shown("model_bytes", pa.int64(), "size on disk", "B", axis="x"),  # model.safetensors on disk
        ("val_top1_cut", pa.float64()),  # percent, after the cut and before any retraining
        shown("val_top1", pa.float64(), "validation top-1", "%", 2, axis="y", more=True),
        shown("test_top1", pa.float64(), "test top-1", "%", 2, axis="y", more=True),
        shown("test_top5", pa.float64(), "test top-5", "%", 2, axis="y", more=True),
        shown("test_loss", pa.float64(), "test loss", "nats", 3, axis="y"),
        ("test_top1_untouched", pa.float64()),  # percent, of the dense model that the search started from
        ("lr", pa.float64()),  # highest learning rate of the retraining
        ("epochs", pa.int64()),
        ("samples_seen", pa.int64()),
        shown("train_seconds", pa.float64(), "training time", "s", axis="x"),
        ("device", pa.string()),
        ("structure", pa.string()),  # Structure.to_json()
        ("model_path", pa.string()),  # inside the run folder
        ("point_hash", pa.string()),
        ("created_at", pa.timestamp("us", tz="UTC")),
        ("slimsweep_version", pa.string()),
        ("torch_version", pa.string()),
        ("timm_version", pa.string()),
        ("ray_version", pa.string()),
    ],
    metadata={"slimsweep_schema": SCHEMA_VERSION},
)

CURVES = pa.schema(
    [
        ("stage", pa.string()),  # dense, search or retrain
        ("point", pa.string()),  # empty for dense and search
        ("epoch", pa.int64()),  # epochs finished; 0 is before any training
        ("loss", pa.float64()),  # mean training loss of the epoch, nats; null at epoch 0
        ("val_top1", pa.float64()),  # percent
        ("seconds", pa.float64()),  # of this epoch
        ("learning_rate", pa.float64()),
        ("gates_kept", pa.float64()),  # share of all gates at or above 1e-2; null outside the search
        (
            "gates",  # a family and layer each; null outside the search
            pa.list_(
                pa.struct(
                    [("family", pa.string()), ("layer", pa.int64()), ("mean", pa.float64()), ("below_1e-2", pa.float64())]
                )
            ),
        ),
    ],
    metadata={"slimsweep_schema": SCHEMA_VERSION},
)

GATES = pa.schema(
    [("family", pa.string()), ("layer", pa.int64()), ("index", pa.int64()), ("value", pa.float64())],
    metadata={"slimsweep_schema": SCHEMA_VERSION},
)


BENCH = pa.schema(
    [
        ("run", pa.string()),
        ("point", pa.string()),  # a folder of models/, or dense: what the search started from
        ("device", pa.string()),  # cpu or cuda
        ("hardware", pa.string()),  # the processor's own name
        ("threads", pa.int64()),  # of the CPU
        ("batch_size", pa.int64()),
        ("dtype", pa.string()),  # of weights and images: float32 or bfloat16
        ("compile", pa.bool_()),  # by torch.compile
        shown("latency_p50_ms", pa.float64(), "latency p50", "ms", axis="x"),  # of one call with a whole batch
        ("latency_p90_ms", pa.float64()),
        shown("images_per_second", pa.float64(), "throughput", "images/s", axis="x", more=True),
        shown("peak_memory_bytes", pa.int64(), "peak memory", "B", axis="x"),  # weights and activations; null on a CPU
        ("macs", pa.int64()),  # multiply-accumulates of one image
        ("repeats", pa.int64()),  # interleaved rounds
        ("torch_version", pa.string()),
        ("timm_version", pa.string()),
        ("created_at", pa.timestamp("us", tz="UTC")),
    ],
    metadata={"slimsweep_schema": SCHEMA_VERSION},
)


SETTING = ["device", "hardware", "threads", "dtype", "compile"]  # what a timing depends on, beside the model and the batch size


def write_row(run: Folder, row: dict[str, Any]) -> None:
    """Write one point's row to results/POINT.parquet, whole or not at all, over an older row of the same point.

    Raises:
        KeyError: a key is not a column of RESULTS.
    """
    unknown = set(row) - set(RESULTS.names)
    if unknown:
        raise KeyError(f"not columns of the results table: {sorted(unknown)}")
    row = {"status": "ok", "error": "", "terms": "retraining", "shares": "", "created_at": datetime.now(UTC), **row}
    _write(run, f"results/{row['point']}.parquet", [row], RESULTS)


def read_rows(run: Folder) -> pd.DataFrame:
    """All rows of a run, by budget (largest first), method, terms, seed and learning rate; empty where there is none."""
    rows = _read(run, "results", RESULTS)
    rows["terms"] = rows["terms"].fillna("retraining")  # there was nothing else in version 1
    rows["shares"] = rows["shares"].fillna("")  # nor anything but budgets in version 2
    return rows.sort_values(
        ["budget", "method", "terms", "seed", "lr"], ascending=[False, True, False, True, True], ignore_index=True
    )


def has_ok_row(run: Folder, point: str) -> bool:
    """Whether one point is done, from its own file alone: the others may be thousands."""
    path = f"results/{point}.parquet"
    return run.exists(path) and read_table(run, path, RESULTS)["status"].to_pylist() == ["ok"]


def write_curve(run: Folder, name: str, rows: list[dict[str, Any]]) -> None:
    """Write the epochs of one stage or point so far to curves/NAME.parquet."""
    _write(run, f"curves/{name}.parquet", rows, CURVES)


def read_curve(run: Folder, name: str) -> list[dict[str, Any]]:
    """The epochs of one stage or point as `write_curve` took them; empty where nothing was written."""
    path = f"curves/{name}.parquet"
    return read_table(run, path, CURVES).to_pylist() if run.exists(path) else []


def read_curves(run: Folder) -> pd.DataFrame:
    """All epochs of all stages and points."""
    return _read(run, "curves", CURVES)


def gate_rows(gates: Mapping[str, Sequence[torch.Tensor]]) -> list[dict[str, Any]]:
    """The rows of GATES for the gates of a model: what `read_gates_tensors` makes tensors of again."""
    return [
        {"family": f, "layer": i, "index": j, "value": v}
        for f, layers in gates.items()
        for i, g in enumerate(layers)
        for j, v in enumerate(g.flatten().tolist())
    ]


def write_gates(run: Folder, rows: list[dict[str, Any]]) -> None:
    """Write the final gates to search/gates.parquet; `index` counts heads and dims in row-major order."""
    _write(run, "search/gates.parquet", rows, GATES)


def read_gates(run: Folder) -> pd.DataFrame:
    """The final gates; an empty table before the search has ended."""
    path = "search/gates.parquet"
    return (read_table(run, path, GATES) if run.exists(path) else GATES.empty_table()).to_pandas()


def read_gates_tensors(run: Folder, shape: Shape) -> dict[str, list[torch.Tensor]]:
    """The final gates in their shapes, a list of layers a family, as `gated.gates` gives them."""
    table = read_gates(run)
    gates: dict[str, list[torch.Tensor]] = {}
    for family, shapes in shape.gate_shapes.items():
        values = table[table.family == family].sort_values(["layer", "index"]).groupby("layer")["value"]
        gates[family] = [torch.tensor(values.get_group(i).to_numpy()).reshape(s) for i, s in enumerate(shapes)]
    return gates


def write_bench(run: Folder, rows: list[dict[str, Any]]) -> str:
    """Write the rows of one benchmark to a file of its own in bench/; returns its name."""
    name = f"bench/{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:6]}.parquet"
    _write(run, name, rows, BENCH)
    return name


def read_bench(run: Folder) -> pd.DataFrame:
    """All benchmarks of a run, the latest last; an empty table where there is none."""
    return _read(run, "bench", BENCH).sort_values("created_at", kind="stable", ignore_index=True)


def last_timed(bench: pd.DataFrame) -> pd.DataFrame:
    """Of the timings of one model in one setting and batch size, the last."""
    return bench.drop_duplicates(["point", "batch_size", *SETTING], keep="last", ignore_index=True)


def read_table(run: Folder, path: str, schema: pa.Schema) -> pa.Table:
    """A Parquet file's columns that the schema knows, in the schema's types.

    In no others: a file may name an Arrow type that Ray registers, and whose values are unpickled when they are read.

    Raises:
        ValueError: the file holds something else (pyarrow.ArrowInvalid).
    """
    table = pq.read_table(pa.BufferReader(run.read_bytes(path)))
    known = [field for field in schema if field.name in table.column_names]
    return table.select([field.name for field in known]).cast(pa.schema(known))


def _write(run: Folder, path: str, rows: list[dict[str, Any]], schema: pa.Schema) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), sink, compression="zstd")
    run.write_bytes(path, sink.getvalue().to_pybytes())


def _read(run: Folder, folder: str, schema: pa.Schema) -> pd.DataFrame:
    tables = [read_table(run, f"{folder}/{name}", schema) for name in run.list(folder) if name.endswith(".parquet")]
    # "default" fills a column that an older version did not have with nulls.
    return pa.concat_tables([schema.empty_table(), *tables], promote_options="default").to_pandas()


def damaged_images(run: Folder) -> dict[str, str]:
    """The images that could not be read in any stage or point so far and were skipped, and why."""
    found = [json.loads(line) for line in run.read_lines("damaged.log")]
    return {entry["image"]: entry["reason"] for entry in found}
