"""small: a plain narrower or shallower model of the same architecture, trained from fresh weights drawn by the point's seed."""

import bisect
import math
from collections.abc import Callable, Sequence
from functools import cache

from timm.layers import Mlp
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from slimsweep.errors import RefusedInput
from slimsweep.methods.budget_costs import at_each_budget, cost_and_limit, refuse_ms
from slimsweep.methods.choice import Choice, Settings
from slimsweep.methods.fresh_weights import drawn_by, like
from slimsweep.slimming.architectures import Timm, model_name
from slimsweep.slimming.budget import BUDGET_TOLERANCE, Budget, BudgetLike
from slimsweep.slimming.cost import COSTS, Cost
from slimsweep.slimming.dense_shape import shape_of
from slimsweep.slimming.shape import Shape
from slimsweep.slimming.structure import Structure
from slimsweep.slimming.weightless import weightless

Sizes = Callable[[int, int], int]  # the cost of a plain model of a width and a depth


def choose(choice: Choice) -> list[Structure | ValueError]:
    """The whole structure of a plain smaller model per budget."""
    costs = cache(lambda cost: small_costs(choice.dense, cost))  # one table of costs for all budgets in the same unit

    def find(budget: BudgetLike) -> Structure:
        cost, _ = cost_and_limit(budget, choice.shape)
        return small_structure(choice.dense, budget, choice.round_to, costs(cost))

    return at_each_budget(find, choice.budgets)


def start(source: nn.Module, structure: Structure, seed: int) -> nn.Module:
    """The plain model whose sizes a structure of `choose` names, with fresh weights.

    Args:
        source: the dense model, of which only the architecture is taken.
    """
    with drawn_by(seed):
        return build_small(source, structure)


def check(model: nn.Module, settings: Settings, budgets: Sequence[BudgetLike]) -> None:
    """Refuse a model that is no VisionTransformer, and budgets that are in ms or below the smallest plain model.

    Raises:
        RefusedInput: says which of these, and what to do.
    """
    refuse_ms("small", budgets)
    refused = f"baselines: 'small' does not work with {model_name(model)}: "
    if not isinstance(model, VisionTransformer):
        raise RefusedInput(
            f"{refused}it is not a timm VisionTransformer, whose width and depth are single numbers; leave 'small' out"
        )
    dense = shape_of(model, "dim", ())
    width = small_widths(model, settings.round_to)[0]
    least = cache(lambda cost: small_costs(model, cost)(width, 1))
    for budget in budgets:
        cost, limit = cost_and_limit(budget, dense)
        if limit < least(cost):
            raise RefusedInput(
                f"{refused}the smallest plain model has {_amount(least(cost), cost)}, more than budget {budget!r} allows; "
                "leave 'small' or that budget out"
            )


def small_structure(dense: Timm, budget: BudgetLike, round_to: int = 1, costs: Sizes | None = None) -> Structure:
    """The whole structure of a plain model of the dense one's architecture within a budget: narrower, shallower, or both.

    Candidates are all widths (`small_widths`) and depths up to the dense model's whose cost is at most the budget and at most
    1 % of dense below it. The one nearest to the dense ratio of width to depth is taken; without candidates, the largest model
    within the budget. Plain MLPs then get as many more units as still fit.

    Args:
        round_to: widths and MLP units are multiples of this.
        costs: `small_costs(dense, cost)` in the budget's unit; counted anew where not given.

    Raises:
        ValueError: no such model is small enough.
    """
    whole = shape_of(dense, "dim", ())
    cost, limit = cost_and_limit(budget, whole)
    costs = costs or small_costs(dense, cost)
    least_near = limit - BUDGET_TOLERANCE * cost.of_dense(whole)
    width, depth = dense.embed_dim, len(dense.blocks)
    widths = small_widths(dense, round_to)
    found: list[tuple[float, int, int, int]] = []  # distance from the dense ratio, minus the cost, width, depth
    for blocks in range(1, depth + 1):
        # Costs rise with the width: the widest that fits, and those below it that are near the budget.
        fit = bisect.bisect_right(widths, limit, key=lambda w: costs(w, blocks))
        for place in range(fit - 1, -1, -1):
            one = costs(widths[place], blocks)
            found.append((abs(math.log(widths[place] / blocks * depth / width)), -one, widths[place], blocks))
            if one < least_near:
                break
    if not found:
        least = _amount(costs(widths[0], 1), cost)
        raise RefusedInput(f"budget {budget!r} is below the smallest plain model's {least}; give a larger budget")
    near = [f for f in found if -f[1] >= least_near] or [min(found, key=lambda f: f[1])]
    _, _, chosen, blocks = min(near)
    sizes = {"embed_dim": chosen, "depth": blocks, "num_heads": heads_of_small(dense, chosen)}
    with weightless():
        model = like(dense, **sizes)
    shape = shape_of(model, "dim", ())
    if type(model.blocks[0].mlp) is not Mlp:
        return Structure(shape, {})
    # Costs are linear in the units, those of a head that pools by attention included: its MLP is as wide.
    units = shape.layers[0].hidden
    first = cost.of_dense(_shape_with_units(dense, sizes, units))
    per_unit = cost.of_dense(_shape_with_units(dense, sizes, units + 1)) - first
    units += (limit - first) // per_unit
    return Structure(_shape_with_units(dense, sizes, units - units % round_to), {})


