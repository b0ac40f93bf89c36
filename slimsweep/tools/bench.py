"""Latency, throughput and memory of cut models and the dense one, timed in one process.

In every round each model is timed once, so that a machine that is slow for a while is slow for all models. Before and after
each turn a matrix product of fixed size is timed too, which shows whether the machine was quiet (`quiet_timing`); rows of a
busy one say so, and are left out of the page and of `pick`. Times from different runs of this program do not compare.
"""

import itertools
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import timm
import torch
from rich.table import Table
from torch import nn

from slimsweep.errors import RefusedInput
from slimsweep.latency.calls import DTYPES, check_device, copies_on, prepared_calls, time_calls
from slimsweep.latency.device import hardware, room_for_graphs, torch_threads
from slimsweep.latency.setting import LatencySetting
from slimsweep.ledger.run import Run
from slimsweep.ledger.tables import SETTING, fastest_reference
from slimsweep.saved_models import load
from slimsweep.slimming.hub import dense_like
from slimsweep.slimming.structure import macs
from slimsweep.terminal import counted

DENSE = "dense"

Row = dict[str, Any]
Call = Callable[[], object]


def bench(
    models: Mapping[str, nn.Module],
    *,
    batch_sizes: Sequence[int] = (1, 8),
    threads: int | None = None,
    dtype: Literal["float32", "bfloat16"] = "float32",
    device: str | None = None,
    compile: bool = False,
    runtime: Literal["torch", "onnxruntime"] = "torch",
    repeats: int = 10,
    min_seconds: float = 0.2,
    earlier: pd.DataFrame | None = None,
    progress: Callable[[str], None] = lambda what: None,
) -> list[Row]:
    """Time models in interleaved rounds.

    Args:
        models: by name; the others are compared with "dense". They are not changed: copies are timed.
        batch_sizes: images per call.
        threads: CPU threads; torch's own number where not given.
        dtype: of weights and images.
        device: "cpu" or "cuda"; by default a GPU where there is one.
        compile: use torch.compile, with one graph per model and batch size.
        runtime: torch, or onnxruntime, which computes an ONNX file of each model; its peak memory is not known.
        repeats: rounds; each model is timed once per round.
        min_seconds: calls are repeated for this long when a model is timed; at least one call is made.
        earlier: rows of earlier benchmarks (`Run.products.bench`): the machine counts as busy where its reference was faster
            in them.
        progress: called with one line of text before each batch size.

    Returns:
        One row of `slimsweep.ledger.tables.BENCH` per model and batch size, without `run`. `busy` says why a row is not to be
        trusted; it is empty where the machine was quiet.

    Raises:
        RefusedInput: a ValueError: an argument is out of range, there is no such device, or onnxruntime is missing.
    """
    _check(models, batch_sizes, threads, dtype=dtype, device=device, repeats=repeats)
    batch_sizes = list(dict.fromkeys(batch_sizes))
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if runtime != "torch":
        check_device(LatencySetting(place.type, 1, threads, dtype, runtime, compile))
    costs = {name: macs(model) for name, model in models.items()}
    rows: list[Row] = []
    with torch_threads(threads) as used, torch.inference_mode(), room_for_graphs(len(models) * len(batch_sizes)):
        processor = hardware(place)
        of_here = {"device": place.type, "hardware": processor, "threads": used, "torch_version": torch.__version__}
        if place.type == "cuda":  # where runtimes are timed by clocks of their own
            of_here["runtime"] = runtime
        known = None if earlier is None else fastest_reference(earlier, **of_here)
        copies = copies_on(place, models, dtype) if runtime == "torch" else {}
        for batch in batch_sizes:
            progress(f"batch size {batch}: {len(models)} models, {repeats} rounds")
            setting = LatencySetting(place.type, batch, used, dtype, runtime, compile)
            with prepared_calls(models, setting, copies) as calls:
                known_peaks = runtime == "torch"
                peaks = {name: _peak_memory(copies[name], call, place) if known_peaks else None for name, call in calls.items()}
                measured = time_calls(calls, setting, rounds=repeats, min_seconds=min_seconds, known=known)
            for name, timed in measured.calls.items():
                rows.append(
                    {
                        "point": name,
                        "device": place.type,
                        "hardware": processor,
                        "threads": used,
                        "batch_size": batch,
                        "dtype": dtype,
                        "compile": compile,
                        "runtime": runtime,
                        "latency_p50_ms": 1e3 * timed.median,
                        "latency_p90_ms": 1e3 * timed.percentile(90),
                        "images_per_second": float(batch / statistics.median(timed.together)),
                        "peak_memory_bytes": peaks[name],
                        "macs": costs[name],
                        "repeats": repeats,
                        "busy": timed.busy,
                        "spread": timed.spread,
                        "reference_ms": 1e3 * measured.reference,
                        "torch_version": torch.__version__,
                        "timm_version": timm.__version__,
                        "created_at": datetime.now(UTC),
                    }
                )
    return rows


