"""Two methods compared at equal cost and at equal accuracy, paired by seed: functions of points and of tables.

Both measures are Bjontegaard's (G. Bjontegaard, "Calculation of average PSNR differences between RD-curves", VCEG-M33, 2001),
with accuracy in place of PSNR and cost in place of bit rate. Curves are drawn through each method's own points as the common
practice does today: by monotone piecewise cubics (PCHIP; Fritsch and Butland, 1984), over the logarithm of the cost. Neither
measure rewards a model for cost that its budget allows and it does not use, as a hypervolume does: each point stands at its
own cost. The dense model takes no part: all methods share it, so it would only make their differences smaller.

The page computes the same itself (`web/comparison.js`), since it depends on what its reader selects; a test compares both.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from slimsweep.report.pareto import Numbers, pareto_front, seeds_to_compare, with_asked
from slimsweep.slimming.cost import COSTS

SMALLEST_RANGE = 1e-6  # a common range that is narrower (in points, or the logarithm of the cost) counts as none


@dataclass(frozen=True)
class Comparison:
    """One measure of two curves: its value, and the range that both curves cover, over which it is the mean.

    Attributes:
        value: points of percent, or a ratio of costs.
        low: the lower end of the range: a cost where accuracies are compared, an accuracy where costs are.
        high: its upper end.
    """

    value: float
    low: float
    high: float


def accuracy_difference(ours: Numbers, theirs: Numbers) -> Comparison | None:
    """The mean difference of accuracy at equal cost.

    It is 1 / (b - a) times the integral of f(u) - g(u) over u from a to b. u is the logarithm of the cost, f and g are the
    two curves, and [a, b] is the range of u that both cover.

    Args:
        ours: (n, 2), cost (above 0) and accuracy (in percent, or any other quality of which more is better) of all points of
            a method, which need not be monotone. Points of one cost count with their mean. Points with a missing number are
            left out.
        theirs: the same of the other method.

    Returns:
        The difference in the unit of the accuracy, positive where `ours` is ahead; the range is one of costs. None where a
        method has points of fewer than two costs, or the two share no range of costs.
    """
    mean = _mean_gap(_by_cost(ours), _by_cost(theirs))
    return mean and Comparison(mean.value, float(np.exp(mean.low)), float(np.exp(mean.high)))


def cost_ratio(ours: Numbers, theirs: Numbers) -> Comparison | None:
    """The mean ratio of costs at equal accuracy: 0.71 says that `ours` needs 71 % of the cost of `theirs`.

    It is exp(1 / (b - a) times the integral of ln c(q) - ln d(q) over q from a to b). c and d are the costs on the two
    curves as functions of the accuracy q, and [a, b] is the range of q that both cover. A curve goes through the points of
    the method that no other point of it dominates, so that one accuracy has one cost.

    Args:
        ours: as in `accuracy_difference`.
        theirs: the same of the other method.

    Returns:
        The ratio of `ours` to `theirs`; the range is one of accuracies, in percent. None where a method has fewer than two
        points on its own front, or the two fronts share no range of accuracies.
    """
    mean = _mean_gap(_by_accuracy(ours), _by_accuracy(theirs))
    return mean and Comparison(float(np.exp(mean.value)), mean.low, mean.high)


def compare_methods(rows: pd.DataFrame, method: str = "searched", x: str = "macs", y: str = "test_top1") -> pd.DataFrame:
    """A method compared with each other one at equal cost and at equal accuracy, paired by seed.

    The points of one seed make one curve per method. Two methods are compared at seeds that both have. Of each, only what it
    was asked for at all those seeds takes part, so that a missing point does not look like variance. Where some seeds have
    fewer budgets, the seeds are those with which most points take part (`pareto.seeds_to_compare`), and one alone where several
    leave no curve. The two methods need not have budgets in common. Of points with asked shares and points of budgets only the
    latter take part, and of budgets in several units those in the unit `x` where a method has at least two of them.

    Args:
        rows: of one run.
        method: the one that the others are compared with.
        x: column of the cost; less is better.
        y: column of the quality, such as accuracy in percent, or R2; more is better.

    Returns:
        One row per other method, "dense" excepted, with a seed in common: method; of `accuracy_difference` the columns
        difference (mean over seeds, positive where `method` is ahead), difference_se (standard error of that mean),
        difference_seeds, difference_low and difference_high (means over seeds); of `cost_ratio` ratio (geometric mean over
        seeds, below 1 where `method` is cheaper), ratio_se, ratio_seeds, ratio_low and ratio_high. Only seeds with a common
        range count. Standard errors are NaN for one seed, all numbers where no seed has a common range.
    """
    ok = rows[(rows["status"] == "ok") & (rows["method"] != "dense")]
    known = ok[ok[x].gt(0) & ok[y].notna()]
    known = with_asked(known.assign(shares=known["shares"].fillna("") if "shares" in known else ""))
    known = known.assign(asked=[f"{asked} {shares}" for asked, shares in zip(known["asked"], known["shares"], strict=True)])
    of_method = {str(name): _of_one_kind(group, x) for name, group in known.groupby("method")}
    found: list[dict[str, object]] = []
    for other in sorted(set(of_method) - {method}):
        pair = [of_method[name] for name in (method, other) if name in of_method]
        seeds = seeds_to_compare(pair, alone=True) if len(pair) == 2 else []
        if not seeds:
            continue
        curves = [_curves(group, seeds, x, y) for group in pair]
        differences = [accuracy_difference(*both) for both in zip(*curves, strict=True)]
        ratios = [cost_ratio(*both) for both in zip(*curves, strict=True)]
        found.append({"method": other, **_over_seeds("difference", differences), **_over_seeds("ratio", ratios)})
    names = [f"{name}{part}" for name in ("difference", "ratio") for part in ("", "_se", "_seeds", "_low", "_high")]
    return pd.DataFrame(found, columns=["method", *names])


def usual_cost(rows: pd.DataFrame) -> str:
    """The cost to compare methods in: the one that all budgets count, else MACs."""
    units = set(with_asked(rows[rows["method"] != "dense"])["unit"])
    return units.pop() if len(units) == 1 and units <= set(COSTS) else "macs"


def with_error(value: float, se: float, digits: int, unit: str = "", sign: bool = False) -> str:
    """A number with its standard error, as tables write it: "+0.35 ± 0.04", "0.71 ± 0.02x"; "-" where it is not known.

    Args:
        se: NaN for one seed, which has none.
        unit: written behind the number.
        sign: whether a positive number gets a "+".
    """
    if pd.isna(value):
        return "-"
    return f"{value:{'+' if sign else ''}.{digits}f}" + ("" if pd.isna(se) else f" ± {se:.{digits}f}") + unit


def _of_one_kind(rows: pd.DataFrame, x: str) -> pd.DataFrame:
    """The rows of one method whose points make one curve over the cost x."""
    of_budgets = rows[rows["shares"] == ""]
    rows = rows if of_budgets.empty else of_budgets
    in_unit = rows[rows["unit"] == x]
    return in_unit if in_unit["asked"].nunique() > 1 else rows


def _curves(rows: pd.DataFrame, seeds: list[int], x: str, y: str) -> list[Numbers]:
    """(n, 2) of each seed: cost and accuracy of what a method was asked for at all of these seeds."""
    groups = [rows[rows["seed"] == seed] for seed in seeds]
    shared = set.intersection(*(set(group["asked"]) for group in groups))
    return [group.loc[group["asked"].isin(shared), [x, y]].to_numpy(dtype=np.float64) for group in groups]


def _over_seeds(name: str, of_seeds: list[Comparison | None]) -> dict[str, float]:
    """Mean, standard error and ranges' ends over the seeds that have a comparison; ratios are averaged as logarithms."""
    found = [one for one in of_seeds if one is not None]
    values = np.array([one.value for one in found])
    if not found:
        mean = se = low = high = float("nan")
    else:
        low, high = (float(np.mean([getattr(one, end) for one in found])) for end in ("low", "high"))
        values = np.log(values) if name == "ratio" else values
        mean = float(values.mean())
        se = float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")
        if name == "ratio":
            mean = float(np.exp(mean))
            se *= mean  # to first order
    return {name: mean, f"{name}_se": se, f"{name}_seeds": len(found), f"{name}_low": low, f"{name}_high": high}


