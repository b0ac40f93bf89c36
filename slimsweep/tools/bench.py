"""Latency, throughput and memory of cut models and the dense one, timed in one process.

In every round each model is timed once, so that a machine that is slow for a while is slow for all models. Times from different
runs of this program do not compare.
"""

import copy
import itertools
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import timm
import torch
from rich.table import Table
from torch import Tensor, nn

from slimsweep.errors import RefusedInput
from slimsweep.ledger.run import Run
from slimsweep.ledger.tables import SETTING
from slimsweep.saved_models import load
from slimsweep.slimming.hub import dense_like
from slimsweep.slimming.structure import image_size, macs
from slimsweep.terminal import counted

DENSE = "dense"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
WARM_UP_CALLS = 3

Row = dict[str, Any]
Call = Callable[[], Tensor]


def bench(
    models: Mapping[str, nn.Module],
    *,
    batch_sizes: Sequence[int] = (1, 8),
    threads: int | None = None,
    dtype: Literal["float32", "bfloat16"] = "float32",
    device: str | None = None,
    compile: bool = False,
    repeats: int = 10,
    min_seconds: float = 0.2,
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
        repeats: rounds; each model is timed once per round.
        min_seconds: calls are repeated for this long when a model is timed; at least one call is made.
        progress: called with one line of text before each batch size.

    Returns:
        One row of `slimsweep.ledger.tables.BENCH` per model and batch size, without `run`.

    Raises:
        RefusedInput: a ValueError: an argument is out of range, or there is no such device.
    """
    _check(models, batch_sizes, threads, dtype=dtype, device=device, repeats=repeats)
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    costs = {name: macs(model) for name, model in models.items()}
    rows: list[Row] = []
    with _threads(threads) as used, torch.inference_mode(), _room_for_graphs(len(models) * len(batch_sizes)):
        copies: dict[str, nn.Module] = {}
        for name, model in models.items():
            copies[name] = copy.deepcopy(model).eval().to(place, DTYPES[dtype])
        for batch in batch_sizes:
            progress(f"batch size {batch}: {len(models)} models, {repeats} rounds")
            calls: dict[str, Call] = {}
            for name, model in copies.items():
                images = torch.randn(batch, *image_size(model), device=place, dtype=DTYPES[dtype])
                forward = torch.compile(model, fullgraph=True, dynamic=False) if compile else model
                calls[name] = lambda forward=forward, images=images: forward(images)  # type: ignore[misc]
                for _ in range(WARM_UP_CALLS):
                    calls[name]()
            peaks = {name: _peak_memory(copies[name], call, place) for name, call in calls.items()}
            latencies, throughputs = _rounds(calls, place, batch, repeats, min_seconds)
            for name in models:
                rows.append(
                    {
                        "point": name,
                        "device": place.type,
                        "hardware": hardware(place),
                        "threads": used,
                        "batch_size": batch,
                        "dtype": dtype,
                        "compile": compile,
                        "latency_p50_ms": 1e3 * float(np.percentile(latencies[name], 50)),
                        "latency_p90_ms": 1e3 * float(np.percentile(latencies[name], 90)),
                        "images_per_second": float(np.median(throughputs[name])),
                        "peak_memory_bytes": peaks[name],
                        "macs": costs[name],
                        "repeats": repeats,
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
    rows = [{"run": run.folder.name, **row} for row in bench(models, **options)]
    run.write_bench(rows)
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
    about = {tuple(row[key] for key in SETTING) for row in rows}
    title = "; ".join(
        f"{hardware}, {counted(threads, 'thread') + ', ' if device == 'cpu' else ''}{dtype}, "
        f"{'compiled' if compiled else 'eager'}"
        for device, hardware, threads, dtype, compiled in sorted(about)
    )
    shown = Table(title=title)
    shown.add_column("batch", justify="right")
    shown.add_column("model")
    for heading in ("GMACs", "p50 ms", "p90 ms", "images/s", "memory", "fewer MACs", "faster"):
        shown.add_column(heading, justify="right")
    ordered = sorted(rows, key=lambda r: (tuple(str(r[k]) for k in SETTING), r["batch_size"], -r["macs"], r["point"]))
    for (_, batch), group in itertools.groupby(ordered, key=lambda r: (tuple(str(r[k]) for k in SETTING), r["batch_size"])):
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
            shown.add_row(*cells, end_section=row is members[-1])
    return shown


def hardware(device: torch.device) -> str:
    """The name of a device's processor, such as a GPU's or a CPU's model name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


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


def _rounds(
    calls: Mapping[str, Call], place: torch.device, batch: int, repeats: int, min_seconds: float
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Per model: the seconds of every call, and the images per second of every round."""
    latencies: dict[str, list[float]] = {name: [] for name in calls}
    throughputs: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for number in range(repeats):
        # Each round starts with another model: whoever comes first finds the caches of the last one.
        first = number % len(names)
        for name in names[first:] + names[:first]:
            calls[name]()  # untimed: brings the model's weights back into the caches
            took = _timed_calls(calls[name], place, min_seconds)
            latencies[name] += took
            seconds = _seconds_without_pause(calls[name], len(took), place) if place.type == "cuda" else sum(took)
            throughputs[name].append(batch * len(took) / seconds)
    return latencies, throughputs


def _timed_calls(call: Call, place: torch.device, min_seconds: float) -> list[float]:
    """The seconds of each call, for as many calls as `min_seconds` has room for, and at least one."""
    took: list[float] = []
    end = time.perf_counter() + min_seconds
    while not took or time.perf_counter() < end:
        if place.type == "cuda":
            took.append(_seconds_without_pause(call, 1, place))
        else:
            start = time.perf_counter()
            call()
            took.append(time.perf_counter() - start)
    return took


def _seconds_without_pause(call: Call, count: int, place: torch.device) -> float:
    """GPU seconds of `count` calls that are queued without waiting in between."""
    start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize(place)
    start.record()
    for _ in range(count):
        call()
    stop.record()
    torch.cuda.synchronize(place)
    return start.elapsed_time(stop) / 1e3


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


@contextmanager
def _threads(threads: int | None) -> Iterator[int]:
    """Set the number of torch's CPU threads while the block runs; yields the number."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


@contextmanager
def _room_for_graphs(graphs: int) -> Iterator[None]:
    """Raise torch.compile's limit of graphs for the same code: models share timm's, and beyond the limit torch runs eager."""
    room = 8 * graphs
    limits = {"recompile_limit": room, "accumulated_recompile_limit": 8 * room, "fail_on_recompile_limit_hit": True}
    with torch._dynamo.config.patch(limits):
        yield