def bench_run(
    run: Run, points: Sequence[str] | None = None, skipped: Callable[[str], None] = lambda why: None, **options: Any
) -> list[Row]:
    """Time a run's dense model and its points, and write the rows to the run.

    Args:
        points: names of the points to time; all where not given.
        skipped: is told why a point cannot be timed, where no points were given: its model is gone or damaged.
        options: of `bench`.

    Raises:
        RefusedInput: a ValueError: the run has no dense model yet, no such point, or none of its points' models.
    """
    there = run.models.list()
    if not run.dense_done:
        raise RefusedInput(f"{run.uri} has no dense model to compare with: give a run whose dense stage has ended")
    for point in points or ():
        if point not in there:
            raise RefusedInput(f"{run.uri} has no model {point!r}; it has {', '.join(there) or 'none'}")
    models: dict[str, nn.Module] = {DENSE: load(run.dense)}
    done = set(run.rows.point[run.rows.status == "ok"])
    for point in points or sorted({*there, *done}):
        try:
            models[point] = load(run.models / point)
        except RefusedInput as problem:
            if points:
                raise
            skipped(str(problem))
    if done and len(models) == 1:
        raise RefusedInput(
            f"{run.models.uri} has none of the models of the {counted(len(done), 'point')} that are done: restore it"
        )
    rows = [{"run": run.folder.name, **row} for row in bench(models, earlier=run.products.bench(), **options)]
    run.products.write_bench(rows)
    return rows


def bench_dir(path: str | os.PathLike[str], **options: Any) -> list[Row]:
    """Time one saved model; a cut one is compared with its dense architecture.

    Args:
        options: of `bench`.

    Raises:
        RefusedInput: a ValueError: the folder is not a saved model.
    """
    model = load(path)
    models = {DENSE: dense_like(model)} if hasattr(model, "structure") else {}
    return bench({**models, Path(path).resolve().name: model}, **options)


def table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The rows as a table for a terminal, with the ratios of MACs and of p50 latency to dense."""
    about = {_setting(row) for row in rows}
    title = "; ".join(
        f"{hardware}, {counted(threads, 'thread') + ', ' if device == 'cpu' else ''}{dtype}, "
        f"{runtime if runtime != 'torch' else 'compiled' if compiled else 'eager'}"
        for device, hardware, threads, dtype, compiled, runtime in sorted(about)
    )
    shown = Table(title=title)
    shown.add_column("batch", justify="right")
    shown.add_column("model")
    for heading in ("GMACs", "p50 ms", "p90 ms", "images/s", "memory", "fewer MACs", "faster"):
        shown.add_column(heading, justify="right")
    any_busy = any(row.get("busy") for row in rows)
    if any_busy:
        shown.add_column("not to be trusted")
    ordered = sorted(rows, key=lambda r: (tuple(map(str, _setting(r))), r["batch_size"], -r["macs"], r["point"]))
    for (_, batch), group in itertools.groupby(ordered, key=lambda r: (tuple(map(str, _setting(r))), r["batch_size"])):
        members = list(group)
        dense = next((r for r in members if r["point"] == DENSE), None)
        for row in members:
            memory = row["peak_memory_bytes"]
            cells = [
                str(batch),
                row["point"],
                f"{row['macs'] / 1e9:.3f}",
                f"{row['latency_p50_ms']:.2f}",
                f"{row['latency_p90_ms']:.2f}",
                f"{row['images_per_second']:.1f}",
                "" if memory is None else f"{memory / 2**20:.0f} MiB",
                "" if dense is None else f"{dense['macs'] / row['macs']:.2f}x",
                "" if dense is None else f"{dense['latency_p50_ms'] / row['latency_p50_ms']:.2f}x",
            ]
            if any_busy:
                cells.append("machine busy" if row.get("busy") else "")
            shown.add_row(*cells, end_section=row is members[-1])
    return shown


def _setting(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """The values of a row's setting; a row without a runtime is of an earlier version, which had torch alone."""
    return tuple(row.get(key) or "torch" if key == "runtime" else row[key] for key in SETTING)


def busy_sentence(rows: Sequence[Mapping[str, Any]], again: str) -> str:
    """One sentence that says which rows are not to be trusted, why, and what to do; empty where all are.

    Args:
        again: the command that times again.
    """
    busy = [row for row in rows if row.get("busy")]
    if not busy:
        return ""
    of = "the times are" if len(busy) == len(rows) else f"{len(busy)} of {counted(len(rows), 'row')} are"
    return (
        f"machine busy: {of} not to be trusted ({busy[0]['busy']}), so the page and pick leave them out; end other programs, "
        f"or give fewer --threads, and time again: {again}"
    )


def _check(
    models: Mapping[str, nn.Module],
    batch_sizes: Sequence[int],
    threads: int | None,
    *,
    dtype: str,
    device: str | None,
    repeats: int,
) -> None:
    if not models:
        raise RefusedInput("there is no model to time")
    if not batch_sizes or min(batch_sizes) < 1:
        raise RefusedInput(f"batch sizes are {list(batch_sizes)}; give one or more, each at least 1")
    if threads is not None and threads < 1:
        raise RefusedInput(f"threads is {threads}; it must be at least 1")
    if dtype not in DTYPES:
        raise RefusedInput(f"dtype is {dtype!r}; it can be {' or '.join(DTYPES)}")
    if device not in (None, "cpu", "cuda"):
        raise RefusedInput(f"device is {device!r}; it can be cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise RefusedInput("this machine has no GPU that torch can use; take --device cpu")
    if repeats < 1:
        raise RefusedInput(f"repeats is {repeats}; it must be at least 1")


def _peak_memory(model: nn.Module, call: Call, place: torch.device) -> int | None:
    """Peak bytes of one model's weights and activations on a GPU, without what else is there; None on a CPU."""
    if place.type != "cuda":
        return None
    torch.cuda.synchronize(place)
    torch.cuda.reset_peak_memory_stats(place)
    before = torch.cuda.memory_allocated(place)
    call()
    torch.cuda.synchronize(place)
    weights = sum(t.numel() * t.element_size() for t in itertools.chain(model.parameters(), model.buffers()))
    return torch.cuda.max_memory_allocated(place) - before + weights
