"""What a file or folder of weights holds: state dicts, names of classes, preprocessing. No code in a file is ever run."""

import argparse
import collections
import datetime
import decimal
import fractions
import json
import pathlib
import pickle
import re
import types
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from slimsweep.config import ConfigError

State = dict[str, Tensor]

# Keys under which training scripts save a state dict; averaged weights first, as in timm.
WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model", "model_state_dict")
# Keys under which they save the names of the classes: a list in the order of the head's rows, or names with their rows.
CLASS_KEYS = (
    "label_names",
    "class_names",
    "class_to_idx",
    "idx_to_class",
    "classes",
    "CLASSES",
    "labels",
    "id2label",
    "label2id",
    "names",
)
# Where such a key may be, beside the top of the file.
DESCRIPTIONS = ("meta", "dataset_meta", "hyper_parameters", "hparams", "args", "config", "cfg")
WEIGHTS_FILES = ("model.safetensors", "pytorch_model.bin")  # of timm's folders
PREPROCESSING = ("input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode")


class Settings:
    """Stands for a container of a settings package while a file is read: makes an OrderedDict, and runs nothing.

    It is no dictionary itself, since torch's reader fills only plain ones.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> "Settings":
        content = args[0] if args and isinstance(args[0], Mapping) else {}
        return collections.OrderedDict(content)  # type: ignore[return-value]


# Plain data, whose construction runs no code of the file's author.
PLAIN_DATA: list[Any] = [
    argparse.Namespace,
    types.SimpleNamespace,
    (Settings, "collections.defaultdict"),
    datetime.date,
    datetime.datetime,
    datetime.time,
    datetime.timedelta,
    datetime.timezone,
    decimal.Decimal,
    fractions.Fraction,
    pathlib.PurePosixPath,
    pathlib.PureWindowsPath,
    *(builtin for builtin in (int, float, complex, bool, str, bytes, list, tuple, dict, set, frozenset, range, slice)),
    # Paths as plain data: one of Windows can be read on Linux, and of Python 3.13 in 3.12.
    *((pathlib.PurePosixPath, f"{module}.PosixPath") for module in ("pathlib", "pathlib._local")),
    *((pathlib.PureWindowsPath, f"{module}.WindowsPath") for module in ("pathlib", "pathlib._local")),
    *((getattr(pathlib, name), f"pathlib._local.{name}") for name in ("PurePosixPath", "PureWindowsPath")),
    # numpy's numbers and arrays, under the names of numpy 1 and of numpy 2.
    np.ndarray,
    np.dtype,
    *((np._core.multiarray.scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),  # type: ignore[attr-defined]
    *((np._core.multiarray._reconstruct, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),  # type: ignore[attr-defined]
    *{type(np.dtype(kind)) for kind in "?bBhHiIlLqQefdgFDGSUOMm"},
    *{np.dtype(kind).type for kind in "?bBhHiIlLqQefdgFDGSUMm"},
]
# Packages whose containers hold settings beside the weights: read as plain dictionaries, without the package or its code.
SETTINGS_PACKAGES = (
    "omegaconf",
    "hydra",
    "yacs",
    "easydict",
    "addict",
    "ml_collections",
    "mmengine",
    "mmcv",
    "fvcore",
    "lightning",
    "lightning_fabric",
    "lightning_utilities",
    "pytorch_lightning",
    "typing",
)


@dataclass(frozen=True, kw_only=True)
class Stored:
    """What a checkpoint holds.

    Attributes:
        states: state dicts by where they are in the file ("" for a file that is one), in the order in which to try them.
        class_names: in the order of the head's rows; None where the file does not say.
        preprocessing: mean, std and the like of the images that the weights were trained on; empty where it is not said.
        architecture: timm's name of it; "" where it is not said.
    """

    states: dict[str, State]
    class_names: list[str] | None = None
    preprocessing: dict[str, Any] = field(default_factory=dict)
    architecture: str = ""


def read_checkpoint(path: Path, device: str) -> Stored:
    """Read a .safetensors file, a file of torch.save, or a folder in timm's hub format.

    Args:
        device: "cpu", or "meta" for names and shapes only.

    Raises:
        ConfigError: there is no such file, it cannot be read, it holds more than weights and plain data, or no weights.
    """
    if path.is_dir():
        return _of_folder(path, device)
    if (start := re.match(r"(\w[\w+-]+:/|hf-hub:|local-dir:)", str(path))) and not path.is_file():
        raise ConfigError(
            f"model.checkpoint is {str(path)!r}, and what begins with {start[1]!r} is not read: download it and give the path "
            "of the file or folder; weights that timm itself names come with model.pretrained"
        )
    if not path.is_file():
        raise ConfigError(f"model.checkpoint is {str(path)!r}, but there is no such file: fix the path")
    described = _description(path.with_name("config.json")) if path.name in WEIGHTS_FILES else {}
    stored = _of_file(path, device)
    if not described:
        return stored
    return Stored(states=stored.states, **{**described, "class_names": stored.class_names or described["class_names"]})


def _of_folder(folder: Path, device: str) -> Stored:
    file = next((folder / name for name in WEIGHTS_FILES if (folder / name).is_file()), None)
    if file is None or not (folder / "config.json").is_file():
        raise ConfigError(
            f"model.checkpoint is {str(folder)!r}, a folder without {' or '.join(WEIGHTS_FILES)} and config.json: "
            "give a file of weights, or a folder that slimsweep or timm saved"
        )
    return read_checkpoint(file, device)


def _description(file: Path) -> dict[str, Any]:
    """What a config.json in timm's hub format says of the weights beside it; empty where it is no such file."""
    try:
        config = json.loads(file.read_bytes())
    except (OSError, ValueError):  # weights may have any file beside them; the weights alone are what was asked for
        return {}
    if not isinstance(config, dict) or "architecture" not in config or not isinstance(config.get("pretrained_cfg", {}), dict):
        return {}
    if "structure" in (config.get("model_args") or {}):
        raise ConfigError(
            f"model.checkpoint {str(file.parent)!r} is a model that was cut already: give the dense model of its run"
        )
    usual = config.get("pretrained_cfg") or config  # the oldest folders have all in one
    names = config.get("label_names") or usual.get("label_names")
    return {
        "class_names": names_in_order(names),
        "preprocessing": {key: usual[key] for key in PREPROCESSING if usual.get(key) is not None},
        "architecture": str(config["architecture"]),
    }


