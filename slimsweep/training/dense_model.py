"""The dense model: built by timm, with a checkpoint's weights where one is given; what does not fit is refused."""

import difflib
import inspect
import logging
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from slimsweep.config import Config, ConfigError, did_you_mean
from slimsweep.training.optimizer import check_optimizer

log = logging.getLogger(__name__)

# Keys under which training scripts save a state dict; averaged weights first, as in timm.
WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model", "model_state_dict")
PREFIXES = ("module.", "_orig_mod.")  # of DistributedDataParallel and torch.compile


def build_dense(config: Config, num_classes: int) -> nn.Module:
    """The model that `config.model` names, with a head of `num_classes`, on the CPU.

    Its weights are timm's pretrained ones, or the checkpoint's, or drawn from torch's global generator. Where a checkpoint's
    head has other classes, a fresh head takes its place, with a warning.

    Raises:
        ConfigError: an unknown model, arguments or an image size that it does not take, weights that are missing or do not fit.
    """
    model = _create(config, num_classes, pretrained=config.model.pretrained)
    if config.model.checkpoint is not None:
        path = Path(config.model.checkpoint).expanduser()
        state = _state(path, "cpu")
        fresh = _fit(model, state, path)
        if fresh:
            log.warning("the head of %s is not one for %d classes: training starts from a new head", path, num_classes)
        model.load_state_dict({**model.state_dict(), **{k: v for k, v in state.items() if k not in fresh}})
    return model


def check_model(config: Config, num_classes: int | None = None) -> nn.Module:
    """The model that `build_dense` would build, on the meta device: all checks in little time, without weights or downloads.

    Of a checkpoint only names and shapes are read. The optimizers of all stages are checked too.

    Args:
        config: the configuration.
        num_classes: of the head; None takes data.num_classes, or 10, for the checks do not depend on it.

    Raises:
        ConfigError: as `build_dense`; an optimizer that timm does not have, or that takes other betas.
    """
    for stage in ("dense", "search", "retrain"):
        check_optimizer(getattr(config, stage), stage)
    with torch.device("meta"):
        model = _create(config, num_classes or config.data.num_classes or 10, pretrained=False)
    if config.model.pretrained and not any(_standard(model).get(k) for k in ("url", "file", "hf_hub_id", "state_dict")):
        raise ConfigError(
            f"model.pretrained is set, but timm has no weights for {config.model.name}: leave it out, or give model.checkpoint"
        )
    if config.model.checkpoint is not None:
        path = Path(config.model.checkpoint).expanduser()
        _fit(model, _state(path, "meta"), path)
    return model


def head_is_new(config: Config, num_classes: int) -> bool:
    """Whether the weights to start from have no head for `num_classes` classes, so that training starts from a fresh head.

    Raises:
        ConfigError: as `check_model`.
    """
    with torch.device("meta"):
        model = _create(config, num_classes, pretrained=False)
    if config.model.checkpoint is not None:
        path = Path(config.model.checkpoint).expanduser()
        return bool(_fit(model, _state(path, "meta"), path))
    return not config.model.pretrained or _standard(model).get("num_classes") != num_classes


def _standard(model: nn.Module) -> Mapping[str, Any]:
    """timm's pretrained_cfg of a model: its usual weights, images and head."""
    return getattr(model, "pretrained_cfg", None) or {}


def _create(config: Config, num_classes: int, pretrained: bool) -> nn.Module:
    name, arguments = config.model.name, dict(config.model.kwargs)
    if ":" not in name:  # hf-hub:... and local-dir:... are not in the registry
        _known(name)
    side = config.data.image_size
    if side is not None and arguments.setdefault("img_size", side) not in (side, [side, side], (side, side)):
        raise ConfigError(
            f"data.image_size is {side}, but model.kwargs has img_size {arguments['img_size']}: leave one of them out"
        )
    try:
        model = timm.create_model(name, pretrained=pretrained, num_classes=num_classes, **arguments)
    except TypeError as problem:
        raise ConfigError(_wrong_argument(name, arguments, str(problem))) from problem
    except Exception as problem:  # timm, torch and download libraries raise whatever they like
        said = str(problem).strip().splitlines()[0] if str(problem).strip() else type(problem).__name__
        way_out = "check model.kwargs"
        if pretrained:
            way_out += ", and whether this machine can download from the Hugging Face hub; model.checkpoint takes a local file"
        raise ConfigError(f"model {name!r} cannot be built with model.kwargs {arguments} ({said}): {way_out}") from problem
    _check_patches(model, name)
    return model


