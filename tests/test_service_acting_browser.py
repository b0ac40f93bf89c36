"""The pages to act on, in a browser: problems stand at their fields, a plan comes before a start, a file is made and taken."""

import re
import shutil
from pathlib import Path

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("playwright")
from chromium import CHROMIUM, MISSING
from service_runs import FINISHED, TOKEN
from test_service_browser import serving
from test_service_sweeps import OfCluster

from slimsweep.cluster.commands import Ended
from slimsweep.service import make_download
from slimsweep.service.sweeps import Sweeps

pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason=MISSING)]


@pytest.fixture
def cluster(monkeypatch):
    """In place of a cluster and its workers: commands are run in this process."""
    found = OfCluster()
    monkeypatch.setattr(Sweeps, "jobs", found)

    def run_command(words, *, seconds, files=None):
        if "plan" in words and "--model.name=vit_nothing" in words:
            return Ended(code=2, output="slimsweep: model.name is 'vit_nothing', which timm does not have\n", errors="")
        if "plan" in words:
            return Ended(code=0, output="In all: 3.0 min, of which 12 s for starting Ray and processes.\n", errors="")
        return Ended(code=make_download.main(words[2:]), output="", errors="")

    monkeypatch.setattr("slimsweep.cluster.commands.run_command", run_command)
    return found


@pytest.fixture
def url(tmp_path, cluster):
    shutil.copytree(FINISHED, tmp_path / "old")
    with serving(tmp_path) as address:
        yield address


@pytest.fixture
def page(browser, url):
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    page = context.new_page()
    problems = []
    page.on("pageerror", lambda problem: problems.append(str(problem)))
    page.on("console", lambda message: problems.append(message.text) if "Content Security" in message.text else None)
    yield page
    context.close()
    assert problems == []


def sign_in(page):
    page.fill("#token", TOKEN)
    page.click("#token-form button")
    page.wait_for_selector("#signed:not([hidden])")


def test_a_problem_stands_at_its_field_and_a_start_follows_its_plan(page, url, cluster):
    page.goto(f"{url}/sweeps")
    sign_in(page)
    page.fill("#field-budgets", "0.5, much")
    page.fill("[id='field-name']", "mine")
    at_field = page.locator("#problem-of-budgets")
    at_field.wait_for(state="visible")
    assert "budget 'much' is neither a fraction" in at_field.inner_text()
    assert page.get_attribute("#field-budgets", "aria-invalid") == "true"
    assert page.get_attribute("[id='field-name']", "aria-invalid") == "false"
    assert page.is_disabled("#start")
    page.fill("#field-budgets", "0.5")
    at_field.wait_for(state="hidden")
    page.click("#plan")
    page.wait_for_selector("#start:enabled")
    assert "In all: 3.0 min" in page.inner_text("#plan-text")
    assert "--name=mine --budgets=0.5" in page.inner_text("#command")
    page.fill("#field-budgets", "0.4")  # another sweep than the one that was planned
    assert page.is_disabled("#start")
    page.fill("#field-budgets", "0.5")
    page.click("#start")
    page.wait_for_selector(".job .running")
    assert [job.run for job in cluster.found] == ["mine"]
    page.locator("#log-text", has_text="what mine prints").wait_for()
    assert page.evaluate("document.activeElement.id") == "jobs"  # they are below the form, and are seen after a start
    page.locator("#log-text").scroll_into_view_if_needed()
    page.reload()  # keeps what is asked for, the token and the log that is shown
    page.wait_for_selector("#log-text")
    assert page.input_value("[id='field-name']") == "mine"
    assert page.input_value("#field-budgets") == "0.5"
    page.click(".job >> text=Stop")
    page.wait_for_selector(".job .stopped")
    assert cluster.stopped == ["job-0"]
    # A problem in a text leads to its line.
    page.click("#by-text")
    assert page.input_value("#text") == "extends: digits\nname: mine\nbudgets: [0.5]\n"
    page.fill("#text", "name: mine\nsearch:\n  lr: -1\n")
    page.click("#problems >> text=Line 3")
    selected = page.evaluate(
        "() => { const t = document.getElementById('text'); return t.value.slice(t.selectionStart, t.selectionEnd) }"
    )
    assert selected == "  lr: -1"
    # A narrow screen, in dark colours.
    page.set_viewport_size({"width": 360, "height": 700})
    page.emulate_media(color_scheme="dark")
    for way in ("#by-text", "#by-form"):
        page.click(way)
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(21, 24, 28)"


