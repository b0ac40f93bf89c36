"""Methods compared at equal cost and at equal accuracy: on curves whose comparison is known, and the page beside Python."""

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rich.console import Console
from scipy.interpolate import pchip_interpolate
from test_report import make_run

from slimsweep.report.comparison import accuracy_difference, compare_methods, cost_ratio, usual_cost, with_error
from slimsweep.report.page_data import page_data
from slimsweep.report.pareto import by_series, hypervolume_by_method, hypervolume_gains, seeds_to_compare
from slimsweep.tools.display import comparison_table

WEB = Path(__file__).parents[1] / "slimsweep/report/web"
NODE = shutil.which("node")

costs = st.lists(st.integers(1, 10**9), min_size=2, max_size=8, unique=True)


@st.composite
def curves(draw: st.DrawFn) -> np.ndarray:
    """(n, 2): cost and accuracy, more accuracy at more cost, at least two points, accuracies that differ by half a point."""
    at = sorted(draw(costs))
    steps = draw(st.lists(st.floats(0.5, 9), min_size=len(at), max_size=len(at)))
    return np.column_stack([at, np.cumsum(steps)])


def line(at: list[float], base: float = 60.0, slope: float = 2.0) -> np.ndarray:
    """Points of a curve that is straight over the logarithm of the cost."""
    return np.column_stack([at, base + slope * np.log(at)])


@given(curves(), st.floats(-20, 20))
def test_a_curve_that_is_higher_everywhere_is_ahead_by_that_much(points, more):
    higher = points + np.array([0, more])
    found = accuracy_difference(higher, points)
    assert found.value == pytest.approx(more, abs=1e-9)
    assert (found.low, found.high) == pytest.approx((points[0, 0], points[-1, 0]))
    assert accuracy_difference(points, higher).value == pytest.approx(-more, abs=1e-9)


@given(curves(), st.floats(0.01, 100))
def test_a_curve_that_is_cheaper_everywhere_needs_that_share(points, share):
    cheaper = points * [share, 1]
    found = cost_ratio(cheaper, points)
    assert found.value == pytest.approx(share)
    assert (found.low, found.high) == pytest.approx((points[0, 1], points[-1, 1]))
    assert cost_ratio(points, cheaper).value == pytest.approx(1 / share)


def test_one_point_more_and_half_of_the_macs():
    points = np.array([[1e6, 80.0], [2e6, 85.0], [4e6, 87.0], [8e6, 88.0]])
    assert accuracy_difference(points + np.array([0, 1]), points).value == pytest.approx(1.0, abs=1e-12)
    assert cost_ratio(points * [0.5, 1], points).value == pytest.approx(0.5, abs=1e-12)


@example(
    np.array([[1, 5.875], [2, 6.875]]), np.array([[1, 3.0], [2.133757e7, 6]])
)  # a ratio of ten million: 1e-9 is below its rounding
@given(curves(), curves())
def test_both_measures_are_the_means_that_their_definitions_say(ours, theirs):
    """Followed literally: the curves at many places of the common range, and the mean of their differences there."""
    for measure, flipped in ((accuracy_difference, False), (cost_ratio, True)):
        found, swapped = measure(ours, theirs), measure(theirs, ours)
        assert (found is None) == (swapped is None)
        nodes = [(c[:, 1], np.log(c[:, 0])) if flipped else (np.log(c[:, 0]), c[:, 1]) for c in (ours, theirs)]
        low, high = max(x[0] for x, _ in nodes), min(x[-1] for x, _ in nodes)
        if found is None:
            assert high - low < 1e-5
            continue
        middles = low + (high - low) * (np.arange(4_000) + 0.5) / 4_000
        gap = np.mean(pchip_interpolate(*nodes[0], middles) - pchip_interpolate(*nodes[1], middles))
        assert found.value == pytest.approx(np.exp(gap) if flipped else gap, rel=1e-3, abs=1e-3)
        assert swapped.value == pytest.approx(1 / found.value if flipped else -found.value, rel=1e-12, abs=1e-9)


