"""The tables that reports show are those of the rows beside them."""

import runpy
from pathlib import Path

import pandas as pd

STUDY = Path(__file__).parents[1] / "reports" / "fashion-mnist"


def test_the_study_s_tables_are_those_of_its_rows() -> None:
    assert runpy.run_path(str(STUDY / "make_table.py"))["main"](["--check"]) == 0


def test_the_study_has_every_point_or_says_why_not() -> None:
    rows = pd.read_parquet(STUDY / "results.parquet")
    had = rows[rows["status"] == "ok"].groupby(["method", "terms", "budget"])["seed"].nunique()
    assert (had == 3).all()
    missing = rows[rows["status"] == "failed"]
    assert set(missing["method"]) <= {"torch-pruning"}
    assert missing["error"].str.contains("cannot cut this model").all()
