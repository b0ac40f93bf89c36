"""The schemas of a run's tables: results (one row per point), curves (one row per epoch), gates, timings.

`pandas.read_parquet(RUN + "/results")` reads the whole results table. Each row is a file of its own, so that trials on many
nodes write without a lock, and a kill loses at most the row being written. `ledger/run.py` says in which file a table is.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from slimsweep.errors import DamagedFile
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
        ("terms", pa.string()),  # retraining: epochs as searched points have; compute: more, worth a share of the search
        ("seed", pa.int64()),
        ("budget", pa.float64()),  # fraction of the dense model's cost, as asked for or as shares leave it; 1.0 for dense
        ("unit", pa.string()),  # the cost that the budget counts: macs, params or ms
        ("shares", pa.string()),  # JSON: the share of gates that each family keeps; empty where a budget was asked for
        ("status", pa.string()),  # ok, failed, or stopped: before its last epoch, because another learning rate was ahead
        ("error", pa.string()),
        *(
            field
            for cost in COSTS.values()  # macs (multiply-accumulates of one image) and params; of the model and of the dense one
            for field in (
                shown(cost.name, pa.int64(), cost.title, cost.title, axis="x"),
                pa.field(f"{cost.name}_dense", pa.int64()),
            )
        ),
        shown("model_bytes", pa.int64(), "size on disk", "B", axis="x"),  # of the weights' file
        ("budget_ms", pa.float64()),  # the milliseconds that were asked for; null where the budget is no number of milliseconds
        # Of one call with a whole batch, before retraining, which changes no latency; null where the run asks for no latency.
        shown("latency_ms", pa.float64(), "latency in the run's setting", "ms", axis="x"),
        ("latency_ms_dense", pa.float64()),  # of the dense model, timed in the same rounds
        ("latency_spread", pa.float64()),  # width of the middle half of the rounds' medians, as a share of their median
        ("latency_busy", pa.string()),  # why it is not to be trusted; empty where the machine was quiet
        ("latency_setting", pa.string()),  # JSON: device, batch_size, threads, dtype, runtime, compile, hardware, versions
        ("repair_seconds", pa.float64()),  # that principal axes and repair took after the cut; 0 for methods without
        shown("val_top1_cut", pa.float64(), "validation top-1 right after the cut", "%", 2, axis="y", more=True),
        shown("val_top1", pa.float64(), "validation top-1", "%", 2, axis="y", more=True),
        shown("test_top1", pa.float64(), "test top-1", "%", 2, axis="y", more=True),
        shown("test_top5", pa.float64(), "test top-5", "%", 2, axis="y", more=True),
        shown("test_loss", pa.float64(), "test loss", "nats", 3, axis="y"),
        ("val_images", pa.int64()),  # number of images of the split; null in rows of earlier versions
        ("test_images", pa.int64()),
        ("classes", pa.int64()),  # of the labels; 0 for backbones
        ("test_top1_untouched", pa.float64()),  # percent, of the dense model that the search started from
        # Of backbones (num_classes 0), which have none of the above: how near the embedding is to the dense model's.
        shown("val_r2_cut", pa.float64(), "R2 of the features right after the cut, validation", "", 4, axis="y", more=True),
        shown("val_r2", pa.float64(), "R2 of the features, validation", "", 4, axis="y", more=True),
        shown("test_r2", pa.float64(), "R2 of the features, test", "", 4, axis="y", more=True),
        shown("val_cosine", pa.float64(), "cosine of the features, validation", "", 4, axis="y", more=True),
        shown("test_cosine", pa.float64(), "cosine of the features, test", "", 4, axis="y", more=True),
        shown("val_nearest", pa.float64(), "images found by their features, validation", "%", 2, axis="y", more=True),
        shown("test_nearest", pa.float64(), "images found by their features, test", "%", 2, axis="y", more=True),
        # And where there is a probe, the top-1 of what is made of the embeddings.
        shown("val_knn_top1", pa.float64(), "k-NN top-1, validation", "%", 2, axis="y", more=True),
        shown("test_knn_top1", pa.float64(), "k-NN top-1, test", "%", 2, axis="y", more=True),
        shown("val_probe_top1", pa.float64(), "linear probe top-1, validation", "%", 2, axis="y", more=True),
        shown("test_probe_top1", pa.float64(), "linear probe top-1, test", "%", 2, axis="y", more=True),
        ("lr", pa.float64()),  # highest learning rate of the retraining
        ("teacher", pa.string()),  # who taught the retraining, and how: "dense, soft, alpha 0.5"; empty where nobody did
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
        ("val_top1", pa.float64()),  # percent; null for backbones
        ("val_r2", pa.float64()),  # of backbones
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

GATES = pa.schema(
    [
        ("family", pa.string()),
        ("layer", pa.int64()),
        ("index", pa.int64()),
        ("value", pa.float64()),
        ("score", pa.float64()),  # what the gate is ranked by; null: by its value
    ]
)


BENCH = pa.schema(
    [
        ("run", pa.string()),
        ("point", pa.string()),  # a point's name, or dense: the model that the search started from
        ("device", pa.string()),  # cpu or cuda
        ("hardware", pa.string()),  # the processor's own name
        ("threads", pa.int64()),  # of the CPU
        ("batch_size", pa.int64()),
        ("dtype", pa.string()),  # of weights and images: float32 or bfloat16
        ("compile", pa.bool_()),  # by torch.compile
        ("runtime", pa.string()),  # torch or onnxruntime; null in older rows, which are torch's
        shown("latency_p50_ms", pa.float64(), "latency p50", "ms", axis="x"),  # of one call with a whole batch
        ("latency_p90_ms", pa.float64()),
        shown("images_per_second", pa.float64(), "throughput", "images/s", axis="x", more=True),
        shown("peak_memory_bytes", pa.int64(), "peak memory", "B", axis="x"),  # weights and activations; null on a CPU
        ("macs", pa.int64()),  # multiply-accumulates of one image
        ("repeats", pa.int64()),  # interleaved rounds
        ("busy", pa.string()),  # why the row is not to be trusted; empty where the machine was quiet; null in older rows
        ("spread", pa.float64()),  # width of the middle half of the rounds' medians, as a share of their median
        ("reference_ms", pa.float64()),  # fastest time of the matrix product that was timed in between
        ("torch_version", pa.string()),
        ("timm_version", pa.string()),
        ("created_at", pa.timestamp("us", tz="UTC")),
    ]
)

DEVICE_TIMES = pa.schema(
    [
        ("structure", pa.string()),  # Structure.id
        ("ms", pa.float64()),  # of one call with a whole batch, the median
        ("spread", pa.float64()),  # width of the middle half of repeated measurements, as a share of their median; or null
        ("device", pa.string()),  # its name, as the CSV file has it
        ("runtime", pa.string()),
        ("batch_size", pa.int64()),
        ("dtype", pa.string()),
        ("busy", pa.string()),  # why the time is not to be trusted; empty where it is
        ("file", pa.string()),  # name of the CSV file that it comes from
        ("created_at", pa.timestamp("us", tz="UTC")),  # when it was added
    ]
)


DEVICE_SETTING = ["device", "runtime", "batch_size", "dtype"]  # columns of DEVICE_TIMES that a time depends on

QUANTIZED = pa.schema(
    [
        ("run", pa.string()),
        ("point", pa.string()),  # a point's name, or dense: the model that the search started from
        ("precision", pa.string()),  # int8
        ("file", pa.string()),  # the ONNX file: inside the run's folder, or where --output said
        shown("model_bytes", pa.int64(), "size on disk", "B", axis="x"),  # of that file
        ("model_bytes_fp32", pa.int64()),  # of the float32 ONNX file
        # Percent, of models with a head. Float32 is measured beside INT8 on validation; on test it is the point's own row.
        shown("val_top1", pa.float64(), "validation top-1", "%", 2, axis="y", more=True),
        ("val_top1_fp32", pa.float64()),
        shown("test_top1", pa.float64(), "test top-1", "%", 2, axis="y", more=True),
        ("test_top1_fp32", pa.float64()),
        # Of backbones: R2 of the features against the dense model's.
        shown("val_r2", pa.float64(), "R2 of the features, validation", "", 4, axis="y", more=True),
        ("val_r2_fp32", pa.float64()),
        shown("test_r2", pa.float64(), "R2 of the features, test", "", 4, axis="y", more=True),
        ("test_r2_fp32", pa.float64()),
        ("layers", pa.int64()),  # that are quantized
        (
            "worst_layers",
            pa.string(),
        ),  # JSON: per layer what it does to the output by itself; empty where that was not looked at
        ("calibration", pa.string()),  # minmax, entropy or percentile
        ("images", pa.int64()),  # training images that were asked for
        ("images_used", pa.int64()),  # and that there were
        ("weight_bits", pa.int64()),
        ("keep_fp32", pa.string()),  # JSON: layers that were to stay float32
        ("weights", pa.string()),  # a hash of the weights that were quantized
        # Medians of one call with a whole batch by onnxruntime, of both files in the same interleaved rounds.
        ("device", pa.string()),
        ("hardware", pa.string()),
        ("threads", pa.int64()),
        ("batch_size", pa.int64()),
        shown("latency_p50_ms", pa.float64(), "latency p50", "ms", axis="x"),
        shown("latency_p50_ms_fp32", pa.float64(), "latency p50, float32 beside INT8", "ms", axis="x"),
        ("spread", pa.float64()),
        ("spread_fp32", pa.float64()),
        ("busy", pa.string()),  # as in BENCH
        ("reference_ms", pa.float64()),
        ("repeats", pa.int64()),
        ("onnxruntime_version", pa.string()),
        ("onnx_version", pa.string()),
        ("torch_version", pa.string()),
        ("slimsweep_version", pa.string()),
        ("created_at", pa.timestamp("us", tz="UTC")),
    ]
)


# Columns of BENCH that a timing depends on, beside the model and the batch size: only timings that agree in them compare.
SETTING = ["device", "hardware", "threads", "dtype", "compile", "runtime"]
TIMED = ["point", "batch_size", *SETTING]  # what one timing is of


def of_latest(rows: pd.DataFrame, setting: Sequence[str]) -> pd.DataFrame:
    """The rows of the setting that the latest of them has; the others do not compare.

    Args:
        rows: with the column `created_at`.
        setting: names of columns; rows of earlier versions may lack some.
    """
    rows = rows.sort_values("created_at", kind="stable")
    values = rows.reindex(columns=list(setting)).astype(object).fillna("").astype(str)
    return rows[(values == values.iloc[-1]).all(axis=1)] if len(rows) else rows


def complete_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of RESULTS, with default values for the columns that `row` leaves out.

    Raises:
        KeyError: a key is not a column of RESULTS.
    """
    unknown = set(row) - set(RESULTS.names)
    if unknown:
        raise KeyError(f"not columns of the results table: {sorted(unknown)}")
    defaults = {
        "status": "ok",
        "error": "",
        "unit": "macs",
        "terms": "retraining",
        "shares": "",
        "teacher": "",
        "created_at": datetime.now(UTC),
    }
    # Where another row has no number, pandas gives whole numbers as floats.
    whole = {name for name in row if pa.types.is_integer(RESULTS.field(name).type)}
    return {**defaults, **{name: None if name in whole and pd.isna(value) else value for name, value in row.items()}}