def _known(name: str) -> None:
    base, _, tag = name.partition(".")
    if timm.is_model(base):
        tags = [n.partition(".")[2] for n in timm.list_pretrained(f"{base}.*")]
        if tag and tag not in tags:
            way_out = did_you_mean(tag, tags, f"it has {', '.join(tags)}" if tags else "leave the tag out")
            raise ConfigError(f"model.name is {name!r}, but timm has no weights of that tag; {way_out}")
        return
    models = timm.list_models()
    near = [n for n in models if name and n.startswith(name)][:3] or difflib.get_close_matches(name, models, n=3, cutoff=0.7)
    way_out = f"did you mean {' or '.join(near)}?" if near else "timm.list_models() lists all, such as deit_small_patch16_224"
    raise ConfigError(f"model.name is {name!r}, which timm does not have; {way_out}")


def _wrong_argument(name: str, arguments: Mapping[str, Any], said: str) -> str:
    found = re.search(r"unexpected keyword argument '(\w+)'", said)
    if found is None:
        return f"model {name!r} cannot be built with model.kwargs {dict(arguments)} ({said}): check their types"
    wrong = found.group(1)
    with torch.device("meta"):
        plain = timm.create_model(name)
    takes = [p for p in inspect.signature(type(plain).__init__).parameters if p != "self"]
    if wrong == "img_size":
        return f"model {name!r} takes images of any size, not img_size: leave data.image_size and model.kwargs.img_size out"
    way_out = did_you_mean(wrong, takes, f"it takes {', '.join(takes)}")
    return f"model.kwargs has {wrong!r}, which {name} does not take; {way_out}"


def _check_patches(model: nn.Module, name: str) -> None:
    embed = getattr(model, "patch_embed", None)
    size, patch = getattr(embed, "img_size", None), getattr(embed, "patch_size", None)
    if size is None or patch is None or getattr(embed, "dynamic_img_pad", False):
        return
    if any(s % p for s, p in zip(size, patch, strict=True)):
        nearest = " x ".join(str(max(1, round(s / p)) * p) for s, p in zip(size, patch, strict=True))
        raise ConfigError(
            f"the image size {size[0]} x {size[1]} does not divide by the patches of {name}, {patch[0]} x {patch[1]}: "
            f"set model.kwargs.img_size to {nearest}, or another patch_size"
        )


def _state(path: Path, device: str) -> dict[str, Tensor]:
    """A checkpoint's tensors by name; on the meta device only names and shapes."""
    if not path.is_file():
        raise ConfigError(f"model.checkpoint is {str(path)!r}, but there is no such file: fix the path")
    try:
        if path.suffix == ".safetensors":
            if device != "meta":
                return _bare(load_file(path))
            with safe_open(path, framework="pt") as file:
                return _bare({key: torch.empty(file.get_slice(key).get_shape(), device="meta") for key in file.keys()})  # noqa: SIM118
        content = torch.load(path, map_location=device, weights_only=True)
    except pickle.UnpicklingError as problem:
        raise ConfigError(
            f"model.checkpoint {str(path)!r} is not plain weights of torch.save, and code in it is not run: "
            "save the model's state_dict() alone, best as .safetensors"
        ) from problem
    except (SafetensorError, RuntimeError, OSError, EOFError, ValueError, KeyError) as problem:
        raise ConfigError(f"model.checkpoint {str(path)!r} cannot be read ({_short(problem)}): give another file") from problem
    for wrapper in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
            break
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise ConfigError(
            f"model.checkpoint {str(path)!r} holds no state dict, by itself or under {', '.join(WRAPPERS)}: give one"
        )
    return _bare(content)


def _bare(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    while prefix := next((p for p in PREFIXES if all(key.startswith(p) for key in state)), None):
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return dict(state)


def _fit(model: nn.Module, state: Mapping[str, Tensor], path: Path) -> set[str]:
    """The names of the head's tensors that do not fit and so start fresh; any other tensor that does not fit is refused."""
    heads = _standard(model).get("classifier") or ()
    heads = (heads,) if isinstance(heads, str) else tuple(heads)
    wanted = model.state_dict()
    fresh = set()
    for key in [*wanted, *(k for k in state if k not in wanted)]:
        has = tuple(state[key].shape) if key in state else None
        takes = tuple(wanted[key].shape) if key in wanted else None
        if has == takes:
            continue
        if any(key.startswith(f"{head}.") for head in heads):
            fresh.add(key)
            continue
        what = (
            f"lacks {key}, which the model has as {takes}"
            if has is None
            else f"has {key} of shape {has}, which the model does not have"
            if takes is None
            else f"has {key} of shape {has}, the model {takes}"
        )
        raise ConfigError(
            f"model.checkpoint {str(path)!r} does not fit: it {what}; give the model.name and model.kwargs it was made with"
        )
    # A head fits as a whole or not at all.
    return {key for key in (*wanted, *state) if any(f.rpartition(".")[0] == key.rpartition(".")[0] for f in fresh)}


def _short(problem: Exception) -> str:
    text = str(problem).strip().splitlines()
    return (text[0] if text else type(problem).__name__)[:160]
