"""The notebook in reports/: its cells run in order, and show what its text says."""

import json
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[1] / "reports" / "library.ipynb"


def cells() -> list[dict]:
    found = json.loads(NOTEBOOK.read_text())
    assert (found["nbformat"], found["nbformat_minor"]) == (4, 5)
    return found["cells"]


def test_outputs_are_those_of_one_run_from_top_to_bottom() -> None:
    code = [cell for cell in cells() if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert all(cell["outputs"] for cell in code)
    assert not [output for cell in code for output in cell["outputs"] if output["output_type"] == "error"]


@pytest.mark.long
@pytest.mark.slow
def test_the_cells_run_and_show_what_the_text_says(capsys: pytest.CaptureFixture) -> None:
    space: dict = {}
    for cell in cells():
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"library.ipynb, cell {cell['id']}", "exec"), space)
    assert "dense: 3.50 MMACs" in capsys.readouterr().out
    assert space["dense_accuracy"] > 85
    assert space["change"] < 1e-3  # principal axes compute the same
    assert space["macs"](space["cut"]) <= 0.2 * space["macs"](space["model"])
    assert space["repaired_accuracy"] > space["cut_accuracy"] - 2  # 2 points are the noise of 597 images
    assert space["retrained_accuracy"] > space["cut_accuracy"]
    assert space["difference"] == 0
