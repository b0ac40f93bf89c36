"""What the search's ranking of gates leaves at each budget: along one removal path, or in ms along the one that was timed."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from slimsweep.config import Config
from slimsweep.latency.curve import Solved, curve_of_times
from slimsweep.latency.from_table import TableOfTimes, table_of_times
from slimsweep.ledger.run import Run
from slimsweep.slimming.budget import Budget
from slimsweep.slimming.cost import COSTS
from slimsweep.slimming.removal_path import RemovalPath
from slimsweep.slimming.shape import Shape
from slimsweep.slimming.structure import Structure


@dataclass(frozen=True, kw_only=True)
class Cuts:
    """The removal paths of a sweep, and what was timed along the one for budgets in ms.

    Attributes:
        path: of budgets in MACs and parameters, and of shares.
        path_in_ms: of budgets in ms: at a pace of its own, and with branches that may leave whole; None without such budgets.
        solved: by text of the budget, what it leaves of that path; budgets that are still to be timed are missing.
        timed_in: what the name of a point whose budget is in ms holds of the setting (`timed_in`).
    """

    path: RemovalPath
    path_in_ms: RemovalPath | None = None
    solved: Mapping[str, Solved] = field(default_factory=dict)
    timed_in: str = ""

    @property
    def shape(self) -> Shape:
        """The dense model's sizes."""
        return self.path.shape

    def knows(self, budget: Budget) -> bool:
        """Whether it is known what a budget leaves."""
        return not budget.is_latency or str(budget) in self.solved

    def solve(self, budget: Budget) -> Structure | None:
        """What a budget leaves; None where a budget in ms cannot be reached (`error`).

        Raises:
            BudgetError: a budget of another unit that cannot be reached.
            KeyError: a budget in ms that was not timed yet.
        """
        if not budget.is_latency:
            return self.path.solve(budget)
        found = self.solved[str(budget)]
        assert self.path_in_ms is not None
        return None if found.length is None else self.path_in_ms.prefix(found.length)

    def fraction(self, budget: Budget) -> float:
        """A budget as a fraction of the dense model's cost.

        Raises:
            KeyError: a budget in ms that was not timed yet.
        """
        if budget.relative:
            return budget.amount
        if budget.is_latency:
            return budget.amount / self.solved[str(budget)].timed.ms_dense
        dense = COSTS[budget.unit].of_dense(self.shape)
        return budget.limit(dense) / dense


def cuts_of_run(run: Run) -> Cuts:
    """The removal paths of a run, and what is known of its budgets in ms."""
    if not run.config.budgets_in_ms:
        return Cuts(path=run.path)
    solved = run.latency.solved(run.pace_of("ms"))
    return Cuts(path=run.path, path_in_ms=run.path_of("ms"), solved=solved, timed_in=timed_in(run.config))


def table_of(config: Config) -> TableOfTimes | None:
    """The times of `latency.table`; None where there is none, and models are timed here.

    Raises:
        RefusedInput: the table cannot be read, or its times are of several settings.
    """
    timing = config.timing
    return None if timing.table is None else table_of_times(timing.table, timing.batch_size)


def forget_changed_table(run: Run) -> bool:
    """Forget what budgets in ms leave by `latency.table`, where the file under that path has other times than it had.

    Points that are done stay as they are, unless the setting is another: then their names are others.

    Returns:
        Whether something was forgotten.

    Raises:
        RefusedInput: as for `table_of` and `curve_of_times`.
    """
    if not run.search_done or not run.config.budgets_in_ms or (table := table_of(run.config)) is None:
        return False
    pace = run.pace_of("ms")
    known = run.latency.curve(pace)
    if known is None:
        return False
    now = curve_of_times(run.path_of("ms"), table.ms, table.where, busy=table.busy)
    if now.to_dict() == known.to_dict() and run.latency.about(pace) == table.about:
        return False
    run.latency.forget(pace)
    return True


def timed_in(config: Config) -> str:
    """What counts of the section latency in the name of a point whose budget is in ms: the setting, and depth.

    Of a table it is the setting that its times are of, so that later times of the same device add to the same points.

    Raises:
        RefusedInput: as for `table_of`.
    """
    table = table_of(config)
    setting = config.latency_setting.to_dict() if table is None else table.setting.label
    return json.dumps([setting, config.depth_in_ms, config.timing.branch_cost], sort_keys=True)