def _of_file(path: Path, device: str) -> Stored:
    said: Any = {}
    try:
        if reason := _no_weights(path):
            raise ConfigError(f"model.checkpoint {str(path)!r} {reason}")
        if _is_safetensors(path):
            with safe_open(path, framework="pt") as file:
                said = {key: _json(text) for key, text in (file.metadata() or {}).items()}
                if device == "meta":
                    keys = list(file.keys())
                    state = {k: torch.empty(file.get_slice(k).get_shape(), dtype=_dtype(file, k), device="meta") for k in keys}
            if device != "meta":
                state = load_file(path)
            if not state:
                raise ConfigError(f"model.checkpoint {str(path)!r} holds no weights: give another file")
            return Stored(states={"": state}, class_names=_class_names(said))
        content = _plain_content(path, device)
    except (SafetensorError, RuntimeError, OSError, EOFError, ValueError, KeyError, AttributeError, TypeError) as problem:
        if isinstance(problem, ConfigError):
            raise
        if "quantized" in str(problem):  # the meta device has no such tensors
            raise _quantized(path) from problem
        raise ConfigError(f"model.checkpoint {str(path)!r} cannot be read ({_short(problem)}): give another file") from problem
    states = {where: state for where, state in _states(content) if state}
    if not states:
        raise ConfigError(
            f"model.checkpoint {str(path)!r} holds no state dict, by itself or under {', '.join(WRAPPERS)}: give one"
        )
    if any(value.is_quantized for state in states.values() for value in state.values()):
        raise _quantized(path)
    return Stored(states=dict(sorted(states.items(), key=lambda item: _preference(item[0]))), class_names=_class_names(content))


def _no_weights(path: Path) -> str:
    """What a file is that people find in place of weights, and what to do; "" where its first bytes do not tell."""
    with path.open("rb") as file:
        start = file.read(200)
    text = start.lstrip().lower()
    if not start:
        return "is empty: copy or download it again"
    if start.startswith(b"version https://git-lfs"):
        return "is a pointer of Git LFS, not the weights: run git lfs pull, or download the file itself"
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "is a web page, not weights: download the file itself"
    if start.startswith(b"\x1f\x8b"):
        return "is compressed by gzip: unpack it first"
    if start.startswith(b"\x89HDF"):
        return "is an HDF5 file, as Keras writes: convert it to a state_dict of torch"
    return ""


def _is_safetensors(path: Path) -> bool:
    """By what is in the file, whatever its name; a file of neither kind is judged by its name."""
    with path.open("rb") as file:
        start = file.read(9)
    if start[8:] == b"{":  # eight bytes of length, then JSON
        return True
    written_by_torch = start.startswith((b"PK\x03\x04", b"\x80\x02"))  # as zip, and before torch 1.6
    return path.suffix.lower() == ".safetensors" and not written_by_torch


def _quantized(path: Path) -> ConfigError:
    return ConfigError(
        f"model.checkpoint {str(path)!r} holds quantized tensors: give the weights from before they were quantized"
    )


