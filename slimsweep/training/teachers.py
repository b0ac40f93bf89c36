"""Models that search and retraining learn from: built and checked as the configuration names them, each with its own view."""

import functools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slimsweep.config import Config, ConfigError, ModelConfig, Refusals, Stage, TeacherModel
from slimsweep.data import Data
from slimsweep.saved_models import load
from slimsweep.slimming.structure import image_size, macs
from slimsweep.training.backbone import shape_of_answer
from slimsweep.training.checkpoint_file import names_in_order
from slimsweep.training.dense_model import build_dense, check_finite, check_model, check_values, order_of_rows, start_of

LUMA = (0.299, 0.587, 0.114)  # of red, green and blue in grey: ITU-R BT.601, as Pillow's convert("L")
USUAL = 0.5  # mean and std where nothing is said, as for the dense model


class TeacherView(nn.Module):
    """A teacher that takes the student's images: at its own size, with its own channels, mean and std.

    Args:
        model: of timm.
        seen: how the student's images were prepared (`Data.preprocessing`): input_size, mean, std.
        normalized: whether the data were normalised by other means than mean and std (data.normalized): then pixels are not
            known, and the teacher takes the values as they are.
        rows: for each of the data's classes, the row of the teacher's head; None where the order is the same.
    """

    def __init__(
        self, model: nn.Module, seen: Mapping[str, Any], *, normalized: bool = False, rows: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        self.model = model
        self.rows: Tensor | None
        self.register_buffer("rows", None if rows is None else torch.tensor(rows), persistent=False)
        self.channels, *self.size = image_size(model)
        self.same = normalized
        mean, std = own_statistics(model)
        for name, values in (("mean", seen["mean"]), ("std", seen["std"]), ("own_mean", mean), ("own_std", std)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32).view(-1, 1, 1), persistent=False)

    def view(self, images: Tensor) -> Tensor:
        """The student's images (B, C, H, W) as the teacher takes them."""
        if not self.same:
            images = images * self.get_buffer("std") + self.get_buffer("mean")
        if images.shape[1] == 1 and self.channels == 3:
            images = images.expand(-1, 3, -1, -1)
        elif images.shape[1] == 3 and self.channels == 1:
            images = (images * images.new_tensor(LUMA).view(-1, 1, 1)).sum(1, keepdim=True)
        if list(images.shape[2:]) != self.size:
            images = F.interpolate(images, self.size, mode="bilinear", antialias=True)
        return images if self.same else (images - self.get_buffer("own_mean")) / self.get_buffer("own_std")

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, classes), in the order of the data's classes."""
        logits: Tensor = self.model(self.view(images))
        return logits if self.rows is None else logits.index_select(1, self.rows)

    def features(self, images: Tensor) -> Tensor:
        """Features before the head, (B, dims)."""
        return features_of(self.model, self.view(images))