def results_of(parts: Sequence[pa.Table]) -> pd.DataFrame:
    """One results table from several, sorted by budget (largest first), method, terms, seed and learning rate.

    Rows of earlier versions lack some columns; they get the values that were the only ones then, and no teacher.
    """
    rows = joined(parts, RESULTS)
    for column, value in (("unit", "macs"), ("terms", "retraining"), ("shares", ""), ("teacher", "")):
        rows[column] = rows[column].fillna(value)
    for column in ("latency_busy", "latency_setting"):  # of points that were not timed: texts, as in the rows that have them
        rows[column] = rows[column].fillna("")
    return rows.sort_values(
        ["budget", "method", "terms", "seed", "lr"], ascending=[False, True, False, True, True], ignore_index=True
    )


GateTensors = Mapping[str, Sequence["torch.Tensor"]]


def gate_rows(gates: GateTensors, scores: GateTensors | None = None) -> list[dict[str, Any]]:
    """The gates of a model as rows of GATES; `gate_tensors` turns them back into tensors.

    Args:
        gates: a list of layers per family, each (heads, dims), (units,) or (tokens,). `index` counts in row-major order.
        scores: what they are ranked by, in the same shapes; None for the gates themselves.
    """
    return [
        {"family": f, "layer": i, "index": j, "value": v, "score": score}
        for f, layers in gates.items()
        for i, g in enumerate(layers)
        for j, (v, score) in enumerate(
            zip(g.flatten().tolist(), scores[f][i].flatten().tolist() if scores else [None] * g.numel(), strict=True)
        )
    ]


