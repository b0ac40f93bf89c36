"""Backbones, models without a head (num_classes 0) that are slimmed without labels: how one is asked for, what is refused."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from slimsweep.config.fields import from_brackets

if TYPE_CHECKING:
    from slimsweep.config.schema import Config

USUAL_SMOOTHING = 0.1  # of labels, where nothing is said


def with_no_classes(values: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration's values, in which model.kwargs.num_classes: 0 is said as data.num_classes: 0.

    So both ways to ask for a backbone are one configuration, whose points have the same names.

    Raises:
        ValueError: model.kwargs and data.num_classes contradict each other.
    """
    found = dict(values)
    model = _as_mapping(found.get("model"))
    kwargs = from_brackets(model.get("kwargs")) if model is not None else None
    if model is None or not isinstance(kwargs, Mapping) or not _is_zero(kwargs.get("num_classes")):
        return found
    data = found.get("data")
    data = {} if data is None else _as_mapping(from_brackets(data))
    if data is None:
        return found  # refused where data is read
    asked = data.get("num_classes")
    if asked is not None and not _is_zero(asked) and str(asked).lower() not in ("null", "none", ""):
        raise ValueError(
            f"model.kwargs has num_classes 0, a model without a head, but data.num_classes is {asked}: leave one of them out"
        )
    found["model"] = {**model, "kwargs": {key: value for key, value in kwargs.items() if key != "num_classes"}}
    found["data"] = {**data, "num_classes": 0}
    return found


def check_backbone(config: "Config") -> None:
    """Refuse what a model without a head cannot do, and a probe of a model that has one.

    Raises:
        ValueError: says in one sentence which setting is wrong, and what to do.
    """
    if not config.backbone:
        if config.probe is not None:
            raise ValueError(
                f"probe is {config.probe.root!r}, but the model has a head, whose top-1 says how good it is: leave probe out, "
                "or set model.kwargs.num_classes to 0"
            )
        return
    no_labels = "num_classes is 0, so there are no labels to learn from"
    if config.dense.epochs:
        if not (config.model.pretrained or config.model.checkpoint):
            raise ValueError(
                f"model {config.model.name} has no weights, and {no_labels}: set model.pretrained or model.checkpoint"
            )
        raise ValueError(f"dense.epochs is {config.dense.epochs}, but {no_labels}: leave dense.epochs out")
    if config.data.augment.mixes:
        field = "mixup" if config.data.augment.mixup > 0 else "cutmix"
        value = getattr(config.data.augment, field)
        raise ValueError(f"data.augment.{field} is {value:g}, which mixes labels, but {no_labels}: leave it out")
    for name in config.baselines:
        if name == "small":
            raise ValueError(
                "baselines names small, but num_classes is 0, and the features of a narrower model have other dims than the "
                "dense model's, with which they are compared: leave small out"
            )
    for stage in ("search", "retrain"):
        recipe = getattr(config, stage)
        if recipe.label_smoothing not in (0, USUAL_SMOOTHING):
            raise ValueError(f"{stage}.label_smoothing is {recipe.label_smoothing:g}, but {no_labels}: leave it out")
        asked = recipe.distill
        if asked.answers == "hard" or (asked.answers == "soft" and asked.alpha):
            raise ValueError(
                f"{stage}.distill.answers is {asked.answers!r}, but num_classes is 0, and a model without a head answers with "
                "features alone: leave distill out"
            )
        if 0 < asked.alpha < 1:
            raise ValueError(
                f"{stage}.distill.alpha is {asked.alpha:g}, but {no_labels}: leave it out, features make up the whole loss"
            )


def _is_zero(value: Any) -> bool:
    return not isinstance(value, bool) and str(value) == "0"


def _as_mapping(section: Any) -> Mapping[str, Any] | None:
    """A section as it was given: a mapping or the section itself; None for anything else."""
    if isinstance(section, BaseModel):
        return section.model_dump()
    return section if isinstance(section, Mapping) else None
