"""The page of many methods stays readable; how a run was made; phones and paper. In a real browser."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from test_report import make_run
from test_report_browser import RUNS, Opened, column, markers, opened, pages, pytestmark  # noqa: F401

from slimsweep.report.page_data import page_data
from slimsweep.report.run_tables import RunTables
from slimsweep.slimming.structure import Structure


def far() -> list[RunTables]:
    """Three methods near each other and one far below, two budgets."""
    run = make_run(methods=("searched", "uniform", "taylor", "small"), seeds=2, budgets=(0.5, 0.25))
    rows = run.results
    rows.loc[rows["method"] == "small", ["test_top1", "val_top1"]] -= 40
    return [replace(run, results=rows, config="name: digits\n", config_path="/sweeps/digits/config.yaml")]


RUNS["far"] = far
LAYOUT = "document.getElementById('front-figure').layout"


def shown(page) -> set[str]:
    return set(column(page, "method"))


def test_the_range_is_that_of_models_near_the_front_and_the_rest_is_one_click_away(opened: Opened):  # noqa: F811
    page = opened("far")
    assert page.evaluate(f"{LAYOUT}.xaxis.type") == "log"  # 1 to 0.25 of the MACs
    assert page.evaluate(f"{LAYOUT}.yaxis.range[0]") > 70
    assert "2 models (small) are below this range" in page.inner_text("#outside")
    page.click("#whole")
    assert page.evaluate(f"{LAYOUT}.yaxis.range[0]") < 60
    page.click("#whole")
    assert page.evaluate(f"{LAYOUT}.yaxis.range[0]") > 70
    page.check("#logy")
    assert page.evaluate(f"{LAYOUT}.yaxis.title.text").startswith("100 \u2212 test top-1")
    assert page.input_value("#y") == "test_top1"


@pytest.mark.slow
def test_one_method_alone_and_two_in_two_clicks(opened: Opened):  # noqa: F811
    page = opened("far")
    page.dblclick("#chips [data-key='m:taylor']")
    assert shown(page) == {"taylor"}
    page.focus("#chips [data-only='m:searched']")
    page.keyboard.press("Enter")
    assert shown(page) == {"searched"}
    page.click("#chips [data-key='m:uniform']")
    assert shown(page) == {"searched", "uniform"}


def test_any_point_is_compared_with_any_other_and_trainings_share_an_axis(opened: Opened):  # noqa: F811
    page = opened("far")
    page.locator("#points tbody tr", has_text="taylor").last.click()
    page.click("#keep")
    page.locator("#points tbody tr", has_text="searched").first.click()
    assert page.inner_text("#difference p").startswith("taylor at 25 %: ")
    assert "±" in page.inner_text("#difference p")
    page.select_option("#curves", "methods")
    names = page.evaluate("document.getElementById('training-figure').data.map(t => t.name)")
    assert {name.removesuffix(" (open)") for name in names} == {"searched", "uniform", "taylor", "small"}


@pytest.mark.slow
def test_a_downloaded_figure_says_what_it_is(opened: Opened, tmp_path: Path):  # noqa: F811
    page = opened("far")
    with page.expect_download() as download:
        page.click("#front button[data-format=svg]")
    download.value.save_as(tmp_path / "front.svg")
    text = (tmp_path / "front.svg").read_text(encoding="utf-8")
    for said in (">taylor<", ">searched<", "test top-1 against MACs", "Source: report", "slimsweep", ">digits<"):
        assert said in text, said


def test_the_table_is_best_first_whole_on_paper_and_has_the_columns_that_are_wanted(opened: Opened):  # noqa: F811
    page = opened("far")
    values = [float(text.split()[0]) for text in column(page, "test_top1")]
    assert values == sorted(values, reverse=True)
    page.click(".columns summary")
    page.uncheck("[data-column=model_bytes]")
    assert page.locator("#points [data-sort=model_bytes]").count() == 0
    page.reload()
    page.wait_for_selector("html[data-ready]")
    assert page.locator("#points [data-sort=model_bytes]").count() == 0
    page.emulate_media(media="print")
    assert page.eval_on_selector(".tall", "e => e.scrollHeight - e.clientHeight") <= 1


@pytest.mark.slow
def test_how_a_run_was_made_is_on_the_page_and_what_is_not_known_is_left_out(opened: Opened):  # noqa: F811
    page = opened("far")
    page.press("#about summary", "Enter")  # a click may miss where the figures above it still grow
    said = page.inner_text("#about")
    assert "python -m slimsweep.run --config /sweeps/digits/config.yaml" in said
    assert "Retraining of all points" in said
    assert "cpu" in said
    page.press("#about details details summary", "Enter")
    assert "name: digits" in page.inner_text("#about")
    table = make_run()
    alone = page_data([replace(table, config=None)])["runs"][0]["about"]
    assert alone["command"] is None
    assert alone["config"] is None
    assert alone["versions"] == {}
    assert alone["seconds"] == {"retrain": pytest.approx(table.results["train_seconds"].sum(), abs=1e-3)}


def test_gates_are_told_by_the_budget_at_which_they_leave():
    run = make_run(budgets=(0.5, 0.25))
    structures = [Structure.from_json(text) for text in run.results["structure"][1:]]
    gates = [
        {"family": "mlp", "layer": i, "index": j, "value": float(kept), "score": None}
        for i, mask in enumerate(structures[0].masks["mlp"])
        for j, kept in enumerate(mask.tolist())
    ]
    told = page_data([replace(run, gates=pd.DataFrame(gates))])["runs"][0]["leaving"]
    assert told["budgets"] == [0.5, 0.25]
    counts = told["families"]["mlp"]["counts"]
    kept = [sum(int(mask.sum()) for mask in one.masks["mlp"]) for one in structures]
    assert [sum(part) for part in counts] == [len(gates) - kept[0], kept[0] - kept[1], kept[1]]
    assert counts[0][-1] == 0  # all that leaves first has value 0
    assert counts[0][0] == sum(counts[0])


def test_on_a_phone_the_chart_is_in_the_first_screen_and_targets_are_large(opened: Opened):  # noqa: F811
    page = opened("far", viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    box = page.locator("#front-figure").bounding_box()
    assert box["y"] + 250 < 844
    small = page.evaluate(
        """[...document.querySelectorAll("button, select, summary, input:not([type=checkbox])")]
            .filter(e => e.offsetParent && e.getBoundingClientRect().height < 43.5)
            .map(e => e.outerHTML.slice(0, 90))"""
    )
    assert small == []
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    assert markers(page).count() > 0
