"""Wrappers around a model that compute exactly what the model inside computes."""

from typing import Any

from timm.utils import ModelEma, ModelEmaV2, ModelEmaV3
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

WRAPPERS = (DataParallel, DistributedDataParallel, AveragedModel, ModelEma, ModelEmaV2, ModelEmaV3)
COMPILED = "_orig_mod"  # the name that torch.compile gives to what it wraps


def unwrapped(model: Any) -> Any:
    """The model inside torch.compile, (Distributed)DataParallel and averages of weights; a plain model as it is."""
    while True:
        if isinstance(model, WRAPPERS):
            model = model.ema if isinstance(model, ModelEma) else model.module
        elif is_compiled(model):
            model = getattr(model, COMPILED)
        else:
            return model


def is_compiled(module: nn.Module) -> bool:
    """Whether torch.compile wraps this module. Told by its parts, since torch takes seconds to import its class."""
    return COMPILED in getattr(module, "_modules", {})


def plain_name(name: str) -> str:
    """The name of a parameter or module as it is without torch.compile around some of the parts."""
    return ".".join(part for part in name.split(".") if part != COMPILED)
