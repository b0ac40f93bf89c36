"""Learnable gates on every attention dim, MLP unit and token position of a timm vision transformer.

How a gate acts is in `gate_modules.py`, and what differs between the families of gates in `gate_families.py`.
"""

import copy
import logging
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from slimsweep.errors import RefusedInput
from slimsweep.slimming.architectures import Timm, architecture_of, model_name
from slimsweep.slimming.argument_values import encoded
from slimsweep.slimming.dense_shape import refused_families, shape_of, whole_heads_reason
from slimsweep.slimming.gate_families import GATE_FAMILIES, KEEPS_TOKENS, Granularity, TokenGate
from slimsweep.slimming.gate_modules import subclass, unparametrize
from slimsweep.slimming.gate_values import GateValues
from slimsweep.slimming.plain_layers import check_layers
from slimsweep.slimming.read_back import WAY_OUT, unlike_built
from slimsweep.slimming.shape import Shape, check_families
from slimsweep.slimming.structure import macs, params
from slimsweep.slimming.timm_arguments import arguments_of
from slimsweep.slimming.wrapped_models import unwrapped

log = logging.getLogger(__name__)

Gates = dict[str, list[Tensor]]


def add_gates(
    model: Timm,
    granularity: Granularity = "dim",
    families: Sequence[str] | None = None,
    token_gate: TokenGate = "linear",
) -> "GatedModel":
    """A copy of `model` with a gate on everything that can be cut; the given model is left alone.

    Args:
        model: a timm VisionTransformer (DeiT, CLIP, SigLIP, DINOv2, ...), Eva (EVA-02, DINOv3) or SwinTransformer; also inside
            DistributedDataParallel, DataParallel or torch.compile, which the copy is without.
        granularity: of attention gates: "dim" one per head and dim, "head" one per head, "uniform" one per dim, shared by the
            layer's heads. Models that can only lose whole heads (rotary embeddings, qk-norm) get "head" in place of "dim".
        families: which gates: "attention", "mlp", "token". Default: all that this model can lose exactly.
        token_gate: how a token gate is stored: "linear" as it is, starting at 1; "tanh" as the tanh of a parameter that starts
            at 3, as in ViT-Slim (arXiv 2201.00814, section 3).

    Raises:
        RefusedInput: a ValueError: the model, or a family asked for by name, cannot be cut exactly, or was made with arguments
            that no saved model can hold; says why. A head or layer of another size than timm's name and arguments say, which
            `save` will refuse, is a warning in the log.
    """
    model = unwrapped(model)
    chosen, finest = _what_to_gate(model, granularity, families, token_gate)
    check_layers(model)
    shape = shape_of(model, finest, chosen)
    if difference := unlike_built(model):
        log.warning("save will not take what is cut from this %s, since %s: %s", model_name(model), difference, WAY_OUT)
    gated: Timm = copy.deepcopy(model)
    weight = next(gated.parameters())
    for index, block in enumerate(architecture_of(gated).blocks(gated)):
        gates = {name: nn.Parameter(weight.new_ones(shape.gate_shapes[name][index])) for name in chosen}
        for name, gate in gates.items():
            setattr(block, f"{name}_gate", gate)
        # Tokens first: they subclass the attention, which has to come before its weights are parametrized.
        for name in reversed(chosen):
            GATE_FAMILIES[name].attach(block, gates[name], shape, index, token_gate)
    subclass(gated, GatedModel)
    gated.shape = shape
    gated.granularity = finest
    return gated


