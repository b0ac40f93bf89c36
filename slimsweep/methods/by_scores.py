"""What methods share that rank gates: from scores to a structure per budget."""

from slimsweep.methods.budget_costs import at_each_budget
from slimsweep.methods.choice import Choice
from slimsweep.slimming.budget import Budget, BudgetError
from slimsweep.slimming.removal_path import RemovalPath, Scores
from slimsweep.slimming.structure import Structure


def structures_by_scores(choice: Choice, scores: Scores) -> list[Structure | ValueError]:
    """A structure per budget: what is left on the removal path when gates leave in the order of their scores.

    Args:
        scores: for each family a tensor per layer, in the gates' shapes; the smallest leave first.
    """
    path = RemovalPath(choice.shape, scores, choice.floors, choice.round_to, depth=choice.depth)
    in_ms = [budget for budget in map(Budget.parse, choice.budgets) if budget.is_latency]
    timed: dict[Budget, Structure | ValueError] = {}
    if in_ms and choice.solve_ms is not None:
        path_in_ms = RemovalPath(
            choice.shape, scores, choice.floors, choice.round_to, depth=choice.depth_in_ms, keep_attention=True
        )
        for budget, found in zip(in_ms, choice.solve_ms(path_in_ms, in_ms), strict=True):
            timed[budget] = BudgetError(found.error) if found.length is None else path_in_ms.prefix(found.length)
    others = iter(at_each_budget(path.solve, [budget for budget in choice.budgets if Budget.parse(budget) not in timed]))
    return [timed[Budget.parse(budget)] if Budget.parse(budget) in timed else next(others) for budget in choice.budgets]
