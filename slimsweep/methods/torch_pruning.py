"""torch-pruning: keeps what Torch-Pruning (PyPI `torch-pruning`), the pruning toolkit most in use, keeps through its own API.

Only this module needs it: `pip install 'torch-pruning>=1.6,<1.7'` (the extra `baselines`).
"""

import copy
import importlib.util
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from timm.layers import Mlp
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from slimsweep.errors import RefusedInput
from slimsweep.methods.budget_costs import at_each_budget, cost_and_limit, refuse_ms
from slimsweep.methods.choice import Choice, Settings
from slimsweep.methods.gradients import accumulate_gradients
from slimsweep.slimming.architectures import architecture_of, model_name
from slimsweep.slimming.budget import BUDGET_TOLERANCE, BudgetLike
from slimsweep.slimming.cost import COSTS, Cost
from slimsweep.slimming.dense_shape import refused_families, whole_heads_reason
from slimsweep.slimming.shape import Shape
from slimsweep.slimming.structure import Structure, image_size, macs

Importance = Literal["taylor", "magnitude"]
TRIES = 16  # halvings of the interval of pruning ratios


class Pruned(NamedTuple):
    """A model after Torch-Pruning, and what it took away."""

    model: nn.Module
    kept: dict[str, Tensor]  # of each module that lost outputs or inputs by choice, their indices in the dense model


def choose(choice: Choice) -> list[Structure | ValueError]:
    """A structure per budget: what Torch-Pruning keeps, ranked by its GroupTaylor importance on the images given.

    Of a model without a head, by its GroupMagnitude: there is no loss on labels, and the one on its own features has a gradient
    of 0.
    """
    importance: Importance = "magnitude" if choice.dense.num_classes == 0 else "taylor"
    ready = choice.dense
    if importance == "taylor":
        ready = _with_gradients(ready, lambda model: accumulate_gradients(model, choice.images, choice.labels))
    options: dict[str, Any] = {"floors": choice.floors, "round_to": choice.round_to, "importance": importance}

    def find(budget: BudgetLike) -> Structure:
        cost, limit = cost_and_limit(budget, choice.shape)
        return pruned_structure(ready, choice.shape, limit, cost=cost, **options)

    return at_each_budget(find, choice.budgets)


def check(model: nn.Module, settings: Settings, budgets: Sequence[BudgetLike]) -> None:
    """Refuse a model that is no plain VisionTransformer, families that it does not cut, budgets in ms, and a missing package.

    Raises:
        RefusedInput: says which of these, and what to do.
    """
    if importlib.util.find_spec("torch_pruning") is None:
        raise RefusedInput("baselines: 'torch-pruning' needs Torch-Pruning: pip install 'torch-pruning>=1.6,<1.7'")
    refuse_ms("torch-pruning", budgets)
    reason = ""
    if not isinstance(model, VisionTransformer):
        reason = "it is not a VisionTransformer, and its blocks are not plain ones"
    elif any(type(block.mlp) is not Mlp for block in architecture_of(model).blocks(model)):
        reason = "its MLPs are gated"
    elif settings.families is not None and not set(settings.families) & ({"attention", "mlp"} - set(refused_families(model))):
        reason = f"it cuts attention and MLPs, and search.families is {', '.join(settings.families)}"
    else:
        reason = whole_heads_reason(model)
    if reason:
        raise RefusedInput(
            f"baselines: 'torch-pruning' does not work with {model_name(model)}: {reason}; leave 'torch-pruning' out"
        )


def prune(
    model: nn.Module,
    budget: int,
    *,
    importance: Importance = "taylor",
    embed_dim: bool = False,
    isomorphic: bool = False,
    round_to: int | None = None,
    backward: Callable[[nn.Module], None] | None = None,
) -> nn.Module:
    """A copy of a timm VisionTransformer, pruned by Torch-Pruning to at most `budget` MACs.

    Args:
        model: the dense model, left as it is.
        budget: MACs of one image, counted by `slimsweep.macs`.
        importance: what its channels are ranked by; taylor needs gradients.
        embed_dim: prune the embed dim too (its "uniform" mode), not only head dims and MLP units (its "bottleneck" mode).
        isomorphic: rank over all layers of a kind (arXiv 2407.04616), not within each layer.
        round_to: sizes are multiples of this.
        backward: leaves gradients in the model it is given, for taylor.

    Raises:
        ImportError: torch-pruning is not installed; says how to install it.
        ValueError: no pruning ratio meets the budget; taylor without `backward`.
    """
    if importance == "taylor" and backward is None:
        raise RefusedInput("importance 'taylor' needs gradients: give backward, or importance='magnitude'")
    options: dict[str, Any] = {"importance": importance, "embed_dim": embed_dim, "isomorphic": isomorphic, "round_to": round_to}
    found = _bisect(_with_gradients(model, backward), budget, lambda pruned: True, **options)
    if found is None:
        raise RefusedInput(f"Torch-Pruning cannot cut this model to {budget:,} MACs; give a larger budget")
    return found.model


