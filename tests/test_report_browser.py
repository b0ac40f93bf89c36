"""The page in a real browser, opened from disk as people open it."""

import csv
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from chromium import CHROMIUM, MISSING
from test_report import in_params, make_run, make_status

from slimsweep.ledger.measures import R2
from slimsweep.report.comparison import compare_methods
from slimsweep.report.page import build_page
from slimsweep.report.page_data import COLUMNS, TIMINGS
from slimsweep.report.pareto import knee, pareto_front, summarize
from slimsweep.report.run_tables import RunTables
from slimsweep.slimming.structure import Structure

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (pip install 'slimsweep[test]')")

pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason=MISSING)]

Opened = Callable[..., "sync_api.Page"]

EVIL = "<script>window.hacked=1</script><img src=x onerror=window.hacked=1><b>bold</b>"


@pytest.fixture(scope="session")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Pages by name, each built once."""
    folder = tmp_path_factory.mktemp("pages")

    def page(name: str) -> Path:
        path = folder / f"{name}.html"
        if not path.exists():
            path.write_text(build_page(RUNS[name]()), encoding="utf-8")
        return path

    return page


@cache
def one() -> RunTables:
    """A finished run of two methods with three seeds."""
    return make_run(methods=("searched", "uniform"), seeds=3, bench=True)


def live() -> RunTables:
    """A run under way, with a point that failed."""
    status = make_status(done=6, failed=1, running=1, waiting=1, alive=True)
    return make_run(failed="TrainingDiverged: the loss is not finite in epoch 3", status=status)


def shares() -> RunTables:
    """A run with a point of shares beside the budget of the same fraction."""
    run = make_run(bench=True)
    half = run.results[(run.results["method"] == "searched") & (run.results["budget"] == 0.5)]
    same = half.assign(point="searched-0.5000-attention0.7-mlp0.6-s0-abcd", shares='{"attention":0.7,"mlp":0.6}')
    return replace(run, results=pd.concat([run.results, same], ignore_index=True))


def units() -> RunTables:
    """A run with a budget of parameters beside the budget of the same fraction of MACs."""
    run = make_run()
    half = run.results[(run.results["method"] == "searched") & (run.results["budget"] == 0.5)]
    same = half.assign(point="searched-0.5000-params", unit="params")
    return replace(run, results=pd.concat([run.results.assign(unit=None), same], ignore_index=True))


def many() -> list[RunTables]:
    """A thousand points over twenty runs."""
    budgets = tuple(np.round(np.linspace(0.9, 0.2, 8), 3).tolist())
    return [
        make_run(f"run {i}", methods=("searched", "uniform"), budgets=budgets, seeds=3, best=97 + 0.1 * i, epochs=50)
        for i in range(20)
    ]


RUNS: dict[str, Callable[[], list[RunTables]]] = {
    "one": lambda: [one()],
    "evil": lambda: [make_run(EVIL, model=EVIL, data=EVIL, failed=EVIL), make_run(EVIL + "2", data=EVIL)],
    "live": lambda: [live()],
    "shares": lambda: [shares()],
    "sets": lambda: [
        make_run("a", seeds=2),
        make_run("b", seeds=2, best=97),
        make_run("f", data="torch/fashion_mnist", best=90),
    ],
    "many": many,
    "params": lambda: [in_params(one())],
    "units": lambda: [units()],
    "formula": lambda: [make_run("=cmd|' /C calc'!A0")],
}


@pytest.fixture
def opened(browser: "sync_api.Browser", pages: Callable[[str], Path]) -> Iterator[Opened]:
    """Opens a page, ready to use; afterwards nothing must have been requested beside it, and nothing complained."""
    contexts, requests, complaints = [], [], []

    def open_page(name: str, clock: bool = False, **options: object) -> "sync_api.Page":
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        if clock:  # time then passes when the test says so
            page.clock.install()
        page.goto(pages(name).as_uri())
        page.wait_for_selector("html[data-ready]")
        return page

    yield open_page
    for context in contexts:
        context.close()
    # data: and blob: are the page's own memory, and only the pages themselves are files here.
    assert [url for url in requests if not url.startswith(("data:", "blob:", pages("one").parent.as_uri()))] == []
    assert complaints == []


def title(page: "sync_api.Page") -> str:
    return page.inner_text("#point-title").strip()


def markers(page: "sync_api.Page") -> "sync_api.Locator":
    """Every marker of a point or a seed."""
    return page.locator("#front-figure .scatterlayer .trace .points path")


def centre_of(page: "sync_api.Page", method: str, budget: float, kept: str = "") -> tuple[float, float]:
    """Where in the window the marker of a method and budget is; `kept` is what its label has of shares."""
    place = page.evaluate(
        """([label]) => {
            const node = document.getElementById("front-figure");
            const traces = node.querySelectorAll(".scatterlayer .trace");
            for (const trace of traces)
                for (const path of trace.querySelectorAll(".points path")) {
                    const data = path.__data__;
                    if (data && String(data.tx ?? "").includes(label)) {
                        const box = path.getBoundingClientRect();
                        return [box.x + box.width / 2, box.y + box.height / 2];
                    }
                }
            return null;
        }""",
        [f"<b>{method}, budget {round(100 * budget)} %{kept}</b>"],
    )
    assert place is not None, f"no marker of {method} at {budget}"
    return place[0], place[1]


def rows(page: "sync_api.Page") -> list[list[str]]:
    return page.eval_on_selector_all("#points tbody tr", "rows => rows.map(r => [...r.cells].map(c => c.innerText.trim()))")


def column(page: "sync_api.Page", name: str) -> list[str]:
    heads = page.eval_on_selector_all("#points thead th button", "nodes => nodes.map(n => n.dataset.sort)")
    return [row[heads.index(name)] for row in rows(page)]


def number(text: str) -> float:
    return float(text.replace("\u2212", "-").split()[0])


# Opening.


def test_it_opens_from_disk_without_a_request_or_a_complaint(opened: Opened):
    page = opened("one")
    assert page.locator("#front-figure svg.main-svg").count() > 0
    assert page.inner_text("h1") == "digits"
    assert "FLOPs" in page.inner_text("#front-caption")
    for section in ("#search", "#methods", "#table"):  # figures below are drawn when they come into sight
        page.locator(section).scroll_into_view_if_needed()
    page.wait_for_selector("#gates-figure svg.main-svg")
    page.wait_for_selector("#search-figure svg.main-svg")
    assert "MLP units 1.4, patch tokens 0.7" in page.inner_text("#pace")
    assert "at 25 % of the MACs" in page.inner_text("#pace")
    assert "94.72 %, the others 90.00 % to 91.39 %" in page.inner_text("#pace")


@pytest.mark.parametrize("width", [1280, 360])
def test_figures_that_are_drawn_when_they_come_into_sight_move_nothing(opened: Opened, width: int):
    page = opened("one", viewport={"width": width, "height": 720})
    figures = page.locator("#search-figure svg.main-svg, #gates-figure svg.main-svg")
    assert figures.count() == 0
    below = "document.getElementById('about').getBoundingClientRect().top + scrollY"
    before = page.evaluate(below)
    page.locator("#search").scroll_into_view_if_needed()
    page.wait_for_selector("#gates-figure svg.main-svg")
    page.wait_for_selector("#search-figure svg.main-svg")
    assert page.evaluate(below) == pytest.approx(before, abs=1)


def test_text_from_data_is_shown_and_not_run(opened: Opened):
    page = opened("evil")
    assert EVIL in page.inner_text("h1")
    x, y = centre_of(page, "searched", 0.35)
    page.mouse.move(x, y)
    page.wait_for_selector("#front-figure .hoverlayer .hovertext")
    page.mouse.click(x, y)
    assert EVIL in page.inner_text("#failed")
    assert page.evaluate("window.hacked") is None
    assert page.locator("img, main b:text-is('bold'), svg a").count() == 0


def test_the_front_and_the_knee_are_those_of_the_library(opened: Opened):
    page = opened("one")
    means = summarize(one().results)
    front = pareto_front(means, "macs_mean", "test_top1_mean")
    expected = {f"{method} {round(100 * budget)} %" for method, budget in zip(front["method"], front["budget"], strict=True)}
    bright = page.eval_on_selector_all(
        "#points tbody tr:not(.dominated)",
        "rows => rows.map(r => r.cells[0].innerText.trim() + ' ' + r.cells[1].innerText.trim())",
    )
    assert set(bright) == expected
    bend = knee(means, "macs_mean", "test_top1_mean")
    assert title(page) == f"{bend['method']} at {round(100 * bend['budget'])} % of the MACs"  # what is open at first
    assert "the knee" in page.inner_text("#point")


# A point opened.


def test_a_click_on_a_point_shows_its_layers(opened: Opened):
    page = opened("one")
    page.mouse.click(*centre_of(page, "searched", 0.25))
    assert title(page) == "searched at 25 % of the MACs"
    table = one().results
    text = table[(table["method"] == "searched") & (table["budget"] == 0.25)]["structure"].iloc[0]
    summary = Structure.from_json(text).summary()
    shown = page.eval_on_selector_all("#kept .layer:not(.layer-head)", "rows => rows.map(r => r.innerText)")
    assert len(shown) == len(summary)
    for layer, row in zip(summary, shown, strict=True):
        for part in (
            f"{layer['heads']} × {layer['head_dim']} of {layer['heads_dense']} × {layer['head_dim_dense']}",
            f"{layer['mlp_units']} of",
            f"{layer['tokens']} of",
        ):
            assert part in row
    # A cell of a picture for each patch that is kept or dropped.
    cells = page.eval_on_selector_all(
        "#tokens figure svg",
        "all => all.map(s => [...s.querySelectorAll('path')].map(p => (p.getAttribute('d').match(/M/g) || []).length))",
    )
    assert all(sum(parts) == 16 for parts in cells)
    assert [parts[1] + parts[3] for parts in cells] == [layer["tokens"] for layer in summary]


def test_points_of_shares_say_so_and_are_no_seeds_of_a_budget(opened: Opened):
    page = opened("shares")
    assert len(rows(page)) == 7
    assert sorted(column(page, "shares")) == [""] * 6 + ["attention 0.7, mlp 0.6"]
    page.mouse.click(*centre_of(page, "searched", 0.5, " (attention 0.7, mlp 0.6)"))
    assert title(page) == "searched at 50 % of the MACs: attention 0.7, mlp 0.6"
    page.fill("#filter", "mlp 0.6")
    assert column(page, "point") == ["searched-0.5000-attention0.7-mlp0.6-s0-abcd"]


def test_budgets_of_parameters_are_shown_as_such_and_are_the_axis(opened: Opened):
    page = opened("params")
    assert page.input_value("#x") == "params"
    assert page.evaluate("document.getElementById('front-figure').layout.xaxis.title.text") == "parameters, thousands"
    assert "70 % of params" in column(page, "budget")
    page.mouse.click(*centre_of(page, "searched", 0.25, " of params"))
    assert title(page) == "searched at 25 % of params"
    assert " at 15 % of params" in page.inner_text("#difference")
    assert "of params" in page.inner_text("#headline")
    page.select_option("#x", "macs")
    page.reload()
    page.wait_for_selector("html[data-ready]")
    assert page.input_value("#x") == "macs"  # what the reader chose stays chosen


def test_a_budget_of_parameters_is_no_seed_of_a_budget_of_macs(opened: Opened):
    page = opened("units")
    assert page.input_value("#x") == "macs"
    assert sorted(column(page, "budget"))[-3:] == ["50 %", "50 % of params", "70 %"]
    page.fill("#filter", "params")
    assert column(page, "budget") == ["50 % of params"]
    page.locator("#points tbody tr").click()
    assert title(page) == "searched at 50 % of params"
    assert page.locator("#point .seed").count() == 0
    assert page.locator("#methods tbody tr").count() == 2  # the heading and the method, which is compared with nothing
    assert page.locator("#against").count() == 0
    assert "for the same" not in page.inner_text("#methods")


def test_what_is_measured_is_in_the_table_and_beside_the_point(opened: Opened):
    page = opened("one")
    page.mouse.click(*centre_of(page, "searched", 0.25))
    terms = page.eval_on_selector_all("#point .facts dt", "nodes => nodes.map(n => n.textContent)")
    heads = page.eval_on_selector_all("#points thead th button", "nodes => nodes.map(n => n.firstChild.textContent)")
    shown = [column for column in COLUMNS if column.name not in R2.columns]  # no run has features
    timed = [column for column in TIMINGS if column.name != "latency_ms"]  # nor latencies in a setting of its own
    for measured in (*shown, *timed):
        name = measured.title[0].upper() + measured.title[1:]
        assert name in terms
        assert name in heads


def test_a_point_tells_how_to_load_it_how_it_trained_and_what_comes_next(opened: Opened):
    page = opened("one")
    page.mouse.click(*centre_of(page, "searched", 0.5))
    name = page.inner_text("#point .point-name code")
    assert f'load("/sweeps/digits/models/{name}")' in page.inner_text("#load")
    assert page.locator("#training-figure .scatterlayer .trace").count() == 6  # accuracy and loss of three seeds
    assert " at 35 %" in page.inner_text("#difference")
    page.select_option("#compare", "larger")
    assert " at 70 %" in page.inner_text("#difference")
    page.select_option("#compare", "dense")
    assert "the dense model" in page.inner_text("#difference")
    page.get_by_role("button", name="Next smaller on the front").click()
    assert title(page).endswith(" at 35 % of the MACs")


def test_points_open_by_keyboard_from_the_figure_and_the_table(opened: Opened):
    page = opened("one")
    page.focus("#front-figure")
    front = pareto_front(summarize(one().results), "macs_mean", "test_top1_mean")
    for key, place in (("Home", 0), ("ArrowRight", 1), ("End", -1), ("ArrowLeft", -2)):
        page.keyboard.press(key)
        entry = front.iloc[place]
        assert title(page) == f"{entry['method']} at {round(100 * entry['budget'])} % of the MACs"
    row = page.locator("#points tbody tr", has_text="uniform").first
    row.focus()
    page.keyboard.press("Enter")
    assert title(page).startswith("uniform at")
    assert row.get_attribute("aria-selected") == "true"
    assert page.locator("#points tr[aria-selected=true]").count() == 1


# The question box.


LIMITS: dict[str, Callable] = {
    "at most 1.8 MMACs": lambda p: p["macs"] <= 1.8e6,
    "≤ 0.0018 GMACs and at least 90 %": lambda p: (p["macs"] <= 1.8e6) & (p["val_top1"] >= 90),
    "under 1800 k flops, at most 100k params": lambda p: (p["macs"] <= 1.8e6) & (p["params"] <= 1e5),
    "at most 50 % of dense": lambda p: p["macs"] <= 0.5 * p["macs_dense"],
    "at most 4 ms": lambda p: p["budget"] <= 0.375,
    "at least 250 images/s": lambda p: p["budget"] <= 0.375,
    "at most 400 kB": lambda p: p["model_bytes"] <= 4e5,
}


def ask(page: "sync_api.Page", question: str) -> str:
    page.fill("#question-text", question)
    page.keyboard.press("Enter")
    return page.inner_text("#answer")


def test_a_limit_on_cost_is_answered_by_the_best_model_on_validation(opened: Opened):
    page = opened("one")
    table = one().results
    for question, conditions in LIMITS.items():
        said = ask(page, question)
        fits = table[conditions(table)]
        best = fits.loc[fits["val_top1"].idxmax()]
        assert page.locator("#points tr.fits").count() == len(fits) > 0, question
        assert page.locator("#points tr.answer").inner_text().split()[-1] == best["point"], question
        assert page.inner_text("#point .point-name code") == best["point"], question
        assert f"{best['method']} at {round(100 * best['budget'])} %" in said


def test_a_demand_on_accuracy_is_answered_by_the_cheapest_model(opened: Opened):
    page = opened("one")
    table = one().results
    wanted = round(float(table["val_top1"].quantile(0.4)), 1)
    ask(page, f"at least {wanted} %")
    means = table.groupby(["method", "budget"])["val_top1"].transform("mean")  # no seed answers by luck
    fits = table[means >= wanted]
    page.check("#fits")
    assert sorted(column(page, "point")) == sorted(fits["point"])
    assert number(page.locator("#points tr.answer td").nth(3).inner_text()) == pytest.approx(fits["macs"].min() / 1e6, rel=5e-3)


def test_what_cannot_be_answered_is_said(opened: Opened):
    page = opened("one")
    for question in ("fast please", "at most 5 bananas", "80", "at most 1.2 GMACs and pretty"):
        assert "is not a condition" in ask(page, question)
        assert page.locator("#points tr.answer").count() == 0
    said = ask(page, "at most 1 KMACs")
    assert "No model fits" in said
    assert "at 15 %" in said  # what comes nearest


def test_the_answer_is_marked_in_the_figure_and_choices_survive_a_reload(opened: Opened):
    page = opened("one")
    ask(page, "at most 1.8 MMACs")
    assert page.locator("#front-figure .annotation-text", has_text="at most 1.8 MMACs").count() == 1
    before = title(page)
    page.reload()
    page.wait_for_selector("html[data-ready]")
    assert page.input_value("#question-text") == "at most 1.8 MMACs"
    assert title(page) == before
    page.click("#question-clear")
    assert page.locator("#points tr.fits").count() == 0


# The figure's choices.


def test_axes_and_switches_change_what_is_drawn(opened: Opened):
    page = opened("one")
    layout = "document.getElementById('front-figure').layout"
    traces = page.evaluate("document.getElementById('front-figure').data.map(t => [t.type, t.mode, t.line?.shape ?? ''])")
    assert {kind for kind, _, _ in traces} == {"scatter"}  # WebGL's scattergl would need eval
    assert {shape for _, mode, shape in traces if mode == "lines"} == {"hv"}
    all_points = markers(page).count()
    page.uncheck("#seeds")
    without_seeds = markers(page).count()
    assert without_seeds == 11  # five budgets of two methods, and dense
    assert all_points == without_seeds + 33
    page.uncheck("#dominated")
    assert markers(page).count() < without_seeds
    page.check("#logx")
    assert page.evaluate(f"{layout}.xaxis.type") == "log"
    for x in page.eval_on_selector_all("#x option", "all => all.map(o => o.value)"):
        page.select_option("#x", x)
        assert markers(page).count() > 0
    page.select_option("#y", "test_loss")
    assert "less is better" in page.evaluate(f"{layout}.yaxis.title.text")
    page.click("#chips button:has-text('uniform')")
    assert "uniform" not in column(page, "method")


# The table.


def test_the_table_sorts_and_filters(opened: Opened):
    page = opened("one")
    assert len(rows(page)) == 33
    for direction in (1, -1):
        page.click("#points button[data-sort=test_top1]")
        values = [number(text) for text in column(page, "test_top1")]
        assert values == sorted(values, reverse=direction < 0)
    page.fill("#filter", "uniform seed 1")
    assert set(column(page, "method")) == {"uniform"}
    assert set(column(page, "seed")) == {"1"}
    assert page.inner_text("#row-count") == "5 of 33 points"


def test_downloads_hold_what_is_shown(opened: Opened, tmp_path: Path):
    page = opened("one")
    page.fill("#filter", "searched")
    with page.expect_download() as download:
        page.click("#csv")
    download.value.save_as(tmp_path / "points.csv")
    with (tmp_path / "points.csv").open(newline="", encoding="utf-8") as stream:
        found = {row["point"]: row for row in csv.DictReader(stream)}
    table = one().results.set_index("point")
    assert set(found) == set(table[table["method"] == "searched"].index)
    for point, row in found.items():
        assert int(row["macs"]) == table.loc[point, "macs"]
        assert float(row["test_top1"]) == pytest.approx(table.loc[point, "test_top1"], abs=1e-3)
    for kind, start in (("svg", b"<svg"), ("png", b"\x89PNG")):
        with page.expect_download() as download:
            page.click(f"#front button[data-format={kind}]")
        download.value.save_as(tmp_path / f"front.{kind}")
        assert (tmp_path / f"front.{kind}").read_bytes().startswith(start)


def test_a_spreadsheet_runs_no_cell(opened: Opened, tmp_path: Path):
    page = opened("formula")
    with page.expect_download() as download:
        page.click("#csv")
    download.value.save_as(tmp_path / "points.csv")
    assert "\n'=cmd" in (tmp_path / "points.csv").read_text(encoding="utf-8")


def test_the_table_copies(opened: Opened):
    page = opened("one", permissions=["clipboard-read", "clipboard-write"])
    page.fill("#filter", "dense")
    page.click("#copy-table")
    page.wait_for_function("() => document.getElementById('copy-table').textContent === 'Copied'")
    lines = page.evaluate("navigator.clipboard.readText()").strip().splitlines()
    assert len(lines) == 4
    assert lines[1].split("\t")[4] == "dense"


# Live, several runs, themes, phones, many points.


def test_a_running_sweep_says_where_it_is_lists_failures_and_refreshes(opened: Opened):
    page = opened("live", clock=True)
    said = page.inner_text("#live")
    for part in ("6 of 9 points done", "1 failed", "1 running", "epoch 3 of 20"):
        assert part in said
    assert "not finite in epoch 3" in page.inner_text("#failed")
    assert "0.0500" not in page.inner_text("#points")
    page.evaluate("document.getElementById('table').scrollIntoView()")
    place = page.evaluate("scrollY")
    assert place > 500
    with page.expect_navigation():
        page.clock.run_for(21_000)
    page.wait_for_selector("html[data-ready]")
    assert page.evaluate("scrollY") == pytest.approx(place, abs=2)  # whoever was reading there still is


def test_a_finished_page_does_not_refresh(opened: Opened):
    page = opened("one", clock=True)
    page.evaluate("window.same = true")
    page.clock.run_for(120_000)
    assert page.evaluate("window.same") is True
    assert page.locator("#refresh").count() == 0


def test_data_sets_do_not_share_an_axis_unless_asked_to(opened: Opened):
    page = opened("sets")
    assert set(column(page, "data")) == {"digits"}
    assert "do not compare" in page.inner_text("#mixing")
    page.select_option("#data", "1")
    assert set(column(page, "data")) == {"torch/fashion_mnist"}
    page.select_option("#data", "all")
    assert set(column(page, "data")) == {"digits", "torch/fashion_mnist"}
    assert "do not compare" in page.inner_text("#front-figure")
    assert "Choose one data set" in ask(page, "at most 2 MMACs")


def test_runs_are_compared_by_hypervolume_with_spread(opened: Opened):
    page = opened("sets")
    found = page.eval_on_selector_all("#methods tbody tr", "rows => rows.map(r => [...r.cells].map(c => c.innerText.trim()))")
    by_run = {row[0]: row[3] for row in found if len(row) > 1}
    assert set(by_run) == {"a", "b", "f"}
    assert number(by_run["a"]) > number(by_run["b"])
    assert "±" in by_run["a"]
    assert "±" not in by_run["f"]  # one seed


def test_methods_are_compared_at_equal_cost_with_what_the_reader_chooses(opened: Opened):
    page = opened("one")

    def cells(method: str) -> list[str]:
        rows = page.eval_on_selector_all(
            "#methods tbody tr", "rows => rows.map(r => [...r.cells].map(c => c.innerText.trim()))"
        )
        (row,) = [row for row in rows if row[0] == method]
        return [text.replace("\u2212", "-").split("\n")[0] for text in row[3:5]]

    def expected(method: str, x: str) -> list[str]:
        row = compare_methods(one().results, method=method, x=x).iloc[0]
        return [
            f"{row['difference']:+.2f} ± {row['difference_se']:.2f} points",
            f"{row['ratio']:.2f} ± {row['ratio_se']:.2f}×",
        ]

    assert cells("uniform") == expected("searched", "macs")
    assert cells("searched") == ["", ""]  # itself
    page.select_option("#against", "uniform")
    assert cells("searched") == expected("uniform", "macs")
    assert cells("uniform") == ["", ""]
    page.select_option("#x", "params")
    assert cells("searched") == expected("uniform", "params")
    assert "At equal parameters" in page.inner_text("#methods thead")
    page.select_option("#x", "images_per_second:0")  # more is better there: no cost
    assert cells("searched") == expected("uniform", "macs")
    assert "against=uniform" in page.url  # a link, and the page's own refresh, keep it


def luminance(colour: str) -> float:
    channels = [int(c) / 255 for c in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_the_theme_is_the_systems_and_text_can_be_read(opened: Opened):
    page = opened("one", color_scheme="light")
    for scheme, figure in (("light", "#ffffff"), ("dark", "#15181c")):
        page.emulate_media(color_scheme=scheme)
        page.wait_for_function("colour => document.getElementById('front-figure').layout.paper_bgcolor === colour", arg=figure)
        back = luminance(page.eval_on_selector("body", "e => getComputedStyle(e).backgroundColor"))
        assert (back < 0.1) == (scheme == "dark")
        for selector in ("body", "#subtitle", "#front-caption", ".facts dt", "#points td", "#points tr.dominated td"):
            text = luminance(page.eval_on_selector(selector, "e => getComputedStyle(e).color"))
            contrast = (max(text, back) + 0.05) / (min(text, back) + 0.05)
            assert contrast >= 4.5, (scheme, selector)


@pytest.mark.parametrize("name", ["one", "evil"])
def test_a_phone_shows_it_without_scrolling_sideways(opened: Opened, name: str):
    page = opened(name, viewport={"width": 360, "height": 740}, has_touch=True)
    page.locator("#search").scroll_into_view_if_needed()
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    assert page.evaluate("document.getElementById('front-figure').getBoundingClientRect().width") > 320


@pytest.mark.slow
def test_a_thousand_points_open_and_answer_quickly(opened: Opened):
    page = opened("many")  # the first opening also starts the browser's process
    openings = []
    for _ in range(3):  # the machine's other work is not the page's: the best of three counts
        start = time.perf_counter()
        page.reload()
        page.wait_for_selector("html[data-ready]")
        openings.append(time.perf_counter() - start)
        if openings[-1] < 3:
            break
    assert min(openings) < 3
    assert page.locator("#points tbody tr").count() >= 250
    clicks = """async () => {
        const painted = () => new Promise((done) => requestAnimationFrame(() => setTimeout(done, 0)));
        const took = [];
        for (const row of [...document.querySelectorAll("#points tbody tr")].slice(3, 240).filter((_, i) => i % 60 === 0)) {
            const start = performance.now();
            row.click();
            await painted();
            took.push(performance.now() - start);
        }
        return took;
    }"""
    answers: list[float] = []
    while len(answers) < 3 and not (answers and answers[-1] < 500):  # again the best of three
        took = page.evaluate(clicks)
        answers.append(sorted(took)[len(took) // 2])
    assert min(answers) < 500
