"""What methods share that price models themselves: a budget's limit in its own unit, and an entry per budget."""

from collections.abc import Callable, Sequence

from slimsweep.errors import RefusedInput
from slimsweep.slimming.budget import Budget, BudgetError, BudgetLike
from slimsweep.slimming.cost import COSTS, Cost
from slimsweep.slimming.shape import Shape
from slimsweep.slimming.structure import Structure


def cost_and_limit(budget: BudgetLike, dense: Shape) -> tuple[Cost, int]:
    """The cost that a budget counts, and the most that it allows of it.

    Raises:
        BudgetError: the budget means nothing, or counts milliseconds, which no formula gives.
    """
    parsed = Budget.parse(budget)
    if parsed.is_latency:
        raise BudgetError(f"budget {str(parsed)!r} counts milliseconds, which this method cannot be cut to: take MACs")
    cost = COSTS[parsed.unit]
    return cost, parsed.limit(cost.of_dense(dense))


def refuse_ms(method: str, budgets: Sequence[BudgetLike]) -> None:
    """Refuse budgets in milliseconds for a method that makes its models by a formula of their cost.

    Raises:
        RefusedInput: names the method and the first such budget.
    """
    for budget in map(Budget.parse, budgets):
        if budget.is_latency:
            raise RefusedInput(
                f"baselines: {method!r} cannot be made to budget {str(budget)!r}, since it finds its models by MACs or "
                f"parameters and not by their latency: leave {method!r} out, or take budgets of MACs (each row has its latency)"
            )


def at_each_budget(find: Callable[[BudgetLike], Structure], budgets: Sequence[BudgetLike]) -> list[Structure | ValueError]:
    """What `find` gives for each budget; where it raises ValueError, that error takes the structure's place."""
    found: list[Structure | ValueError] = []
    for budget in budgets:
        try:
            found.append(find(budget))
        except ValueError as problem:
            found.append(problem)
    return found
