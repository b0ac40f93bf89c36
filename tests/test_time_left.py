"""The time that is left is told from what was measured."""

import pytest

from slimsweep.ledger.status import Status, TrainingStatus
from slimsweep.ledger.time_left import Pending, epoch_seconds, in_words, sweep_seconds
from slimsweep.tools.status import status_table


def test_an_epoch_is_the_median_of_the_last_ones() -> None:
    seconds = [0.0, 60.0, 10.0, 11.0, 10.0, 30.0, 10.0]  # before training, starting, then steady but for one
    assert epoch_seconds([{"epoch": i, "seconds": s} for i, s in enumerate(seconds)]) == 10.0
    assert epoch_seconds([{"epoch": 0, "seconds": 0.0}]) is None
    assert epoch_seconds([]) is None


def test_a_stage_says_its_time_left() -> None:
    stage = TrainingStatus(name="search", state="running", epochs=4, epochs_total=30, epoch_seconds=30.0)
    status = Status(name="digits", alive=True, stages=[stage])
    assert status.time_left == "about 13 min left"
    assert "search is at epoch 4 of 30, about 13 min left" in str(status_table(status).title)
    assert "about 13 min left of the search" in str(status_table(status).title)  # and not of the whole run
    assert Status(name="digits", alive=True, stages=[], sweep_seconds_left=30.0).time_left_of == "about 30 s left of the sweep"
    stopped = TrainingStatus(name="search", state="waiting", epochs=4, epochs_total=30, epoch_seconds=30.0)
    assert Status(name="digits", alive=False, stages=[stopped]).time_left == ""


def test_the_sweep_is_laid_out_over_the_places_that_are_taken_now() -> None:
    done = Pending(budget=1.0, epochs_left=0, epoch_seconds=10.0)
    running = [Pending(budget=0.5, epochs_left=3, running=True, epoch_seconds=6.0) for _ in range(2)]
    waiting = [Pending(budget=0.75, epochs_left=10)]
    # The line through (1, 10) and (0.5, 6) is 8 at 0.75: 80 s on the place that is free after 18 s.
    assert sweep_seconds([done, *running, *waiting]) == pytest.approx(98)
    assert sweep_seconds([done, running[0]]) == pytest.approx(18)
    assert sweep_seconds(waiting) is None
    assert sweep_seconds([done]) == 0


def test_no_budget_is_expected_to_take_no_time() -> None:
    steep = [Pending(budget=b, epochs_left=0, epoch_seconds=s) for b, s in ((1.0, 10.0), (0.7, 1.0))]
    assert sweep_seconds([*steep, Pending(budget=0.1, epochs_left=10)]) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (None, ""),
        (0, ""),
        (0.2, "about 1 s left"),
        (100, "about 100 s left"),
        (150, "about 2 min left"),
        (3 * 3600 + 600, "about 3.2 h left"),
        (86400 * 12, "about 12 days left"),
    ],
)
def test_times_are_said_no_finer_than_they_are_known(seconds: float | None, words: str) -> None:
    assert in_words(seconds) == words