def test_points_elsewhere_on_the_same_curve_are_no_difference():
    ours, theirs = line([1e6, 3e6, 8e6]), line([0.5e6, 2e6, 4e6, 9e6])
    assert accuracy_difference(ours, theirs).value == pytest.approx(0, abs=1e-9)
    assert cost_ratio(ours, theirs).value == pytest.approx(1)
    at = np.array([0.5e6, 1e6, 2e6, 4e6, 8e6]), np.array([0.6e6, 1.3e6, 2.5e6, 5e6, 7e6])
    bent = [np.column_stack([c, 90 - 4e6 / c]) for c in at]  # and nearly none where the curve is not straight
    assert abs(accuracy_difference(*bent).value) < 0.05
    assert cost_ratio(*bent).value == pytest.approx(1, abs=0.03)


def test_points_of_one_cost_count_with_their_mean_and_unknown_ones_not_at_all():
    points = np.array([[1e6, 80.0], [2e6, 85.0]])
    more = np.array([[1e6, 79.0], [1e6, 81.0], [2e6, 85.0], [np.nan, 99.0], [3e6, np.nan], [0.0, 50.0]])
    assert accuracy_difference(more, points).value == pytest.approx(0, abs=1e-12)


def test_a_dominated_point_changes_the_accuracy_at_its_cost_and_not_the_cost_of_an_accuracy():
    points = np.array([[1e6, 80.0], [2e6, 85.0], [4e6, 88.0]])
    worse = np.vstack([points, [3e6, 70.0]])
    assert cost_ratio(worse, points).value == pytest.approx(1)
    assert accuracy_difference(worse, points).value < -1


@pytest.mark.parametrize(
    ("ours", "theirs", "differ", "ratio"),
    [
        ([(1, 50), (2, 60)], [(3, 55), (4, 65)], False, True),
        ([(1, 50), (2, 60)], [(1, 70), (2, 80)], True, False),
        ([(1, 50), (2, 60)], [(2, 60), (3, 70)], False, False),  # they touch
        ([(1, 50)], [(1, 50), (2, 60)], False, False),
        ([], [(1, 50), (2, 60)], False, False),
        ([(1, 50), (2, 40)], [(1, 50), (2, 60)], True, False),  # more cost and no more accuracy: a front of one point
    ],
    ids=["other costs", "other accuracies", "touching", "one point", "none", "falling"],
)
def test_nothing_is_said_where_there_is_nothing_in_common(ours, theirs, differ, ratio):
    pair = [np.array(points, dtype=float).reshape(-1, 2) for points in (ours, theirs)]
    assert (accuracy_difference(*pair) is not None) == differ
    assert (cost_ratio(*pair) is not None) == ratio


def results(entries: list[tuple[str, float, int, float]], **more: object) -> pd.DataFrame:
    """Rows of (method, MACs as a fraction of 1e6, seed, test top-1)."""
    rows = pd.DataFrame(entries, columns=["method", "budget", "seed", "test_top1"])
    return rows.assign(status="ok", macs=rows["budget"] * 1e6, unit="macs", **more)


def test_seeds_are_compared_in_pairs():
    entries = []
    for seed, shift in enumerate([0.0, 7.0, -3.0]):  # of a whole seed: no part of the error, since both methods have it
        for budget in (0.1, 0.2, 0.4):
            entries.append(("uniform", budget, seed, 80 + shift + 20 * budget))
            entries.append(("searched", budget, seed, 81 + shift + 20 * budget + 0.3 * (seed - 1)))
    found = compare_methods(results(entries)).iloc[0]
    assert found["method"] == "uniform"
    assert found["difference"] == pytest.approx(1.0)
    assert found["difference_se"] == pytest.approx(0.3 / 3**0.5)
    assert found["difference_seeds"] == 3
    assert (found["difference_low"], found["difference_high"]) == pytest.approx((1e5, 4e5))
    back = compare_methods(results(entries), method="uniform").iloc[0]
    assert (back["method"], back["difference"]) == ("searched", pytest.approx(-1.0))
    assert back["difference_se"] == pytest.approx(found["difference_se"])


def test_ratios_are_averaged_as_logarithms_so_that_they_can_be_swapped():
    entries = []
    for seed, share in enumerate([0.5, 0.25]):
        for budget, top1 in ((0.2, 80.0), (0.4, 85.0), (0.8, 88.0)):
            entries.append(("uniform", budget, seed, top1))
            entries.append(("searched", share * budget, seed, top1))
    rows = results(entries)
    rows["budget"] = [0.2, 0.2, 0.4, 0.4, 0.8, 0.8] * 2  # both had the same budgets
    there, back = (compare_methods(rows, method=method).iloc[0] for method in ("searched", "uniform"))
    assert there["ratio"] == pytest.approx(0.125**0.5)
    assert there["ratio_se"] == pytest.approx(there["ratio"] * np.log(2) / 2)  # the logarithms differ by ln 2
    assert back["ratio"] == pytest.approx(1 / there["ratio"])


