"""The work of `slimsweep quantize`: models become INT8, are judged on validation, timed beside float32, and tested at last."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from torch import nn

import slimsweep
from slimsweep.data import Data, ImageSet, eval_loader, training_images
from slimsweep.latency.device import hardware, torch_threads
from slimsweep.latency.device import reference as device_reference
from slimsweep.latency.int8_files import (
    Calibration,
    Prepared,
    SessionModel,
    calibrate,
    layer_losses,
    matching_layers,
    prepare,
    write_int8,
)
from slimsweep.latency.onnx_files import runtime_version, session, session_call
from slimsweep.latency.quiet_timing import ONNXRUNTIME_SETTLE, time_rounds
from slimsweep.ledger.measures import R2, TOP1, Measure
from slimsweep.ledger.tables import fastest_reference
from slimsweep.terminal import counted
from slimsweep.tools.quantized_table import loses, warning
from slimsweep.training.evaluate import Reference, evaluate_split

IMAGES = 512  # of calibration
LOOKED_AT = 256  # validation images on which layers are compared
LAYERS_SECONDS = 120.0  # that computing them may take, beside writing a file per layer

Row = dict[str, Any]
Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How models are quantized.

    Args:
        images: training images to calibrate with.
        calibration: how ranges of activations follow from them: minmax, entropy or percentile (99.99 %).
        keep_fp32: layers that stay float32, by their module's name, or by that of a module around them.
        weight_bits: 8, or 7 for processors on which sums of products overflow; None takes what suits this processor.
        seed: of the choice of images.
    """

    images: int = IMAGES
    calibration: Calibration = "minmax"
    keep_fp32: tuple[str, ...] = ()
    weight_bits: int | None = None
    seed: int = 0

    def columns(self) -> Row:
        """The settings as columns of `tables.QUANTIZED`."""
        return {
            "calibration": self.calibration,
            "images": self.images,
            "keep_fp32": json.dumps(sorted(set(self.keep_fp32))),
            "weight_bits": self.weight_bits,
        }


@dataclass(frozen=True, kw_only=True)
class Timing:
    """How models are timed: images per call, CPU threads (torch's own number where not given), interleaved rounds."""

    batch_size: int = 1
    threads: int | None = None
    repeats: int = 10
    min_seconds: float = 0.2  # for which calls are repeated in a round


@dataclass(kw_only=True)
class Subject:
    """A model to quantize, and how far it is."""

    name: str
    model: nn.Module
    weights: str  # a hash
    description: str  # for the file's metadata
    test_fp32: float  # nan: not known
    row: Row = field(default_factory=dict)
    folder: Path  # for its files while the command runs
    made: bool = False  # by this call

    @property
    def int8(self) -> Path:
        return self.folder / "int8.onnx"

    @property
    def plain(self) -> Path:
        return self.folder / "float32.onnx"


class Judge:
    """Top-1 (percent) of models with a head; of backbones R2 of the features against those of a dense model."""

    def __init__(self, data: Data, dense: nn.Module | None) -> None:
        self.data = data
        self.reference = None if dense is None else Reference(dense, data)
        self.measure: Measure = TOP1 if dense is None else R2

    def of(self, model: nn.Module, split: Literal["val", "test"]) -> float:
        device = torch.device("cpu")
        if self.reference is not None:
            return self.reference.agreement(model, split, device).r2
        return evaluate_split(model, self.data, split, device).top1


def quantize_all(
    subjects: Sequence[Subject],
    judge: Judge,
    settings: Settings,
    timing: Timing,
    earlier: pd.DataFrame,
    keep: Callable[[Subject], None],
    progress: Progress,
    command: str,
) -> list[str]:
    """Quantize, judge, time, and test at last; returns the warnings.

    Each model's row is kept as soon as it is judged, so that a call that is stopped loses one model.
    """
    to_make = [subject for subject in subjects if not subject.row.get("weights")]
    images = training_images(judge.data, settings.seed, settings.images)[0] if to_make else None
    for number, subject in enumerate(to_make, 1):
        progress(f"{subject.name}: INT8 ({number} of {len(to_make)})")
        assert images is not None
        _make(subject, images, judge, settings, timing, progress)
        keep(subject)
    to_time = [subject for subject in subjects if not _is_timed(subject.row, timing)]
    _time(to_time, timing, earlier, progress)
    for subject in to_time:
        keep(subject)
    test, without = judge.measure.test, []
    for subject in subjects:
        if subject.row.get(test) is None:
            without.append(subject)
    for number, subject in enumerate(without, 1):
        progress(f"{subject.name}: test ({number} of {len(without)})")
        subject.row[test] = judge.of(SessionModel(subject.int8, timing.threads), "test")
        plain = subject.test_fp32
        if math.isnan(plain) and subject.plain.is_file():
            plain = judge.of(SessionModel(subject.plain, timing.threads), "test")
        subject.row[f"{test}_fp32"] = None if math.isnan(plain) else plain
        keep(subject)
    return [said for subject in subjects if (said := warning(subject.row, judge.measure, command))]


