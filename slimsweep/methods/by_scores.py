"""What methods share that rank gates: from scores to a structure per budget."""

from slimsweep.methods.budget_costs import at_each_budget
from slimsweep.methods.choice import Choice
from slimsweep.slimming.removal_path import RemovalPath, Scores
from slimsweep.slimming.structure import Structure


def structures_by_scores(choice: Choice, scores: Scores) -> list[Structure | ValueError]:
    """A structure per budget: what is left on the removal path when gates leave in the order of their scores.

    Args:
        scores: for each family a tensor per layer, in the gates' shapes; the smallest leave first.
    """
    path = RemovalPath(choice.shape, scores, choice.floors, choice.round_to, depth=choice.depth)
    return at_each_budget(path.solve, choice.budgets)
