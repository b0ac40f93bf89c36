"""The cheap ways to the same budgets that a search has to beat, all on the same solver, cut and retraining."""

import importlib.util
from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import Mlp
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from slimsweep.config.schema import ConfigError, Search
from slimsweep.methods import torch_pruning
from slimsweep.methods.gradients import accumulate_gradients
from slimsweep.methods.random_order import random_scores
from slimsweep.methods.scratch import fresh
from slimsweep.methods.small import build_small, small_costs, small_structure, small_widths
from slimsweep.methods.taylor import taylor_scores
from slimsweep.methods.uniform import uniform_scores
from slimsweep.slimming.architectures import family_of, measure, model_name, refusals, whole_heads
from slimsweep.slimming.cut import slim
from slimsweep.slimming.gates import add_gates
from slimsweep.slimming.removal_path import Budget, RemovalPath, absolute, multiple
from slimsweep.slimming.structure import Structure, macs

FROM_SEARCH = ("searched", "scratch")  # methods that need the search, and so get none of its compute
FRESH = ("scratch", "small")  # methods that start from fresh weights
RANKED = ("uniform", "taylor", "random", "small", "torch-pruning")  # methods whose structures `choose` finds


def choose(
    method: str, budgets: Sequence[Budget], dense: nn.Module, search: Search, *, seed: int, images: Tensor, labels: Tensor
) -> list[Structure | ValueError]:
    """What a method keeps of the dense model at each budget; for a budget that it cannot meet, the error that says so.

    Args:
        method: one of RANKED.
        dense: the trained dense model, left alone, on the device to compute on.
        search: granularity, families, floors and round_to hold for all methods.
        seed: what `random` draws from.
        images: (n, C, H, W) training images without augmentation, for the methods that need gradients; on any device.
        labels: (n,) their classes.
    """
    shape = add_gates(dense, search.granularity, search.families).shape
    floors = search.floors.model_dump()
    round_to = multiple(shape, search.round_to)
    if method == "small":
        cost = small_costs(dense)
        return [_or_error(small_structure, dense, budget, round_to, cost) for budget in budgets]
    if method == "torch-pruning":
        backward = lambda model: accumulate_gradients(model, images, labels)  # noqa: E731
        limits = [absolute(budget, shape.full().macs()) for budget in budgets]
        options = {"floors": floors, "round_to": round_to, "backward": backward}
        return [_or_error(torch_pruning.pruned_structure, dense, shape, limit, **options) for limit in limits]
    scores = {
        "uniform": lambda: uniform_scores(dense, shape),
        "taylor": lambda: taylor_scores(dense, search, images, labels),
        "random": lambda: random_scores(shape, seed),
    }[method]()
    path = RemovalPath(shape, scores, floors, round_to)
    return [_or_error(path.solve, budget) for budget in budgets]


def _or_error(find: Any, *arguments: Any, **options: Any) -> Structure | ValueError:
    try:
        found: Structure = find(*arguments, **options)
    except ValueError as problem:
        return problem
    return found


def starting_model(method: str, source: nn.Module, structure: Structure, seed: int) -> nn.Module:
    """The model that a point's retraining starts from.

    Args:
        source: the searched model with its gates for `searched`, the dense model for all others; left alone.
        structure: what the point keeps; for `small` it is a whole model's.
        seed: what fresh weights are drawn from.
    """
    if method not in FRESH:
        return slim(source, structure)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_small(source, structure) if method == "small" else fresh(source, structure)


def check_baseline(method: str, model: nn.Module, search: Search, budgets: Sequence[Budget]) -> None:
    """Refuse a baseline that this model cannot have; weights are not looked at.

    Raises:
        ConfigError: names method and model, and says why.
    """
    refused = f"baselines: {method!r} cannot be had for {model_name(model)}: "
    if method == "torch-pruning" and importlib.util.find_spec("torch_pruning") is None:
        raise ConfigError(f"baselines: {method!r} needs Torch-Pruning: pip install 'slimsweep[baselines]'")
    if method in ("small", "torch-pruning") and not isinstance(model, VisionTransformer):
        what = "its width and depth are not single numbers" if method == "small" else "its blocks are not plain ones"
        raise ConfigError(f"{refused}it is no VisionTransformer, and {what}; leave {method!r} out")
    if method == "torch-pruning":
        families = [f for f in ("attention", "mlp") if f not in refusals(model)]
        reason = whole_heads(model)
        if any(type(block.mlp) is not Mlp for block in family_of(model).blocks(model)):
            reason = "its MLPs are gated"
        elif search.families is not None and not set(search.families) & set(families):
            reason = f"it cuts attention and MLPs, and search.families is {', '.join(search.families)}"
        if reason:
            raise ConfigError(f"{refused}{reason}; leave {method!r} out")
    if method == "small":
        widths, total = small_widths(model, multiple(measure(model, "dim", ()), search.round_to)), macs(model)
        least = small_costs(model)(widths[0], 1)
        lowest = min(budgets, key=lambda budget: absolute(budget, total))
        if absolute(lowest, total) < least:
            raise ConfigError(
                f"{refused}the smallest plain model has {least / 1e6:,.2f} MMACs, more than budget {lowest!r} allows; "
                f"leave {method!r} or that budget out"
            )


def extra_epochs(search_macs: float, frontier: int, point_macs: int) -> int:
    """Epochs of retraining that cost as much as a point's share of the search.

    The search trains the gated model, which costs what the dense one does, on the images that retraining sees too; so in
    multiply-accumulates the images cancel, and so do backward passes.

    Args:
        search_macs: of the search, an image: the gated model's in each of its epochs, and those of trying paces.
        frontier: searched points that share the search equally: one a budget, or point of shares. Seeds repeat
            the whole frontier.
        point_macs: of one image through the point's model.
    """
    return max(0, round(search_macs / (frontier * point_macs)))
