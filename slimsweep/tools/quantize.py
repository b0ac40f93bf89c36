"""INT8 versions of a run's models: made, judged and timed beside float32.

Each model is calibrated on training images, judged on validation, and timed on this machine in interleaved rounds with its
float32 ONNX file. The test split is read once, at the end, for all models of a call; nothing is chosen by it.
"""

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import pyarrow as pa
import torch
from rich.table import Table
from torch import nn

import slimsweep
from slimsweep.cluster.worker import data_of
from slimsweep.config import Config, ConfigError
from slimsweep.data import Data, check_classes, eval_loader, load_data, training_images
from slimsweep.errors import RefusedInput
from slimsweep.latency.device import hardware, torch_threads
from slimsweep.latency.device import reference as device_reference
from slimsweep.latency.int8_files import (
    CALIBRATIONS,
    Calibration,
    Prepared,
    SessionModel,
    calibrate,
    copy_whole,
    layer_losses,
    matching_layers,
    prepare,
    products_overflow,
    refuse_missing_packages,
    write_int8,
)
from slimsweep.latency.onnx_files import session, session_call
from slimsweep.latency.quiet_timing import time_rounds
from slimsweep.ledger.measures import R2, TOP1, Measure
from slimsweep.ledger.run import DENSE, MODEL_CONFIG, MODEL_WEIGHTS, MODELS, Run
from slimsweep.ledger.tables import QUANTIZED
from slimsweep.saved_models import load
from slimsweep.slimming.structure import image_size
from slimsweep.storage import Folder, parted
from slimsweep.terminal import counted
from slimsweep.training.evaluate import Reference, evaluate_split

IMAGES = 512  # of calibration
CALIBRATION_BATCH = 32  # images whose activations are in memory at once
LOOKED_AT = 256  # validation images on which layers are compared
NAMED = 3  # layers that a sentence names

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


@dataclass
class Quantized:
    """What `quantize_run` and `quantize_dir` made: rows of `tables.QUANTIZED`, and sentences to say about them."""

    rows: list[Row]
    said: list[str] = field(default_factory=list)  # what was taken over, what could not be quantized
    warnings: list[str] = field(default_factory=list)  # models that lose more than a point, and what to do


@dataclass(kw_only=True)
class _Subject:
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


class _Judge:
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


def quantize_run(
    run: Run,
    points: Sequence[str] | None = None,
    *,
    settings: Settings | None = None,
    timing: Timing | None = None,
    output: str | os.PathLike[str] | None = None,
    again: bool = False,
    progress: Progress = lambda what: None,
) -> Quantized:
    """Quantize models of a run; files go to its exports/, and a row per model to the run.

    A model that has an INT8 file of the same settings and weights is taken over, and timed again only where its times are of
    another setting or machine, or are not to be trusted.

    Args:
        points: names of points, or "dense"; all points that are done, and dense, where not given.
        output: a folder for the files instead.
        again: quantize all of them anew.
        progress: called with one line of text at each step.

    Raises:
        RefusedInput: a ValueError: no such point, a setting out of range, a layer that no model has, missing packages; the
            run's data cannot be read, or is another than the run's.
        ExportError: a model cannot be exported.
    """
    settings, timing = _checked(settings or Settings(), timing or Timing())
    run.refuse_other_folders()
    if not run.dense_done:
        raise RefusedInput(f"{run.uri} has no dense model yet: give a run whose dense stage has ended")
    names, said = _names(run, points)
    dense = load(run.dense)
    data = data_of(run, dense)
    judge = _Judge(data, None if dense.num_classes else dense)
    target = None if output is None else Path(output).expanduser()
    rows = run.quantized()
    known = {row["point"]: _plain_row(row) for row in rows.to_dict("records")}

    def file_of(name: str) -> str:
        return run.int8_path(name) if target is None else str((target / Path(run.int8_path(name)).name).resolve())

    def keep(subject: _Subject) -> None:
        """Put a new file in its place, and then its row."""
        file = subject.row["file"]
        if subject.made and target is None:
            run.folder.write_bytes(file, subject.int8.read_bytes())
        elif subject.made:
            Path(file).parent.mkdir(parents=True, exist_ok=True)
            copy_whole(subject.int8, Path(file))
        run.write_quantized(subject.row)

    with tempfile.TemporaryDirectory(prefix="slimsweep-int8-") as temporary:
        subjects = []
        for name in names:
            folder = run.dense if name == DENSE else run.models / name
            try:
                subject = _subject(name, folder, Path(temporary), test_fp32=_test_fp32(run, name, judge.measure))
            except RefusedInput as problem:
                if points:
                    raise
                said.append(f"{name} is not quantized: {problem}")
                continue
            subject.row = {"run": run.folder.name, "point": name, "file": file_of(name)}
            old = known.get(name)
            if old is not None and not again and (whole := _taken_over(old, subject, settings, run.folder)) is not None:
                subject.int8.write_bytes(whole)
                subject.row = old
                said.append(f"{name} has an INT8 file of these settings, which is taken over; --again makes it anew")
            subjects.append(subject)
        _refuse_unknown_layers([s for s in subjects if not s.row.get("weights")], settings)
        warnings = _work(subjects, judge, settings, timing, rows, keep, progress, f"slimsweep quantize {run.uri}")
    return Quantized([subject.row for subject in subjects], said, warnings)


