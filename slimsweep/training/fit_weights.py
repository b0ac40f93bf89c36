"""Which of a checkpoint's tensors go into a model: behind a prefix, under other names, for another image size."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from slimsweep.config import ConfigError
from slimsweep.training.checkpoint_file import State, Stored

# Parts that wrappers put into the names of tensors, at any place: torch.compile, FSDP, activation checkpointing.
WRAPPED = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
# Names that say that a tensor is not the layer's own weight, and what to do.
CHANGED_LAYERS = (
    (
        (".lora_A.", ".lora_B.", ".base_layer."),
        "LoRA adapters: merge them into the model (peft: merge_and_unload()) and save it",
    ),
    ((".parametrizations.",), "parametrized weights: call torch.nn.utils.parametrize.remove_parametrizations and save it"),
    (("weight_orig", "weight_mask"), "pruned weights with masks: call torch.nn.utils.prune.remove and save it"),
    (("weight_g", "weight_v"), "weight-normed layers: call torch.nn.utils.remove_weight_norm and save it"),
    (
        ("._packed_params", ".quant_state", ".SCB", ".zero_point"),
        "quantized weights: give those from before they were quantized",
    ),
)


# Parts of names that tell which other package wrote the weights.
OTHER_PACKAGES = (
    ("embeddings.patch_embeddings.projection.", "Hugging Face transformers"),
    ("encoder.layer.0.attention.attention.", "Hugging Face transformers"),
    ("vision_model.encoder.layers.", "Hugging Face transformers"),
    ("transformer.resblocks.", "OpenAI's CLIP or OpenCLIP"),
    ("encoder.layers.encoder_layer_", "torchvision"),
)


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """Tensors by the model's names.

    Attributes:
        state: all of the model's tensors but those in `fresh`.
        fresh: the names of the head's tensors that do not fit, and so start fresh.
        notes: what was done to the file's tensors, in words; empty where they are taken as they are.
    """

    state: State
    fresh: set[str]
    notes: tuple[str, ...]


def fit(model: nn.Module, stored: Stored, path: Path) -> Fitted:
    """The tensors of a checkpoint that fit a model: as they are, behind a prefix, or as timm's own filter converts them.

    timm's filter of an architecture reads original names (DINOv2's, Swin's) and resamples position embeddings for another
    image size. Of several state dicts that fit, the first in the order of `Stored.states` is taken; a head of the same size
    comes before that.

    Args:
        model: on the meta device, or on the CPU as `stored` is; it is not changed.
        path: of the checkpoint, for messages.

    Raises:
        ConfigError: nothing in the file fits; names the tensor and both shapes.
    """
    found = [(where, prefix, fitted) for where, prefix, fitted in _candidates(model, stored) if isinstance(fitted, Fitted)]
    if not found:
        where, state = _nearest(model, stored)
        raise ConfigError(_refusal(model, stored, state, path))
    where, prefix, best = next((one for one in found if not one[2].fresh), found[0])
    notes = []
    others = [other for other in stored.states if other != where]
    if others and where:
        notes.append(f"took {where} (the file also has {_few(others)})")
    if prefix:
        left = [key for key in unwrapped(stored.states[where]) if not key.startswith(prefix)]
        notes.append(
            f"took the tensors behind {prefix!r}" + (f" and left the other {len(left)} ({_few(left)})" if left else "")
        )
    return Fitted(state=best.state, fresh=best.fresh, notes=(*notes, *best.notes))


def _candidates(model: nn.Module, stored: Stored) -> Iterator[tuple[str, str, "Fitted | str"]]:
    """(place in the file, prefix, what fits or why nothing does)."""
    for where, raw in stored.states.items():
        state = unwrapped(raw)
        for prefix in prefixes(state, model):
            bare = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
            yield where, prefix, _fitted(model, bare)


def unwrapped(state: Mapping[str, Tensor]) -> State:
    """A state dict without what wrappers put into its names: those of WRAPPED anywhere, `module.` at the front of all."""
    found = {".".join(part for part in key.split(".") if part not in WRAPPED): value for key, value in state.items()}
    found = found if len(found) == len(state) else dict(state)
    while found and all(key.startswith("module.") for key in found):
        found = {key.removeprefix("module."): value for key, value in found.items()}
    return found


def prefixes(state: Mapping[str, Tensor], model: nn.Module) -> list[str]:
    """Behind what the model's tensors may be: "" first, then averaged copies, then others in the order of the file."""
    names = [name for name in model.state_dict() if not _is_head(name, model)]
    # One of the model's first tensors and one of its last: both are behind the same prefix.
    found = {
        key.removesuffix(name): None
        for name in (*names[:4], *names[-4:])
        for key in state
        if key.endswith(f".{name}") and key != name
    }
    first = next(iter(state), "")
    common = ""
    while "." in first.removeprefix(common):  # of files whose names timm's filter has to convert
        common += first.removeprefix(common).partition(".")[0] + "."
        if not all(key.startswith(common) for key in state):
            break
        found.setdefault(common, None)
    return ["", *sorted(found, key=_average_first)]


def _average_first(prefix: str) -> int:
    parts = prefix.lower().replace("_", ".").split(".")
    return 0 if "ema" in parts else 1 if "teacher" in parts else 2


