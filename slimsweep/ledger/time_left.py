"""How long a run will still take, from the seconds of the epochs that have been trained so far."""

import heapq
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

LAST_EPOCHS = 5  # of a training, whose median is taken: the first ones also start processes and load images


def epoch_seconds(curve: Sequence[Mapping[str, Any]]) -> float | None:
    """Seconds of one epoch, the median of the last ones; None where none has been trained.

    Args:
        curve: rows of `tables.CURVES` of one training; epoch 0 is before any training.
    """
    seconds = [row["seconds"] for row in curve if row["epoch"] and row.get("seconds") is not None]
    return statistics.median(seconds[-LAST_EPOCHS:]) if seconds else None


@dataclass(frozen=True, kw_only=True)
class Pending:
    """A point as far as its time is concerned."""

    budget: float  # fraction of the dense model's cost
    epochs_left: int
    running: bool = False
    epoch_seconds: float | None = None  # where that was measured


def sweep_seconds(points: Sequence[Pending]) -> float | None:
    """Seconds until all points have ended, when as many run at a time as now; None where no epoch has been measured.

    The seconds of an epoch of a point that has not begun are those of a straight line through the measured points, by budget.

    Args:
        points: all of the plan, with those that are done, in the order in which they start.
    """
    measured = [(one.budget, one.epoch_seconds) for one in points if one.epoch_seconds is not None]
    if not measured:
        return None
    at_once = max(1, sum(one.running for one in points))
    left = [one for one in points if one.epochs_left]
    free = [0.0] * at_once  # when each place is free again
    for one in sorted(left, key=lambda one: not one.running):
        each = one.epoch_seconds if one.epoch_seconds is not None else _on_line(measured, one.budget)
        heapq.heappush(free, heapq.heappop(free) + one.epochs_left * each)
    return max(free)


def _on_line(measured: Sequence[tuple[float, float]], budget: float) -> float:
    """Seconds of an epoch at a budget, by least squares; at least what is in proportion to the budget."""
    budgets, seconds = zip(*measured, strict=True)
    if len(set(budgets)) < 2:
        return statistics.mean(seconds)
    slope, offset = statistics.linear_regression(budgets, seconds)
    return max(offset + slope * budget, min(seconds) * min(1.0, budget / max(budgets)))


def in_words(seconds: float | None) -> str:
    """A time that is left, in words: "about 12 min left"; empty where it is not known, or nothing is left."""
    if not seconds:
        return ""
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            amount = seconds / size
            return f"about {amount:.1f} {unit} left" if amount < 10 and size > 60 else f"about {amount:.0f} {unit} left"
    return f"about {max(1, round(seconds)):d} s left"
