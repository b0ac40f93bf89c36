"""What the end of a run says where few images were looked at: chance is not told as a result."""

import io
import shutil
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console
from test_report_of_features import TOP1_ROWS, run_of

from slimsweep.ledger.run import Run
from slimsweep.tools.display import final_table, worse_than_cut

DATA = Path(__file__).parent / "data"


@pytest.mark.parametrize(("images", "told"), [(27, 0), (10_000, 3), (None, 3)])
def test_a_loss_by_retraining_is_told_where_it_is_more_than_chance(images: int | None, told: int) -> None:
    """Of 27 images one is 3.7 points: a lower learning rate is no answer to that."""
    rows = run_of([{**one, "val_top1_cut": 84.5} for one in TOP1_ROWS]).results  # three cuts have lost 1.5 to 3.5 points
    assert len(worse_than_cut(rows, images)) == told


@pytest.mark.parametrize(("images", "bracketed"), [(27, 1), (10_000, 0)])
def test_a_difference_within_the_error_is_marked_without_colours(images: int, bracketed: int, tmp_path: Path) -> None:
    run = Run(shutil.copytree(DATA / "finished-run", tmp_path / "finished"))
    rows = run.rows[run.rows.budget.isin([1.0, 0.6]) & run.rows.method.isin(["dense", "searched"])]
    rows = rows.assign(test_images=images, test_top1=rows.method.map({"dense": 60.0, "searched": 70.0}))
    log = io.StringIO()
    Console(file=log, width=200).print(final_table(run, pd.DataFrame(rows), 1.0))
    assert log.getvalue().count("(+10") == bracketed
    assert ("in brackets: no clear difference" in log.getvalue()) == bool(bracketed)
