"""`slimsweep plan` with budgets in milliseconds: as they are written, and with those named that the dense model meets."""

import pytest

from slimsweep.config import Config, load_config
from slimsweep.latency.calls import TimingCost
from slimsweep.ledger.points import Point
from slimsweep.tools.plan import _above_dense, _alike, plan

SAID = "budget '12ms' is not below the dense model's 0.5 ms, as timed here, so its points would fail: take a smaller one"


def point(budget: float, unit: str, budget_ms: float | None = None) -> Point:
    how = {"method": "searched", "seed": 0, "structure": "", "hash": "0" * 8, "lr": 0.1, "epochs": 1}
    return Point(budget=budget, unit=unit, budget_ms=budget_ms, **how)


def test_a_budget_in_ms_is_named_as_it_is_written() -> None:
    """A fraction of the dense model's time would look like a time: 0.4000 ms."""
    points = [point(0.5, "macs"), point(0.6, "params"), point(24.0, "ms", 12.0), point(0.4, "ms"), point(0.123, "ms")]
    names = [label for label, _, _ in _alike(points)]
    assert [name.removeprefix("searched ") for name in names] == ["0.5000", "0.6000 params", "12ms", "40% ms", "12.3% ms"]


def test_budgets_that_the_dense_model_meets_are_said() -> None:
    assert _above_dense(Config(budgets=["12ms", "0.25ms", "40% ms", 0.5]), 0.5) == [SAID]
    assert _above_dense(Config(budgets=[0.5]), 0.5) == []


@pytest.mark.slow
def test_a_plan_says_both(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slimsweep.tools.plan.TIMED_SECONDS", 0.05)
    cost = TimingCost(ms_dense=0.5, prepare_seconds=0.01, look_seconds=0.001)
    monkeypatch.setattr("slimsweep.tools.plan.timing_cost", lambda dense, setting: cost)
    config, _ = load_config(["--config", "digits", "--budgets", "0.5,12ms,0.25ms,40% ms", "--search.paces", '[{"mlp": 0.5}]'])
    found = plan(config)
    names = [training.name for training in found.trainings if training.name.startswith("searched")]
    assert sorted(names) == ["searched 0.25ms", "searched 0.5000", "searched 12ms", "searched 40% ms"]
    assert SAID in found.notes
