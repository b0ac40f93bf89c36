"""The tables that reports show are those of the rows beside them."""

import runpy
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from chromium import CHROMIUM, MISSING

REPORTS = Path(__file__).parents[1] / "reports"
STUDY = REPORTS / "fashion-mnist"
COMPARED = {"fashion-mnist": 3, "dinov2": 5}  # the studies that compare methods, and their seeds
# (study, method, budget) with more seeds than that.
MORE_SEEDS = {("dinov2", "dense", 1.0): 10, ("dinov2", "searched", 0.5): 10, ("dinov2", "taylor", 0.5): 10}


@pytest.mark.parametrize("study", COMPARED)
def test_a_study_s_tables_are_those_of_its_rows(study: str) -> None:
    assert runpy.run_path(str(REPORTS / study / "make_table.py"))["main"](["--check"]) == 0


def test_the_table_before_any_retraining_is_that_of_its_rows() -> None:
    assert runpy.run_path(str(STUDY / "before_training.py"))["main"](["--check"]) == 0
    rows = pd.read_parquet(STUDY / "before-training.parquet")
    dense = rows.loc[rows.ranking == "dense", "val_top1"].item()
    best = rows[rows["axes"] & rows["repair"]].groupby("budget").val_top1.max()
    assert dense - best[0.5] <= 1
    assert dense - best[0.25] <= 5


@pytest.mark.parametrize("study", sorted(str(path.parent.relative_to(REPORTS)) for path in REPORTS.rglob("results.parquet")))
def test_a_study_has_its_page_beside_its_rows(study: str) -> None:
    page = REPORTS / study / "report.html"
    assert 1_000_000 < page.stat().st_size < 3_000_000  # plotly is in it
    assert "<title>" in page.read_text()[:20_000]


@pytest.mark.parametrize("study", COMPARED)
def test_a_study_has_every_point_or_says_why_not(study: str) -> None:
    rows = pd.read_parquet(REPORTS / study / "results.parquet")
    had = rows[rows["status"] == "ok"].groupby(["method", "terms", "budget"])["seed"].nunique()
    for (method, _, budget), seeds in had.items():
        assert seeds == MORE_SEEDS.get((study, method, budget), COMPARED[study]), (method, budget)
    missing = rows[rows["status"] == "failed"]
    assert set(missing["method"]) <= {"torch-pruning"}
    assert missing["error"].str.contains("cannot cut this model").all()


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason=MISSING)
@pytest.mark.parametrize("study", COMPARED)
def test_a_study_s_picture_is_made_from_its_rows(study: str, tmp_path: Path) -> None:
    pytest.importorskip("playwright.sync_api", reason="playwright is not installed (pip install 'slimsweep[test]')")
    # In a process of its own: another test may hold this one's Playwright.
    script = [sys.executable, str(REPORTS / study / "make_table.py"), "--picture", str(tmp_path / "report.png")]
    subprocess.run(script, check=True, timeout=120)
    made, kept = ((folder / "report.png").read_bytes() for folder in (tmp_path, REPORTS / study))
    assert made[:8] == kept[:8] == b"\x89PNG\r\n\x1a\n"
    assert made[16:24] == kept[16:24]  # width and height
    assert 50_000 < len(made) < 500_000


def test_a_table_replaces_all_between_its_marks_and_nothing_else() -> None:
    with_table = runpy.run_path(str(REPORTS / "markdown_tables.py"))["with_table"]
    text = "before\n<!-- a -->\nold\n<!-- end -->\nbetween\n<!-- b -->\nkept\n<!-- end -->\n"
    written = with_table(text, "| new |", "<!-- a -->", "<!-- end -->")
    assert written == text.replace("old", "| new |")
    assert with_table(written, "| new |", "<!-- a -->", "<!-- end -->") == written
    for start, end in (("<!-- c -->", "<!-- end -->"), ("<!-- b -->", "<!-- end of b -->"), ("<!-- end -->", "<!-- a -->")):
        with pytest.raises(ValueError, match="mark"):
            with_table(text, "| new |", start, end)
