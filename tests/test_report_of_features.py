"""Runs of models without a head: page, picture and pick show R2 of the features, and runs with top-1 look as before."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from slimsweep.errors import RefusedInput
from slimsweep.ledger.measures import R2, TOP1, measure_of
from slimsweep.ledger.tables import CURVES, RESULTS
from slimsweep.report.page import build_page
from slimsweep.report.page_data import page_data
from slimsweep.report.pareto import best_rates, by_series, pareto_front, trained_first
from slimsweep.report.picture import front_figure
from slimsweep.report.run_tables import RunTables
from slimsweep.tools.display import worse_than_cut
from slimsweep.tools.pick import NothingFits, describe, pick

FEATURES = ("val_cosine", "test_cosine", "val_nearest", "test_nearest")


def row(point: str, macs: float, val_r2: float, test_r2: float | None = None, **more: object) -> dict[str, object]:
    """A row of a model without a head, as a retraining writes it: no top-1."""
    return {
        **{"run": "dino", "point": point, "model": "vit_tiny", "data": "photos", "method": point[:-2], "seed": 0},
        **{"budget": macs / 1e9, "unit": "macs", "shares": "", "status": "ok", "error": "", "epochs": 3, "lr": 1e-4},
        **{"macs": int(macs), "macs_dense": 10**9, "params": int(macs / 50), "params_dense": 20_000_000},
        **{"val_r2": val_r2, "test_r2": val_r2 - 0.01 if test_r2 is None else test_r2, "val_r2_cut": val_r2 - 0.2},
        **dict.fromkeys(FEATURES, 0.9),
        **more,
    }


def run_of(rows: list[dict[str, object]], curves: list[dict[str, object]] | None = None) -> RunTables:
    return RunTables(
        name="dino",
        uri="/runs/dino",
        results=pa.Table.from_pylist(rows, schema=RESULTS).to_pandas(),
        curves=pa.Table.from_pylist(curves or [], schema=CURVES).to_pandas(),
    )


ROWS = [
    row("dense-1", 1e9, 0.999),
    row("searched-a", 5e8, 0.95, seed=0),
    row("searched-b", 5e8, 0.97, seed=1),
    row("searched-c", 25e7, 0.8, 0.9),  # on test it would choose otherwise
    row("uniform-d", 6e8, 0.7, 0.95),
]
TOP1_ROWS = [
    {**one, **dict.fromkeys((*FEATURES, *R2.columns)), "val_top1": 80.0 + i, "test_top1": 79.0 + i, "test_top1_untouched": 81.0}
    for i, one in enumerate(ROWS)
]


def test_a_run_is_judged_by_r2_where_its_rows_have_it_and_by_top1_else() -> None:
    assert measure_of(run_of(ROWS).results) is R2
    assert measure_of(run_of(TOP1_ROWS).results) is TOP1
    assert measure_of(pd.DataFrame({"val_top1": [80.0]})) is TOP1  # of an earlier version, which had no such column
    assert measure_of(pd.DataFrame()) is TOP1
    curves = [{"stage": "search", "point": "", "epoch": 1, "val_r2": 0.9}]
    assert measure_of(run_of([]).results, run_of([], curves).curves) is R2  # before the first point is done


def test_the_page_of_features_has_r2_as_its_measure() -> None:
    epoch = {"epoch": 1, "loss": 0.1, "val_r2": 0.91234}
    curves = [{"stage": "search", "point": "", **epoch}, {"stage": "retrain", "point": "searched-a", **epoch}]
    run = run_of([*ROWS, row("broken-x", 1e8, np.nan, np.nan, status="failed", error="lost")], curves)
    tries = [{"budget": 0.25, "val_r2": 0.9, "error": ""}, {"budget": 0.25, "val_r2": None, "error": "not finite"}]
    data = page_data([replace(run, pace={"pace": {"mlp": 1.0}, "tried": tries})])
    (described,) = data["runs"]
    assert described["measure"] == "r2"
    assert described["untouched"] == 1  # by definition
    assert data["measures"].keys() == {"r2"}
    titles = {column["name"]: column["title"] for column in data["columns"]}
    assert titles["val_r2"] == "R2 of the features, validation"
    assert titles["test_r2"] == "R2 of the features, test"
    assert {"val_knn_top1", "val_probe_top1", "val_nearest"} <= titles.keys()
    assert not {"val_top1", "test_top1", "test_top5", "test_loss"} & {*titles, *data["points"], *data["groups"]["mean"]}
    assert data["points"]["val_r2"][:3] == [0.999, 0.95, 0.97]
    # Both seeds are one group; the best of them is the one with the higher R2 on validation.
    place = data["groups"]["members"].index([1, 2])
    assert data["groups"]["best"][place] == 2
    assert data["groups"]["mean"]["val_r2"][place] == pytest.approx(0.96)
    assert data["groups"]["se"]["test_r2"][place] == pytest.approx(0.01)
    # The distance from 1 is an axis too, with the same error.
    assert [(e["name"], e["of"], e["best"], e["more"]) for e in data["errors"]] == [
        ("val_r2_error", "val_r2", 1, False),
        ("test_r2_error", "test_r2", 1, False),
    ]
    assert data["errors"][1]["title"] == "1 \N{MINUS SIGN} R2 of the features, test"
    assert data["groups"]["mean"]["val_r2_error"][place] == pytest.approx(0.04)
    assert data["groups"]["se"]["test_r2_error"][place] == pytest.approx(0.01)
    assert data["curves"][1]["val"] == [0.91234]
    assert described["search"]["val"] == [0.91234]
    assert described["pace"]["val"] == [0.9]
    # The area under the front of R2: at most 1.
    areas = {one["method"]: one["mean"] for one in described["hypervolume"]}
    assert areas["searched"] == pytest.approx(0.25 * 0.9 + 0.5 * 0.96, abs=0.3)
    assert areas["uniform"] == pytest.approx(0.4 * 0.95)
    page = build_page([run])
    assert "dino" in page


def test_a_page_of_classifiers_has_no_word_of_features() -> None:
    data = page_data([run_of(TOP1_ROWS)])
    assert data["measures"].keys() == {"top1"}
    assert data["errors"] == []
    assert not set(R2.columns) & {*data["points"], *data["groups"]["mean"], *(column["name"] for column in data["columns"])}
    assert data["runs"][0]["untouched"] == 81
    assert data["groups"]["best"][data["groups"]["members"].index([1, 2])] == 2


def test_rows_of_an_earlier_version_lack_the_columns_of_features() -> None:
    run = run_of(TOP1_ROWS)
    old = replace(run, results=run.results.drop(columns=list(R2.columns)), curves=run.curves.drop(columns=["val_r2"]))
    assert page_data([old]) == page_data([run])


def test_runs_on_one_data_set_that_are_judged_otherwise_do_not_share_a_front() -> None:
    data = page_data([run_of(ROWS), run_of(TOP1_ROWS)])
    assert [one["name"] for one in data["datasets"]] == ["photos, by R2", "photos, by top-1"]
    assert [run["dataset"] for run in data["runs"]] == [0, 1]
    assert data["points"]["val_r2"][0] == 0.999
    assert data["points"]["val_top1"][:6] == [None] * 5 + [80]
    assert [one["name"] for one in page_data([run_of(ROWS), run_of(ROWS)])["datasets"]] == ["photos"]


def test_a_dense_backbone_is_never_trained_and_stands_beside_all_points() -> None:
    dense = row("dense-1", 1e9, 1.0, epochs=0)
    trained = run_of([dense, row("searched-a", 5e8, 0.8)]).results
    assert by_series(trained).method.tolist() == ["dense", "searched"]
    assert pick(trained, limits={"macs": "2G"}).point == "dense-1"
    assert "not trained" not in describe(pick(trained, limits={"macs": "2G"}).copy())
    cut = run_of([dense, row("searched-a", 5e8, 0.8, epochs=0), row("searched-b", 25e7, 0.7, epochs=0)]).results
    assert trained_first(by_series(cut)).method.tolist() == [
        "dense",
        "searched, before retraining",
        "searched, before retraining",
    ]
    assert pick(cut, limits={"macs": "0.6G"}).point == "searched-a"
    mixed = run_of([dense, row("searched-a", 5e8, 0.8), row("searched-b", 5e8, 0.9, epochs=0)]).results
    assert trained_first(by_series(mixed)).point.tolist() == ["dense-1", "searched-a"]


@pytest.mark.parametrize("least", [80, float("nan")])
def test_an_r2_that_no_model_reaches_is_refused(least: float) -> None:
    with pytest.raises(RefusedInput, match=r"which no model reaches: give at most 1, such as --min-r2 0\.95"):
        pick(run_of(ROWS).results, min_r2=least)


def test_a_retraining_that_made_points_worse_is_seen() -> None:
    rows = [*ROWS, row("searched-w", 1e8, 0.6, val_r2_cut=0.62), row("searched-x", 12e7, 0.6, val_r2_cut=0.605)]
    assert worse_than_cut(run_of(rows).results).point.tolist() == ["searched-w"]
    top1 = [{**one, "val_top1_cut": 81.5} for one in TOP1_ROWS]
    assert worse_than_cut(run_of(top1).results).point.tolist() == []
    top1 = [{**one, "val_top1_cut": 83.5} for one in TOP1_ROWS]
    assert worse_than_cut(run_of(top1).results).point.tolist() == ["searched-a", "searched-b"]


def test_the_picture_shows_r2() -> None:
    figure = front_figure(run_of(ROWS))
    front = figure.data[0]
    figure = figure.to_plotly_json()
    assert figure["layout"]["yaxis"]["title"]["text"] == "R2 of the features, test"
    assert not figure["layout"].get("shapes")  # no line of the untouched model: it is 1 by definition
    assert list(front.y) == pytest.approx([0.9, 0.95, 0.989])
    assert front_figure(run_of(TOP1_ROWS)).to_plotly_json()["layout"]["yaxis"]["title"]["text"] == "test top-1, %"


def test_the_front_and_the_best_learning_rate_are_by_r2() -> None:
    better = [row("searched-e", 5e8, 0.98, lr=1e-3), row("searched-g", 5e8, 0.965, lr=1e-3, seed=1)]
    table = run_of([*ROWS, *better, row("searched-f", 5e8, 0.99, lr=1e-5)]).results
    kept = best_rates(table)
    # The best mean over seeds, of the rates that all seeds have: b alone is better than g, and f has one seed.
    assert set(kept.point) == {"dense-1", "searched-e", "searched-g", "searched-c", "uniform-d"}
    assert pareto_front(kept, "macs", "val_r2").point.tolist() == ["searched-c", "searched-e", "dense-1"]


@pytest.mark.parametrize(
    ("limits", "point"),
    [
        ({"limits": {"macs": "0.5G"}}, "searched-b"),
        ({"limits": {"macs": 0.6}}, "searched-b"),  # not uniform-d, which is better on test only
        ({"min_r2": 0.75}, "searched-c"),  # the cheapest that is good enough
        ({"min_r2": 0.96}, "searched-b"),
        ({"limits": {"params": "5M"}, "min_r2": 0.5}, "searched-c"),
    ],
)
def test_pick_is_by_r2_on_validation(limits: dict, point: str) -> None:
    assert pick(run_of(ROWS).results, **limits).point == point


def test_pick_says_what_it_cannot_do() -> None:
    table, classifiers = run_of(ROWS).results, run_of(TOP1_ROWS).results
    with pytest.raises(NothingFits, match=r"the nearest to at least R2 0.9999 on validation is dense-1"):
        pick(table, min_r2=0.9999)
    with pytest.raises(RefusedInput, match=r"--min-top1 is 80, but the models of this run have no top-1: .*give --min-r2 0.95"):
        pick(table, min_top1=80)
    with pytest.raises(RefusedInput, match=r"--min-r2 is 0.9, but the models of this run have no R2: .*give --min-top1 80"):
        pick(classifiers, min_r2=0.9)
    with pytest.raises(RefusedInput, match=r"--max-params 11.5M, --max-ms 8, --min-r2 0.95 or"):
        pick(table)
    assert describe(pick(table, min_r2=0.96)).endswith("R2 0.9700 on validation)")
