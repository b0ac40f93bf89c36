"""The page on paper, in a real browser: what names the colours is there, and nothing is wider than the sheet."""

from collections.abc import Iterator

import pytest
from chromium import CHROMIUM, MISSING
from test_report import make_run
from test_report_browser import sync_api

from slimsweep.report.page import build_page

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason=MISSING),
]
SHEET = 1032  # pixels: a landscape sheet of A4 less its margins


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, browser: "sync_api.Browser") -> Iterator["sync_api.Page"]:
    path = tmp_path_factory.mktemp("page") / "page.html"
    path.write_text(build_page([make_run(methods=("searched", "uniform", "taylor"))]), encoding="utf-8")
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(path.as_uri())
    page.wait_for_selector("html[data-ready]")
    yield page
    page.close()


def test_the_hint_of_the_question_box_asks_for_what_was_measured(page: "sync_api.Page") -> None:
    hint = page.get_attribute("#question-text", "placeholder") or ""
    assert "MACs" in hint
    assert (" ms" in hint) == page.get_by_role("button", name=" ms").is_visible()


def test_on_paper_methods_have_a_legend_and_tables_end_on_the_sheet(page: "sync_api.Page") -> None:
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert "searched" in page.inner_text("#chips")
    assert page.is_visible("#chips .chip button:first-child >> nth=0")
    assert not page.is_visible("#chips .only >> nth=0")
    for table in ("table.methods", "table.points"):
        assert page.eval_on_selector(table, "e => e.offsetWidth") <= SHEET
    assert page.eval_on_selector("#front-figure", "e => e.offsetHeight") <= 340  # with title and tiles on one sheet
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    page.emulate_media(media="screen")