def _mean_gap(ours: tuple[Numbers, Numbers], theirs: tuple[Numbers, Numbers]) -> Comparison | None:
    """The mean of one curve minus the other over the range that both cover; a curve is its nodes, ascending, and values."""
    from scipy.interpolate import PchipInterpolator  # half a second that only comparisons need

    if min(len(ours[0]), len(theirs[0])) < 2:
        return None
    low, high = max(ours[0][0], theirs[0][0]), min(ours[0][-1], theirs[0][-1])
    if high - low < SMALLEST_RANGE:
        return None
    areas = [float(PchipInterpolator(*curve).integrate(low, high)) for curve in (ours, theirs)]
    return Comparison((areas[0] - areas[1]) / float(high - low), float(low), float(high))


def _by_cost(points: Numbers) -> tuple[Numbers, Numbers]:
    """The logarithms of the costs of all points, ascending, and the mean accuracy at each."""
    known = _known(points)
    costs, places, counts = np.unique(known[:, 0], return_inverse=True, return_counts=True)
    return np.log(costs), np.bincount(places, weights=known[:, 1], minlength=len(costs)) / counts


def _by_accuracy(points: Numbers) -> tuple[Numbers, Numbers]:
    """The accuracies on the front of points, ascending, and the logarithm of the cost at each."""
    front = pareto_front(pd.DataFrame(_known(points), columns=["cost", "accuracy"]), "cost", "accuracy").drop_duplicates()
    return front["accuracy"].to_numpy(dtype=np.float64), np.log(front["cost"].to_numpy(dtype=np.float64))


def _known(points: Numbers) -> Numbers:
    """The points that have both numbers."""
    points = np.asarray(points, dtype=np.float64).reshape(-1, 2)
    return points[(points[:, 0] > 0) & ~np.isnan(points[:, 1])]
