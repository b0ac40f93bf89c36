"""Front, hypervolume, knee and means, against what their definitions say when followed literally."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slimsweep.report.pareto import (
    best_rates,
    by_series,
    hypervolume,
    hypervolume_by_method,
    hypervolume_gains,
    knee,
    pareto_front,
    summarize,
    with_units,
)

# Few different values, so that ties come up often.
points = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=25)
sense = st.booleans()


def table(pairs: list[tuple[float, float]]) -> pd.DataFrame:
    return pd.DataFrame(pairs, columns=["macs", "test_top1"], dtype=float)


def dominates(a: tuple[float, float], b: tuple[float, float], maximize_x: bool, maximize_y: bool) -> bool:
    x = a[0] - b[0] if maximize_x else b[0] - a[0]
    y = a[1] - b[1] if maximize_y else b[1] - a[1]
    return x >= 0 and y >= 0 and (x > 0 or y > 0)


@given(points, sense, sense)
def test_the_front_is_what_nothing_dominates(pairs, maximize_x, maximize_y):
    front = pareto_front(table(pairs), maximize_x=maximize_x, maximize_y=maximize_y)
    expected = [i for i, p in enumerate(pairs) if not any(dominates(q, p, maximize_x, maximize_y) for q in pairs)]
    assert sorted(front.index) == expected
    costs = front["macs"].tolist()
    assert costs == sorted(costs, reverse=maximize_x)


@given(points)
def test_points_without_a_number_change_nothing(pairs):
    rows = table(pairs)
    with_failed = pd.concat([rows, table([(1.0, np.nan), (np.nan, 99.0)])], ignore_index=True)
    assert pareto_front(with_failed).equals(pareto_front(rows))


def test_the_front_keeps_all_columns_and_names_a_missing_one():
    rows = table([(1, 2)]).assign(point="a")
    assert pareto_front(rows)["point"].tolist() == ["a"]
    with pytest.raises(KeyError, match="latency"):
        pareto_front(rows, x="latency")


@given(points, st.integers(0, 14), st.integers(-1, 12))
def test_the_hypervolume_is_the_number_of_unit_squares_that_some_point_dominates(pairs, largest, least):
    squares = sum(any(x <= column and y > row for x, y in pairs) for column in range(largest) for row in range(least, 13))
    assert hypervolume(np.array(pairs, dtype=float), (largest, least)) == pytest.approx(squares)


@given(points, st.tuples(st.integers(0, 12), st.integers(0, 12)))
def test_one_more_point_never_lowers_the_hypervolume(pairs, more):
    before = hypervolume(np.array(pairs, dtype=float), (13, 0))
    assert hypervolume(np.array([*pairs, more], dtype=float), (13, 0)) >= before


@given(points)
def test_the_hypervolume_is_that_of_the_front(pairs):
    rows = table(pairs)
    columns = ["macs", "test_top1"]
    assert hypervolume(rows[columns].to_numpy(), (13, -1)) == pytest.approx(
        hypervolume(pareto_front(rows)[columns].to_numpy(), (13, -1))
    )


@given(points, st.floats(0.1, 1e9), st.floats(-50, 50))
def test_the_knee_does_not_depend_on_units(pairs, scale, shift):
    rows = table(pairs)
    here = knee(rows)
    there = knee(rows.assign(macs=rows["macs"] * scale, test_top1=rows["test_top1"] + shift))
    assert (here is None) == (there is None)
    if here is not None:
        front = pareto_front(rows)
        assert here.name in front.index
        # Strictly inside, and on the better side of the line between the ends.
        first, last = front.iloc[0], front.iloc[-1]
        line = first["test_top1"] + (last["test_top1"] - first["test_top1"]) * (here["macs"] - first["macs"]) / (
            last["macs"] - first["macs"]
        )
        assert here["test_top1"] > line


def test_the_knee_is_where_accuracy_stops_to_pay():
    rows = table([(1, 60), (2, 90), (3, 91), (4, 92)])
    assert knee(rows)["macs"] == 2
    losses = rows.assign(test_top1=100 - rows["test_top1"])
    assert knee(losses, maximize_y=False)["macs"] == 2
    throughput = rows.assign(macs=10 - rows["macs"])
    assert knee(throughput, maximize_x=True)["macs"] == 8


@pytest.mark.parametrize(
    "pairs",
    [[], [(1, 1)], [(1, 1), (2, 2)], [(1, 1), (2, 2), (3, 3)], [(1, 1), (2, 1.5), (3, 3)]],
    ids=["none", "one", "two", "straight", "hollow"],
)
def test_a_front_without_a_bend_has_no_knee(pairs):
    assert knee(table(pairs)) is None


def results(entries: list[tuple[str, float, int, float | None]]) -> pd.DataFrame:
    rows = pd.DataFrame(entries, columns=["method", "budget", "seed", "test_top1"])
    rows["status"] = np.where(rows["test_top1"].isna(), "failed", "ok")
    rows["macs"] = rows["budget"] * 1000
    return rows


def test_means_are_over_the_seeds_that_succeeded():
    rows = results(
        [("searched", 0.5, 0, 90.0), ("searched", 0.5, 1, 94.0), ("searched", 0.5, 2, None), ("uniform", 0.5, 0, 80.0)]
    )
    summary = summarize(rows, metrics=["test_top1"]).set_index("method")
    assert summary.loc["searched", "count"] == 2
    assert summary.loc["searched", "test_top1_mean"] == 92
    assert summary.loc["searched", "test_top1_se"] == pytest.approx(2.0)  # sqrt(8) / sqrt(2)
    assert summary.loc["uniform", "count"] == 1
    assert np.isnan(summary.loc["uniform", "test_top1_se"])


@given(st.lists(st.floats(0, 100), min_size=2, max_size=6))
def test_standard_error_is_the_sample_deviation_over_the_root_of_the_count(values):
    rows = results([("searched", 0.5, seed, value) for seed, value in enumerate(values)])
    summary = summarize(rows, metrics=["test_top1"]).iloc[0]
    mean = sum(values) / len(values)
    variance = sum((v - mean) ** 2 for v in values) / (len(values) - 1)
    assert summary["test_top1_mean"] == pytest.approx(mean, abs=1e-9)
    assert summary["test_top1_se"] == pytest.approx((variance / len(values)) ** 0.5, abs=1e-9)


def test_a_point_that_has_not_landed_does_not_look_like_spread():
    even = [(0.25, 80.0), (0.5, 90.0)]
    rows = results([("searched", b, seed, top1) for seed in (0, 1) for b, top1 in even] + [("searched", 0.7, 0, 95.0)])
    found = hypervolume_by_method(rows, (1000, 0)).iloc[0]
    assert (found["budgets"], found["seeds"]) == (2, 2)
    assert found["mean"] == pytest.approx(80 * 250 + 90 * 500)
    assert found["se"] == 0


def test_one_seed_has_a_hypervolume_and_no_spread():
    found = hypervolume_by_method(results([("searched", 0.5, 0, 90.0)]), (1000, 0)).iloc[0]
    assert found["mean"] == pytest.approx(45000)
    assert np.isnan(found["se"])


def test_seeds_without_a_budget_in_common_have_no_hypervolume():
    assert hypervolume_by_method(results([("searched", 0.5, 0, 90.0), ("searched", 0.7, 1, 91.0)]), (1000, 0)).empty


def test_gains_are_paired_by_seed():
    """Seeds that differ much do not hide a gain that each of them shows."""
    rows = results(
        [(m, b, s, base + 10 * s + gain) for m, base, gain in [("searched", 50, 1.0), ("uniform", 50, 0.0)] for b in (0.25, 0.5)
         for s in range(3)]
        + [("taylor", 0.5, s, 50.0 + 10 * s + s) for s in range(2)]
        + [("small", 0.5, 7, 99.0)]
    )  # fmt: skip
    gains = hypervolume_gains(rows, (1000, 0)).set_index("method")
    assert list(gains.index) == ["taylor", "uniform"]  # small has no seed in common
    assert gains.loc["uniform", "gain"] == pytest.approx(1.0 * 750)
    assert gains.loc["uniform", "se"] == pytest.approx(0)
    assert gains.loc["taylor", ["budgets", "seeds"]].tolist() == [1, 2]
    assert gains.loc["taylor", "gain"] == pytest.approx(0.5 * 500)  # 1 and 0 points, over half of the dense MACs
    assert gains.loc["taylor", "se"] == pytest.approx(0.5 * 500)


def test_of_several_learning_rates_the_best_on_validation_counts():
    rows = results([("uniform", 0.5, 0, 90.0), ("uniform", 0.5, 0, 95.0), ("uniform", 0.5, 1, 80.0), ("uniform", 0.5, 0, None)])
    rows["terms"], rows["lr"], rows["val_top1"] = "retraining", [1e-3, 3e-3, 1e-3, 1e-2], [92.0, 91.0, 85.0, None]
    kept = best_rates(rows)
    assert list(kept.index) == [0, 2, 3]  # not the best on test; a failed point is still one that failed
    assert list(best_rates(rows.set_axis([0, 0, 0, 0])).test_top1.fillna(-1)) == [90.0, 80.0, -1]  # of tables put together
    longer = rows.assign(terms=["retraining", "compute", "retraining", "retraining"])
    assert list(best_rates(longer).index) == [0, 1, 2, 3]
    assert list(by_series(longer).method) == ["uniform", "uniform, equal compute", "uniform", "uniform"]
    assert best_rates(rows.drop(columns="lr")).equals(rows.drop(columns="lr"))


def in_both_units() -> pd.DataFrame:
    """Half of the MACs, written by an older version without a unit and by a newer one with it, and half of the parameters."""
    rows = results(
        [("searched", 0.5, 0, 90.0), ("searched", 0.5, 1, 92.0), ("searched", 0.5, 0, 70.0), ("searched", 0.5, 1, 74.0)]
    )
    return rows.assign(unit=[None, "macs", "params", "params"], macs=[500.0, 500.0, 800.0, 800.0], lr=1e-3, val_top1=90.0)


def test_budgets_of_different_units_are_different_budgets():
    rows = in_both_units()
    means = summarize(rows, metrics=["test_top1"]).set_index("unit")["test_top1_mean"]
    assert means.to_dict() == {"macs": 91.0, "params": 72.0}
    assert list(best_rates(rows).index) == [0, 1, 2, 3]
    areas = hypervolume_by_method(rows, (1000, 0)).iloc[0]
    assert (areas["budgets"], areas["seeds"]) == (2, 2)
    assert areas["mean"] == pytest.approx(91 * 500)  # what 50 % of the parameters keep costs more and is worse
    # A seed that has only one of the two is compared at that one.
    areas = hypervolume_by_method(rows.drop(index=1), (1000, 0)).iloc[0]
    assert (areas["budgets"], areas["mean"]) == (1, pytest.approx(72 * 200))
    other = rows[rows["unit"] == "params"].assign(method="uniform", test_top1=60.0)
    gains = hypervolume_gains(pd.concat([rows, other], ignore_index=True), (1000, 0)).iloc[0]
    assert (gains["budgets"], gains["gain"]) == (1, pytest.approx(12 * 200))


def test_rows_without_a_unit_are_of_macs():
    rows = in_both_units()
    assert with_units(rows)["unit"].tolist() == ["macs", "macs", "params", "params"]
    assert set(with_units(rows.drop(columns="unit"))["unit"]) == {"macs"}


FRONT_CASES = json.loads((Path(__file__).parent / "page" / "front_cases.json").read_text())


def test_the_committed_cases_are_those_of_the_definitions(tmp_path: Path):
    folder = Path(__file__).parent / "page"
    copied = shutil.copy(folder / "make_front_cases.py", tmp_path)
    subprocess.run([sys.executable, copied], check=True, timeout=60)
    assert (tmp_path / "front_cases.json").read_text() == (folder / "front_cases.json").read_text()


@pytest.mark.parametrize("case", FRONT_CASES, ids=range(len(FRONT_CASES)))
def test_front_and_knee_are_those_of_the_cases_that_the_page_is_held_to(case: dict):
    """The same cases as in tests/page/front.test.js, for the page computes its front itself."""
    rows = table(case["points"])
    sense = {"maximize_x": case["more_x"], "maximize_y": case["more_y"]}
    assert list(pareto_front(rows, **sense).index) == case["front"]
    found = knee(rows, **sense)
    assert (None if found is None else found.name) == case["knee"]
