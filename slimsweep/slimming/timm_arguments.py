"""The arguments that timm made a model with, which it writes beside saved weights to build the model again.

They are in `_model_args`, a private attribute of timm's models. timm 1.0.31 can read them (`get_model_args`, which adds to
them) and update single ones (`update_model_args`), but not replace them all, as a cut model needs. All uses of it are here.
"""

from collections.abc import Mapping
from typing import Any

from torch import nn


def has_arguments(model: nn.Module) -> bool:
    """Whether timm made the model, and so knows how to build it again."""
    return bool(getattr(model, "pretrained_cfg", None)) and hasattr(model, "_model_args")


def arguments_of(model: nn.Module) -> dict[str, Any]:
    """A copy of the arguments; empty where timm did not make the model."""
    return dict(getattr(model, "_model_args", {}))


def set_arguments(model: Any, arguments: Mapping[str, Any]) -> None:
    """Replace all arguments: those of timm's entry point for the architecture in `pretrained_cfg`."""
    model._model_args = dict(arguments)
