"""The tables of a run, typed here and nowhere else: results (a row per point), curves (a row per epoch), gates, timings.

`pandas.read_parquet(RUN + "/results")` is the whole table; each row is a file of its own, so trials on many nodes
write without a lock and a kill loses at most the row that was being written. Which file a table is in says `ledger/run.py`.
"""

import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from slimsweep.ledger.columns import shown
from slimsweep.slimming.cost import COSTS
from slimsweep.storage import Folder

if TYPE_CHECKING:
    import torch

RESULTS = pa.schema(
    [
        ("run", pa.string()),
        ("point", pa.string()),
        ("model", pa.string()),  # timm name
        ("data", pa.string()),
        ("method", pa.string()),  # one of slimsweep.methods.METHODS
        ("terms", pa.string()),  # retraining: as long as searched points; compute: longer by a share of the search
        ("seed", pa.int64()),
        ("budget", pa.float64()),  # fraction of the dense model's cost asked for, or that shares leave; 1.0 for dense
        ("unit", pa.string()),  # the cost that the budget counts: macs or params
        ("shares", pa.string()),  # JSON: the share of its gates that each family keeps, where that was asked for, or empty
        ("status", pa.string()),  # ok or failed
        ("error", pa.string()),
        *(
            field
            for cost in COSTS.values()  # macs (multiply-accumulates of one image) and params; of the model and of the dense one
            for field in (
                shown(cost.name, pa.int64(), cost.title, cost.title, axis="x"),
                pa.field(f"{cost.name}_dense", pa.int64()),
            )
        ),
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
    ]
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
            "gates",  # one per family and layer; null outside the search
            pa.list_(
                pa.struct(
                    [("family", pa.string()), ("layer", pa.int64()), ("mean", pa.float64()), ("below_1e-2", pa.float64())]
                )
            ),
        ),
    ]
)

GATES = pa.schema([("family", pa.string()), ("layer", pa.int64()), ("index", pa.int64()), ("value", pa.float64())])


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
    ]
)


SETTING = ["device", "hardware", "threads", "dtype", "compile"]  # what a timing depends on, beside the model and the batch size


def complete_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of RESULTS with what most rows have alike.

    Raises:
        KeyError: a key is not a column of RESULTS.
    """
    unknown = set(row) - set(RESULTS.names)
    if unknown:
        raise KeyError(f"not columns of the results table: {sorted(unknown)}")
    usual = {"status": "ok", "error": "", "unit": "macs", "terms": "retraining", "shares": "", "created_at": datetime.now(UTC)}
    return {**usual, **row}


def results_of(parts: Sequence[pa.Table]) -> pd.DataFrame:
    """The results table of some rows, by budget (largest first), method, terms, seed and learning rate.

    Earlier versions had fewer columns: there was nothing but MACs, retraining and budgets then.
    """
    rows = _joined(parts, RESULTS)
    for column, value in (("unit", "macs"), ("terms", "retraining"), ("shares", "")):
        rows[column] = rows[column].fillna(value)
    return rows.sort_values(
        ["budget", "method", "terms", "seed", "lr"], ascending=[False, True, False, True, True], ignore_index=True
    )


def gate_rows(gates: Mapping[str, Sequence["torch.Tensor"]]) -> list[dict[str, Any]]:
    """The rows of GATES for the gates of a model: what `gate_tensors` makes tensors of again.

    `index` counts heads and dims in row-major order.
    """
    return [
        {"family": f, "layer": i, "index": j, "value": v}
        for f, layers in gates.items()
        for i, g in enumerate(layers)
        for j, v in enumerate(g.flatten().tolist())
    ]


def gate_tensors(table: pd.DataFrame, gate_shapes: Mapping[str, Sequence[tuple[int, ...]]]) -> dict[str, list["torch.Tensor"]]:
    """The gates of a table in their shapes, a list of layers per family, as `gated.gates` gives them."""
    import torch  # readers of the other tables do without

    gates: dict[str, list[torch.Tensor]] = {}
    for family, shapes in gate_shapes.items():
        values = table[table.family == family].sort_values(["layer", "index"]).groupby("layer")["value"]
        gates[family] = [torch.tensor(values.get_group(i).to_numpy()).reshape(s) for i, s in enumerate(shapes)]
    return gates


def last_timed(bench: pd.DataFrame) -> pd.DataFrame:
    """Of the timings of one model in one setting and batch size, the last."""
    return bench.drop_duplicates(["point", "batch_size", *SETTING], keep="last", ignore_index=True)


# Files.


def read_table(folder: Folder, path: str, schema: pa.Schema) -> pa.Table:
    """A Parquet file's columns that the schema knows, in the schema's types.

    In no others: a file may name an Arrow type that Ray registers, and whose values are unpickled when they are read.

    Raises:
        ValueError: the file holds something else (pyarrow.ArrowInvalid).
    """
    table = pq.read_table(pa.BufferReader(folder.read_bytes(path)))
    known = [field for field in schema if field.name in table.column_names]
    return table.select([field.name for field in known]).cast(pa.schema(known))


def read_file(folder: Folder, path: str, schema: pa.Schema) -> pd.DataFrame:
    """One table in one file; empty where there is no such file."""
    return (read_table(folder, path, schema) if folder.exists(path) else schema.empty_table()).to_pandas()


def read_folder(folder: Folder, name: str, schema: pa.Schema) -> pd.DataFrame:
    """A table whose rows lie in all the Parquet files of a folder."""
    return _joined([read_table(folder, f"{name}/{f}", schema) for f in folder.list(name) if f.endswith(".parquet")], schema)


def write_table(folder: Folder, path: str, rows: list[dict[str, Any]], schema: pa.Schema) -> None:
    """Write rows to one file, whole or not at all."""
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), sink, compression="zstd")
    folder.write_bytes(path, sink.getvalue().to_pybytes())


def write_timings(folder: Folder, name: str, rows: list[dict[str, Any]]) -> str:
    """Write timings to a file of their own in a folder; returns its name."""
    path = f"{name}/{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:6]}.parquet"
    write_table(folder, path, rows, BENCH)
    return path


def _joined(parts: Sequence[pa.Table], schema: pa.Schema) -> pd.DataFrame:
    # "default" fills a column that an older version did not have with nulls.
    return pa.concat_tables([schema.empty_table(), *parts], promote_options="default").to_pandas()
