"""INT8 versions of a run's models: made, judged and timed beside float32.

Each model is calibrated on training images, judged on validation, and timed on this machine in interleaved rounds with its
float32 ONNX file. The test split is read once, at the end, for all models of a call; nothing is chosen by it.
"""

import dataclasses
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
from torch import nn

from slimsweep.cluster.worker import data_of
from slimsweep.config import Config, ConfigError
from slimsweep.data import Data, check_classes, load_data
from slimsweep.errors import RefusedInput
from slimsweep.latency.int8_files import (
    CALIBRATIONS,
    copy_whole,
    matching_layers,
    products_overflow,
    refuse_missing_packages,
)
from slimsweep.ledger.files import DENSE, MODEL_CONFIG, MODEL_WEIGHTS
from slimsweep.ledger.measures import Measure
from slimsweep.ledger.run import Run
from slimsweep.ledger.tables import QUANTIZED
from slimsweep.saved_models import load
from slimsweep.slimming.structure import image_size
from slimsweep.storage import Folder, parted
from slimsweep.tools.quantize_work import IMAGES, Judge, Progress, Row, Settings, Subject, Timing, quantize_all


@dataclass
class Quantized:
    """What `quantize_run` and `quantize_dir` made: rows of `tables.QUANTIZED`, and sentences to say about them."""

    rows: list[Row]
    said: list[str] = field(default_factory=list)  # what was taken over, what could not be quantized
    warnings: list[str] = field(default_factory=list)  # models that lose more than a point, and what to do


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
    judge = Judge(data, None if dense.num_classes else dense)
    target = None if output is None else Path(output).expanduser()
    rows = run.products.quantized()
    known = {row["point"]: _plain_row(row) for row in rows.to_dict("records")}

    def file_of(name: str) -> str:
        path = run.products.int8_path(name)
        return path if target is None else str((target / Path(path).name).resolve())

    def keep(subject: Subject) -> None:
        """Put a new file in its place, and then its row."""
        file = subject.row["file"]
        if subject.made and target is None:
            run.folder.write_bytes(file, subject.int8.read_bytes())
        elif subject.made:
            Path(file).parent.mkdir(parents=True, exist_ok=True)
            copy_whole(subject.int8, Path(file))
        run.products.write_quantized(subject.row)

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
        warnings = quantize_all(subjects, judge, settings, timing, rows, keep, progress, f"slimsweep quantize {run.uri}")
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
        judge = Judge(images, None if subject.model.num_classes else subject.model)
        _refuse_unknown_layers([subject], settings)

        def keep(subject: Subject) -> None:
            target.parent.mkdir(parents=True, exist_ok=True)
            copy_whole(subject.int8, target)

        command = f"slimsweep quantize {path} --data {data}"
        warnings = quantize_all([subject], judge, settings, timing, pd.DataFrame(), keep, progress, command)
    return Quantized([subject.row], [], warnings)


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
    return dataclasses.replace(settings, weight_bits=bits), timing


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


def _subject(name: str, folder: Folder, temporary: Path, *, test_fp32: float) -> Subject:
    model = load(folder)
    own = temporary / f"{len(list(temporary.iterdir()))}"
    own.mkdir()
    description = folder.read_json(MODEL_CONFIG)
    description.get("model_args", {}).pop("structure", None)  # long, and of no use in an ONNX file
    return Subject(
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


def _taken_over(old: Row, subject: Subject, settings: Settings, folder: Folder) -> bytes | None:
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


def _refuse_unknown_layers(subjects: Sequence[Subject], settings: Settings) -> None:
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
        # The configuration stands for its data alone; without labels it has to name a model with weights.
        data = load_data(
            Config(data=settings, model={"pretrained": not labels}), image_size(model), getattr(model, "pretrained_cfg", None)
        )
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
