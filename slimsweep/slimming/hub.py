"""A model's folder: saved, loaded, and known to timm.

The folder is in timm's hub format (model.safetensors and config.json), so that after `import slimsweep` plain timm loads it:
`timm.create_model("local-dir:PATH", pretrained=True)`. A cut model's config.json names its dense architecture, and holds its
structure.
"""

import copy
import json
import os
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from timm.models import build_model_with_cfg, get_model_args
from timm.models._hub import save_config_for_hf
from torch import Tensor, nn

from slimsweep.errors import RefusedInput
from slimsweep.slimming.architectures import Timm, model_name
from slimsweep.slimming.argument_values import decode, encode, encoded, is_plain
from slimsweep.slimming.cut import CUT_ARCHITECTURE, cut
from slimsweep.slimming.folder_swap import CONFIG, WEIGHTS, complete_folder, replacing
from slimsweep.slimming.gates import GatedModel
from slimsweep.slimming.read_back import check_read_back
from slimsweep.slimming.structure import Structure
from slimsweep.slimming.timm_arguments import arguments_of, has_arguments, set_arguments
from slimsweep.slimming.timm_loading import loading_of
from slimsweep.slimming.wrapped_models import plain_name, unwrapped

WHOLE = "whole"  # in place of a structure: a dense model whose arguments timm cannot read from a file
STORED_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def build(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """What timm's entry point `slimmed_vit` makes: the dense architecture, cut to the structure in its arguments.

    Arguments beside those of the saved model act as they do for the dense architecture: `img_size` resamples positions,
    `features_only` returns features.

    Raises:
        ValueError: the arguments lack the structure or the dense architecture, or these do not fit each other; or the model
            lost tokens and is asked for what needs all of them.
    """
    base, structure = kwargs.get("base", ""), kwargs.get("structure")
    if not timm.is_model(base) or structure is None:
        raise ValueError(
            f"{CUT_ARCHITECTURE} needs a structure and the name of timm's dense model: "
            "load a folder that has them with timm.create_model('local-dir:PATH', pretrained=True)"
        )
    loading = loading_of(base, {**kwargs.get("base_args", {}), **kwargs})
    features = dict(loading.features)
    if "out_indices" in kwargs:
        features["out_indices"] = kwargs.pop("out_indices")
    if kwargs.get("features_only") and _loses_tokens(structure):
        raise ValueError(
            "this model lost tokens, so its features are no full grid and features_only cannot give them: "
            "call forward_intermediates(images, output_fmt='NLC')"
        )
    # What tells the size of the images that the saved positions are for.
    source = {**kwargs.get("base_args", {}), **(kwargs.pop("pretrained_model_args", None) or {})}
    return build_model_with_cfg(
        _build,
        CUT_ARCHITECTURE,
        pretrained,
        pretrained_filter_fn=partial(_fitted, loading.fit),
        pretrained_strict=loading.strict,
        feature_cfg=features,
        pretrained_model_args=source,
        **kwargs,
    )


def _build(base: str, structure: Any, base_args: Mapping[str, Any] | None = None, **kwargs: Any) -> nn.Module:
    arguments = {**(base_args or {}), **kwargs}
    model: Timm = timm.create_model(base, pretrained=False, **{k: decode(v) for k, v in arguments.items()})
    model_args = {k: v for k, v in arguments_of(model).items() if k not in kwargs}
    if structure != WHOLE:
        cut(model, Structure.from_json(json.dumps(structure)))
    set_arguments(model, {"base": base, "base_args": {k: encode(v) for k, v in model_args.items()}})
    return model


def _loses_tokens(structure: Any) -> bool:
    return structure != WHOLE and not all(
        bool(mask.all()) for mask in Structure.from_json(json.dumps(structure)).masks.get("token", [])
    )


def _fitted(fit: Callable[..., dict[str, Tensor]], stored: dict[str, Tensor], model: Timm) -> dict[str, Tensor]:
    """Stored weights, fitted to the model's image and patch size as timm fits those of the dense architecture.

    Raises:
        ValueError: weights of a block are missing. timm says nothing where the number of classes is another than the stored.
    """
    fitted = fit(stored, model)
    missing = [n for n in model.state_dict() if n not in fitted and n.startswith(("blocks.", "layers."))]
    if missing:
        raise ValueError(f"the saved weights lack {missing[0]}{f' and {len(missing) - 1} more' if missing[1:] else ''}")
    return fitted


def dense_like(small: Timm) -> nn.Module:
    """The dense architecture that a cut model came from, with random weights."""
    args = arguments_of(small)
    return timm.create_model(args["base"], pretrained=False, **{k: decode(v) for k, v in args["base_args"].items()})


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
        labels: class names, one for each output, in their order.
        metrics: numbers to keep beside it, such as top-1 in percent.

    What is written is read back before it replaces a model that is there: the folder is replaced whole or not at all.
    Other files in it stay. torch.compile and (Distributed)DataParallel around the model are taken off.

    Raises:
        ValueError: timm did not make the model, so its architecture has no name and arguments to build it again; it was changed
            since, so that they do not describe it; the model still has gates, or has no weights; preprocessing, labels or
            metrics are not JSON; there are more or fewer labels
            than outputs; or `folder` is a file, a URL or not to be written to. What was in the folder is left as it was.
    """
    model: Timm = unwrapped(small)
    if isinstance(model, GatedModel):
        raise ValueError("this model has gates, which no saved model has: cut it with slim first")
    if not has_arguments(model):
        raise ValueError(
            f"this {type(model).__name__} was not made by timm.create_model, so nothing names its architecture; "
            "make it with timm.create_model(name, **arguments)"
        )
    if any(tensor.is_meta for tensor in model.state_dict().values()):
        raise ValueError(f"this {model_name(model)} is on the meta device, so it has no weights to save: give it weights first")
    names = [] if labels is None else _names(labels, model)
    config = {**_description(model), **({"label_names": names} if names else {})}
    if metrics:
        config["metrics"] = {key: _number(value) for key, value in metrics.items()}
    try:
        json.dumps([config, dict(preprocessing or {})])  # before anything is written
    except (TypeError, ValueError) as problem:
        raise ValueError(f"metrics, preprocessing and labels must be plain numbers, text and lists ({problem})") from problem
    described = _with_arguments(model, {})  # they are in `config`, as JSON
    with replacing(_local(folder, "save a model to")) as beside:
        save_file(_plain_tensors(model), beside / WEIGHTS)
        save_config_for_hf(described, str(beside / CONFIG), model_config=config, data_config=dict(preprocessing or {}) or None)
        check_read_back(model, lambda: load(beside), lambda: _without_weights(beside))


def _number(value: Any) -> Any:
    """A number of numpy as Python's own; anything else as it is."""
    return value.item() if isinstance(value, np.generic) else value


def _local(folder: str | os.PathLike[str], what: str) -> Path:
    """A folder's path, with the home folder in place of a first `~`.

    Raises:
        RefusedInput: a ValueError: it is no path of this machine.
    """
    if not isinstance(folder, str | os.PathLike) or not os.fspath(folder):
        raise RefusedInput(f"the folder to {what} is {folder!r}: give a path, such as 'models/small'")
    if "://" in str(folder) or str(folder).startswith(("hf-hub:", "local-dir:")):
        raise RefusedInput(f"the folder to {what} is {str(folder)!r}, and it has to be on this machine: give a local path")
    return Path(folder).expanduser()


def _names(labels: Any, model: Timm) -> list[Any]:
    """Names of classes as JSON holds them, one for each output."""
    if isinstance(labels, str | bytes | Mapping) or not isinstance(labels, Iterable):
        raise RefusedInput(f"labels is a {type(labels).__name__}: give a list of names, in the order of the outputs")
    names = [label.item() if isinstance(label, np.generic) else label for label in labels]
    classes = getattr(model, "num_classes", 0)
    if names and classes and len(names) != classes:
        raise RefusedInput(f"labels has {len(names)} names, and the model has {classes} outputs: give a name for each output")
    return names


def _description(model: Timm) -> dict[str, Any]:
    """What config.json needs to build the model again.

    Raises:
        RefusedInput: a ValueError: it was made with arguments that no saved model can hold.
    """
    name, arguments = model_name(model), arguments_of(model)
    structure = getattr(model, "structure", None)
    if structure is not None:
        arguments["base_args"] = encoded(arguments["base_args"], arguments["base"])
        arguments["structure"] = json.loads(structure.to_json())
    described: dict[str, Any] = {}
    if structure is None and not all(is_plain(value) for value in arguments.values()):
        # timm does not read our names of classes, so our entry point builds the model.
        arguments = {"base": name, "base_args": encoded(arguments, name), "structure": WHOLE}
        described["pretrained_cfg"] = {"architecture": CUT_ARCHITECTURE}
    else:
        arguments = encoded(arguments, name)
    # timm adds those that its own methods change, such as reset_classifier: as they are now.
    current = get_model_args(_with_arguments(model, {}))
    described["model_args"] = {k: v for k, v in arguments.items() if k not in current}
    return described


def _with_arguments(model: Timm, arguments: Mapping[str, Any]) -> Timm:
    """The same module under other arguments."""
    described = copy.copy(model)
    set_arguments(described, arguments)
    return described


def _plain_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The weights as safetensors takes them: contiguous, each with memory of its own, under names without torch.compile."""
    found: dict[str, Tensor] = {}
    memory: set[int] = set()
    for name, tensor in model.state_dict().items():
        value = tensor.detach().cpu().contiguous()
        start = value.untyped_storage().data_ptr()
        found[plain_name(name)] = value.clone() if start in memory else value
        memory.add(start)
    return found


def _without_weights(folder: Path) -> nn.Module:
    """The model that a folder describes, with random weights."""
    return timm.create_model(f"local-dir:{folder}", pretrained=False)


def load(folder: str | os.PathLike[str]) -> nn.Module:
    """The model that `save` wrote to a local folder, in eval mode. `slimsweep.load` also takes object stores (s3://, gs://).

    Raises:
        RefusedInput: a ValueError: the folder is missing, damaged, or of something else; says what is wrong.
    """
    path = complete_folder(_local(folder, "load a model from"))
    if path.is_file():
        raise RefusedInput(f"{path} is a file, so it has no config.json: give the folder that save wrote")
    for name in (CONFIG, WEIGHTS):
        if not (path / name).is_file():
            raise RefusedInput(
                f"{path} is not a model that slimsweep saved: it has no {name}; give a folder such as RUN/models/POINT"
            )
    try:
        architecture = str(json.loads((path / CONFIG).read_bytes())["architecture"])
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
        with torch.device("cpu"):
            model: Timm = timm.create_model(f"local-dir:{path}", pretrained=True)
        _as_stored(model, path / WEIGHTS)
    except Exception as problem:
        reason = str(problem).strip().splitlines()[0] if str(problem).strip() else type(problem).__name__
        raise RefusedInput(
            f"{path} cannot be loaded, its weights and its config.json do not go together or are damaged: {reason}"
        ) from problem
    arguments = arguments_of(model)
    if arguments.get("structure") == WHOLE:  # timm's own model again
        own = {k: v for k, v in arguments.items() if k not in ("base", "base_args", "structure")}
        set_arguments(model, {**{k: decode(v) for k, v in arguments["base_args"].items()}, **own})
        model.pretrained_cfg = model.default_cfg = {**model.pretrained_cfg, "architecture": arguments["base"]}
    return model.eval()


def _as_stored(model: nn.Module, weights: Path) -> None:
    """Give a model the precision of its stored weights; timm builds it in float32, which rounds those of float64."""
    with safe_open(weights, framework="pt") as file:
        stored = {name: STORED_DTYPES.get(file.get_slice(name).get_dtype()) for name in file.keys()}  # noqa: SIM118
        rounded = {name: file.get_tensor(name) for name, kind in stored.items() if kind == torch.float64}
    kinds = set(stored.values()) - {None}
    if len(kinds) == 1:  # buffers that are not stored follow
        model.to(kinds.pop())
    else:
        for name, parameter in model.named_parameters():
            if (kind := stored.get(name)) is not None:
                parameter.data = parameter.data.to(kind)
    for name, tensor in model.state_dict().items():  # which share the model's memory
        if name in rounded:
            tensor.copy_(rounded[name])
