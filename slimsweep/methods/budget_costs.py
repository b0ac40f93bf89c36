"""What a budget allows, in its own unit, for methods that price models themselves."""

from collections.abc import Callable, Sequence
from typing import Any

from slimsweep.slimming.budget import Budget
from slimsweep.slimming.structure import Structure, macs, params

Cost = Callable[[Any], int]  # of a model or a structure: MACs of one image, or parameters
COSTS: dict[str, Cost] = {"macs": macs, "params": params}
MILLIONS = {"macs": "MMACs", "params": "M parameters"}


def cost_and_limit(budget: Budget | float | str, dense: Structure) -> tuple[Cost, int]:
    """The cost that a budget counts, and the most that it allows of it.

    Args:
        dense: the structure that keeps all of the dense model.

    Raises:
        BudgetError: the budget means nothing.
    """
    parsed = Budget.parse(budget)
    cost = COSTS[parsed.unit]
    return cost, parsed.limit(cost(dense))


def in_millions(amount: int, cost: Cost) -> str:
    """An amount with its unit, for messages: "12.34 MMACs"."""
    unit = next(unit for unit, known in COSTS.items() if known is cost)
    return f"{amount / 1e6:,.2f} {MILLIONS[unit]}"


def at_each_budget(
    find: Callable[[Budget | float | str], Structure], budgets: Sequence[Budget | float | str]
) -> list[Structure | ValueError]:
    """What `find` gives for each budget; where it raises ValueError, that error takes the structure's place."""
    found: list[Structure | ValueError] = []
    for budget in budgets:
        try:
            found.append(find(budget))
        except ValueError as problem:
            found.append(problem)
    return found