def test_one_seed_has_no_error():
    rows = results([(m, b, 0, 80 + 10 * b) for m in ("searched", "uniform") for b in (0.1, 0.5)])
    found = compare_methods(rows).iloc[0]
    assert (found["difference"], found["ratio"]) == pytest.approx((0, 1))
    assert np.isnan(found["difference_se"])
    assert np.isnan(found["ratio_se"])


def test_a_missing_point_does_not_look_like_spread():
    rows = results(
        [(m, b, s, 70 + 30 * b + (m == "searched")) for m in ("searched", "taylor") for b in (0.1, 0.2, 0.5) for s in (0, 1)]
    )
    rows.loc[(rows["method"] == "taylor") & (rows["budget"] == 0.1) & (rows["seed"] == 1), "status"] = "failed"
    found = compare_methods(rows).iloc[0]
    assert found["difference_seeds"] == 2
    assert found["difference_se"] == pytest.approx(0, abs=1e-9)
    assert found["difference_low"] == pytest.approx(2e5)  # at both seeds


@pytest.mark.parametrize("seeds", [1, 2])
def test_more_seeds_at_one_budget_leave_the_comparison_of_all_budgets_as_it_was(seeds):
    """Such as where these seeds could not tell two methods apart at one budget."""
    at_all = [
        (m, b, s, 70 + 30 * b + (m == "searched"))
        for m in ("searched", "taylor")
        for b in (0.1, 0.2, 0.5)
        for s in range(seeds)
    ]
    more = [(m, 0.5, s, 60 + 9 * s) for m in ("searched", "taylor") for s in range(2, 9)]
    few, many = (results(entries) for entries in (at_all, at_all + more))
    pd.testing.assert_frame_equal(compare_methods(few), compare_methods(many))
    if seeds == 1:
        return  # a hypervolume with an error, at one budget, says more than one without
    areas = [hypervolume_by_method(rows, (1e6, 0.0)) for rows in (few, many)]
    pd.testing.assert_frame_equal(*areas)
    gains = [hypervolume_gains(rows, (1e6, 0.0)) for rows in (few, many)]
    pd.testing.assert_frame_equal(*gains)


@pytest.mark.parametrize(
    ("budgets_of_seeds", "expected"),
    [
        ([12, 3, 3], [0, 1, 2]),  # a run at work: one seed alone would have no standard error
        ([4, 4, 1, 1, 1], [0, 1]),
        ([4, 4, 3], [0, 1, 2]),
        ([[0, 1, 2], [1, 2, 3], [0, 1, 2, 3]], [0, 1, 2]),  # each has failed at another budget: what they share takes part
        ([[0], [1]], [0, 1]),  # nothing in common, which is said of both
        ([2], [0]),
    ],
)
def test_the_seeds_are_those_with_which_most_points_take_part(budgets_of_seeds, expected):
    lists = [budgets if isinstance(budgets, list) else range(budgets) for budgets in budgets_of_seeds]
    rows = pd.DataFrame(
        [(seed, f"macs {budget}") for seed, some in enumerate(lists) for budget in some], columns=["seed", "asked"]
    )
    assert seeds_to_compare([rows, rows]) == expected


def test_one_seed_is_compared_alone_where_several_leave_no_curve():
    rows = pd.DataFrame([(0, "a"), (1, "a"), (1, "b"), (1, "c"), (2, "a"), (2, "b")], columns=["seed", "asked"])
    assert seeds_to_compare([rows, rows], alone=True) == [1, 2]
    rows = rows[rows["seed"] < 2]
    assert seeds_to_compare([rows, rows], alone=True) == [1]
    assert seeds_to_compare([rows, rows]) == [0, 1]


def test_methods_without_a_seed_or_a_range_in_common_say_so():
    rows = results([("searched", b, 0, 90 + b) for b in (0.1, 0.5)] + [("uniform", b, 1, 80 + b) for b in (0.1, 0.5)])
    assert compare_methods(rows).empty
    found = compare_methods(rows.assign(seed=0)).iloc[0]
    assert found["difference"] == pytest.approx(10)
    assert np.isnan(found["ratio"])
    assert found["ratio_seeds"] == 0
    assert compare_methods(rows[rows["method"] == "uniform"]).empty  # nothing was searched
    assert compare_methods(rows.head(0)).empty


