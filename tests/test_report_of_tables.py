"""A table of results makes a page without the run's folder, as the studies in reports/ keep them."""

import shutil
from pathlib import Path

import pandas as pd
import pytest

from slimsweep.cli import main
from slimsweep.errors import RefusedInput
from slimsweep.ledger.run import Run
from slimsweep.report.page_data import page_data
from slimsweep.report.run_tables import read_run, read_tables

FINISHED = Path(__file__).parent / "data" / "finished-run"


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A folder with the results and curves of a finished run, and nothing else."""
    run = Run(FINISHED)
    folder = tmp_path / "study"
    folder.mkdir()
    run.rows.to_parquet(folder / "results.parquet")
    run.curves().to_parquet(folder / "curves.parquet")
    return folder


def test_a_page_of_tables_shows_the_points_and_curves_of_the_run(study: Path) -> None:
    [found] = read_tables(str(study))
    made, whole = page_data([found]), page_data([read_run(Run(FINISHED))])
    assert made["points"] == whole["points"]
    assert made["curves"] == whole["curves"]
    assert made["runs"][0]["progress"] is None
    assert made["runs"][0]["uri"] is None


def test_report_writes_the_page_into_the_tables_folder(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (study, study / "results.parquet"):
        assert main(["report", str(path)]) == 0
        page = study / "report.html"
        assert str(page) in capsys.readouterr().out.replace("\n", "")
        assert 0 < page.stat().st_size < 3_000_000
        page.unlink()


def test_runs_of_one_table_are_shown_one_by_one(study: Path) -> None:
    rows = Run(FINISHED).rows
    other = rows.assign(run="other", macs_dense=rows["macs_dense"] * 2)
    table = study / "both.parquet"
    pd.concat([rows, other]).to_parquet(table)
    shown = read_tables(str(table))
    assert [one.name for one in shown] == [rows["run"].iloc[0], "other"]
    assert [len(one.results) for one in shown] == [len(rows), len(rows)]


def test_runs_of_one_name_on_other_data_are_told_apart(study: Path) -> None:
    rows = Run(FINISHED).rows
    pd.concat([rows, rows.assign(data="other")]).to_parquet(study / "both.parquet")
    assert [set(one.results["data"]) for one in read_tables(str(study / "both.parquet"))] == [set(rows["data"]), {"other"}]
    rows.drop(columns="macs_dense").to_parquet(study / "short.parquet")
    with pytest.raises(RefusedInput, match="has no rows of results"):
        read_tables(str(study / "short.parquet"))


def test_what_holds_no_results_is_refused_in_a_sentence(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RefusedInput, match=r"missing\.parquet does not exist: give a run's folder"):
        read_tables(str(study / "missing.parquet"))
    curves = study / "curves.parquet"
    with pytest.raises(RefusedInput, match="has no rows of results"):
        read_tables(str(curves))
    shutil.copy(__file__, study / "results.parquet")
    assert main(["report", str(study)]) != 0
    assert "is damaged" in capsys.readouterr().out.replace("\n", " ")
