"""A model's folder: saved, loaded, and known to timm.

The folder is in timm's hub format (model.safetensors and config.json), so that after `import slimsweep` plain timm loads it:
`timm.create_model("local-dir:PATH", pretrained=True)`. A cut model's config.json names its dense architecture, and holds its
structure.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
from timm.models import build_model_with_cfg, save_for_hf
from torch import nn

from slimsweep.errors import RefusedInput
from slimsweep.slimming.architectures import Timm
from slimsweep.slimming.cut import CUT_ARCHITECTURE, cut
from slimsweep.slimming.gates import GatedModel
from slimsweep.slimming.structure import Structure
from slimsweep.slimming.timm_arguments import arguments_of, has_arguments, set_arguments
from slimsweep.slimming.wrapped_models import unwrapped


def build(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """What timm's entry point `slimmed_vit` makes: the dense architecture, cut to the structure in its arguments.

    Raises:
        ValueError: the arguments lack the structure or the dense architecture, or these do not fit each other.
    """
    return build_model_with_cfg(_build, CUT_ARCHITECTURE, pretrained, **kwargs)


def _build(
    base: str = "", base_args: Mapping[str, Any] | None = None, structure: Mapping[str, Any] | None = None, **kwargs: Any
) -> nn.Module:
    if not timm.is_model(base) or structure is None:
        raise ValueError(
            f"{CUT_ARCHITECTURE} needs a structure and the name of timm's dense model: "
            "load a folder that has them with timm.create_model('local-dir:PATH', pretrained=True)"
        )
    arguments = {**(base_args or {}), **kwargs}
    model: Timm = timm.create_model(base, pretrained=False, **{k: _decode(v) for k, v in arguments.items()})
    model_args = {k: v for k, v in arguments_of(model).items() if k not in kwargs}
    cut(model, Structure.from_json(json.dumps(structure)))
    set_arguments(model, {"base": base, "base_args": {k: _encode(v) for k, v in model_args.items()}})
    return model


def dense_like(small: Timm) -> nn.Module:
    """The dense architecture that a cut model came from, with random weights."""
    args = arguments_of(small)
    return timm.create_model(args["base"], pretrained=False, **{k: _decode(v) for k, v in args["base_args"].items()})


def _encode(value: Any) -> Any:
    """A model argument as JSON: timm's layer classes by their name."""
    if isinstance(value, type) and value.__module__.startswith("timm.layers"):
        return {"timm.layers": value.__name__}
    return value


def _decode(value: Any) -> Any:
    """A model argument from what `_encode` made of it."""
    if isinstance(value, dict) and set(value) == {"timm.layers"}:
        found = getattr(timm.layers, str(value["timm.layers"]), None)
        if not isinstance(found, type):
            raise ValueError(f"timm has no layer {value['timm.layers']!r}")
        return found
    return value


def save(
    small: Timm,
    folder: str | os.PathLike[str],
    *,
    preprocessing: Mapping[str, Any] | None = None,
    labels: list[str] | None = None,
    metrics: Mapping[str, Any] | None = None,
) -> None:
    """Write a model as model.safetensors + config.json in timm's hub format.

    Args:
        small: what `slim` or `load` returned, or a dense model that timm.create_model made.
        folder: a local folder, made where it is missing.
        preprocessing: mean, std, input_size, interpolation, crop_pct of the images it was trained on. Default: the model's own.
        labels: class names, in the order of the outputs.
        metrics: numbers to keep beside it, such as top-1 in percent.

    Raises:
        ValueError: timm did not make the model, so its architecture has no name and arguments to build it again; the model
            still has gates; or preprocessing, labels or metrics are not JSON. What was in the folder is left alone.
    """
    small = unwrapped(small)
    if isinstance(small, GatedModel):
        raise ValueError("this model has gates, which no saved model has: cut it with slim first")
    if not has_arguments(small):
        raise ValueError(
            f"this {type(small).__name__} was not made by timm.create_model, so nothing names its architecture; "
            "make it with timm.create_model(name, **arguments)"
        )
    structure = getattr(small, "structure", None)
    arguments = arguments_of(small)
    if structure is not None:
        arguments["base_args"] = {k: _encode(v) for k, v in arguments["base_args"].items()}
        arguments["structure"] = json.loads(structure.to_json())
    else:
        arguments = {k: _encode(v) for k, v in arguments.items()}
    config: dict[str, Any] = {"model_args": arguments}
    if labels:
        config["label_names"] = list(labels)
    if metrics:
        config["metrics"] = dict(metrics)
    try:
        json.dumps([config, dict(preprocessing or {})])  # before anything is written over a model that is there
    except (TypeError, ValueError) as problem:
        raise ValueError(f"metrics, preprocessing and labels must be plain numbers, text and lists ({problem})") from problem
    save_for_hf(small, str(folder), model_config=config, safe_serialization=True, data_config=dict(preprocessing or {}) or None)


def load(folder: str | os.PathLike[str]) -> nn.Module:
    """The model that `save` wrote to a local folder, in eval mode. `slimsweep.load` also takes object stores (s3://, gs://).

    Raises:
        RefusedInput: a ValueError: the folder is missing, damaged, or of something else; says what is wrong.
    """
    path = Path(folder)
    for name in ("config.json", "model.safetensors"):
        if not (path / name).is_file():
            raise RefusedInput(
                f"{path} is not a model that slimsweep saved: it has no {name}; give a folder such as RUN/models/POINT"
            )
    try:
        architecture = str(json.loads((path / "config.json").read_bytes())["architecture"])
    except (ValueError, KeyError, TypeError) as problem:
        raise RefusedInput(
            f"{path}/config.json does not describe a model ({problem!r}); save it again, or restore it from a copy"
        ) from problem
    if not timm.is_model(architecture):
        raise RefusedInput(
            f"{path} holds a {architecture!r}, which timm {timm.__version__} does not know: "
            "give a folder such as RUN/models/POINT, or install the timm that saved it"
        )
    try:
        model = timm.create_model(f"local-dir:{path}", pretrained=True)
    except Exception as problem:
        reason = str(problem).strip().splitlines()[0] if str(problem).strip() else type(problem).__name__
        raise RefusedInput(
            f"{path} cannot be loaded, its weights and its config.json do not go together or are damaged: {reason}"
        ) from problem
    return model.eval()
