"""The Pareto front of a sweep, its hypervolume and knee, and means over seeds: functions of tables.

The page computes front and knee itself (`web/front.js`), since they depend on what its reader selects; tests check both
versions with the cases of `tests/page/front_cases.json`.
"""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from slimsweep.ledger.latencies import setting_words
from slimsweep.ledger.measures import R2, measure_of
from slimsweep.slimming.cost import LATENCY

Numbers = np.ndarray  # of float64

EQUAL_COMPUTE = ", equal compute"  # added to a method's name for points with terms "compute"
UNTRAINED = ", before retraining"  # added to a method's name for points of 0 epochs


def pareto_front(
    rows: pd.DataFrame,
    x: str = "macs",
    y: str = "test_top1",
    *,
    maximize_x: bool = False,
    maximize_y: bool = True,
    tolerance: float = 0.0,
) -> pd.DataFrame:
    """The rows that no other row dominates, cheapest first.

    A row dominates another when it is at least as good in both columns and better in one; equal rows both stay. Rows with a
    missing number (failed points) are left out.

    Args:
        x: column of the cost; less is better unless `maximize_x` (throughput).
        y: column of the quality; more is better unless `maximize_y` is False (a loss).
        tolerance: costs that differ by no more count as equal: from the cheapest row on, those within the tolerance of it, then
            from the next one on. Rows of equal cost and quality are alike, and both stay.

    Raises:
        KeyError: no such column.
    """
    known = rows[rows[x].notna() & rows[y].notna()]
    if known.empty:
        return known
    cost, quality = _oriented(known, x, y, maximize_x, maximize_y)
    own = cost
    if tolerance:
        cost = _merged(cost, tolerance)
    order = np.lexsort((own, -quality, cost))
    cost, quality = cost[order], quality[order]
    first = np.concatenate([[True], cost[1:] != cost[:-1]])  # the first row of each cost is the best of that cost
    best_of_cost = np.maximum.accumulate(np.where(first, np.arange(len(cost)), 0))
    cheaper = np.concatenate([[-np.inf], np.maximum.accumulate(quality)[:-1]])[best_of_cost]  # the best quality at a lower cost
    return known.iloc[order[(quality == quality[best_of_cost]) & (quality > cheaper)]]


def _merged(cost: Numbers, tolerance: float) -> Numbers:
    """The costs, each as the lowest of those that it counts as equal to."""
    merged = cost.copy()
    start = -np.inf
    for place in np.argsort(cost, kind="stable"):
        if cost[place] - start > tolerance:
            start = cost[place]
        merged[place] = start
    return merged


def hypervolume(points: Numbers, reference: tuple[float, float]) -> float:
    """The area between the Pareto front of points, as a step function, and a reference point.

    Args:
        points: (n, 2), cost (less is better) and quality (more is better).
        reference: (largest cost, lowest quality); points beyond either add nothing. Areas with different references do not
            compare.

    Returns:
        The area, in the unit of the cost times the unit of the quality.
    """
    points = np.asarray(points, dtype=np.float64).reshape(-1, 2)
    inside = points[(points[:, 0] < reference[0]) & (points[:, 1] > reference[1])]  # also drops NaN
    if len(inside) == 0:
        return 0.0
    inside = inside[np.argsort(inside[:, 0], kind="stable")]
    best = np.maximum.accumulate(inside[:, 1]) - reference[1]  # the best quality from this cost on
    widths = np.diff(np.append(inside[:, 0], reference[0]))
    return float(np.sum(widths * best))