def test_macs_that_a_budget_allows_and_a_method_does_not_use_are_no_gain():
    """Two methods on one curve, one of which stays far below its smallest budget: its hypervolume is larger all the same."""
    at = {"searched": [0.12, 0.25, 0.5], "coarse": [0.10, 0.25, 0.5]}
    rows = results([(m, c, 0, 90 + 2 * np.log(c)) for m, macs in at.items() for c in macs])
    rows["budget"] = [0.12, 0.25, 0.5] * 2
    assert hypervolume_gains(rows, (1e6, 0.0)).iloc[0]["gain"] / 1e6 < -1
    found = compare_methods(rows).iloc[0]
    assert found["difference"] == pytest.approx(0, abs=1e-9)
    assert found["ratio"] == pytest.approx(1)


def test_the_dense_model_takes_no_part_and_terms_are_methods_of_their_own():
    rows = results([(m, b, 0, 80 + 10 * b) for m in ("searched", "taylor", "dense") for b in (0.1, 0.5)], terms="retraining")
    longer = rows[rows["method"] == "taylor"].assign(terms="compute", test_top1=lambda r: r["test_top1"] + 2)
    found = compare_methods(by_series(pd.concat([rows, longer], ignore_index=True))).set_index("method")
    assert found["difference"].to_dict() == pytest.approx({"taylor": 0, "taylor, equal compute": -2}, abs=1e-9)


def test_budgets_in_parameters_are_compared_in_parameters_and_shares_are_no_part_of_a_curve():
    macs = results([(m, b, 0, 80 + 10 * b) for m in ("searched", "taylor") for b in (0.1, 0.3, 0.5)], shares="")
    macs["params"] = 1000 * macs["budget"]
    params = macs.assign(
        unit="params", params=2000 * macs["budget"], test_top1=macs["test_top1"] + 3 * (macs["method"] == "searched")
    )
    asked = macs.assign(shares='{"mlp":0.5}', test_top1=50.0 + macs.index)
    rows = pd.concat([macs, params, asked], ignore_index=True)
    assert compare_methods(rows).iloc[0]["difference"] == pytest.approx(0, abs=1e-9)
    found = compare_methods(rows, x="params").iloc[0]
    assert found["difference"] == pytest.approx(3)
    assert (found["difference_low"], found["difference_high"]) == pytest.approx((200, 1000))
    assert [usual_cost(some) for some in (macs, params, rows)] == ["macs", "params", "macs"]


def test_numbers_are_written_with_their_error_where_there_is_one():
    assert with_error(0.354, 0.041, 2, " points", sign=True) == "+0.35 ± 0.04 points"
    assert with_error(0.71, float("nan"), 2, "x") == "0.71x"
    assert with_error(float("nan"), float("nan"), 2, "x") == "-"


def printed(rows: pd.DataFrame) -> str:
    console = Console(record=True, width=200, file=open("/dev/null", "w"))  # noqa: SIM115  # it ends with the console
    console.print(comparison_table(rows))
    return console.export_text()


def test_the_terminal_compares_the_search_with_each_baseline():
    rows = make_run(methods=("searched", "uniform", "random"), seeds=3).results
    found = compare_methods(rows).set_index("method")
    text = printed(rows)
    for method in ("uniform", "random"):
        (row,) = [row for row in text.splitlines() if row.startswith(method)]
        assert f"{found.loc[method, 'difference']:+.2f} ± {found.loc[method, 'difference_se']:.2f} points" in row
        assert f"{found.loc[method, 'ratio']:.2f} ± {found.loc[method, 'ratio_se']:.2f}x" in row
    assert "one seed" not in text
    alone = printed(rows[rows["seed"] == 0])
    assert "±" not in alone
    assert "one seed" in alone
    assert comparison_table(make_run(seeds=2).results) is None  # no baseline
    numbers = {name: None for name in ("macs", "params", "test_top1", "val_top1")}
    assert comparison_table(rows.assign(status="failed", **numbers)) is None