def _amount(amount: int, cost: Cost) -> str:
    """An amount with its unit, for messages: "12.34 MMACs"."""
    return Budget(amount, cost.name, relative=False).label


def build_small(dense: nn.Module, structure: Structure) -> nn.Module:
    """The plain timm model whose sizes a structure of `small_structure` names, with weights from torch's generator."""
    first = structure.shape.layers[0]
    sizes: dict[str, float] = {"embed_dim": first.embed_dim, "depth": len(structure.shape.layers), "num_heads": first.heads}
    model = like(dense, **sizes)
    if model.blocks[0].mlp.fc2.in_features != first.hidden:
        model = like(dense, **sizes, mlp_ratio=_ratio(first.hidden, first.embed_dim))
    return model


def _shape_with_units(dense: Timm, sizes: dict[str, int], units: int) -> Shape:
    """The shape of the plain model of some sizes whose MLPs have so many hidden units."""
    with weightless():
        model = like(dense, **sizes, mlp_ratio=_ratio(units, sizes["embed_dim"]))
    return shape_of(model, "dim", ())


def _ratio(units: int, width: int) -> float:
    """The `mlp_ratio` with which timm makes this number of MLP units: half a unit more, since timm rounds down."""
    return (units + 0.5) / width


def small_widths(dense: Timm, round_to: int = 1) -> list[int]:
    """The embed dims of plain smaller models, from small to large: even multiples of `round_to` that divide into heads."""
    step = math.lcm(2, round_to)
    return [w for w in range(step, dense.embed_dim, step) if heads_of_small(dense, w)] + [dense.embed_dim]


def heads_of_small(dense: Timm, width: int) -> int:
    """The number of heads of a width: their head dim is as near as possible to the dense model's, within a factor of 1.5.

    A width below a dense head's is one head; 0 where a width does not divide so.
    """
    wanted = dense.blocks[0].attn.head_dim
    if width == dense.embed_dim:
        return int(dense.blocks[0].attn.num_heads)
    if width < wanted:
        return 1
    fits = [h for h in range(1, width // 2 + 1) if width % h == 0 and 1 / 1.5 <= width / h / wanted <= 1.5]
    return min(fits, key=lambda h: (abs(math.log(width / h / wanted)), -h), default=0)


def small_costs(dense: Timm, cost: Cost = COSTS["macs"]) -> Sizes:
    """A function of width and depth that returns the cost of that plain model; it computes each width once."""

    @cache
    def first_and_next(width: int) -> tuple[int, int]:  # blocks are all alike
        with weightless():
            one, two = (like(dense, embed_dim=width, depth=d, num_heads=heads_of_small(dense, width)) for d in (1, 2))
        first, both = (cost.of_dense(shape_of(model, "dim", ())) for model in (one, two))
        return first, both - first

    return lambda width, depth: first_and_next(width)[0] + (depth - 1) * first_and_next(width)[1]
