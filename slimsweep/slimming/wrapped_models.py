"""Models as training scripts hold them: what is around timm's model is taken off where that is exact, and refused where not."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from slimsweep.errors import RefusedInput

COMPILED = "_orig_mod"  # the name that torch.compile gives to what it wraps
# Wrappers that compute what the model inside does, with the attribute that holds it; by name, since importing them is slow.
TRANSPARENT = {
    "torch._dynamo.eval_frame.OptimizedModule": COMPILED,
    "torch.optim.swa_utils.AveragedModel": "module",
    "timm.utils.model_ema.ModelEma": "ema",
    "timm.utils.model_ema.ModelEmaV2": "module",
    "timm.utils.model_ema.ModelEmaV3": "module",
}
ADAPTER = "merge its adapters into the weights first (peft: merge_and_unload())"


def unwrapped(model: nn.Module) -> Any:
    """The timm model inside DistributedDataParallel, DataParallel, torch.compile and averages of weights; else the model.

    Raises:
        RefusedInput: a kind that can be neither cut nor unwrapped exactly: TorchScript, FSDP, traced, exported, quantized, or
            with adapters. Says which and what to do.
    """
    model = inner_model(model)
    if not isinstance(model, nn.Module):
        raise RefusedInput(f"a timm model is needed, not a {type(model).__name__}: make one with timm.create_model(name)")
    if reason := _refused_kind(model):
        raise RefusedInput(f"this {_name(model)} {reason}")
    return model


def inner_model(model: nn.Module) -> Any:
    """What is inside parallel wrappers and those of TRANSPARENT; a model without one itself."""
    while True:
        parallel = isinstance(model, DistributedDataParallel | DataParallel)
        inner = "module" if parallel else TRANSPARENT.get(_kind(model))
        if inner is None:
            return model
        model = getattr(model, inner)


def is_compiled(module: nn.Module) -> bool:
    """Whether torch.compile wraps this module, a whole model or a part of one."""
    return COMPILED in getattr(module, "_modules", {})


@contextmanager
def uncompiled(*models: nn.Module) -> Iterator[None]:
    """Inside `with`, compiled parts run as plain ones: compiling for few images takes minutes, and hides layers from hooks."""
    parts = (part for model in models for part in model.modules())
    if any(is_compiled(part) or getattr(part, "_compiled_call_impl", None) is not None for part in parts):
        with torch.compiler.set_stance("force_eager"):
            yield
    else:
        yield


def plain_name(name: str) -> str:
    """The name of a parameter or module as it is without torch.compile around some of the parts."""
    return ".".join(part for part in name.split(".") if part != COMPILED)


def _refused_kind(model: nn.Module) -> str:
    """Why a model of this kind cannot be cut, and what to do; "" where its kind is none of these."""
    if isinstance(model, torch.jit.ScriptModule):
        return "is a TorchScript program, whose layers cannot be cut: give the timm model that it was made from"
    if isinstance(model, torch.fx.GraphModule):
        return "is a traced or exported graph, whose layers cannot be cut: give the timm model that it was made from"
    if hasattr(model, "merge_and_unload"):
        return f"has adapters beside its weights: {ADAPTER} and give what that returns"
    if _kind(model).startswith("torch.distributed.fsdp."):
        return "has its weights spread over processes: load its full state dict into a plain timm model and give that"
    return ""


def _kind(model: nn.Module) -> str:
    return f"{type(model).__module__}.{type(model).__qualname__}"


def _name(model: nn.Module) -> str:
    return str(getattr(model, "original_name", "")) or type(model).__name__