def test_without_the_token_it_is_said_and_nothing_starts(page, url, cluster):
    page.goto(f"{url}/sweeps")
    page.fill("#token", "another-token")
    page.click("#token-form button")
    at_field = page.locator("#problem-of-token")
    at_field.wait_for(state="visible")
    assert "the token is not that of this service" in at_field.inner_text()
    assert page.evaluate("sessionStorage.length") <= 1  # what is asked for, and no wrong token
    page.click("#plan")
    page.wait_for_function("document.getElementById('problem-of-token').textContent.startsWith('Planning')")
    assert page.evaluate("document.activeElement.id") == "token"
    assert not cluster.found
    sign_in(page)
    assert page.is_hidden("#token-form")
    page.click("#forget")
    assert page.is_visible("#token-form")


def test_the_form_shows_its_preset_and_what_only_a_plan_finds(page, url):
    page.goto(f"{url}/sweeps")
    assert page.get_attribute("[id='field-dense.epochs']", "placeholder") == "40"
    page.select_option("#preset", "deit-small-imagenet")
    assert page.get_attribute("[id='field-model.name']", "placeholder").startswith("deit_small")
    assert page.inner_text("[id='field-model.pretrained'] option:first-child") == "true (as in the preset)"
    page.click("#form-part summary")
    assert "name: deit-small" in page.inner_text("#preset-text")
    sign_in(page)
    page.fill("[id='field-model.name']", "vit_nothing")
    page.click("#plan")
    at_field = page.locator("[id='problem-of-model.name']")
    at_field.wait_for(state="visible")
    assert "which timm does not have" in at_field.inner_text()
    assert page.inner_text("#problems") == ""


def test_a_run_leads_to_where_it_is_gone_on_with_and_back(page, url, cluster):
    page.goto(f"{url}/runs/old")
    page.click("text=Log, stop, go on")
    page.wait_for_selector("#token")
    sign_in(page)
    page.wait_for_selector("#going-on:not([hidden])")
    assert page.input_value("#run") == "old"
    assert page.is_hidden("#log")  # no job of it is known here
    page.click("#going-on button")
    page.wait_for_selector("#log-text")
    page.click(".job a")
    page.wait_for_selector("#front-title")
    assert page.url.startswith(f"{url}/runs/old")


def test_a_file_is_made_on_demand_and_downloaded(page, url, tmp_path):
    page.goto(f"{url}/runs/old")
    page.click("table.points tbody tr >> text=searched")
    page.click("#load >> text=Download it")
    page.wait_for_selector("#file-timm pre")
    point = page.inner_text("h1")
    assert (FINISHED / "models" / point).is_dir()
    assert re.search(
        r"of old: searched, [\d.]+ MMACs \([\d.]+ % of dense\), [\d,]+ parameters, test top-1", page.inner_text("header")
    )
    assert f'timm.create_model("local-dir:{point}", pretrained=True).eval()' in page.inner_text("#file-timm pre")
    page.click("#file-timm >> text=Make it")
    link = page.wait_for_selector("#file-timm a", timeout=120_000)
    with page.expect_download() as taken:
        link.click()
    assert taken.value.suggested_filename == f"{point}-timm.zip"
    made = tmp_path / "old" / "exports" / f"{point}-timm.zip"
    assert Path(taken.value.path()).read_bytes() == made.read_bytes()
