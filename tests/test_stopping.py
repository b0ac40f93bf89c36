"""Ctrl+C is answered at once, while Ray still ends its workers."""

import signal
from collections.abc import Iterator
from typing import Any

import pytest
from ray.train.torch import TorchTrainer

from slimsweep import run
from slimsweep.cluster.search_job import Trainer


@pytest.fixture(autouse=True)
def _handlers_kept() -> Iterator[None]:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_stop_is_said_once_and_before_what_ends_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said: list[str] = []

    def run_all(words: Any, console: Any) -> int:
        try:
            signal.raise_signal(signal.SIGINT)
        finally:  # the end of Ray
            said.append(capsys.readouterr().out)
            signal.raise_signal(signal.SIGINT)  # an impatient second one
        return 0

    monkeypatch.setattr(run, "run_all", run_all)
    assert run.main([]) == 130
    assert said[0].strip().startswith("stopping: ")
    out = capsys.readouterr().out
    assert "stopping" not in out
    assert "stopped; what is done is kept" in out
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler  # of who called it


def test_in_the_search_the_stop_is_said_before_rays_own_handler_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def drivers(number: int, frame: Any) -> None:
        order.append("said")
        raise KeyboardInterrupt

    def of_ray(trainer: TorchTrainer, controller: Any) -> None:
        signal.signal(signal.SIGINT, lambda number, frame: order.append(f"ended {controller}"))

    monkeypatch.setattr(TorchTrainer, "_register_sigint_handler", of_ray)
    signal.signal(signal.SIGINT, drivers)
    trainer = Trainer.__new__(Trainer)
    trainer._register_sigint_handler("training")
    signal.raise_signal(signal.SIGINT)
    assert order == ["said", "ended training"]


def test_ray_train_still_calls_what_is_overridden() -> None:
    """Its name is not public: without it, the line would come late again."""
    assert "_register_sigint_handler" in TorchTrainer._initialize_and_run_controller.__code__.co_names
