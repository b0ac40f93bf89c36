"""Latency on the page in a real browser: axes, lines of budgets, the table and a question about milliseconds."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from chromium import CHROMIUM, MISSING
from test_latency_shown import EPYC, device_times, with_latency
from test_report import make_run
from test_report_browser import sync_api

from slimsweep.report.page import build_page
from slimsweep.report.run_tables import RunTables

pytestmark = [pytest.mark.slow, pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason=MISSING)]


def timed() -> RunTables:
    """A run of budgets in milliseconds that the sweep timed, slimsweep bench too, and of some structures a board.

    The smallest point was timed on a busy machine.
    """
    run = make_run(budgets=(0.7, 0.5, 0.25), bench=True)
    run = with_latency(run, unit="ms", budget_ms=run.results.budget.map({0.25: 2.5}.get))
    results = run.results.assign(latency_busy=["busy" if budget == 0.25 else "" for budget in run.results.budget])
    board = device_times(run, "a board", 1.0)
    return replace(run, results=results, device_times=board.iloc[:2])


@pytest.fixture
def page(tmp_path: Path, browser: "sync_api.Browser") -> Iterator["sync_api.Page"]:
    path = tmp_path / "timed.html"
    path.write_text(build_page([timed()]), encoding="utf-8")
    opened = browser.new_page(viewport={"width": 1280, "height": 900})
    complaints: list[str] = []
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on("console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None)
    opened.goto(path.as_uri())
    opened.wait_for_selector("html[data-ready]")
    yield opened
    opened.close()
    assert complaints == []


def test_latency_on_the_page(page: "sync_api.Page") -> None:
    # Budgets in milliseconds make the sweep's latency the axis; who measured stands in each choice.
    options = page.eval_on_selector_all(
        "#x option", "nodes => nodes.filter(n => n.text.startsWith('latency')).map(n => n.text)"
    )
    assert options == [
        "latency p50 (slimsweep bench: cpu, 2 threads, batch 1, float32)",
        f"latency (the sweep's own timing: {EPYC})",
        "latency (a board, TensorRT, batch 1, fp16)",
    ]
    figure = page.evaluate(
        """() => {
            const { layout } = document.getElementById("front-figure");
            const budgets = (of) => of.filter((one) => one.name === "budget");
            return {
                title: layout.xaxis.title.text,
                lines: budgets(layout.shapes).map((one) => one.x0),
                labels: budgets(layout.annotations).map((one) => one.text),
            };
        }"""
    )
    assert figure["title"] == f"latency (the sweep's own timing: {EPYC}), ms"
    assert sorted(figure["lines"]) == [5.0, 7.0]  # 2.5 ms was timed on a busy machine
    assert sorted(figure["labels"]) == ["budget 50 % of dense", "budget 70 % of dense"]
    caption = page.inner_text("#front-caption")
    assert "Upright dotted lines are budgets in milliseconds." in caption
    assert "1 model not timed in this setting is left out." in caption
    assert "1 latency is left out" in page.inner_text("body")
    assert "busy" in page.inner_text("body")

    # The table names the device of each latency, and a budget of milliseconds as one.
    heads = page.eval_on_selector_all("#points thead th", "nodes => nodes.map(n => n.innerText.trim())")
    latencies = [head for head in heads if head.lower().startswith("latency, ")]
    assert [head.lower() for head in latencies] == ["latency, epyc", "latency, a board"]
    assert "2.5 ms" in page.inner_text("#points tbody")
    assert "50 % of latency" in page.inner_text("#points tbody")

    # A question is about the axis, and says so; on another axis it says which of several latencies it took.
    page.fill("#question-text", "under 6 ms")
    page.press("#question-text", "Enter")
    answer = page.inner_text("#answer")
    assert "searched at 50 % of latency" in answer
    assert f"speed by the sweep's own timing: {EPYC}" in answer
    assert "one of 3" not in answer
    page.select_option("#x", "macs")
    assert "one of 3 latencies here" in page.inner_text("#answer")