def _what_to_gate(
    model: Timm, granularity: str, families: Sequence[str] | None, token_gate: str
) -> tuple[tuple[str, ...], str]:
    """The families that get gates and the granularity that this model allows; raises RefusedInput as `add_gates` says."""
    if isinstance(model, GatedModel):
        raise RefusedInput(f"this {model_name(model)} has gates already: use it as it is, or add gates to its dense model")
    if hasattr(model, "structure"):
        raise RefusedInput(
            f"this {model_name(model)} has been cut already; add gates to its dense model, and solve for a smaller budget"
        )
    encoded(arguments_of(model), model_name(model))  # what no saved model can hold is refused now, not after training
    if granularity not in ("dim", "head", "uniform"):
        raise RefusedInput(f"granularity is {granularity!r}; it can be 'dim', 'head' or 'uniform'")
    if token_gate not in get_args(TokenGate):
        raise RefusedInput(f"token_gate is {token_gate!r}; it can be {' or '.join(map(repr, get_args(TokenGate)))}")
    if isinstance(families, str):
        families = (families,)
    reasons = refused_families(model)
    check_families(families or ())
    for family in families or ():
        if family in reasons:
            raise RefusedInput(
                f"{model_name(model)} cannot have {family} gates: {reasons[family]}; leave {family!r} out of families"
            )
    chosen = tuple(f for f in GATE_FAMILIES if (f in families if families is not None else f not in reasons))
    if (reason := whole_heads_reason(model)) and granularity != "head":
        if granularity == "uniform" and "attention" in chosen:
            raise RefusedInput(f"{model_name(model)} cannot have uniform attention gates: {reason}; use granularity='head'")
        granularity = "head"
    return chosen, granularity