def _make(subject: Subject, images: torch.Tensor, judge: Judge, settings: Settings, timing: Timing, progress: Progress) -> None:
    """Quantize one model and judge it on validation; fills its row."""
    prepared = prepare(subject.model, subject.folder, {"config.json": subject.description})
    kept = {layer for found in matching_layers(prepared.layers, settings.keep_fp32).values() for layer in found}
    layers = [layer for layer in prepared.layers if layer not in kept]
    assert settings.weight_bits is not None
    how: dict[str, Any] = {"method": settings.calibration, "weight_bits": settings.weight_bits}
    used = calibrate(prepared, images, settings.calibration)
    said = {**settings.columns(), "weights": subject.weights, "layers": len(layers)}
    write_int8(prepared, subject.int8, layers=layers, settings=json.dumps(said), **how)
    val = judge.measure.val
    progress(f"{subject.name}: validation")
    before = judge.of(SessionModel(subject.plain, timing.threads), "val")
    after = judge.of(SessionModel(subject.int8, timing.threads), "val")
    subject.row |= {
        **settings.columns(),
        "precision": "int8",
        "model_bytes": subject.int8.stat().st_size,
        "model_bytes_fp32": subject.plain.stat().st_size,
        val: after,
        f"{val}_fp32": before,
        "layers": len(layers),
        "worst_layers": "",
        "images_used": used,
        "weights": subject.weights,
        "onnxruntime_version": runtime_version(),
        "onnx_version": version("onnx"),
        "torch_version": torch.__version__,
        "slimsweep_version": slimsweep.__version__,
        "created_at": datetime.now(UTC),
    }
    subject.made = True
    if loses(subject.row, judge.measure):
        subject.row["worst_layers"] = json.dumps(_worst(prepared, layers, judge, how, timing, subject.name, progress))
    for file in subject.folder.iterdir():  # those that nothing needs any more
        if file not in (subject.int8, subject.plain):
            file.unlink()


def _worst(
    prepared: Prepared, layers: Sequence[str], judge: Judge, how: Row, timing: Timing, name: str, progress: Progress
) -> dict[str, float]:
    """What each layer does to the output when it alone is quantized, on some validation images; the worst first."""
    return layer_losses(
        prepared,
        _looked_at(judge.data),
        **how,
        layers=layers,
        threads=timing.threads,
        seconds=LAYERS_SECONDS,
        progress=lambda layer: progress(f"{name}: INT8 of {layer}"),
    )


def _looked_at(data: Data) -> torch.Tensor:
    """(N, C, H, W): validation images on which layers are compared, from the whole split where it need not be streamed."""
    if isinstance(data.val, ImageSet):
        count = min(LOOKED_AT, len(data.val))
        images: torch.Tensor = data.val.batch([place * len(data.val) // count for place in range(count)])[0]
        return images
    batches: list[torch.Tensor] = []
    for batch, _ in eval_loader(data.val, data.settings):
        batches.append(batch)
        if sum(map(len, batches)) >= LOOKED_AT:
            break
    return torch.cat(batches)[:LOOKED_AT]


def _is_timed(row: Row, timing: Timing) -> bool:
    """Whether a row's times are of this setting and machine, and to be trusted."""
    if row.get("latency_p50_ms") is None or row.get("busy"):
        return False
    with torch_threads(timing.threads) as threads:
        asked = {"threads": threads, "batch_size": timing.batch_size, "hardware": hardware(torch.device("cpu"))}
        asked["onnxruntime_version"] = runtime_version()
    return all(row.get(name) == value for name, value in asked.items())


def _time(subjects: Sequence[Subject], timing: Timing, earlier: pd.DataFrame, progress: Progress) -> None:
    """Time the float32 and the INT8 file of each model in interleaved rounds; fills their rows."""
    if not subjects:
        return
    place = torch.device("cpu")
    progress(f"timing {counted(len(subjects), 'model')}, {counted(timing.repeats, 'round')}")
    with torch_threads(timing.threads) as threads:
        calls: dict[str, Callable[[], object]] = {}
        for subject in subjects:
            if not subject.plain.is_file():  # taken over from an earlier call
                prepare(subject.model, subject.folder)
            for kind, file in (("fp32", subject.plain), ("int8", subject.int8)):
                calls[f"{subject.name} {kind}"] = session_call(session(file, threads=threads), timing.batch_size)
        measured = time_rounds(
            calls,
            device_reference(place),
            rounds=timing.repeats,
            min_seconds=timing.min_seconds,
            threads=threads,
            known=fastest_reference(earlier, hardware=hardware(place), threads=threads, torch_version=torch.__version__),
            settle=ONNXRUNTIME_SETTLE,
        )
    for subject in subjects:
        before, after = measured.calls[f"{subject.name} fp32"], measured.calls[f"{subject.name} int8"]
        subject.row |= {
            "device": place.type,
            "hardware": hardware(place),
            "threads": threads,
            "batch_size": timing.batch_size,
            "latency_p50_ms": 1e3 * after.median,
            "latency_p50_ms_fp32": 1e3 * before.median,
            "spread": after.spread,
            "spread_fp32": before.spread,
            "busy": after.busy or before.busy,
            "reference_ms": 1e3 * measured.reference,
            "repeats": timing.repeats,
            "onnxruntime_version": runtime_version(),
            "created_at": datetime.now(UTC),
        }
