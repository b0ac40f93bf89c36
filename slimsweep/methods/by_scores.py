"""From scores to structures: what methods share that rank gates."""

from slimsweep.methods.budget_costs import at_each_budget
from slimsweep.methods.choice import Choice
from slimsweep.slimming.budget import Budget
from slimsweep.slimming.removal_path import RemovalPath, Scores
from slimsweep.slimming.structure import Structure

COSTLESS = {"macs": (), "params": ("token",)}  # families whose gates cost nothing in a unit: a budget in it leaves them alone


def structures_by_scores(choice: Choice, scores: Scores) -> list[Structure | ValueError]:
    """A structure per budget: what is left on the removal path when gates leave in the order of their scores.

    Args:
        scores: for each family a tensor per layer, in the gates' shapes; the smallest leave first.
    """
    paths: dict[str, RemovalPath] = {}

    def solve(budget: Budget | float | str) -> Structure:
        parsed = Budget.parse(budget)
        if parsed.unit not in paths:
            ranked = {family: layers for family, layers in scores.items() if family not in COSTLESS[parsed.unit]}
            paths[parsed.unit] = RemovalPath(choice.shape, ranked, choice.floors, choice.round_to)
        amount = parsed.amount if parsed.relative else f"{parsed.amount / 1e3!r}K"
        return paths[parsed.unit].solve(amount, parsed.unit)

    return at_each_budget(solve, choice.budgets)