def gate_tensors(
    table: pd.DataFrame, gate_shapes: Mapping[str, Sequence[tuple[int, ...]]], column: str = "value"
) -> dict[str, list["torch.Tensor"]]:
    """The gates of a table as `gated.gates` returns them: a list of layers per family.

    Args:
        table: of schema GATES.
        gate_shapes: the shape of each layer's gates, per family.
        column: value, or score for what they are ranked by.

    Raises:
        KeyError: the table lacks a layer.
    """
    import torch  # here, so that readers of the other tables do not load it

    gates: dict[str, list[torch.Tensor]] = {}
    for family, shapes in gate_shapes.items():
        values = table[table.family == family].sort_values(["layer", "index"]).groupby("layer")[column]
        gates[family] = [torch.tensor(values.get_group(i).to_numpy()).reshape(s) for i, s in enumerate(shapes)]
    return gates


def trusted(bench: pd.DataFrame) -> pd.DataFrame:
    """The timings that were taken on a quiet machine, and those of earlier versions, of which that is not known."""
    return bench if "busy" not in bench else bench[bench["busy"].fillna("") == ""]


def fastest_reference(rows: pd.DataFrame, **setting: object) -> float | None:
    """The fastest seconds of the reference in the trusted timings of a setting; None where there are none.

    Args:
        rows: of schema BENCH or QUANTIZED.
        setting: values of their columns, such as hardware, threads and torch_version.
    """
    if "reference_ms" not in rows:
        return None
    rows = trusted(rows)
    for column, value in setting.items():
        rows = rows[rows[column] == value]
    milliseconds = rows["reference_ms"].dropna()
    return None if milliseconds.empty else float(milliseconds.min()) / 1e3


