"""The optimizer of a model's weights; gates have their own (`slimsweep.slimming.gate_optimizer`)."""

from typing import Any

import torch
from timm.optim import create_optimizer_v2
from torch import nn

from slimsweep.config.schema import Recipe
from slimsweep.slimming.gates import GatedModel

FUSED_OPTIMIZERS = ("adam", "adamw", "sgd")  # timm's names of torch's own optimizers; timm makes sgd with Nesterov's momentum


def weight_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """timm's optimizer for all weights of a model, with weight decay on matrices only."""
    return create_optimizer_v2(
        weight_groups(model),
        opt=recipe.optimizer,
        lr=recipe.lr,
        weight_decay=recipe.weight_decay,
        **optimizer_arguments(recipe),
    )


def weight_groups(model: nn.Module) -> nn.Module | list[dict[str, Any]]:
    """What the optimizer trains: everything (timm then makes the groups), or of a gated model everything but its gates."""
    if not isinstance(model, GatedModel):
        return model
    gates = {id(g) for family in model.gate_parameters().values() for g in family}
    named = [(n, p) for n, p in model.named_parameters() if id(p) not in gates and p.requires_grad]
    skip = model.no_weight_decay()  # type: ignore[operator]
    plain = [p for n, p in named if p.ndim <= 1 or n in skip]
    decayed = [p for n, p in named if not (p.ndim <= 1 or n in skip)]
    return [{"params": plain, "weight_decay": 0.0}, {"params": decayed}]


def optimizer_arguments(recipe: Recipe) -> dict[str, Any]:
    """Adam's betas for the optimizers that take them, and one kernel per step for those that torch has fused."""
    name = recipe.optimizer.lower()
    arguments: dict[str, Any] = {"betas": recipe.betas} if any(kind in name for kind in ("adam", "lamb", "lion")) else {}
    return {**arguments, "fused": True} if name in FUSED_OPTIMIZERS else arguments