def quantize_dir(
    path: str | os.PathLike[str],
    data: str | None = None,
    *,
    settings: Settings | None = None,
    timing: Timing | None = None,
    output: str | os.PathLike[str] | None = None,
    progress: Progress = lambda what: None,
) -> Quantized:
    """Quantize one saved model, with the images of a folder.

    Args:
        path: the model's folder.
        data: a folder of images as `data.root` takes it (docs/data.md); of models with a head, with one subfolder per class.
        output: the file, or a folder for it; model-int8.onnx in the model's folder where not given.

    Raises:
        RefusedInput: a ValueError: no data, or classes that are not the model's; otherwise as `quantize_run`.
        ExportError: the model cannot be exported.
    """
    settings, timing = _checked(settings or Settings(), timing or Timing())
    folder = Folder(str(path))
    if data is None:
        load(folder)  # where it is no model, that is what to say
        raise RefusedInput(
            f"{folder.uri} is a model of no run, and INT8 needs images to calibrate and to judge with: give a folder of "
            "images, as in --data /data/my-images"
        )
    target = Path(output).expanduser() if output is not None else None if "://" in str(path) else Path(path)
    if target is None:
        target = Path(f"{parted(str(path))[1]}-int8.onnx")
    elif target.is_dir():
        target /= "model-int8.onnx"

    with tempfile.TemporaryDirectory(prefix="slimsweep-int8-") as temporary:
        subject = _subject(folder.name, folder, Path(temporary), test_fp32=math.nan)
        subject.row = {"run": "", "point": subject.name, "file": str(target)}
        images = _images_of(data, subject.model, json.loads(subject.description))
        judge = _Judge(images, None if subject.model.num_classes else subject.model)
        _refuse_unknown_layers([subject], settings)

        def keep(subject: _Subject) -> None:
            target.parent.mkdir(parents=True, exist_ok=True)
            copy_whole(subject.int8, target)

        command = f"slimsweep quantize {path} --data {data}"
        warnings = _work([subject], judge, settings, timing, pd.DataFrame(), keep, progress, command)
    return Quantized([subject.row], [], warnings)


def run_of_model(path: str) -> tuple[Run, str] | None:
    """The run that a model's folder is of, and the model's name in it; None where it is of no run."""
    parent, name = parted(path.rstrip("/"))
    if name == DENSE:
        run = Run(parent or ".")
    elif parted(parent)[1] == MODELS:
        run = Run(parted(parent)[0] or ".")
    else:
        return None
    return (run, name) if run.is_begun else None


# What is quantized, and with what.


def _checked(settings: Settings, timing: Timing) -> tuple[Settings, Timing]:
    """The settings, with the number of bits that suits this processor where none was asked for."""
    if settings.images < 1:
        raise RefusedInput(f"--images is {settings.images}: give at least 1 image to calibrate with, such as {IMAGES}")
    if settings.calibration not in CALIBRATIONS:
        raise RefusedInput(f"--calibration is {settings.calibration!r}; it can be {', '.join(CALIBRATIONS)}")
    if settings.weight_bits not in (None, 7, 8):
        raise RefusedInput(f"--weight-bits is {settings.weight_bits}; it can be 8, or 7 for processors without VNNI")
    if timing.batch_size < 1:
        raise RefusedInput(f"--batch-size is {timing.batch_size}; it must be at least 1")
    if timing.threads is not None and timing.threads < 1:
        raise RefusedInput(f"--threads is {timing.threads}; it must be at least 1")
    if timing.repeats < 1:
        raise RefusedInput(f"--repeats is {timing.repeats}; it must be at least 1")
    refuse_missing_packages()
    bits = settings.weight_bits or (7 if products_overflow() else 8)
    return Settings(**{**settings.__dict__, "weight_bits": bits}), timing