def knee(
    front: pd.DataFrame, x: str = "macs", y: str = "test_top1", *, maximize_x: bool = False, maximize_y: bool = True
) -> pd.Series | None:
    """The row of a front where it bends most: beyond it, quality costs more. None where the front has no bend.

    It is the row farthest above the straight line between the front's two ends, both axes scaled to [0, 1] (the cheaper
    one of equals). A front of fewer than three different points, or one that lies on or below that line, has none.
    """
    front = pareto_front(front, x, y, maximize_x=maximize_x, maximize_y=maximize_y)
    if len(front) < 3:
        return None
    cost, quality = _oriented(front, x, y, maximize_x, maximize_y)
    if cost[0] == cost[-1] or quality[0] == quality[-1]:
        return None
    above = (quality - quality[0]) / (quality[-1] - quality[0]) - (cost - cost[0]) / (cost[-1] - cost[0])
    highest = int(np.argmax(above))
    return front.iloc[highest] if above[highest] > 1e-9 else None


def summarize(
    rows: pd.DataFrame,
    by: Sequence[str] = ("method", "unit", "budget"),
    metrics: Sequence[str] = ("macs", "params", "val_top1", "test_top1", "test_top5", "test_loss"),
) -> pd.DataFrame:
    """Mean and standard error over seeds, one row per group that has an ok point.

    Args:
        by: columns that make a group; add "run" where there are several runs. "budget" brings "unit" and "timed_in" along: 50 %
            of MACs and 50 % of parameters are different budgets, and so are 50 % of ms on two devices.

    Returns:
        The columns of `by`, `unit` and `timed_in` (`with_settings`), `count` (ok points), and METRIC_mean and METRIC_se for
        each metric. The standard error is NaN for a group of one.
    """
    ok = with_settings(with_units(rows[rows["status"] == "ok"] if "status" in rows else rows))
    names = [name for name in by if name not in ("unit", "timed_in")]
    keys = [key for name in names for key in (("unit", "timed_in", name) if name == "budget" else (name,))]
    grouped = ok.groupby(keys, sort=True, dropna=False)
    columns = {"count": grouped.size()}
    for metric in metrics:
        values = grouped[metric]
        columns[f"{metric}_mean"] = values.mean()
        columns[f"{metric}_se"] = values.std(ddof=1) / np.sqrt(values.count())
    return pd.DataFrame(columns).reset_index()


def best_rates(rows: pd.DataFrame) -> pd.DataFrame:
    """Of points that differ only in learning rate, those at the rate that is best on validation; failed points all stay.

    It is one rate for all seeds: of the rates with the most seeds, the one with the best mean. Points that were not trained
    stay beside those that were.

    Args:
        rows: of one run; returned unchanged if they have no column `lr`.
    """
    if "lr" not in rows or rows.loc[rows["status"] == "ok", "lr"].nunique(dropna=False) < 2:
        return rows
    numbered = rows.assign(place=range(len(rows)))  # tables that were put together may have an index twice
    ok = with_settings(with_units(numbered[numbered["status"] == "ok"]))
    ok = ok.assign(untrained=untrained(ok), lr=ok["lr"].fillna(0.0))
    alike = [column for column in ("method", "terms", "unit", "timed_in", "budget", "shares", "untrained") if column in ok]
    of_rate = ok.groupby([*alike, "lr"], dropna=False)[measure_of(rows).val]
    ok = ok.assign(seeds=of_rate.transform("size"), quality=of_rate.transform("mean"))
    ok = ok.sort_values(["seeds", "quality", "lr"], ascending=[False, False, True], kind="stable")
    best = ok[ok["lr"] == ok.groupby(alike, dropna=False)["lr"].transform("first")]
    return rows[((rows["status"] != "ok") | numbered["place"].isin(best["place"])).to_numpy()]