def _dtype(file: Any, key: str) -> torch.dtype:
    """The type of a tensor in a safetensors file; float32 stands for those that torch has no name for here."""
    named = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "BOOL": torch.bool}
    named |= {"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8}
    return named.get(file.get_slice(key).get_dtype(), torch.float32)


def _plain_content(path: Path, device: str) -> Any:
    """A file of torch.save, read with weights_only: weights and plain data. Containers of settings become dictionaries."""
    if _is_script(path):
        raise ConfigError(
            f"model.checkpoint {str(path)!r} is a TorchScript program, not weights: save the state_dict() of the model it was "
            "made from, best as .safetensors"
        )
    allowed = list(PLAIN_DATA)
    while True:
        try:
            # An open file, since torch takes a path that ends in .safetensors for one, whatever it holds.
            with torch.serialization.safe_globals(allowed), path.open("rb") as file:
                return torch.load(file, map_location=device, weights_only=True)
        except pickle.UnpicklingError as problem:
            found = re.search(r"GLOBAL ([\w.]+) was not an allowed global", str(problem)) or re.search(
                r"Unsupported (?:global|class) ([\w.]+)", str(problem)
            )
            name = found[1] if found else ""
            if name.partition(".")[0] in SETTINGS_PACKAGES and (Settings, name) not in allowed:
                allowed.append((Settings, name))
                continue
            holds = f": it holds {name}" if name else ""
            raise ConfigError(
                f"model.checkpoint {str(path)!r} is not plain weights of torch.save, and code in it is not run{holds}; "
                "save the model's state_dict() alone, best as .safetensors"
            ) from problem


def _is_script(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as file:
        return any(name.endswith("/constants.pkl") for name in file.namelist())


def _states(content: Any, where: str = "", depth: int = 0) -> Iterator[tuple[str, State]]:
    """All mappings of names to tensors in a file, with their place in it ("model", "ema/module"); optimizers' excepted."""
    if not isinstance(content, Mapping) or not content or not all(isinstance(key, str) for key in content):
        return
    content = {key: _as_tensor(value) for key, value in content.items()}
    tensors = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    if len(tensors) == len(content):
        yield where, tensors
        return
    inner = {key: value for key, value in content.items() if isinstance(value, Mapping)}
    # A state dict with something else in it, such as a number of steps or the names of classes.
    if len(tensors) > 1 and any("." in key for key in tensors):
        yield where, tensors
    for key, value in inner.items():
        if depth < 3 and not re.search("optim|sched|scaler|callback", key.lower()):
            yield from _states(value, f"{where}/{key}" if where else key, depth + 1)


def _as_tensor(value: Any) -> Any:
    """An array of numbers as a tensor; anything else as it is."""
    return torch.from_numpy(value.copy()) if isinstance(value, np.ndarray) and value.dtype.kind in "fiu" else value


def _preference(where: str) -> tuple[int, int]:
    """Averaged weights first, then the usual keys in their order; sorting keeps the file's order among others."""
    parts = where.split("/")
    ema = any("ema" in re.split("[^a-z]+", part.lower()) or "averaged" in part.lower() for part in parts)
    known = min((WRAPPERS.index(part) for part in parts if part in WRAPPERS), default=len(WRAPPERS))
    teacher = any("teacher" in part.lower() for part in parts)  # in self-distillation the average of the student
    return (0 if ema else 1, known - teacher)


def _class_names(content: Any) -> list[str] | None:
    """The names of the classes that a file carries beside its weights."""
    if not isinstance(content, Mapping):
        return None
    places = [content, *(_as_mapping(content.get(key)) for key in DESCRIPTIONS)]
    for place in places:
        for key in CLASS_KEYS:
            if (names := names_in_order(place.get(key))) is not None:
                return names
    return None


def _as_mapping(value: Any) -> Mapping[Any, Any]:
    if isinstance(value, Mapping):
        return value
    return vars(value) if isinstance(value, argparse.Namespace | types.SimpleNamespace) else {}


def names_in_order(names: Any) -> list[str] | None:
    """Names of classes by their rows, from a list, {name: row} or {row: name}; None where it is neither."""
    if isinstance(names, np.ndarray):
        names = names.tolist()
    if isinstance(names, Mapping):
        rows = {_whole(row): name for name, row in names.items()}
        if None in rows or len(rows) != len(names):
            rows = {_whole(row): name for row, name in names.items()}
        if sorted(rows, key=str) != sorted(range(len(names)), key=str):
            return None
        names = [rows[row] for row in range(len(names))]
    if not isinstance(names, Sequence) or isinstance(names, str | bytes) or len(names) < 2:
        return None
    if not all(isinstance(name, str | int | tuple) and not isinstance(name, bool) for name in names):
        return None
    found = [str(name) for name in names]
    return found if len(set(found)) == len(found) else None


def _whole(value: Any) -> int | None:
    """A row's number, also as text (in JSON all keys are) or as a tensor's or numpy's; None for anything else."""
    if isinstance(value, Tensor) and (value.is_meta or value.numel() != 1):
        return None
    if isinstance(value, str):
        return int(value) if value.isdecimal() else None
    if isinstance(value, bool) or not isinstance(value, int | np.integer | Tensor):
        return None
    return int(value)


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:  # metadata may be any text
        return text


def _short(problem: Exception) -> str:
    text = str(problem).strip().splitlines()
    return (text[0] if text else type(problem).__name__)[:160]
