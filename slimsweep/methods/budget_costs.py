"""What methods share that price models themselves: a budget's limit in its own unit, and an entry per budget."""

from collections.abc import Callable, Sequence

from slimsweep.slimming.budget import Budget, BudgetLike
from slimsweep.slimming.cost import COSTS, Cost
from slimsweep.slimming.structure import Shape, Structure


def cost_and_limit(budget: BudgetLike, dense: Shape) -> tuple[Cost, int]:
    """The cost that a budget counts, and the most that it allows of it.

    Raises:
        BudgetError: the budget means nothing.
    """
    parsed = Budget.parse(budget)
    cost = COSTS[parsed.unit]
    return cost, parsed.limit(cost.of_dense(dense))


def at_each_budget(find: Callable[[BudgetLike], Structure], budgets: Sequence[BudgetLike]) -> list[Structure | ValueError]:
    """What `find` gives for each budget; where it raises ValueError, that error takes the structure's place."""
    found: list[Structure | ValueError] = []
    for budget in budgets:
        try:
            found.append(find(budget))
        except ValueError as problem:
            found.append(problem)
    return found