def _fitted(model: nn.Module, state: State) -> "Fitted | str":
    state = {key: _plain(value) for key, value in state.items()}
    said = misfit(model, state)
    if not isinstance(said, str):
        return Fitted(state=_taken(state, said), fresh=said, notes=())
    converted = _converted(model, state)
    if converted is None:
        return said
    fresh = misfit(model, converted)
    if isinstance(fresh, str):
        return said
    resampled = [
        f"resampled {key} from {tuple(state[key].shape)} to {tuple(value.shape)}, as timm does"
        for key, value in converted.items()
        if key in state and state[key].shape != value.shape
    ]
    renamed = [key for key in converted if key not in state]
    notes = resampled[:2] + ([f"and {len(resampled) - 2} more"] if len(resampled) > 2 else [])
    if renamed:
        notes.append(f"renamed {len(renamed)} tensors as timm does ({_few(renamed)})")
    if dropped := [key for key in state if key not in converted and not renamed]:
        notes.append(f"left {len(dropped)} tensors that timm's model does not use ({_few(dropped)})")
    return Fitted(state=_taken(converted, fresh), fresh=fresh, notes=tuple(notes))


def _plain(tensor: Tensor) -> Tensor:
    """A tensor as the model holds it: half precision and double as float32; a parameter as its values."""
    tensor = tensor.detach()
    return tensor.float() if tensor.is_floating_point() and not tensor.is_quantized else tensor


def _taken(state: State, fresh: set[str]) -> State:
    return {key: value for key, value in state.items() if key not in fresh}


def _converted(model: nn.Module, state: State) -> State | None:
    """A state dict as timm's filter for this architecture makes it; None where there is none, or it cannot read this one."""
    name = str((getattr(model, "pretrained_cfg", None) or {}).get("architecture", ""))
    if not timm.is_model(name):
        return None
    module = sys.modules[timm.model_entrypoint(name).__module__]
    convert: Any = getattr(module, "checkpoint_filter_fn", None)
    if convert is None:
        return None
    # The arguments that timm itself gives its filter for some names (timm.models.deit, timm.models.vision_transformer).
    more: dict[str, Any] = {}
    if module.__name__ == "timm.models.deit":
        more = {"adapt_layer_scale": True}
    elif module.__name__ == "timm.models.vision_transformer" and "flexi" in name:
        more = {"interpolation": "bilinear", "antialias": False}
    try:
        with torch.no_grad():
            found: State = convert(dict(state), model, **more)
    except Exception:  # timm's filters fail in many ways on what is not theirs; `misfit` says what does not fit
        return None
    return found


def misfit(model: nn.Module, state: Mapping[str, Tensor]) -> set[str] | str:
    """The names of the head's tensors that do not fit and so start fresh; or what else does not fit, in words."""
    wanted = model.state_dict()
    fresh = set()
    for key in [*wanted, *(k for k in state if k not in wanted)]:
        has = tuple(state[key].shape) if key in state else None
        takes = tuple(wanted[key].shape) if key in wanted else None
        if has == takes:
            if state[key].is_floating_point() != wanted[key].is_floating_point() or state[key].is_quantized:
                return f"has {key} as {state[key].dtype}, the model as {wanted[key].dtype}"
            continue
        if _is_head(key, model):
            fresh.add(key)
            continue
        return (
            f"lacks {key}, which the model has as {takes}"
            if has is None
            else f"has {key} of shape {has}, which the model does not have"
            if takes is None
            else f"has {key} of shape {has}, the model {takes}"
        )
    # A head fits as a whole or not at all.
    return {key for key in (*wanted, *state) if any(f.rpartition(".")[0] == key.rpartition(".")[0] for f in fresh)}


def heads_of(model: nn.Module) -> tuple[str, ...]:
    """The names of the layers that give the answers, as timm knows them: "head", "head.fc", or two of a distilled model."""
    heads = (getattr(model, "pretrained_cfg", None) or {}).get("classifier") or ()
    return (heads,) if isinstance(heads, str) else tuple(heads)


def _is_head(name: str, model: nn.Module) -> bool:
    return any(name.startswith(f"{head}.") for head in heads_of(model))


def _nearest(model: nn.Module, stored: Stored) -> tuple[str, State]:
    """The state dict, behind one of its prefixes, that shares most names with the model."""
    wanted = set(model.state_dict())
    best: tuple[int, str, State] = (-1, "", {})
    for where, raw in stored.states.items():
        state = unwrapped(raw)
        for prefix in prefixes(state, model):
            bare = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
            shared = len(wanted & bare.keys())
            if shared > best[0]:
                best = (shared, where, bare)
    return best[1:]


def _refusal(model: nn.Module, stored: Stored, state: State, path: Path) -> str:
    begins = f"model.checkpoint {str(path)!r} does not fit: it "
    for marks, what in CHANGED_LAYERS:
        key = next((key for key in state if any(mark in key for mark in marks)), None)
        if key is not None and key not in model.state_dict():
            return f"{begins}holds {what} (it has {key})"
    for mark, package in OTHER_PACKAGES:
        key = next((key for state in stored.states.values() for key in state if mark in key), None)
        if key is not None:
            return (
                f"{begins}has the names of {package} (such as {key}), which timm does not read for this model: take timm's "
                "weights of the same model (model.pretrained), or rename the tensors as timm names them"
            )
    saved = f" (a {stored.architecture})" if stored.architecture else ""
    said = misfit(model, state)
    assert isinstance(said, str)
    return f"{begins}{said}{saved}; give the model.name and model.kwargs it was made with"


def _few(names: Sequence[str]) -> str:
    return f"{', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"