SCRIPT = """
import { compareMethods } from "WEB/comparison.js";
import { columnMetric } from "WEB/metrics.js";
import { readPage } from "WEB/unpack.js";
const page = readPage(JSON.parse(await new Response(process.stdin).text()));
const found = [];
for (const cost of page.columns.filter((column) => column.axis === "x" && !column.more).map(columnMetric))
  for (const method of page.methods)
    for (const other of page.methods)
      if (method !== other)
        found.push([cost.key, method, other, compareMethods(page, { run: 0, method }, { run: 0, method: other }, cost)]);
process.stdout.write(JSON.stringify(found));
"""


@pytest.mark.skipif(NODE is None, reason="no node on PATH (apt-get install nodejs)")
def test_the_page_computes_the_same_from_the_same_rows(tmp_path: Path):
    """Noisy curves with turns and ties, other costs per method, points that failed, budgets in two units, asked shares."""
    draw = np.random.default_rng(5)
    run = make_run(methods=("searched", "uniform", "random", "scratch", "taylor"), seeds=3)
    rows = run.results[run.results["method"] != "dense"].copy()
    rows["test_top1"] = (rows["test_top1"] + draw.normal(0, 0.8, len(rows))).round(2)  # the page has four decimals
    rows["macs"] = (rows["macs"] * draw.uniform(0.8, 1, len(rows))).astype(int)
    rows["params"] = (rows["params"] * draw.uniform(0.8, 1, len(rows))).astype(int)
    rows.loc[rows["method"] == "scratch", "test_top1"] -= 40
    rows.loc[(rows["method"] == "uniform") & (rows["seed"] == 1) & (rows["budget"] == 0.5), "status"] = "failed"
    rows = rows[~((rows["method"] == "random") & (rows["seed"] == 2))]
    rows = rows[~((rows["method"] == "taylor") & (rows["seed"] > 0) & ((rows["seed"] > 1) | (rows["budget"] > 0.25)))]
    rows["unit"], rows["shares"] = "macs", ""
    of_params = rows[rows["method"].isin(["searched", "random"])].assign(unit="params", point=lambda r: r["point"] + "-params")
    of_params["test_top1"] -= 0.4
    one_budget = rows[(rows["budget"] == 0.25) & (rows["seed"] == 0)]
    more = [one_budget.assign(seed=seed, point=lambda r, s=seed: r["point"] + f"-s{s}") for seed in range(3, 9)]
    rows = pd.concat([rows, *more], ignore_index=True)
    asked = rows[rows["method"] == "searched"].assign(shares='{"mlp":0.5}', point=lambda r: r["point"] + "-mlp")
    asked["test_top1"] -= 9
    rows = pd.concat([rows, of_params, asked], ignore_index=True)
    data = page_data([replace(run, results=rows)])
    script = tmp_path / "compare.mjs"
    script.write_text(SCRIPT.replace("WEB", WEB.as_uri()))
    done = subprocess.run([NODE, script], input=json.dumps(data), capture_output=True, text=True, timeout=60, check=True)
    found = json.loads(done.stdout)
    assert {cost for cost, *_ in found} >= {"macs", "params", "model_bytes"}
    pairs = {(cost, method) for cost, method, *_ in found}
    tables = {pair: compare_methods(rows, method=pair[1], x=pair[0]).set_index("method") for pair in pairs}
    compared = 0
    for cost, method, other, measures in found:
        table = tables[cost, method]
        assert (measures is None) == (other not in table.index)
        for name in ("difference", "ratio") if measures else ():
            expected = [table.loc[other, f"{name}{part}"] for part in ("", "_se", "_seeds", "_low", "_high")]
            got = [
                np.nan if v is None else v for v in (measures[name][part] for part in ("mean", "se", "seeds", "low", "high"))
            ]
            assert got == pytest.approx(expected, rel=1e-9, abs=1e-9, nan_ok=True), (cost, method, other, name)
            compared += not np.isnan(expected[0])
    assert compared > 30
    assert any(m and m["ratio"]["mean"] is None for *_, m in found)  # and some have nothing in common


def test_points_before_retraining_are_compared_with_each_other_and_not_with_trained_ones():
    trained = make_run(methods=("dense", "searched", "uniform"), seeds=1).results
    cut = trained.assign(epochs=0, point=trained["point"] + "-cut", test_top1=trained["test_top1"] - 5)
    text = printed(cut)
    assert "searched, before retraining compared with each method" in text
    assert [line.split()[0] for line in text.splitlines() if " points" in line] == ["uniform,"]
    both = printed(pd.concat([trained, cut], ignore_index=True))
    assert "before retraining" not in both
    assert both == printed(trained)
