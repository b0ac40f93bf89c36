"""Values of model arguments as JSON, and back: layer classes by their name, partials by their parts.

A file can name modules of timm and torch only. Nothing else is looked up, and nothing is imported.
"""

import functools
import json
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import timm.layers
import torch
from torch import nn

from slimsweep.errors import RefusedInput

PARTIAL = {"partial", "args", "keywords"}


def encode(value: Any) -> Any:
    """A value as JSON.

    Raises:
        ValueError: JSON cannot hold it, and it is no class of timm's or torch's that a file can name.
    """
    done = value
    if isinstance(value, list | tuple):
        done = [encode(v) for v in value]
    elif isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        done = {k: encode(v) for k, v in value.items()}
    elif isinstance(value, np.generic):
        done = value.item()
    elif isinstance(value, torch.dtype):
        done = {"torch.dtype": str(value).removeprefix("torch.")}
    elif isinstance(value, functools.partial):
        done = {"partial": encode(value.func), "args": encode(value.args), "keywords": encode(value.keywords)}
    elif isinstance(value, type):
        own = f"{value.__module__.removeprefix('timm.models.')}.{value.__name__}"
        places = {"timm.layers": value.__name__, "torch.nn": value.__name__, "timm.models": own}
        done = next(({room: name} for room, name in places.items() if _named(room, name) is value), value)
    if not (done is None or isinstance(done, bool | int | float | str | list | dict)):
        raise ValueError(f"{value!r} has no name that a file can hold")
    return done


def decode(value: Any) -> Any:
    """The value that `encode` wrote.

    Raises:
        ValueError: it names what is not there.
    """
    if isinstance(value, list):
        return [decode(v) for v in value]
    if not isinstance(value, dict):
        return value
    if set(value) == PARTIAL:
        return functools.partial(decode(value["partial"]), *decode(value["args"]), **decode(value["keywords"]))
    if len(value) == 1:
        ((room, name),) = value.items()
        if room == "torch.dtype":
            dtype = getattr(torch, str(name), None)
            if not isinstance(dtype, torch.dtype):
                raise ValueError(f"torch has no dtype {name!r}")
            return dtype
        if room in ("timm.layers", "torch.nn", "timm.models"):
            found = _named(room, str(name))
            if found is None:
                raise ValueError(f"{room} has no layer {name!r}")
            return found
    return {k: decode(v) for k, v in value.items()}


def _named(room: str, name: str) -> type[nn.Module] | None:
    """The class of layers of this name; None where there is none."""
    if room == "timm.models":
        file, _, name = name.rpartition(".")
        holder = sys.modules.get(f"timm.models.{file}")
    else:
        holder = {"timm.layers": timm.layers, "torch.nn": nn}[room]
    found = getattr(holder, name, None)
    return found if isinstance(found, type) and issubclass(found, nn.Module) else None


def is_plain(value: Any) -> bool:
    """Whether JSON holds the value as it is."""
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True


def encoded(arguments: Mapping[str, Any], model: str) -> dict[str, Any]:
    """Model arguments as JSON.

    Args:
        model: its name, for the error.

    Raises:
        RefusedInput: a ValueError: an argument that no saved model can hold; says which.
    """
    done = {}
    for name, value in arguments.items():
        try:
            done[name] = encode(value)
        except ValueError as problem:
            raise RefusedInput(
                f"{model} was made with {name}={value!r}, which no saved model can hold: {problem}; "
                "use numbers, text, classes of torch.nn or timm.layers, or functools.partial of these"
            ) from problem
    return done
