"""Whether what `save` wrote gives the same model again: names, shapes, values, settings, and the output for one image."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import timm
import torch
from timm.models import get_model_args
from torch import Tensor, nn

from slimsweep.errors import RefusedInput
from slimsweep.slimming.architectures import Timm, model_name
from slimsweep.slimming.structure import image_size
from slimsweep.slimming.timm_arguments import arguments_of, has_arguments
from slimsweep.slimming.weightless import weightless
from slimsweep.slimming.wrapped_models import is_compiled, plain_name, uncompiled

WAY_OUT = (
    "a saved model is built again from timm's name and arguments, so make such changes through timm "
    "(arguments of create_model, reset_classifier, set_input_size), or keep this model with torch.save(model, file)"
)
# Largest difference of an output, relative to the largest output. Both models do the same operations on the same device.
TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-5}
COARSE = 1e-2  # of other precisions
OTHER_DEVICES = 1e-3  # of float32 on a GPU, whose convolutions may round to tf32


def check_read_back(model: Timm, load: Callable[[], nn.Module], build: Callable[[], nn.Module]) -> None:
    """Compare a model with what was written of it. Its modes and the state of random generators stay as they are.

    Args:
        model: what was saved.
        load: what a user would load.
        build: the same with random weights; called where it cannot be loaded, to say why.

    Raises:
        ValueError: they differ, or the written one cannot be loaded; says in what.
    """
    base = arguments_of(model).get("base")
    name = f"cut {base}" if base else model_name(model)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        try:
            again = load()
        except RefusedInput as problem:
            reason = _other_names(model, build) or str(problem.__cause__ or problem).strip().splitlines()[0]
            raise ValueError(f"this {name} cannot be saved: {reason}; {WAY_OUT}") from problem
        difference = _other_values(model, again) or _other_settings(model, again) or _other_output(model, again)
    if difference:
        raise ValueError(f"this {name} cannot be saved: {difference}; {WAY_OUT}")


def unlike_built(model: Timm) -> str:
    """The first tensor of another name or shape than in the model that timm builds from the name and arguments, in words.

    "" where there is none, or timm did not make the model.
    """
    if not has_arguments(model):
        return ""
    arguments = get_model_args(copy.copy(model))

    def build() -> nn.Module:
        with weightless():
            return timm.create_model(model_name(model), pretrained=False, **arguments)

    with torch.random.fork_rng(devices=[]):
        return _other_names(model, build)


def _other_names(model: nn.Module, build: Callable[[], nn.Module]) -> str:
    """The first tensor of another name or shape; "" where there is none, or nothing can be built."""
    try:
        again = build()
    except Exception:  # the reason why it cannot be loaded says it
        return ""
    here = {plain_name(n): tuple(t.shape) for n, t in model.state_dict().items()}
    there = {n: tuple(t.shape) for n, t in again.state_dict().items()}
    for name in [*here, *there]:
        if here.get(name) != there.get(name):
            own, built = (f"of shape {sizes[name]}" if name in sizes else "missing" for sizes in (here, there))
            return f"its {name} is {own}, and in the model that timm builds from its name and arguments it is {built}"
    return ""


def _other_values(model: nn.Module, again: nn.Module) -> str:
    here = {plain_name(n): t for n, t in model.state_dict().items()}
    there = again.state_dict()
    for name in [*here, *there]:
        if name not in here or name not in there:
            return f"its {name} is missing in the model that would be loaded" if name in here else f"it lacks {name}"
        own, loaded = here[name].cpu(), there[name]
        if own.dtype != loaded.dtype:
            return f"its {name} is {own.dtype}, and loaded it would be {loaded.dtype}"
        if own.shape != loaded.shape or not torch.equal(own.nan_to_num(), loaded.nan_to_num()):
            return f"its {name} would be loaded with other values"
    return ""


def _modules(model: nn.Module) -> dict[str, nn.Module]:
    return {plain_name(n): m for n, m in model.named_modules() if not is_compiled(m)}


def _other_settings(model: nn.Module, again: nn.Module) -> str:
    """A number of a module (the eps of a norm, the scale of attention) that differs; "" where there is none.

    Rates of dropout are left out: they act in training only.
    """
    there = _modules(again)
    for name, module in _modules(model).items():
        if name not in there or "drop" in type(module).__name__.lower():
            continue
        loaded = vars(there[name])
        for setting, value in vars(module).items():
            if isinstance(value, float) and "drop" not in setting and loaded.get(setting, value) != value:
                return f"{setting} of its {name or 'model'} is {value:g}, and loaded it would be {loaded[setting]:g}"
    return ""


def _other_classes(model: nn.Module, again: nn.Module) -> str:
    """A module of another class, in words; "" where there is none."""
    here, there = _modules(model), _modules(again)
    for name, module in here.items():
        kind, loaded = type(module).__name__, type(there[name]).__name__ if name in there else "missing"
        if kind != loaded and "drop" not in (kind + loaded).lower():
            return f"its {name or 'model'} is {kind}, and loaded it would be {loaded}"
    return ""


def _hooked(model: nn.Module) -> str:
    """The first module with a hook on its forward pass, in words; "" where there is none."""
    for name, module in _modules(model).items():
        if module._forward_hooks or module._forward_pre_hooks:
            return f"its {name or 'model'} has hooks, which are not saved"
    return ""


def _other_output(model: Timm, again: nn.Module) -> str:
    weight = next((p for p in model.parameters() if p.is_floating_point()), None)
    if weight is None:
        return ""
    image = torch.randn(1, *image_size(model), generator=torch.Generator().manual_seed(0), device="cpu")
    image = image.to(weight.device, weight.dtype)
    again.to(weight.device)
    try:
        expected, got = _output(model, image), _output(again, image)
    except Exception as problem:
        if weight.dtype in TOLERANCE:
            reason = (str(problem).strip().splitlines() or [type(problem).__name__])[0]
            return f"it cannot compute an image of {tuple(image.shape[1:])}: {reason}"
        # A CPU lacks some operations in half precision.
        model, again, image = copy.deepcopy(model).float(), again.float(), image.float()
        expected, got = _output(model, image), _output(again, image)
    if expected.shape != got.shape:
        return f"its output for an image is {tuple(expected.shape)}, and loaded it would be {tuple(got.shape)}"
    expected, got = expected.double().nan_to_num(), got.double().nan_to_num()
    difference = float((expected - got).abs().max() / expected.abs().max().clamp(min=1e-12)) if expected.numel() else 0.0
    allowed = TOLERANCE.get(weight.dtype, COARSE)
    if difference <= (allowed if weight.device.type == "cpu" else max(allowed, OTHER_DEVICES)):
        return ""
    reason = _other_classes(model, again) or _hooked(model) or "something in it was changed since timm built it"
    return f"loaded again its output for an image differs by {difference:.1e}: {reason}"


def _output(model: nn.Module, image: Tensor) -> Tensor:
    with in_eval_mode(model), uncompiled(model), torch.autocast(image.device.type, enabled=False):
        return model(image)


@contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """A model in eval mode inside the block; afterwards each module has its own mode again."""
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