class GatedModel(nn.Module):
    """Mixed in before timm's model class: the gates of the whole network.

    Attributes:
        shape: the dense sizes and costs (`slimsweep.slimming.structure.Shape`).
        granularity: of the attention gates.
    """

    shape: Shape
    granularity: str
    timm_class: type[nn.Module]
    # timm's own attributes that are read here.
    global_pool: str
    attn_pool: nn.Module | None
    num_prefix_tokens: int

    def gated_blocks(self) -> list[Timm]:
        return architecture_of(self).blocks(self)

    @property
    def gates(self) -> Gates:
        """Copies of the gates as they act, for reading and for `set_gates`; nothing trains through them.

        A penalty over them would do nothing, so a loss that holds them is refused: `gate_parameters()` gives what is trained.

        Returns:
            For each family a list, in the order of the layers: attention (heads, head_dim), (heads, 1) or (1, head_dim);
            mlp (units,); token (patches,).
        """
        with torch.no_grad():
            return {
                family: [effective_gates(b, family).detach().clone().as_subclass(GateValues) for b in self.gated_blocks()]
                for family in self.shape.gate_shapes
            }

    def set_gates(self, gates: Mapping[str, Sequence[Tensor]]) -> None:
        """Set effective gates, in the shapes of `gates`; a family that is not given stays.

        Raises:
            ValueError: an unknown family, values of another shape or not finite, or token gates below 0 (or above 1, as a
                tanh). Nothing is set then.
        """
        for family, values in gates.items():
            if family not in self.shape.gate_shapes:
                raise ValueError(f"this model has no {family} gates; it has {', '.join(self.shape.gate_shapes)}")
            got, wanted = [np.shape(v) for v in values], list(self.shape.gate_shapes[family])
            if got != wanted:
                raise ValueError(f"{family} gates of shapes {got} were given, the model's have {wanted}")
            if not all(torch.as_tensor(v).isfinite().all() for v in values):
                raise ValueError(
                    f"{family} gates were given with values that are not finite: give numbers, for tokens at least 0"
                )
        parameters = self.gate_parameters()
        with torch.no_grad():
            found = {
                family: [
                    GATE_FAMILIES[family].parameter_of(block, torch.as_tensor(value))
                    for block, value in zip(self.gated_blocks(), values, strict=True)
                ]
                for family, values in gates.items()
            }
            for family, values in found.items():
                for parameter, value in zip(parameters[family], values, strict=True):
                    parameter.copy_(value)

    def gate_parameters(self) -> dict[str, list[nn.Parameter]]:
        """The parameters behind the gates, which optimizers and penalties take: for each family a list, in the order of layers.

        They are the gates themselves, but for token gates of kind "tanh", whose gates are the tanh of the parameters.
        """
        return {f: [getattr(b, f"{f}_gate") for b in self.gated_blocks()] for f in self.shape.gate_shapes}

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: Mapping[str, Any], *options: Any
    ) -> None:
        """torch's, which calls it before it loads the parts. With `assign`, a gate's names get one parameter, as they had."""
        if local_metadata.get("assign_to_params_buffers"):
            assigned: dict[nn.Parameter, nn.Parameter] = {}
            for name, parameter in self.named_parameters(prefix.removesuffix("."), remove_duplicate=False):
                if name in state_dict:
                    given = nn.Parameter(state_dict[name], requires_grad=parameter.requires_grad)
                    state_dict[name] = assigned.setdefault(parameter, given)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *options)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """timm's; what the dense model costs is counted again.

        Raises:
            RefusedInput: a ValueError: tokens have gates, and the new pooling returns or refines every token.
        """
        if "token" in self.shape.gate_shapes and global_pool in KEEPS_TOKENS:
            raise RefusedInput(
                f"this model has token gates, and global_pool={global_pool!r} returns or refines every token: reset the dense "
                "model's classifier, then add gates"
            )
        super().reset_classifier(num_classes, global_pool)  # type: ignore[misc]  # timm's class comes next
        self.shape = shape_of(fold_gates(self), self.granularity, tuple(self.shape.gate_shapes))
        for block in self.gated_blocks():
            if hasattr(block, "token_bias"):
                block.token_bias.never_empty = self.shape.least_tokens > 0

    def set_input_size(self, *args: object, **kwargs: object) -> None:
        """Refused: budgets and token gates are for the image size at which gates were added."""
        raise RefusedInput(
            "budgets and token gates are for the image size at which gates were added: call set_input_size on the dense model, "
            "then add gates"
        )

    def set_token_power(self, power: float) -> None:
        """1: token gates act as they are. 0: every token gate above 0 acts as 1, as it will after the cut."""
        for block in self.gated_blocks():
            if hasattr(block, "token_bias"):
                block.token_bias.power.fill_(power)

    def pool(self, x: Tensor, pool_type: str | None = None) -> Tensor:
        """timm's pooling over what is left in the last layer: (batch, prefix + patches, embed_dim) to (batch, embed_dim)."""
        kind = self.global_pool if pool_type is None else pool_type
        last = self.gated_blocks()[-1]
        if not hasattr(last, "token_bias") or kind in ("token", ""):
            return super().pool(x, pool_type)  # type: ignore[misc]  # timm's class comes next
        bias: Tensor = last.token_bias(x.dtype)
        skip = 0 if architecture_of(self).pools_prefix(self) else self.num_prefix_tokens
        x, bias = x[:, skip:], bias[..., skip:]
        if self.attn_pool is not None:
            return self.attn_pool(x, attn_mask=bias)
        mean = (x * bias.exp().view(1, -1, 1)).sum(1) / bias.exp().sum()
        largest = (x + bias.view(1, -1, 1)).amax(1)
        return {"avg": mean, "max": largest, "avgmax": 0.5 * (mean + largest)}[kind]


@macs.register
def _(what: GatedModel) -> int:
    return what.shape.full().macs()


@params.register
def _(what: GatedModel) -> int:
    return what.shape.full().params()


def effective_gates(block: Timm, family: str) -> Tensor:
    """One layer's gates of one family as they act."""
    return GATE_FAMILIES[family].effective(block)


def fold_gates(gated: GatedModel) -> nn.Module:
    """A copy as timm built it: attention and MLP gates multiplied into the weights, token gates gone, gate parameters gone."""
    model: Timm = copy.deepcopy(gated)
    model.zero_grad(set_to_none=True)  # a deep copy takes the search's last gradients along
    for block in architecture_of(model).blocks(model):
        for module in [m for m in block.modules() if parametrize.is_parametrized(m)]:
            unparametrize(module)
        for family in gated.shape.gate_shapes:
            for name in (f"{family}_gate", *GATE_FAMILIES[family].modules):
                delattr(block, name)
        for module in (block, block.attn):
            module.__class__ = getattr(module, "timm_class", type(module))
        block.attn.__dict__.pop("fused_on_gpu", None)
    model.__class__ = model.timm_class
    del model.shape, model.granularity
    return model