def pruned_structure(
    model: nn.Module,
    shape: Shape,
    budget: int,
    *,
    floors: Mapping[str, float],
    round_to: int = 1,
    cost: Cost = COSTS["macs"],
    importance: Importance = "taylor",
) -> Structure:
    """What Torch-Pruning keeps of a model at a budget: head dims (or whole heads) and MLP units, ranked by its GroupTaylor.

    Ranked over all layers of a kind (its isomorphic mode). Where that would leave a layer with less than the floor, or would
    be more than 1 % of dense below the budget, also ranked within each layer, and what comes nearer to the budget is taken.
    The floor of attention is rounded down to its steps, which are a dim of all heads, or a whole head. Tokens stay.

    Args:
        model: the dense model, with gradients of its loss for taylor; left as it is.
        shape: of its gates: families without gates are not cut, and where there is one gate per head, whole heads are.
        budget: the most that is left, in what `cost` counts.
        floors: for each family the share of every layer that stays.
        round_to: sizes are multiples of this.
        cost: what the budget counts.
        importance: taylor, or magnitude (GroupMagnitude), which needs no gradients.

    Raises:
        ImportError: torch-pruning is not installed; says how to install it.
        ValueError: no pruning ratio meets the budget.
    """
    heads = "attention" in shape.gate_shapes and shape.gate_shapes["attention"][0][1] == 1
    dense = cost.of_dense(shape)
    best: Structure | None = None
    for isomorphic in (True, False):
        found = _bisect(
            model,
            budget,
            lambda pruned: _keeps(structure_of(pruned.kept, shape), floors),
            price=lambda pruned: cost.of(structure_of(pruned.kept, shape)),
            importance=importance,
            embed_dim=False,
            isomorphic=isomorphic,
            round_to=round_to if round_to > 1 else None,
            families=tuple(shape.gate_shapes),
            whole_heads=heads,
        )
        if found is not None:
            structure = structure_of(found.kept, shape)
            best = structure if best is None or cost.of(structure) > cost.of(best) else best
            if budget - cost.of(best) <= BUDGET_TOLERANCE * dense:
                break
    if best is None:
        raise RefusedInput(
            f"Torch-Pruning cannot cut this model to {budget:,} {cost.label} above the floors of attention and MLPs; "
            "give a larger budget, or lower search.floors"
        )
    return best


def structure_of(kept: Mapping[str, Tensor], shape: Shape) -> Structure:
    """Masks of what is kept: inputs of each layer's output projection, outputs of its first MLP projection."""
    masks = shape.full().masks
    for index, layer in enumerate(shape.layers):
        if (dims := kept.get(f"{layer.name}.attn.proj")) is not None:
            mask = torch.zeros(layer.heads * layer.head_dim, dtype=torch.bool)
            mask[dims] = True
            rows, columns = shape.gate_shapes["attention"][index]
            mask = mask.view(layer.heads, layer.head_dim)
            mask = mask.any(1, keepdim=True) if columns == 1 else mask
            masks["attention"][index] = mask.any(0, keepdim=True) if rows == 1 else mask
        if (units := kept.get(f"{layer.name}.mlp.fc1")) is not None:
            masks["mlp"][index] = torch.zeros(layer.hidden, dtype=torch.bool)
            masks["mlp"][index][units] = True
    return Structure(shape, masks)


def _keeps(structure: Structure, floors: Mapping[str, float]) -> bool:
    """Whether every layer keeps its floor; of attention rounded down to Torch-Pruning's steps, a dim of all heads or a head."""
    for index, layer in enumerate(structure.shape.layers):
        heads, width, units, _ = structure.sizes(index)
        # Only one of the two is cut, and the other is whole.
        least_heads, least_width = (int(floors.get("attention", 0.0) * size) for size in (layer.heads, layer.head_dim))
        if heads < max(1, least_heads) or width < max(1, least_width):
            return False
        if units < floors.get("mlp", 0.0) * layer.hidden or units == 0:
            return False
    return True


def _with_gradients(model: nn.Module, backward: Callable[[nn.Module], None] | None) -> nn.Module:
    """The model, or a copy that holds gradients."""
    if backward is None:
        return model
    ready = copy.deepcopy(model).eval()
    ready.zero_grad()
    backward(ready)
    return ready


