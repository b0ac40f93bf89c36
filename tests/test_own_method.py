"""A method of one's own: registered in one place, it is swept, and stands in the table and on the page like any other."""

from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import QUICK
from test_report import data_of  # the page's data, unpacked as the page does

from slimsweep.ledger.run import Run
from slimsweep.methods import METHODS, Method, Style, register
from slimsweep.methods.by_scores import structures_by_scores
from slimsweep.methods.choice import Choice
from slimsweep.run import main
from slimsweep.slimming.structure import Structure

STYLE = Style(light="#123456", dark="#abcdef", symbol="bowtie")


def keep_the_last(choice: Choice) -> list[Structure | ValueError]:
    """Keeps the last dims, units and tokens of each layer."""
    scores = {
        family: [torch.arange(1.0, 1 + torch.Size(size).numel()).reshape(size) for size in sizes]
        for family, sizes in choice.shape.gate_shapes.items()
    }
    return structures_by_scores(choice, scores)


@pytest.fixture
def keep_last() -> Iterator[Method]:
    method = Method(name="keep-last", style=STYLE, choose=keep_the_last)
    register(method)
    yield method
    del METHODS[method.name]


@pytest.mark.slow
def test_a_registered_method_is_swept_and_shown(finished: Run, keep_last: Method, capsys: pytest.CaptureFixture) -> None:
    run = Path(finished.uri)
    words = ["--output", str(run.parent), "--name", run.name, "--budgets", "0.5,0.25", *QUICK, "--baselines", "keep-last"]
    assert main(words) == 0
    rows = pd.read_parquet(run / "results")
    own = rows[rows.method == "keep-last"]
    assert list(own.status) == ["ok", "ok"]
    assert (own.macs <= own.budget * own.macs_dense).all()
    for text in own.structure:
        units = Structure.from_json(text).mlp_mask(0)
        assert units[-1]
        assert not units[0]  # it is what was asked to choose
    assert "keep-last" in capsys.readouterr().out
    data = data_of((run / "report.html").read_text())
    assert "keep-last" in data["methods"]
    assert STYLE.light in str(data)


def test_a_method_that_is_not_registered_is_refused(capsys: pytest.CaptureFixture) -> None:
    assert main(["--baselines", "keep-last"]) == 2
    said = " ".join(capsys.readouterr().out.split())
    assert "keep-last" in said
    assert "uniform" in said  # what there is