def _names(run: Run, points: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """The names of the models to quantize, and sentences on what is left out."""
    done = run.rows.point[run.rows.status == "ok"].tolist()
    there = set(run.models.list())
    if points:
        for point in points:
            if point != DENSE and point not in there:
                raise RefusedInput(f"--points: {run.uri} has no model {point!r}; it has {', '.join([DENSE, *sorted(there)])}")
        return list(dict.fromkeys(points)), []
    gone = [point for point in done if point not in there]
    said = [f"{point} is not quantized: its model is gone from {run.models.uri}" for point in gone]
    return [DENSE, *(point for point in done if point in there)], said


def _subject(name: str, folder: Folder, temporary: Path, *, test_fp32: float) -> _Subject:
    model = load(folder)
    own = temporary / f"{len(list(temporary.iterdir()))}"
    own.mkdir()
    description = folder.read_json(MODEL_CONFIG)
    description.get("model_args", {}).pop("structure", None)  # long, and of no use in an ONNX file
    return _Subject(
        name=name,
        model=model,
        weights=hashlib.sha256(folder.read_bytes(MODEL_WEIGHTS)).hexdigest()[:16],
        description=json.dumps(description),
        test_fp32=test_fp32,
        folder=own,
    )


def _test_fp32(run: Run, name: str, measure: Measure) -> float:
    """What the float32 model has on test, as the run knows it; nan where it does not."""
    if name != DENSE:
        found = run.rows[run.rows.point == name]
        return float(found[measure.test].iloc[0]) if len(found) else math.nan
    if measure.untouched is not None:
        return measure.untouched
    return float(run.dense_description["metrics"].get(measure.test, math.nan))


def _taken_over(old: Row, subject: _Subject, settings: Settings, folder: Folder) -> bytes | None:
    """The INT8 file of an earlier call, where it is of these settings and weights; None otherwise."""
    wanted = {**settings.columns(), "weights": subject.weights, "file": subject.row["file"]}
    if any(old.get(column) != value for column, value in wanted.items()):
        return None
    try:
        if Path(wanted["file"]).is_absolute():
            return Path(wanted["file"]).read_bytes()
        return folder.read_bytes(wanted["file"])
    except FileNotFoundError:
        return None


def _plain_row(row: Mapping[Hashable, Any]) -> Row:
    """A row of a table as Python's own values: pandas has nan where there is none, and beside it whole numbers as floats."""
    plain: Row = {}
    for name, value in row.items():
        column = str(name)
        if value is None or pd.isna(value):
            plain[column] = None
        else:
            plain[column] = int(value) if pa.types.is_integer(QUANTIZED.field(column).type) else value
    return plain


def _refuse_unknown_layers(subjects: Sequence[_Subject], settings: Settings) -> None:
    """Refuse names of layers that no model has, before any model is exported."""
    if not subjects or not settings.keep_fp32:
        return
    layers = [n for one in subjects for n, m in one.model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    for name, found in matching_layers(layers, settings.keep_fp32).items():
        if not found:
            shown = ", ".join(layers[1:5])
            raise RefusedInput(
                f"--keep-fp32 is {name!r}, and these models have no layer of that name: give names such as {shown}, or of a "
                "whole block, such as blocks.0"
            )


def _images_of(root: str, model: nn.Module, described: Row) -> Data:
    """The splits of a folder of images, for a model that is of no run.

    Raises:
        ConfigError: they cannot be read, or do not fit the model.
    """
    classes = int(getattr(model, "num_classes", 0))
    labels = classes > 0
    settings: Row = {"name": "folder", "root": root, "batch_size": 1, "eval_batch_size": 64}
    if not labels:
        settings["num_classes"] = 0
    try:
        data = load_data(Config(data=settings), image_size(model), getattr(model, "pretrained_cfg", None))
    except ConfigError as problem:
        raise ConfigError(f"--data {root}: {problem}") from problem
    if not labels:
        return data
    check_classes(data)
    if data.num_classes != classes:
        raise ConfigError(f"--data {root} has {data.num_classes} classes, and the model tells {classes} apart: give "
                          "images of the model's own classes")  # fmt: skip
    own = [str(name) for name in described.get("label_names") or []]
    if own and data.class_names and own != data.class_names:
        place = next(i for i, (a, b) in enumerate(zip(own, data.class_names, strict=True)) if a != b)
        raise ConfigError(
            f"--data {root} has {data.class_names[place]!r} as class {place}, which is {own[place]!r} for the model: give "
            "images of the model's own classes, in subfolders of the same names"
        )
    return data


# The work.


def _work(
    subjects: Sequence[_Subject],
    judge: _Judge,
    settings: Settings,
    timing: Timing,
    earlier: pd.DataFrame,
    keep: Callable[[_Subject], None],
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


def _make(
    subject: _Subject, images: torch.Tensor, judge: _Judge, settings: Settings, timing: Timing, progress: Progress
) -> None:
    """Quantize one model and judge it on validation; fills its row."""
    prepared = prepare(subject.model, subject.folder, {"config.json": subject.description})
    kept = {layer for found in matching_layers(prepared.layers, settings.keep_fp32).values() for layer in found}
    layers = [layer for layer in prepared.layers if layer not in kept]
    assert settings.weight_bits is not None
    how: dict[str, Any] = {"method": settings.calibration, "weight_bits": settings.weight_bits}
    used = calibrate(prepared, images.split(CALIBRATION_BATCH), settings.calibration)
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
        "onnxruntime_version": version("onnxruntime"),
        "onnx_version": version("onnx"),
        "torch_version": torch.__version__,
        "slimsweep_version": slimsweep.__version__,
        "created_at": datetime.now(UTC),
    }
    subject.made = True
    if _loses(subject.row, judge.measure):
        subject.row["worst_layers"] = json.dumps(_worst(prepared, layers, judge, how, timing, subject.name, progress))
    for file in subject.folder.iterdir():  # those that nothing needs any more
        if file not in (subject.int8, subject.plain):
            file.unlink()


def _worst(
    prepared: Prepared, layers: Sequence[str], judge: _Judge, how: Row, timing: Timing, name: str, progress: Progress
) -> dict[str, float]:
    """What each layer does to the output when it alone is quantized, on the first validation images; the worst first."""
    batches: list[torch.Tensor] = []
    for batch, _ in eval_loader(judge.data.val, judge.data.settings):
        room = LOOKED_AT - sum(map(len, batches))
        batches += list(batch[:room].split(CALIBRATION_BATCH))
        if room <= len(batch):
            break
    places = {layer: f"{place} of {len(layers)}" for place, layer in enumerate(layers, 1)}
    return layer_losses(
        prepared,
        batches,
        **how,
        layers=layers,
        threads=timing.threads,
        progress=lambda layer: progress(f"{name}: INT8 of {layer} alone ({places[layer]})"),
    )


def _loses(row: Row, measure: Measure) -> bool:
    """Whether INT8 loses more than a point on validation, or has no accuracy at all."""
    lost = row[f"{measure.val}_fp32"] - row[measure.val]
    return not lost <= measure.point


def _is_timed(row: Row, timing: Timing) -> bool:
    """Whether a row's times are of this setting and machine, and to be trusted."""
    if row.get("latency_p50_ms") is None or row.get("busy"):
        return False
    with torch_threads(timing.threads) as threads:
        asked = {"threads": threads, "batch_size": timing.batch_size, "hardware": hardware(torch.device("cpu"))}
    return all(row.get(name) == value for name, value in asked.items())


def _time(subjects: Sequence[_Subject], timing: Timing, earlier: pd.DataFrame, progress: Progress) -> None:
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
            known=_known_reference(earlier, threads),
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
        }


def _known_reference(rows: pd.DataFrame, threads: int) -> float | None:
    """The fastest seconds of the reference in earlier rows of this processor that can be trusted."""
    if rows.empty:
        return None
    own = rows[(rows.hardware == hardware(torch.device("cpu"))) & (rows.threads == threads) & (rows.busy == "")]
    known = own.reference_ms[own.torch_version == torch.__version__].dropna()
    return None if known.empty else float(known.min()) / 1e3


# What is said.


def measure_of_row(row: Row) -> Measure:
    """What a row's model is judged by."""
    return R2 if row.get(R2.val) is not None else TOP1


def warning(row: Row, measure: Measure, command: str) -> str:
    """One sentence where INT8 loses more than a point on validation: the worst layers, and how they stay float32.

    Args:
        command: that quantized the model, without --points and --keep-fp32.
    """
    if not _loses(row, measure):
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
