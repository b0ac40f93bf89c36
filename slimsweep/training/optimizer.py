"""The optimizer of a model's weights; gates have their own (`slimsweep.slimming.gate_optimizer`)."""

from typing import Any

import torch
from timm.optim import create_optimizer_v2, get_optimizer_info, list_optimizers
from torch import nn

from slimsweep.config import ConfigError, Recipe, did_you_mean
from slimsweep.slimming.gates import GatedModel

FUSED_OPTIMIZERS = ("adam", "adamw", "sgd")  # timm's names of torch's own optimizers; timm makes sgd with Nesterov's momentum
# Parts of names of optimizers that have other betas of their own, and that version 0.1.0 gave the default pair all the same:
# points of its runs go on to be made alike.
GIVEN_THE_DEFAULT_PAIR = ("lion", "adamuon")


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
    """What a recipe's optimizer takes beside learning rate and weight decay.

    These are the recipe's betas, where the optimizer takes as many, and one kernel per step where torch has one. The default
    pair stands for an optimizer's own betas, which most have as they are.

    Raises:
        ConfigError: the optimizer takes another number of betas, and the recipe's are not the default pair.
    """
    name = base_name(recipe.optimizer)
    info, given = get_optimizer_info(name), recipe.betas != Recipe.model_fields["betas"].default
    arguments: dict[str, Any] = {}
    if info.has_betas and info.num_betas == len(recipe.betas):
        if given or any(part in name for part in GIVEN_THE_DEFAULT_PAIR):
            arguments["betas"] = recipe.betas
    elif info.has_betas and given:
        raise ConfigError(
            f"betas is {list(recipe.betas)}, but {recipe.optimizer} takes {info.num_betas} betas: "
            "leave betas out to use timm's own, or take another optimizer"
        )
    if recipe.optimizer.lower() in FUSED_OPTIMIZERS:
        arguments["fused"] = True
    return arguments


def check_optimizer(recipe: Recipe, stage: str) -> None:
    """Refuse an optimizer that timm does not have, and betas that it does not take.

    Args:
        stage: dense, search or retrain, for the message.

    Raises:
        ConfigError: names the field, its value and the way out.
    """
    name, known = recipe.optimizer, [str(name) for name in list_optimizers()]
    if base_name(name) not in known:
        way_out = did_you_mean(name.lower(), known, "timm.optim.list_optimizers() lists all")
        raise ConfigError(f"{stage}.optimizer is {name!r}, which timm does not have; {way_out}")
    try:
        optimizer_arguments(recipe)
    except ConfigError as problem:
        raise ConfigError(f"{stage}.{problem}") from problem


def base_name(optimizer: str) -> str:
    """timm's name of an optimizer without Lookahead, which it can put around each."""
    return optimizer.lower().removeprefix("lookahead_")
