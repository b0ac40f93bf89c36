"""The best model of a run under a limit, chosen by validation: the test split takes no part in the choice."""

from collections.abc import Callable, Mapping

import pandas as pd

from slimsweep.errors import RefusedInput
from slimsweep.ledger.tables import SETTING
from slimsweep.report.pareto import best_rates
from slimsweep.slimming.budget import Budget, BudgetLike
from slimsweep.slimming.cost import COSTS


class NothingFits(RefusedInput):
    """No point of the run keeps to the limits; the text names the nearest."""


def pick(
    rows: pd.DataFrame,
    bench: pd.DataFrame | None = None,
    *,
    limits: Mapping[str, BudgetLike | None] | None = None,
    min_top1: float | None = None,
    max_latency_ms: float | None = None,
    batch_size: int | None = None,
) -> pd.Series:
    """The row of the most accurate point that keeps to the limits; with only `min_top1`, of the cheapest.

    Args:
        rows: `Run.rows`.
        bench: `Run.bench()`; needed for a latency.
        limits: the most that a point may have of each cost (`slimsweep.slimming.cost.COSTS`), as a fraction of dense or
            absolute: {"macs": "1.2G", "params": 0.6}.
        min_top1: percent on validation.
        max_latency_ms: median of one call at `batch_size`, as timed on the device and in the setting of the latest benchmark.
        batch_size: of that benchmark; the smallest that was timed where not given.

    Raises:
        NothingFits: no ok point does; says what is nearest.
        ValueError: no limit was given, or one that means nothing, or a latency without a benchmark.
    """
    most_of = {unit: most for unit, most in (limits or {}).items() if most is not None}
    if not most_of and min_top1 is None and max_latency_ms is None:
        raise RefusedInput("give a limit: --max-macs 1.2G, --max-params 11.5M, --min-top1 80 or --max-latency-ms 5")
    ok = best_rates(rows)
    ok = ok[ok.status == "ok"].copy()
    if ok.empty:
        raise NothingFits(
            "no point of this run is done yet, so there is nothing to pick from; `slimsweep status` says where it stands"
        )
    ok["latency_ms"] = float("nan")
    # Each limit in words, and how far a row is above it.
    tests: list[tuple[str, Callable[[pd.DataFrame], pd.Series]]] = []
    for unit, most in most_of.items():
        tests.append(_cost_limit(unit, most, int(ok[f"{unit}_dense"].iloc[0])))
    if max_latency_ms is not None:
        ok["latency_ms"] = ok.point.map(_latencies(bench, batch_size))
        ok = ok[ok.latency_ms.notna()]
        if ok.empty:
            raise RefusedInput("no point of this run was timed at that batch size; run `slimsweep bench RUN` first")
        tests.append((f"at most {max_latency_ms:g} ms", lambda t: t.latency_ms - max_latency_ms))
    if min_top1 is not None:
        tests.append((f"at least {min_top1:g} % on validation", lambda t: min_top1 - t.val_top1))
    fits = ok
    for words, excess in tests:
        left = fits[excess(fits) <= 0]
        if left.empty:
            near = fits.iloc[int(excess(fits).to_numpy().argmin())]
            raise NothingFits(f"no point fits {' and '.join(w for w, _ in tests)}; the nearest to {words} is {describe(near)}")
        fits = left
    if not most_of and max_latency_ms is None:
        return fits.sort_values(["macs", "val_top1"], ascending=[True, False]).iloc[0]
    return fits.sort_values(["val_top1", "macs"], ascending=[False, True]).iloc[0]


def _cost_limit(unit: str, most: BudgetLike, dense: int) -> tuple[str, Callable[[pd.DataFrame], pd.Series]]:
    """A limit on a cost in words, and how far each row is above it.

    Raises:
        RefusedInput: the limit means nothing, or counts something else.
    """
    budget = Budget.parse(most, unit)
    if budget.unit != unit:
        raise RefusedInput(f"--max-{unit} is {most!r}, which counts {budget.unit}: give it as --max-{budget.unit}")
    limit = budget.limit(dense)
    return f"at most {COSTS[unit].text(limit)}", lambda table: table[unit] - limit


def describe(row: pd.Series) -> str:
    """A point in a few words: name, cost, accuracy on validation."""
    latency = f", {row.latency_ms:.2f} ms" if row.latency_ms == row.latency_ms else ""
    return f"{row.point} ({row.macs / 1e6:,.2f} MMACs{latency}, {row.val_top1:.2f} % on validation)"


def _latencies(bench: pd.DataFrame | None, batch_size: int | None) -> dict[str, float]:
    """Each point's median latency in ms at the batch size, in the setting that was timed last: others do not compare."""
    if bench is None or bench.empty:
        return {}
    size = batch_size or int(bench.batch_size.min())
    chosen = bench[bench.batch_size == size].sort_values("created_at")
    setting = chosen[SETTING].astype(str)
    chosen = chosen[(setting == setting.iloc[-1]).all(axis=1)] if len(chosen) else chosen
    return dict(zip(chosen.point, chosen.latency_p50_ms, strict=True))
