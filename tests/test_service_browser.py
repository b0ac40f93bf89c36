"""The service in a real browser: the shelf, the way to a run and back, comparing, signing in."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="fastapi is not installed (pip install 'slimsweep[serve]')")
uvicorn = pytest.importorskip("uvicorn", reason="uvicorn is not installed (pip install 'slimsweep[serve]')")
from chromium import CHROMIUM, MISSING  # noqa: E402
from service_runs import TOKEN, WHY, beating, fail, make_run, make_shelf  # noqa: E402
from test_report_browser import Opened  # noqa: E402

from slimsweep.ledger.run import Run  # noqa: E402
from slimsweep.service.app import make_app  # noqa: E402
from slimsweep.service.settings import Settings  # noqa: E402

pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason=MISSING)]


@contextmanager
def serving(output: Path, **settings: Any) -> Iterator[str]:
    """The address of a service over a folder, while the block runs."""
    app = make_app(Settings(output=str(output), token=TOKEN, look_every=0.2, **settings))
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    end = time.monotonic() + 60
    while not server.started:
        assert thread.is_alive()
        assert time.monotonic() < end
        time.sleep(0.02)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(30)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    shelf = make_shelf(tmp_path_factory.mktemp("service") / "runs")
    with serving(shelf) as address, beating(Run(shelf / "birds-swin")):
        yield address


@pytest.fixture
def opened(browser: Any) -> Iterator[Opened]:
    """Opens an address; at the end no page may have logged an error or asked another site for anything."""
    pages, wrong = [], []

    def open_page(address: str, ready: bool = True, **options: Any) -> Any:
        page = browser.new_page(**options)
        pages.append(page)
        page.on("pageerror", lambda problem: wrong.append(str(problem)))
        page.on(
            "request",
            lambda asked: None if asked.url.startswith(("http://127.0.0.1", "data:", "blob:")) else wrong.append(asked.url),
        )
        page.goto(address)
        if ready:
            page.locator("html[data-ready=yes]").wait_for()
        return page

    yield open_page
    for page in pages:
        page.close()
    assert wrong == []


def names(page: Any) -> list[str]:
    return page.locator("table.runs tbody").evaluate_all("bodies => bodies.map((body) => body.dataset.run)")


def test_the_shelf_lists_all_runs_with_what_matters(service: str, opened: Opened) -> None:
    page = opened(service)
    assert set(names(page)) == {
        *("digits", "flowers-deit-s", "scans-vit-b", "birds-swin", "leaves"),
        *("sizes/small", "sizes/base", "cut-short"),
    }
    digits = page.locator('tbody[data-run="digits"]').inner_text()
    for said in ("Finished", "7 of 7", "60 % of MACs", "97.61 % (+1.50)", "39 % of MACs", "ago"):
        assert said in digits
    assert page.locator('tbody[data-run="birds-swin"] .state').inner_text() == "Running"
    assert page.title() == "Runs (1 at work)"
    failed = page.locator('tbody[data-run="scans-vit-b"]')
    assert failed.locator(".why").inner_text() == f"1 point failed: {WHY}"
    assert failed.locator(".why").is_visible()
    assert "config.yaml is damaged" in page.locator('tbody[data-run="cut-short"] .why').inner_text()


def test_search_filters_and_order_are_kept_in_the_address(service: str, opened: Opened) -> None:
    page = opened(service)
    page.get_by_label("Search runs").fill("MEMORY vit")
    assert names(page) == ["scans-vit-b"]
    page.get_by_label("Search runs").fill("nothing like this")
    page.get_by_role("button", name="Show all runs").click()
    assert len(names(page)) == 8
    page.get_by_role("button", name="Stopped 1").click()
    assert names(page) == ["leaves"]
    page.get_by_role("button", name="All 8").click()
    page.get_by_label("Data").select_option("flowers")
    assert names(page) == ["flowers-deit-s"]
    page.get_by_label("Data").select_option("")
    page.get_by_role("button", name="Run", exact=True).click()
    assert names(page) == sorted(names(page))
    page.get_by_role("button", name="Run ↑").click()
    assert names(page) == sorted(names(page), reverse=True)
    assert page.locator('th[aria-sort="descending"]').inner_text().startswith("Run")
    page.get_by_label("Search runs").fill("sizes")
    again = opened(page.evaluate("location.href"))
    assert names(again) == ["sizes/small", "sizes/base"]
    assert again.get_by_label("Search runs").input_value() == "sizes"


def test_a_name_leads_to_its_report_and_back(service: str, opened: Opened) -> None:
    page = opened(service)
    page.get_by_role("link", name="sizes/small").click()
    page.locator("html[data-ready=yes]").wait_for()
    page.locator("#front-title").wait_for()
    assert page.url == f"{service}/runs/sizes/small"
    assert page.locator("h1").inner_text() == "small"
    page.locator("#front-figure .plot-container").wait_for()  # drawn by the library that lies beside the pages
    with page.expect_download() as taken:
        page.get_by_role("link", name="Save it as one file").click()
    assert taken.value.path().stat().st_size > 1_500_000
    page.get_by_role("link", name="All runs").click()
    page.locator("table.runs").wait_for()
    assert page.url.rstrip("#") == f"{service}/"


def test_ticked_runs_are_compared_on_one_page(service: str, opened: Opened) -> None:
    page = opened(service)
    bar = page.locator("#ticked")
    assert bar.is_hidden()
    page.get_by_label("Tick digits to compare it").check()
    assert "tick another run" in bar.inner_text()
    page.get_by_label("Search runs").fill("sizes/base")  # what was ticked stays ticked when it is not shown
    page.get_by_label("Tick sizes/base to compare it").check()
    page.reload()  # nor does loading the page again forget it
    page.locator("html[data-ready=yes]").wait_for()
    page.get_by_role("link", name="Compare 2 runs").click()
    page.locator("#front-title").wait_for()
    page.locator("html[data-ready=yes]").wait_for()
    assert page.locator("h1").inner_text() == "digits, base"
    assert "2 runs, 14 points" in page.locator("#subtitle").inner_text()
    assert page.locator("#to-file").get_attribute("href") == "?run=digits&run=sizes%2Fbase&whole=true"
    assert "All settings of these runs are the same." in page.locator("#about").inner_text()
    assert page.get_by_role("link", name="All runs").is_visible()


def test_a_change_appears_by_itself_and_leaves_the_reader_alone(tmp_path: Path, opened: Opened) -> None:
    for name in ("one", "two"):
        make_run(tmp_path / name)
    with serving(tmp_path) as address:
        page = opened(address)
        page.get_by_label("Tick two to compare it").check()
        page.get_by_label("Search runs").focus()
        fail(Run(tmp_path / "one"), "searched-0.4")
        make_run(tmp_path / "three")
        page.locator('tbody[data-run="one"] .why').wait_for(timeout=20_000)
        page.locator('tbody[data-run="three"]').wait_for(timeout=20_000)
        assert page.get_by_label("Tick two to compare it").is_checked()
        assert page.evaluate("document.activeElement.id") == "search"


def test_names_of_folders_are_text(tmp_path: Path, opened: Opened) -> None:
    evil = "<img src=x onerror=document.title='hacked'>"
    fail(make_run(tmp_path / evil), "searched-0.4", evil)
    with serving(tmp_path) as address:
        page = opened(address)
        assert names(page) == [evil]
        assert page.locator("table.runs img").count() == 0
        page.get_by_role("link", name=evil).click()
        page.locator("#front-title").wait_for()
        page.locator("html[data-ready=yes]").wait_for()
        assert page.title() != "hacked"


def test_reading_by_token_asks_for_it_once(tmp_path: Path, opened: Opened) -> None:
    make_run(tmp_path / "one")
    with serving(tmp_path, reading="token") as address:
        page = opened(f"{address}/runs/one", ready=False)
        assert page.locator("h1").inner_text() == "Sign in"
        page.get_by_label("Token").fill("a-wrong-token-0123456789")
        page.get_by_role("button", name="Show the runs").click()
        page.get_by_text("the token is not that of this service").wait_for()
        page.get_by_label("Token").fill(TOKEN)
        page.get_by_role("button", name="Show the runs").click()
        page.locator("#front-title").wait_for()
        page.get_by_role("link", name="All runs").click()
        page.locator("html[data-ready=yes]").wait_for()
        assert names(page) == ["one"]
        assert page.evaluate("document.cookie") == ""  # no script reads it


def test_an_empty_folder_says_what_will_appear(tmp_path: Path, opened: Opened) -> None:
    with serving(tmp_path) as address:
        page = opened(address)
        assert "There is no run in" in page.locator("#empty").inner_text()


def test_it_fits_a_phone(service: str, opened: Opened) -> None:
    page = opened(service, viewport={"width": 390, "height": 800})
    page.get_by_label("Tick digits to compare it").check()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.locator('tbody[data-run="scans-vit-b"] .why').is_visible()
    page.get_by_label("Sort by").select_option("name")
    assert names(page) == sorted(names(page))
    box = page.get_by_role("link", name="digits", exact=True).bounding_box()
    assert box["height"] >= 30