def _bisect(
    model: nn.Module,
    budget: int,
    fits: Callable[[Pruned], bool],
    *,
    price: Callable[[Pruned], int] = lambda pruned: macs(pruned.model),
    **options: Any,
) -> Pruned | None:
    """The largest that `fits` and costs at most `budget`; Torch-Pruning takes a ratio of channels and not a budget."""
    low, high = 0.0, 1.0
    found = None
    for _ in range(TRIES):
        ratio = (low + high) / 2
        pruned = prune_by_ratio(model, ratio, **options)
        left = None if pruned is None else price(pruned)
        if left is not None and left > budget:
            low = ratio
            continue
        high = ratio
        if pruned is not None and left is not None and fits(pruned):
            found = pruned
            if budget - left < 1e-3 * budget:
                break
    return found


def prune_by_ratio(
    model: nn.Module,
    ratio: float,
    *,
    importance: Importance,
    embed_dim: bool,
    isomorphic: bool,
    round_to: int | None,
    families: tuple[str, ...] = ("attention", "mlp"),
    whole_heads: bool = False,
) -> Pruned | None:
    """A copy of a timm VisionTransformer with about `ratio` of its channels gone; None where that leaves a layer without any.

    Args:
        model: the dense model, with gradients of its loss for taylor; left as it is.
        ratio: share of channels, 0 to 1.
        importance, embed_dim, isomorphic, round_to: as in `prune`.
        families: attention, mlp or both.
        whole_heads: attention loses heads and not dims.

    Raises:
        ImportError: torch-pruning is not installed; says how to install it.
    """
    try:
        import torch_pruning
    except ImportError as problem:
        raise ImportError("the torch-pruning method needs Torch-Pruning: pip install 'torch-pruning>=1.6,<1.7'") from problem
    small: Any = copy.deepcopy(model).eval()
    for parameter, original in zip(small.parameters(), model.parameters(), strict=True):
        parameter.grad = None if original.grad is None else original.grad.clone()
    attentions = [block.attn for block in small.blocks]
    free = [attention.qkv for attention in attentions] if "attention" in families else []
    free += [block.mlp.fc1 for block in small.blocks] if "mlp" in families else []
    if embed_dim:
        kept_whole = [small.head]
    else:
        kept_whole = [m for m in small.modules() if isinstance(m, nn.Linear | nn.Conv2d) and not any(m is f for f in free)]
    dense = {name: (m.out_features, m.in_features) for name, m in small.named_modules() if isinstance(m, nn.Linear)}
    names = torch_pruning.importance
    rank = names.GroupTaylorImportance if importance == "taylor" else names.GroupMagnitudeImportance
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # notices on parameters that no layer owns: it finds class token and positions itself
        pruner = torch_pruning.pruner.BasePruner(
            small,
            torch.zeros(1, *image_size(small), device=next(small.parameters()).device),
            importance=rank(),
            global_pruning=isomorphic,
            isomorphic=isomorphic,
            pruning_ratio=ratio,
            ignored_layers=kept_whole,
            num_heads={attention.qkv: attention.num_heads for attention in attentions},
            prune_head_dims=not whole_heads,
            prune_num_heads=whole_heads,
            head_pruning_ratio=ratio if whole_heads else 0.0,
            round_to=round_to,
        )
        pruner.step()
    for attention in attentions:
        attention.num_heads = pruner.num_heads[attention.qkv]
        if attention.num_heads == 0:
            return None
        attention.attn_dim = attention.qkv.out_features // 3
        attention.head_dim = attention.attn_dim // attention.num_heads
        attention.scale = attention.head_dim**-0.5
        if attention.head_dim == 0:
            return None
    small.embed_dim = small.num_features = small.head.in_features if isinstance(small.head, nn.Linear) else small.embed_dim
    return Pruned(small, _kept(pruner.pruning_history(), dense))


def _kept(history: list[Any], dense: Mapping[str, tuple[int, int]]) -> dict[str, Tensor]:
    """Of each module that Torch-Pruning's history names, the indices that are left of its outputs, or of its inputs."""
    kept: dict[str, Tensor] = {}
    for name, is_out, gone in history:
        if name not in dense:
            continue
        left = kept.get(name, torch.arange(dense[name][0 if is_out else 1]))
        stays = torch.ones(len(left), dtype=torch.bool)
        stays[torch.as_tensor(gone, dtype=torch.int64)] = False  # also of an empty list
        kept[name] = left[stays]
    return kept
