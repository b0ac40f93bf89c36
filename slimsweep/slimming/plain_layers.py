"""What the layers that a cut makes smaller must be: plain `nn.Linear` in timm's own blocks, with weights of their own.

Anything else would be cut to another model than the one that was given, or fail after the search, so it is refused when gates
are added.
"""

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

from slimsweep.errors import RefusedInput
from slimsweep.slimming.architectures import MLP_ROWS, Timm, architecture_of, model_name
from slimsweep.slimming.eva_attention import QueryValueLinear
from slimsweep.slimming.wrapped_models import ADAPTER

# The attributes by which a layer's kind is told where its class is unknown here, and what to do about it.
KINDS = (
    (("base_layer", "lora_A", "lora_a", "lora_down"), f"with LoRA adapters: {ADAPTER}"),
    (
        ("weight_orig", "weight_mask"),
        "with a mask or a norm on its weight: call torch.nn.utils.prune.remove, or remove_spectral_norm",
    ),
    (("weight_g", "weight_v"), "with weight norm: call torch.nn.utils.remove_weight_norm first"),
    (
        ("quant_state", "scale", "zero_point", "weight_fake_quant", "CB"),
        "quantized: cut the model first and quantize the result",
    ),
)


def check_layers(model: Timm) -> None:
    """Refuse a model whose blocks hold something else than timm's own layers at the places that a cut makes smaller.

    Raises:
        RefusedInput: names the module's path and its kind, and what to do.
    """
    name = model_name(model)
    for path, parameter in model.named_parameters():
        if type(parameter) is not nn.Parameter or type(parameter.data) is not Tensor:
            kind = type(parameter if type(parameter) is not nn.Parameter else parameter.data).__name__
            spread = kind == "DTensor"
            what = (
                "spread over processes (FSDP): load its full state dict into a plain timm model"
                if spread
                else ("quantized or of another kind: cut the plain model first")
            )
            raise RefusedInput(f"{name} cannot be cut: its {path} is a {kind}, {what}")
    architecture = architecture_of(model)
    paths = {module: path for path, module in model.named_modules()}
    owners: dict[int, str] = {}
    for number, block in enumerate(architecture.blocks(model)):
        for module in (block, block.attn, block.mlp):
            if reason := _own_forward(module):
                raise RefusedInput(f"{name} cannot be cut: its {paths[module]} {reason}")
        for path, module in block.named_modules():
            if parametrize.is_parametrized(module):
                raise RefusedInput(
                    f"{name} cannot be cut: its {paths[block]}.{path} is parametrized ({', '.join(module.parametrizations)}): "
                    "call torch.nn.utils.parametrize.remove_parametrizations first"
                )
        for path, layer in _cut_layers(block):
            if reason := _not_linear(layer):
                raise RefusedInput(f"{name} cannot be cut: its {paths[block]}.{path} is {reason}")
        for path, parameter in block.named_parameters(remove_duplicate=False):  # norms too: a branch that leaves takes its own
            if owners.setdefault(id(parameter), f"{number} {path}") != f"{number} {path}":
                layer = f"{paths[block]}.{path.rpartition('.')[0]}"
                raise RefusedInput(
                    f"{name} cannot be cut: its {layer} shares weights with another layer, and both could not be cut alike; "
                    "give each layer weights of its own"
                )


def _cut_layers(block: Timm) -> Iterator[tuple[str, Any]]:
    """The layers of a block that a cut makes smaller, by their paths in it."""
    names = ("qkv", "q_proj", "k_proj", "v_proj", "gate", "proj")
    yield from ((f"attn.{name}", getattr(block.attn, name)) for name in names if getattr(block.attn, name, None) is not None)
    if type(block.mlp) in MLP_ROWS:  # a cut may have left no units
        yield from ((f"mlp.{name}", getattr(block.mlp, name)) for name in (*MLP_ROWS[type(block.mlp)], "fc2"))


def _not_linear(layer: Any) -> str:
    """What a layer is, and what to do, where it is no plain nn.Linear; "" where it is one."""
    plain = type(layer) in (nn.Linear, QueryValueLinear) and isinstance(layer._parameters.get("weight"), nn.Parameter)
    if plain and "forward" not in vars(layer):
        return ""
    kind = next((what for attributes, what in KINDS if any(hasattr(layer, a) for a in attributes)), "")
    if not kind:
        kind = "whose forward was replaced" if "forward" in vars(layer) else "not torch.nn.Linear"
        kind += ": put a plain nn.Linear with the same weights in its place"
    return f"a {type(layer).__module__.partition('.')[0]} {type(layer).__name__} {kind}"


def _own_forward(module: Any) -> str:
    """Why a block, attention or MLP does not compute what timm's class does; "" where it does."""
    if "forward" in vars(module):
        return "has a forward of its own, which the cut would not know: give the model as timm makes it"
    giver = next(kind for kind in type(module).__mro__ if "forward" in vars(kind))
    if giver.__module__.partition(".")[0] not in ("timm", "slimsweep"):
        own = f"is a {type(module).__name__} with a forward of its own"
        return f"{own}, which the cut would not know: use timm's {module_base(module)}"
    return ""


def module_base(module: nn.Module) -> str:
    """The first class of timm's that a module's class comes from."""
    return next((kind.__name__ for kind in type(module).__mro__ if kind.__module__.startswith("timm.")), "class")
