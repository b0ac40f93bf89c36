"""What a study keeps of a run in its folder, and the picture of its page."""

import sys
import tempfile
from pathlib import Path

import pandas as pd

from slimsweep.ledger.run import Run
from slimsweep.report.page import build_page
from slimsweep.report.run_tables import RunTables

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from chromium import CHROMIUM

PICTURED = ["dense", "searched", "taylor", "uniform"]


def keep_tables(run: Run, folder: Path) -> None:
    """Copy a run's rows, curves and gates into a folder, of which `slimsweep report FOLDER` makes a page."""
    folder.mkdir(exist_ok=True)
    run.rows.sort_values("point", ignore_index=True).to_parquet(folder / "results.parquet")
    run.curves().to_parquet(folder / "curves.parquet")
    run.gates_table().to_parquet(folder / "gates.parquet")


def make_picture(rows: pd.DataFrame, name: str, picture: Path) -> None:
    """Write a picture by Chromium: the top of the page of a run's finished points of PICTURED (needs `slimsweep[test]`).

    Args:
        rows: of the run.
        name: of the run, as the page shows it.
        picture: a PNG file.
    """
    from playwright.sync_api import sync_playwright

    shown = rows[(rows["status"] == "ok") & rows["method"].isin(PICTURED)].assign(unit="macs")
    run = RunTables(name=name, uri=f"runs/{name}", results=shown.reset_index(drop=True))
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        file = Path(folder) / "report.html"
        file.write_text(build_page([run]), encoding="utf-8")
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 960}, device_scale_factor=2, color_scheme="light")
        page.goto(file.as_uri())
        page.wait_for_selector(".main-svg")
        page.wait_for_timeout(500)  # until the figure has drawn its labels
        page.screenshot(path=picture)
        browser.close()