class Teachers(nn.Module):
    """Several teachers in one, whose probabilities are averaged by weight.

    Args:
        members: each takes the student's images and gives logits (B, classes).
        weights: one per member, above 0; they are divided by their sum.
    """

    def __init__(self, members: Sequence[nn.Module], weights: Sequence[float]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.shares = [weight / sum(weights) for weight in weights]

    @property
    def weighted(self) -> list[tuple[float, nn.Module]]:
        """(share, member), the shares adding up to 1."""
        return list(zip(self.shares, self.members, strict=True))

    def log_probabilities(self, images: Tensor, temperature: float) -> Tensor:
        """The logarithm of the average of the members' probabilities at a temperature, (B, classes)."""
        parts = [
            F.log_softmax(member(images).float() / temperature, dim=1) + math.log(share) for share, member in self.weighted
        ]
        return torch.stack(parts).logsumexp(0)


def features_of(model: nn.Module, images: Tensor) -> Tensor:
    """The features of a model of timm before its head, (B, dims): of the class token, or pooled, as timm gives them."""
    if isinstance(model, TeacherView):
        return model.features(images)
    timms: Any = model
    features: Tensor = timms.forward_head(timms.forward_features(images), pre_logits=True)
    return features


def own_statistics(model: nn.Module) -> tuple[list[float], list[float]]:
    """(mean, std) per channel of the images that a model was trained on, of values from 0 to 1.

    Where its weights were made for three channels and it takes one, as timm sums their filters, both are averaged.
    """
    usual, channels = getattr(model, "pretrained_cfg", None) or {}, image_size(model)[0]
    found = []
    for name in ("mean", "std"):
        values = [float(value) for value in usual.get(name) or ()]
        if values and len(values) != channels:
            values = [sum(values) / len(values)] * channels
        found.append(values or [USUAL] * channels)
    return found[0], found[1]


# From the configuration.


def teacher_model(config: Config, stage: Stage, dense: nn.Module, data: Data) -> nn.Module | None:
    """The model that teaches a stage: the dense model, or what `config.teacher` names, with weights, on the CPU.

    None where the stage learns from labels alone. Where it learns from features, the teachers' heads do not count.

    Raises:
        ConfigError: as `check_teachers`; weights that cannot be read or downloaded.
    """
    if not config.distills(stage).alpha:
        return None
    if not config.teachers:
        return dense
    members = []
    classes = classes_asked(config, [stage], data.num_classes)
    for one in config.teachers:
        if one.name is None:
            model = _loaded(one)
            rows = _of_folder(one, model, classes, data.class_names)[0] if classes else None
        else:
            _check_classes(config, one, classes, data.class_names)  # no fresh head in place of one for other classes
            with _said_of_teacher():
                model, rows = build_dense(_as_dense(config, one), classes, data.class_names), None
        members.append(_view(model, data, rows))
    return _together(config, members)


def _together(config: Config, members: Sequence[nn.Module]) -> nn.Module:
    return members[0] if len(members) == 1 else Teachers(members, [one.weight for one in config.teachers])


def _view(model: nn.Module, data: Data, rows: Sequence[int] | None = None) -> TeacherView:
    return TeacherView(model, data.preprocessing, normalized=data.settings.normalized, rows=rows)


def taught_stages(config: Config) -> list[Stage]:
    """The stages that learn from a teacher."""
    return [stage for stage in ("search", "retrain") if config.distills(stage).alpha]


def classes_asked(config: Config, stages: Sequence[Stage], num_classes: int) -> int:
    """The classes that teachers of some stages must have a head for: the data's; 0 where all stages learn from features."""
    return 0 if {config.distills(stage).answers for stage in stages} == {"features"} else num_classes


def check_teachers(config: Config, dense: nn.Module | None, data: Data | None) -> list[str]:
    """Refuse teachers that cannot teach: other classes, channels or features.

    Files and folders are read whole, as each worker will read them.

    Args:
        dense: the dense model, whose images the teachers are shown; it may be on the meta device. None where it was refused:
            what depends on it is then not checked.
        data: the data set; None where it was refused.

    Returns:
        What whoever starts the run should read: what is done to a teacher's weights.

    Raises:
        ConfigError: says in one sentence which setting is wrong, and what to do; of several teachers in a numbered line each.
    """
    notes: list[str] = []
    refusals = Refusals()
    of_features = [stage for stage in taught_stages(config) if config.distills(stage).answers == "features"]
    for one in config.teachers:
        with refusals.kept():
            notes += _check_teacher(config, one, dense, data)
    if dense is not None and of_features and not config.teachers and not config.backbone:  # else `check_embedding` looks
        with refusals.kept():
            feature_dims(dense, f"model {config.model.name}")
    if "retrain" in of_features and "small" in config.baselines:
        with refusals.kept():
            raise ConfigError(
                "retrain.distill.answers is 'features', but the models of the baseline small have other dims than the teacher: "
                "take soft or hard, or leave small out of baselines"
            )
    refusals.raise_all()
    return list(dict.fromkeys(notes))


def _check_teacher(config: Config, one: TeacherModel, dense: nn.Module | None, data: Data | None) -> list[str]:
    """Check one teacher, as `check_teachers` does."""
    notes: list[str] = []
    classes = 0 if config.backbone else None
    if data is not None:
        classes = classes_asked(config, taught_stages(config), data.num_classes)
        notes = _check_classes(config, one, classes, data.class_names)
    elif one.name is not None:
        with _said_of_teacher():
            check_model(_as_dense(config, one))
    model = weightless(config, one, classes)
    if one.name is None:  # weights that cannot teach are refused here, not by a worker after hours of training
        _loaded(one)
    else:
        with _said_of_teacher():
            check_values(_as_dense(config, one), classes)
    if dense is not None:
        check_answers(config, one, model, dense)
    return notes


def check_answers(config: Config, one: TeacherModel, model: nn.Module, dense: nn.Module) -> None:
    """Refuse a teacher that takes images of other channels than the dense model, or answers with what cannot be compared.

    Args:
        one: how the teacher is named.
        model: the teacher; only its sizes are used.

    Raises:
        ConfigError: says what it takes or gives, and what to do.
    """
    _check_channels(model, one, image_size(dense)[0])
    for stage in taught_stages(config):
        if config.distills(stage).answers == "features":
            of_dense = feature_dims(dense, f"model {config.model.name}")
            of_teacher = feature_dims(model, f"teacher {one.label}", other_way_out(config))
            check_dims(of_dense, of_teacher, one, "" if config.backbone else f"{stage}.distill.answers is 'features', but ")
        elif isinstance(shape := shape_of_answer(model), str) or len(shape) != 1:
            raise ConfigError(
                f"teacher {one.label} answers an image with values of shape {shape}, not with one per class: leave "
                "arguments such as global_pool out of teacher.kwargs, or give another teacher"
            )


def _check_channels(model: nn.Module, one: TeacherModel, seen: int) -> None:
    channels = image_size(model)[0]
    if channels != seen and {channels, seen} != {1, 3}:
        raise ConfigError(
            f"teacher {one.label} takes images of {channels} channels and the model those of {seen}, and only 1 and 3 are "
            "converted: give another teacher, or teacher.kwargs in_chans"
        )


OTHER_ANSWERS = "take soft or hard answers"


def other_way_out(config: Config) -> str:
    """What to do where a teacher's features will not do: a model without a head learns from nothing else."""
    return "give another teacher" if config.backbone else OTHER_ANSWERS


def feature_dims(model: nn.Module, said: str, way_out: str = OTHER_ANSWERS) -> int:
    """The number of features of a model before its head, found without its weights.

    Args:
        said: what a message calls it.
        way_out: what a message says to do.

    Raises:
        ConfigError: its features are not one vector per image.
    """
    image = torch.zeros(2, *image_size(model), device=next(model.parameters()).device)
    try:
        with torch.no_grad():
            features = features_of(model.eval(), image)
    except (AttributeError, TypeError) as problem:  # of timm's few models without this method or argument
        raise ConfigError(f"{said} does not give its features before the head ({problem}): {way_out}") from problem
    if features.ndim != 2:
        raise ConfigError(f"{said} gives features of shape {tuple(features.shape[1:])} per image, not one vector: {way_out}")
    return features.shape[1]


def check_dims(student: int, teacher: int, one: TeacherModel | None = None, asked: str = "") -> None:
    """Refuse features of different numbers of dims.

    Args:
        asked: how the sentence begins where features are one of several kinds of answers; empty for a model without a head.

    Raises:
        ConfigError: names both.
    """
    if student != teacher:
        who = "the teacher" if one is None else f"teacher {one.label}"
        raise ConfigError(
            f"{asked}{who} has features of {teacher} dims and the model of {student}: take a teacher of the same width"
            f"{', or soft or hard answers' if asked else ''}"
        )


def weightless(config: Config, one: TeacherModel, num_classes: int | None = None) -> nn.Module:
    """A teacher on the meta device: its sizes alone.

    Args:
        num_classes: of the head; None takes data.num_classes, or 10. A folder has its own.

    Raises:
        ConfigError: no such model or file; arguments that it does not take.
    """
    if one.name is None:
        folder = _folder(one)
        try:
            return timm.create_model(f"local-dir:{folder}", pretrained=False).to("meta")  # a cut reads its masks' values
        except Exception as problem:  # timm and torch raise whatever they like on what is no such folder
            said = str(problem).strip().splitlines()[0] if str(problem).strip() else type(problem).__name__
            raise ConfigError(
                f"teacher.checkpoint is {one.checkpoint!r}, whose config.json describes no model of timm ({said}): give a "
                "folder that slimsweep or timm saved, or teacher.name too"
            ) from problem
    bare = ModelConfig(name=one.name, kwargs=dict(one.kwargs))
    with _said_of_teacher():
        return check_model(_as_dense(config, one).model_copy(update={"model": bare}), num_classes)


def teacher_alike(config: Config, stage: Stage, dense: nn.Module, num_classes: int) -> nn.Module | None:
    """A model that costs what a stage's teacher does, with fresh weights: no file of weights is read or downloaded.

    Args:
        dense: the dense model, which teaches where `config.teacher` is null.
        num_classes: of the data.

    Returns:
        It, on the CPU; None where the stage has no teacher.

    Raises:
        ConfigError: no such model or folder.
    """
    if not config.distills(stage).alpha:
        return None
    if not config.teachers:
        return dense
    seen = {"input_size": image_size(dense)} | dict(zip(("mean", "std"), own_statistics(dense), strict=True))
    models = [weightless(config, one, num_classes) for one in config.teachers]
    for one, model in zip(config.teachers, models, strict=True):
        _check_channels(model, one, image_size(dense)[0])
        if one.name is None and num_classes:
            _of_folder(one, model, num_classes, None)
        model.to_empty(device="cpu")
        with torch.no_grad():
            for tensor in (*model.parameters(), *model.buffers()):  # memory as it comes may hold indices out of range
                tensor.zero_()
    return _together(config, [TeacherView(model, seen) for model in models])


def forward_macs(model: nn.Module) -> int:
    """MACs of a teacher's forward pass for one image of the student."""
    if isinstance(model, Teachers):
        return sum(forward_macs(member) for _, member in model.weighted)
    return macs(model.model if isinstance(model, TeacherView) else model)


def teacher_macs(config: Config, stage: Stage, dense_macs: int) -> int:
    """MACs of the teacher's forward pass for one image of a stage; 0 where it counts as no compute (`Config.teaches_anew`).

    Args:
        dense_macs: of the dense model, which teaches where `config.teacher` is null.
    """
    if not config.teaches_anew(stage):
        return 0
    if not config.teachers:
        return dense_macs
    return _teachers_macs(json.dumps([one.model_dump(mode="json") for one in config.teachers]), config.data.num_classes)


@functools.lru_cache(maxsize=16)
def _teachers_macs(teachers: str, num_classes: int | None) -> int:
    members = [TeacherModel(**one) for one in json.loads(teachers)]
    plain = Config()
    plain = plain.model_copy(update={"data": plain.data.model_copy(update={"num_classes": num_classes})})
    return sum(macs(weightless(plain, one)) for one in members)


# A teacher is built and checked as the dense model is.


def _as_dense(config: Config, one: TeacherModel) -> Config:
    """A configuration whose dense model is the teacher, at its own image size."""
    assert one.name is not None
    model = ModelConfig(name=one.name, pretrained=one.pretrained, checkpoint=one.checkpoint, kwargs=dict(one.kwargs))
    return config.model_copy(update={"model": model, "data": config.data.model_copy(update={"image_size": None})})


@contextmanager
def _said_of_teacher() -> Iterator[None]:
    """What the block refuses of a dense model is said of a teacher."""
    try:
        yield
    except ConfigError as problem:
        said = re.sub(r"\bmodel\.(name|pretrained|checkpoint|kwargs)\b", r"teacher.\1", str(problem))
        way_out = "give the dense model of its run"
        raise ConfigError(said.replace(way_out, "leave teacher.name out")) from problem


def _check_classes(config: Config, one: TeacherModel, classes: int, class_names: Sequence[str] | None) -> list[str]:
    """Refuse a teacher whose head is not for the data's classes; where `classes` is 0, heads do not count.

    Returns:
        What is done to its weights.
    """
    if one.name is None:
        model = weightless(config, one)
        return _of_folder(one, model, classes, class_names)[1] if classes else []
    with _said_of_teacher():
        check_model(_as_dense(config, one), classes)
        start = start_of(_as_dense(config, one), classes, class_names)
    if start.new_head:
        raise _other_classes(one, start.new_head, classes)
    return [re.sub(r"\bmodel\.checkpoint\b", "teacher.checkpoint", note) for note in start.notes]


def _other_classes(one: TeacherModel, reason: str, num_classes: int) -> ConfigError:
    """The refusal of a teacher for other classes than the data's.

    Args:
        reason: how the sentence goes on after "its weights".
    """
    return ConfigError(
        f"teacher is {one.label}, but its weights {reason} of the data, so it cannot teach them: fine-tune it on these "
        f"{num_classes} classes and give the result as teacher.checkpoint, or learn from its features alone "
        "(distill.answers: features)"
    )


def _folder(one: TeacherModel) -> Path:
    folder = Path(str(one.checkpoint)).expanduser()
    if not (folder / "config.json").is_file():
        if not folder.exists():
            raise ConfigError(f"teacher.checkpoint is {one.checkpoint!r}, and there is nothing there: fix the path")
        way_out = "give teacher.name too" if folder.is_file() else "fix the path"
        raise ConfigError(
            f"teacher.checkpoint is {one.checkpoint!r}, which is not a folder that slimsweep or timm saved, so its model is "
            f"not known: {way_out}"
        )
    return folder


def _loaded(one: TeacherModel) -> nn.Module:
    folder = _folder(one)
    try:
        model = load(folder).float()  # its weights may be stored in half precision
    except ValueError as problem:
        raise ConfigError(f"teacher.checkpoint: {problem}") from problem
    check_finite(model.state_dict(), folder, "teacher.checkpoint")
    return model


def _of_folder(
    one: TeacherModel, model: nn.Module, num_classes: int, class_names: Sequence[str] | None
) -> tuple[list[int] | None, list[str]]:
    """(rows of the head in the order of the data's classes, None where it is the same; notes) of a saved folder.

    Raises:
        ConfigError: it has other classes.
    """
    classes = int(getattr(model, "num_classes", 0))
    if classes != num_classes:
        raise _other_classes(one, f"are for {classes} classes, not for the {num_classes}", num_classes)
    described = json.loads((_folder(one) / "config.json").read_bytes())
    usual = described.get("pretrained_cfg") or {}
    names = names_in_order(described.get("label_names") or usual.get("label_names"))
    start = order_of_rows(names, class_names, classes, f"teacher.checkpoint {one.checkpoint}")
    if start.new_head:
        raise _other_classes(one, start.new_head, num_classes)
    return start.rows, list(start.notes)
