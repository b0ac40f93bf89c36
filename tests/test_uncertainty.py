"""What numbers of a few images can tell: errors, decimals, warnings, and models that count as equal."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_report import make_run

from slimsweep.ledger.measures import R2, TOP1, decimals_of, images_of, measure_decimals
from slimsweep.ledger.tables import RESULTS, complete_row, with_all_columns
from slimsweep.report.page_data import page_data
from slimsweep.report.pareto import pareto_front, summarize
from slimsweep.report.picture import front_figure
from slimsweep.report.run_tables import RunTables
from slimsweep.report.uncertainty import (
    binomial_error,
    cautions,
    front_tolerance,
    told_apart,
    wilson,
)

PAGE_TESTS = Path(__file__).parent / "page"


def counted(run: RunTables, val: int = 1000, test: int = 1000, classes: int = 10) -> RunTables:
    """A run whose rows say how many images its splits have."""
    return replace(run, results=run.results.assign(val_images=val, test_images=test, classes=classes))


def test_the_interval_covers_the_truth_as_often_as_it_says():
    random = np.random.default_rng(0)
    for images, share in ((36, 0.95), (360, 0.97), (100, 0.5)):
        hits = random.binomial(images, share, 4000)
        covered = [low <= 100 * share <= high for low, high in (wilson(100 * hit / images, images) for hit in hits)]
        assert 0.92 < np.mean(covered) < 0.98


def test_the_error_follows_the_number_of_images():
    assert binomial_error(97.22, 360) == pytest.approx(100 * math.sqrt(0.9722 * 0.0278 / 360), rel=0.1)
    assert binomial_error(50, 40_000) == pytest.approx(0.25, rel=1e-3)
    assert binomial_error(100, 36) > 1  # all right, and still not certain
    assert math.isnan(binomial_error(97, None))
    assert math.isnan(binomial_error(math.nan, 36))


@pytest.mark.parametrize(("images", "decimals"), [(36, 0), (100, 0), (101, 1), (360, 1), (1000, 1), (1797, 2), (50_000, 2)])
def test_two_numbers_of_right_images_never_look_equal_and_none_has_more_decimals_than_that(images: int, decimals: int):
    assert decimals_of(images, 2) == decimals
    assert 10**-decimals <= 100 / images or decimals == 2
    assert decimals == 0 or 10 ** -(decimals - 1) > 100 / images


def test_without_a_number_of_images_decimals_stay():
    assert decimals_of(None, 2) == 2
    assert measure_decimals(R2, {"val": 36, "test": 36}) == (4, 4)
    assert measure_decimals(TOP1, {"val": 36}) == (0, 2)


@pytest.mark.parametrize("case", json.loads((PAGE_TESTS / "apart_cases.json").read_text()))
def test_terminal_and_page_tell_differences_apart_by_one_rule(case: dict):
    assert told_apart(case["difference"], *case["errors"]) == case["apart"]


@pytest.mark.parametrize("case", json.loads((PAGE_TESTS / "tolerance_cases.json").read_text()), ids=lambda case: case["why"])
def test_the_front_has_the_tolerance_of_the_page(case: dict):
    rows = pd.DataFrame(case["points"], columns=["macs", "test_top1"], dtype=float)
    assert pareto_front(rows, maximize_x=case["more_x"], tolerance=case["tolerance"]).index.tolist() == case["front"]


def test_images_are_those_of_the_rows_and_of_the_recorded_splits_where_rows_do_not_tell():
    run = make_run()
    known = {"version": 1, "splits": {"val": {"images": 36}, "test": {"images": None}}}
    assert images_of(run.results) == {}
    assert images_of(run.results, known) == {"val": 36}
    assert images_of(counted(run, 50, 60).results, known) == {"val": 50, "test": 60}


def test_a_row_of_a_table_with_older_rows_can_be_written_again():
    row = complete_row({"point": "a", "epochs": 3.0, "val_images": math.nan, "classes": None})
    assert (row["epochs"], row["val_images"], row["classes"]) == (3.0, None, None)
    assert {"val_images", "test_images", "classes"} <= set(RESULTS.names)


def test_one_seed_has_the_error_of_its_images_and_several_their_own():
    one = page_data([counted(make_run(), test=360)])["groups"]
    for mean, se in zip(one["mean"]["test_top1"], one["se"]["test_top1"], strict=True):
        assert se == pytest.approx(binomial_error(mean, 360), abs=1e-3)
    assert set(one["se"]["macs"]) == set(one["se"]["test_loss"]) == {None}  # no shares of images
    several = counted(make_run(seeds=3), test=360)
    expected = summarize(several.results, metrics=["test_top1"]).set_index(["method", "budget"])["test_top1_se"]
    data = page_data([several])["groups"]
    for method, budget, se in zip(data["method"], data["budget"], data["se"]["test_top1"], strict=True):
        assert se == pytest.approx(expected[method, budget], abs=1e-3)
    unknown = page_data([make_run()])["groups"]
    assert set(unknown["se"]["test_top1"]) == {None}  # no made-up figure


def test_the_page_shows_as_many_decimals_as_its_images_tell():
    data = page_data([counted(make_run(), val=36, test=360)])
    decimals = {column["name"]: column["decimals"] for column in data["columns"]}
    assert (decimals["val_top1"], decimals["test_top1"], decimals["test_loss"]) == (0, 1, 3)
    assert data["runs"][0]["images"] == {"val": 36, "test": 360}
    assert data["measures"]["top1"]["decimals"] == 1


def test_few_images_a_dense_model_at_chance_and_a_lucky_pace_are_warned_of():
    good = make_run()
    assert cautions(good) == []
    assert cautions(counted(good)) == []
    (few,) = cautions(replace(counted(good, val=36), pace=None))
    assert "only 36 validation images: one image is 2.8 points" in few
    tried = [{"val_top1": value, "error": "", "budget": 0.5} for value in (50.0, 49.9, 40.0)]
    paced = replace(counted(good), pace={"pace": {"mlp": 1.0}, "tried": tried})
    assert ["by one image of 1,000" in said for said in cautions(paced)] == [True]
    clear = replace(paced, pace={"pace": {"mlp": 1.0}, "tried": [tried[0], tried[2]]})
    assert cautions(clear) == []


def test_chance_is_that_of_the_number_of_classes():
    run = counted(make_run(), test=360)
    weak = run.results.assign(test_top1=run.results["test_top1"].where(run.results["method"] != "dense", 11.0))
    (said,) = cautions(replace(run, results=weak))
    assert "The dense model is at chance: 11.0 % on test, and guessing among 10 classes gives 10 %" in said
    assert cautions(replace(run, results=weak.assign(classes=100))) == []  # far above 1 %
    assert cautions(replace(run, results=weak.assign(classes=None))) == []
    assert len(cautions(replace(run, results=weak.assign(classes=None), classes=10))) == 1


def test_a_run_without_any_result_is_not_warned_of():
    run = make_run()
    empty = with_all_columns(run.results.iloc[:0], RESULTS)
    assert cautions(replace(run, results=empty)) == []


def test_the_picture_has_errors_of_one_seed_and_the_front_of_the_page():
    run = counted(make_run(methods=("searched", "uniform")), test=360)
    bars = [trace.error_y.array for trace in front_figure(run).data if trace.error_y.array is not None]
    assert all(0.3 < value < 3 for bar in bars for value in bar)
    assert front_tolerance(run.results, "macs") == pytest.approx(0.01 * run.results["macs_dense"].min())
    assert front_tolerance(run.results, "model_bytes") == 0
