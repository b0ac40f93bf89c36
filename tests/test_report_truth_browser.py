"""What the page says of its own certainty, in a real browser."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from chromium import CHROMIUM, MISSING
from test_report import make_run
from test_report_browser import sync_api

from slimsweep.report.page import build_page
from slimsweep.report.run_tables import RunTables

pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason=MISSING)]


def misleading() -> RunTables:
    """36 images of validation, 360 of test; the best on validation is not the best on test, and retraining hurt dense."""
    run = make_run(methods=("searched", "uniform"), budgets=(0.7, 0.5, 0.25))
    rows = run.results.assign(val_images=36, test_images=360, classes=10)
    rows[["val_top1", "test_top1"]] = [
        (94.4444, 95.0),  # dense, retrained
        *((97.2222, 96.6667), (97.2222, 98.0556), (94.4444, 92.2222)),  # searched
        *((91.6667, 91.1111), (88.8889, 88.0556), (50.0, 51.3889)),  # uniform
    ]
    return replace(run, results=rows, untouched_val=97.2222)


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory, browser: "sync_api.Browser") -> Iterator["sync_api.Page"]:
    path = tmp_path_factory.mktemp("page") / "misleading.html"
    path.write_text(build_page([misleading()]), encoding="utf-8")
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None)
    page.goto(path.as_uri())
    page.wait_for_selector("html[data-ready]")
    yield page
    page.close()
    assert complaints == []


@pytest.fixture
def page(opened: "sync_api.Page") -> "sync_api.Page":
    """The page as it opens: what other tests chose on it stands in its address."""
    address, _, chosen = opened.url.partition("#")
    if chosen:
        opened.goto("about:blank")
        opened.goto(address)
        opened.wait_for_selector("html[data-ready]")
    return opened


@pytest.fixture
def ask(page: "sync_api.Page") -> Iterator[Callable[[str], str]]:
    def asked(text: str) -> str:
        page.fill("#question-text", text)
        page.press("#question-text", "Enter")
        return page.inner_text("#answer")

    yield asked
    page.press("#question-text", "Escape")
    assert page.input_value("#question-text") == ""
    assert page.inner_text("#answer") == ""


def tiles(page: "sync_api.Page") -> dict[str, tuple[str, str]]:
    """By their titles: the large number, and the small lines."""
    found = {}
    for tile in page.locator("#headline > *").all():
        small = " | ".join(tile.locator("small").all_inner_texts())
        found[tile.locator("dt").inner_text()] = (tile.locator("dd").inner_text(), small)
    return found


def test_the_most_accurate_model_is_shown_by_what_it_was_chosen_by(page: "sync_api.Page") -> None:
    value, notes = tiles(page)["Most accurate, chosen on validation"]
    assert value.startswith("97 ± ")
    assert "validation top-1; test 98.1 ± 0.8 %" in notes  # of equals on validation the cheapest
    assert "searched at 50 %" in notes
    assert "level with another on 36 images" in notes
    assert "others are within its error" in notes


def test_the_smallest_model_near_dense_shows_the_test_split_too(page: "sync_api.Page") -> None:
    ((value, notes),) = [
        tile for title, tile in tiles(page).items() if title == "Smallest within 1 point of dense on validation"
    ]
    assert value == "25 % of MACs"
    assert "validation 0 points; test −2.8 points" in notes
    assert "on test it is more than 1 point below dense" in notes


def test_few_images_are_warned_of_and_numbers_have_no_decimals_that_mean_nothing(page: "sync_api.Page") -> None:
    assert "There are only 36 validation images: one image is 2.8 points" in page.inner_text("#cautions")
    shown = page.inner_text("#points")
    assert "97.22" not in shown
    assert "98.06" not in shown
    assert "98.1" in shown


def test_differences_within_the_error_are_grey(page: "sync_api.Page") -> None:
    headers = page.locator("#points thead th").all_inner_texts()
    place = next(i for i, title in enumerate(headers) if title.strip().startswith("vs dense"))
    cells = page.locator(f"#points tbody tr td:nth-child({place + 1})")
    muted = {cell.inner_text(): "within" in (cell.get_attribute("class") or "") for cell in cells.all()}
    assert muted["+1.7"]  # 1.7 points of 360 images
    assert not muted["−43.6"]


def test_the_figure_has_error_bars_for_one_seed_and_says_of_what(page: "sync_api.Page") -> None:
    bars = page.evaluate("document.getElementById('front-figure').data.flatMap((t) => t.error_y?.array ?? [])")
    assert all(0 < bar < 4 for bar in bars)
    assert len(bars) == 7
    caption = page.inner_text("#front-caption")
    assert "Bars are standard errors of a share of 360 images" in caption
    assert "Costs within 1 % of the dense model's MACs count as equal" in caption


def test_a_tooltip_names_no_file(page: "sync_api.Page") -> None:
    texts = page.evaluate("document.getElementById('front-figure').data.flatMap((t) => t.text ?? [])")
    assert texts
    assert not [text for text in texts if "-s0-" in text]


def test_a_share_of_nothing_named_is_a_budget(page: "sync_api.Page", ask: Callable[[str], str]) -> None:
    said = ask("at most 50 %")
    assert said.startswith("searched at 50 %")
    assert "a budget: a share of the dense model’s MACs" in said
    assert "The most accurate of the 4 models that fit" in said


def test_what_may_be_two_things_is_asked_back(page: "sync_api.Page", ask: Callable[[str], str]) -> None:
    assert "may be a budget or an accuracy" in ask("50 %")
    page.click("#answer button >> text=at least 50 % accuracy")
    assert page.input_value("#question-text") == "at least 50 % accuracy"
    assert "models that fit" in page.inner_text("#answer")


def test_flops_are_explained_and_one_model_is_one(page: "sync_api.Page", ask: Callable[[str], str]) -> None:
    assert "taken as multiply-accumulates" in ask("at most 1 MFLOPs")
    assert "The only model that fits" in ask("at most 30 % of budget, at least 90 %")


def test_a_limit_without_a_place_on_a_logarithmic_axis_is_no_error(page: "sync_api.Page", ask: Callable[[str], str]) -> None:
    log = page.locator("#controls label", has_text="log x").locator("input")
    was = log.is_checked()
    log.set_checked(True)
    assert "No model fits" in ask("at most 0 MACs")
    assert page.locator("#front-figure .annotation", has_text="0 MACs").count() == 0
    log.set_checked(was)


CONTRAST = """() => {
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = (c) => c.slice(0, 3).map((v) => v / 255).map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (e) => {
    for (; e; e = e.parentElement) {
      const found = rgb(getComputedStyle(e).backgroundColor);
      if (found.length === 3) return found;
    }
  };
  const seen = (e) => (e ? Number(getComputedStyle(e).opacity) * seen(e.parentElement) : 1);
  const grey = document.querySelectorAll("button, td, th, dt, dd, small, .muted, .caption, option, .of");
  return [...grey].filter((e) => e.offsetParent && e.innerText?.trim()).map((e) => {
    const [back, alpha] = [behind(e), seen(e)];
    const ink = rgb(getComputedStyle(e).color).map((v, i) => alpha * v + (1 - alpha) * back[i]);
    const [low, high] = [light(ink), light(back)].sort((a, b) => a - b);
    return [(high + 0.05) / (low + 0.05), e.outerHTML.slice(0, 90)];
  }).sort((a, b) => a[0] - b[0]);
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_greyed_text_can_be_read(page: "sync_api.Page", scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)
    chip = page.locator("#chips .chip button").first
    chip.click()
    found = page.evaluate(CONTRAST)
    page.locator("#chips .chip button").first.click()
    page.emulate_media(color_scheme="light")
    assert len(found) > 50
    assert found[0][0] >= 4.5, found[:3]


def test_on_paper_figures_are_light_and_as_wide_as_a_sheet(page: "sync_api.Page") -> None:
    figure = "[document.querySelector('#front-figure .main-svg').clientWidth, window['front-figure'].layout.paper_bgcolor]"
    page.emulate_media(color_scheme="dark")
    for _ in range(100):  # until the page has heard of it
        if page.evaluate(figure)[1] != "#ffffff":
            break
        page.wait_for_timeout(20)
    wide = page.evaluate(figure)[0]
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    printed = page.evaluate(figure)
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    after = page.evaluate(figure)
    assert printed[0] <= 1032 < wide  # a landscape sheet of A4 less its margins, at 96 pixels per inch
    assert printed[1] == "#ffffff"
    assert after[0] == wide
    assert after[1] != "#ffffff"
    page.emulate_media(color_scheme="light")


@pytest.mark.slow
def test_a_comparison_says_of_how_many_seeds_and_a_model_does_not_differ_from_itself(
    browser: "sync_api.Browser", tmp_path: Path
) -> None:
    run = make_run(seeds=3, budgets=(0.5,))
    rows = run.results
    one_dense = rows[(rows["method"] != "dense") | (rows["seed"] == 0)]
    path = tmp_path / "seeds.html"
    path.write_text(build_page([replace(run, results=one_dense)]), encoding="utf-8")
    page = browser.new_page()
    page.goto(path.as_uri())
    page.wait_for_selector("html[data-ready]")
    page.locator("#table tbody tr", has_text="searched").first.click()
    page.select_option("#compare", "dense")
    assert "(1 seed against 3)" in page.inner_text("#difference")
    page.locator("#table tbody tr", has_text="dense").first.click()
    assert "0.00 points of test" in page.inner_text("#difference")
    page.close()