def with_units(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with a `unit` in each ("macs" or "params"); rows of earlier versions have none and mean MACs."""
    return rows.assign(unit=rows["unit"].fillna("macs") if "unit" in rows else "macs")


def with_settings(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with `timed_in`: the setting that a budget in ms was met in, in words; empty where all are of one setting.

    The same share of the dense model's time in another setting is another budget, with another model.

    Args:
        rows: with `unit` in each; returned unchanged if they have `timed_in`.
    """
    if "timed_in" in rows:
        return rows
    in_ms = rows["unit"] == LATENCY.name
    if not in_ms.any() or "latency_setting" not in rows:
        return rows.assign(timed_in="")
    words = rows["latency_setting"].where(in_ms).map(_timed_in, na_action="ignore").fillna("")
    return rows.assign(timed_in=words if words[words != ""].nunique() > 1 else "")


def _timed_in(text: str) -> str:
    """The setting of a row's latency without the machine, which may be another where a run is gone on with."""
    try:
        found = json.loads(text)
    except ValueError:  # damaged
        return text
    return setting_words({**found, "hardware": None}) if isinstance(found, dict) else text


def untrained(rows: pd.DataFrame) -> pd.Series:
    """Which rows are of points that were cut and repaired, and not trained (retrain.epochs: 0)."""
    return (rows["epochs"] == 0) & ~as_it_is(rows) if "epochs" in rows else pd.Series(False, index=rows.index)


def as_it_is(rows: pd.DataFrame) -> pd.Series:
    """Which rows are of a dense model without a head: it is never trained, so it stands beside trained points and others."""
    none = pd.Series(False, index=rows.index)
    if not {"epochs", "method", R2.val} <= set(rows):
        return none
    return (rows["epochs"] == 0) & (rows["method"] == "dense") & rows[R2.val].notna()


def by_series(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with terms and lack of training in the method's name: each is then a method of its own.

    "uniform, equal compute" and "searched, before retraining" form fronts of their own.
    """
    method = rows["method"].where(~untrained(rows), rows["method"] + UNTRAINED)
    if "terms" in rows:
        method = method.where(rows["terms"] != "compute", method + EQUAL_COMPUTE)
    return rows.assign(method=method)


def trained_first(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of trained points; all rows where there are none. Of what `by_series` returned, the method's name tells."""
    without = untrained(rows) | (rows["method"].str.endswith(UNTRAINED) if "method" in rows else False)
    return rows if (without | as_it_is(rows)).all() else rows[~without]


def hypervolume_by_method(
    rows: pd.DataFrame, reference: tuple[float, float], x: str = "macs", y: str = "test_top1"
) -> pd.DataFrame:
    """The hypervolume of each method of one run, mean and standard error over seeds.

    Only budgets that all seeds have are used, so that a missing point does not look like variance. Where some seeds of a
    method have fewer budgets, the seeds are those with which most points take part (`seeds_to_compare`).

    Args:
        rows: of one run.
        reference: as in `hypervolume`.

    Returns:
        One row per method: method, budgets, seeds, mean, se (NaN for one seed), in the unit of x times the unit of y.
    """
    found: list[dict[str, object]] = []
    for method, group in with_asked(rows[(rows["status"] == "ok") & rows[y].notna()]).groupby("method"):
        of_seeds = group[group["seed"].isin(seeds_to_compare([group]))]
        shared = set.intersection(*(set(of_seed["asked"]) for _, of_seed in of_seeds.groupby("seed")))
        kept = of_seeds[of_seeds["asked"].isin(shared)]
        areas = np.array([hypervolume(g[[x, y]].to_numpy(), reference) for _, g in kept.groupby("seed")])
        if len(areas) == 0:
            continue  # its seeds have no common budget yet
        se = float(areas.std(ddof=1) / np.sqrt(len(areas))) if len(areas) > 1 else float("nan")
        found.append({"method": method, "budgets": len(shared), "seeds": len(areas), "mean": float(areas.mean()), "se": se})
    return pd.DataFrame(found, columns=["method", "budgets", "seeds", "mean", "se"])


def hypervolume_gains(
    rows: pd.DataFrame, reference: tuple[float, float], method: str = "searched", x: str = "macs", y: str = "test_top1"
) -> pd.DataFrame:
    """How much larger a method's hypervolume is than each other method's, paired by seed.

    A pair is compared at seeds that both have, at the budgets that all those seeds have of both; where some seeds have fewer
    budgets, at the seeds with which most points take part (`seeds_to_compare`).

    Args:
        rows: of one run.
        reference: as in `hypervolume`.
        method: the one that the others are compared with.

    Returns:
        One row per other method that has a budget and a seed in common: method, budgets, seeds, gain (mean of the
        difference, positive where `method` is ahead), se (of that mean; NaN for one seed), in the unit of x times that of y.
    """
    ok = with_asked(rows[(rows["status"] == "ok") & rows[y].notna()])
    groups = {(name, seed): group for (name, seed), group in ok.groupby(["method", "seed"])}
    found: list[dict[str, object]] = []
    for other in sorted(set(ok["method"]) - {method}):
        both = [ok[ok["method"] == name] for name in (method, other)]
        common = set(both[0]["asked"]) & set(both[1]["asked"])
        seeds = seeds_to_compare([rows[rows["asked"].isin(common)] for rows in both])
        pairs = [(groups[method, seed], groups[other, seed]) for seed in seeds]
        if not pairs:
            continue
        shared = set.intersection(*(set(group["asked"]) for pair in pairs for group in pair))
        areas = [[hypervolume(g.loc[g["asked"].isin(shared), [x, y]].to_numpy(), reference) for g in pair] for pair in pairs]
        if not shared:
            continue
        gains = np.array([ours - theirs for ours, theirs in areas])
        se = float(gains.std(ddof=1) / np.sqrt(len(gains))) if len(gains) > 1 else float("nan")
        found.append({"method": other, "budgets": len(shared), "seeds": len(gains), "gain": float(gains.mean()), "se": se})
    return pd.DataFrame(found, columns=["method", "budgets", "seeds", "gain", "se"])


def seeds_to_compare(methods: Sequence[pd.DataFrame], alone: bool = False) -> list[int]:
    """Of the seeds that all methods have, those with which most points take part; a method's points take part if all of these
    seeds have them. Where there are several seeds it is never one alone, which has no standard error, but as `alone` says.

    They are chosen among all seeds and, for each seed, those that have at least what it has.

    Args:
        methods: rows with the columns `seed` and `asked`, per method.
        alone: take one seed where no choice of several leaves each method two points, which make a curve, and one does.

    Returns:
        The seeds, ascending; all that the methods share where no choice leaves each method two points.
    """
    by_seed: list[Any] = [rows.groupby("seed")["asked"] for rows in methods]
    of_methods = [{int(seed): frozenset(asked) for seed, asked in groups} for groups in by_seed]
    seeds = sorted(set.intersection(*map(set, of_methods)))
    asked = {seed: tuple(of_seeds[seed] for of_seeds in of_methods) for seed in seeds}
    kinds = list(dict.fromkeys(asked.values()))  # most seeds have the same, and there may be hundreds of them
    candidates = [kinds, *([kind for kind in kinds if all(map(frozenset.issuperset, kind, one))] for one in kinds)]
    best, most = kinds, 0
    for some in candidates:
        count = sum(asked[seed] in some for seed in seeds)
        shared = [len(frozenset.intersection(*of_method)) for of_method in zip(*some, strict=True)]
        points = count * sum(shared) if count > 1 and min(shared) > 1 else 0
        if points > most:
            best, most = some, points
    if alone and not most and (curves := [kind for kind in kinds if min(map(len, kind)) > 1]):
        best = [max(curves, key=lambda kind: sum(map(len, kind)))]
    return [seed for seed in seeds if asked[seed] in best]


def with_asked(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with a `unit` in each, and a column `asked` that identifies the budget: its unit and fraction."""
    rows = with_units(rows)
    return rows.assign(asked=[f"{unit} {budget}" for unit, budget in zip(rows["unit"], rows["budget"], strict=True)])


def _oriented(rows: pd.DataFrame, x: str, y: str, maximize_x: bool, maximize_y: bool) -> tuple[Numbers, Numbers]:
    """Both columns as numbers, with signs such that less cost is better and more quality is better."""
    cost = rows[x].to_numpy(dtype=np.float64)
    quality = rows[y].to_numpy(dtype=np.float64)
    return (-cost if maximize_x else cost), (quality if maximize_y else -quality)