def last_timed(bench: pd.DataFrame) -> pd.DataFrame:
    """The last timing of each model in each setting and batch size, without those that are not to be trusted.

    Args:
        bench: of schema BENCH, the latest last.
    """
    return trusted(bench).drop_duplicates(TIMED, keep="last", ignore_index=True)


def not_trusted(bench: pd.DataFrame, again: str = "slimsweep bench RUN") -> str:
    """One sentence on the timings that `last_timed` leaves out, and on how to replace them; empty where it leaves out none.

    What was timed again on a quiet machine is not counted.

    Args:
        again: the command that times again.
    """
    last = bench.drop_duplicates(TIMED, keep="last")
    known = pd.MultiIndex.from_frame(trusted(bench)[TIMED].astype(str))
    lost = last[~pd.MultiIndex.from_frame(last[TIMED].astype(str)).isin(known)]
    if lost.empty:
        return ""
    one = len(lost) == 1
    return (
        f"{len(lost)} timing{'' if one else 's'} of `slimsweep bench` {'is' if one else 'are'} left out, because the machine "
        f"was busy ({lost['busy'].iloc[-1]}); to time again when nothing else runs: {again}"
    )


# Files.


FEW_ROWS = 1000  # below it a table is written so that it is quick to read, as a row of results and a curve are
OF_PYARROW = "Could not open Parquet input source '<Buffer>': "  # how its messages begin, which says nothing of the file


def read_table(folder: Folder, path: str, schema: pa.Schema) -> pa.Table:
    """The columns of a Parquet file that the schema has, in the schema's types.

    The types in the file are not trusted: Ray registers an Arrow type whose values are unpickled on reading.

    Raises:
        FileNotFoundError: there is no such file.
        DamagedFile: it is not a whole Parquet file, or its values do not fit the schema.
    """
    content = folder.read_bytes(path)
    try:
        # A run has thousands of small files: threads would take longer to begin than their columns to read.
        file = pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True, pre_buffer=False)
        table = file.read(use_threads=False)
        if table.schema.equals(schema):
            return pa.Table.from_arrays(table.columns, schema=schema)
        names = set(table.column_names)
        known = [field for field in schema if field.name in names]
        return table.select([field.name for field in known]).cast(pa.schema(known))
    except Exception as problem:  # pyarrow raises many kinds, among them OSError for what it cannot decompress
        reason = "it is empty" if not content else " ".join(str(problem).split()).removeprefix(OF_PYARROW)[:200]
        raise DamagedFile(f"{(folder / path).uri} is damaged ({reason})") from problem


def write_table(folder: Folder, path: str, rows: list[dict[str, Any]], schema: pa.Schema) -> None:
    """Write rows to one file, whole or not at all."""
    write_arrow(folder, path, pa.Table.from_pylist(rows, schema=schema))


def write_arrow(folder: Folder, path: str, rows: pa.Table) -> None:
    """Write a table to one file, whole or not at all."""
    sink = pa.BufferOutputStream()
    # Of a few rows, a zstd decoder per column and page takes most of the time to read, and dictionaries most of the rest.
    few = len(rows) <= FEW_ROWS
    small: dict[str, Any] = {"compression": "snappy", "use_dictionary": False, "write_statistics": False}
    how = small if few else {"compression": "zstd"}
    pq.write_table(rows, sink, write_page_checksum=True, **how)
    folder.write_bytes(path, sink.getvalue().to_pybytes())


def joined(parts: Sequence[pa.Table], schema: pa.Schema) -> pd.DataFrame:
    """One table from several."""
    # "default" fills columns that a file of an earlier version lacks with nulls.
    return pa.concat_tables([schema.empty_table(), *parts], promote_options="default").to_pandas()


def with_all_columns(rows: pd.DataFrame, schema: pa.Schema) -> pd.DataFrame:
    """Rows with the columns of a schema that they lack, as a table of an earlier version does: null there."""
    return rows.reindex(columns=[*rows.columns, *(name for name in schema.names if name not in rows)])
