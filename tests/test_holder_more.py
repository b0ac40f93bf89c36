"""Who holds a run, in rarer places: drivers that start together, and files of a run that cannot be read for a while."""

import threading
import time
from collections.abc import Generator
from pathlib import Path

import pytest

from slimsweep.errors import RunLost
from slimsweep.ledger.checkpoints import Checkpoints
from slimsweep.ledger.files import DRIVER, HOLDER
from slimsweep.ledger.holder import Holder, Look, take
from slimsweep.ledger.lock import RunBoard, RunTaken, driver_alive, hold
from slimsweep.ledger.run import Run


class Together:
    """A run's folder that several drivers take at almost the same moment, on a clock of the test's own."""

    def __init__(self, offsets: list[float], settle: float) -> None:
        self.now = 0.0
        self.claimed: Holder | None = None
        self.beaten: Holder | None = None
        self.count = 0
        self.ends: list[Holder | Look] = []
        steps = [take(self, 15.0, settle, lambda: self.now) for _ in offsets]
        self.due: list[tuple[float, int, Generator[float, None, Holder | Look]]] = [
            (offset, index, step) for index, (offset, step) in enumerate(zip(offsets, steps, strict=True))
        ]

    def look(self) -> Look:
        judged = self.claimed if self.beaten != self.claimed else self.beaten
        beat = f"{self.beaten} {int(self.now)}" if self.beaten else None  # the one that holds goes on beating, once per second
        token = judged.token if judged else ""
        return Look(claim=self.claimed, beaten_by=self.beaten, token=token, heartbeat=beat, process="running")

    def claim(self, holder: Holder) -> None:
        self.claimed = holder

    def beat(self, holder: Holder) -> None:
        self.beaten = holder

    def run(self, until: float) -> None:
        while self.due and (first := min(self.due, key=lambda one: one[:2]))[0] <= until:
            self.due.remove(first)
            self.now, index, step = first
            try:
                self.due.append((self.now + next(step), index, step))
            except StopIteration as end:
                self.ends.append(end.value)


@pytest.mark.parametrize("offsets", [[0.0, 0.01], [0.0, 0.1], [0.0, 0.19], [0.0, 0.1, 0.15], [0.0, 0.05, 0.1, 0.15, 0.25]])
def test_of_drivers_that_start_together_one_takes_the_run(offsets: list[float]) -> None:
    """Each sees the others' claims before there is any heartbeat; none claims again before the last one could find its own."""
    together = Together(offsets, settle=0.2)
    together.run(until=5.0)
    assert not together.due, "drivers still take the run from each other"
    assert [end for end in together.ends if isinstance(end, Holder)] == [together.claimed]
    assert len(together.ends) == len(offsets)


@pytest.mark.parametrize("content", [None, b"", b"[]"])
def test_a_claim_that_cannot_be_read_for_a_moment_ends_no_driver(tmp_path: Path, content: bytes | None) -> None:
    run = Run(tmp_path / "mine")
    with hold(run, 0.5):
        claim = Path(run.uri, HOLDER)
        whole = claim.read_bytes()
        if content is None:
            claim.unlink()
        else:
            claim.write_bytes(content)
        threading.Timer(0.3, claim.write_bytes, [whole]).start()
        run.write_curve("dense", [])
        time.sleep(0.4)  # several heartbeats
    assert not driver_alive(run)


def test_a_claim_that_is_gone_ends_its_driver_and_accuses_nobody(tmp_path: Path) -> None:
    run = Run(tmp_path / "mine")

    def drive() -> None:
        with hold(run, 0.5):
            Path(run.uri, HOLDER).unlink()
            time.sleep(10)

    with pytest.raises(RunLost, match="names no driver any more"):
        drive()


def test_checkpoints_count_generations_where_the_claim_is_lost(tmp_path: Path) -> None:
    """Somebody who deletes the files that name a driver must not make the next drivers older than the checkpoints there."""
    run = Run(tmp_path / "mine")
    for epoch in (1, 2, 3):
        with hold(run, 1.0):
            Checkpoints(run, "dense").save(epoch, {"epoch": epoch})
    Path(run.uri, HOLDER).unlink()
    Path(run.uri, DRIVER).unlink(missing_ok=True)
    with hold(run, 1.0):
        assert run.holder is not None
        assert run.holder.generation == 4
        checkpoints = Checkpoints(run, "dense")
        assert checkpoints.load() == (3, {"epoch": 3})
        for epoch in (4, 5):
            checkpoints.save(epoch, {"epoch": epoch})
        assert checkpoints.load() == (5, {"epoch": 5})
        assert len(list(Path(run.uri, "checkpoints", "dense").iterdir())) == 2
        checkpoints.clear()
    assert run.checkpoint_names() == []


def test_one_object_can_hold_its_run_again(tmp_path: Path) -> None:
    """As in a notebook, whose cell is run again."""
    run = Run(tmp_path / "mine")
    for generation in (1, 2):
        with hold(run, 1.0):
            assert run.holder is not None
            assert run.holder.generation == generation
            run.write_curve("dense", [])
            with pytest.raises(RunTaken), hold(run, 1.0):
                pass
            run.write_curve("dense", [])


@pytest.mark.parametrize("name", [HOLDER, DRIVER])
@pytest.mark.parametrize("number", ["generation", "every", "time", "pid"])
def test_a_driver_s_file_with_an_impossible_number_counts_as_damaged(tmp_path: Path, name: str, number: str) -> None:
    """By an infinite time between two heartbeats, a start would watch for ever."""
    run = Run(tmp_path / "mine")
    record = {"token": '"a"', "generation": "1", "host": '"there"', "pid": "7", "every": "0.2", "time": "1.0", number: "1e999"}
    run.unchecked.write_bytes(name, ("{" + ", ".join(f'"{key}": {value}' for key, value in record.items()) + "}").encode())
    assert run.driver_record(name) == {}
    began = time.monotonic()
    with hold(run, 0.5):
        assert time.monotonic() - began < 5


def test_a_heartbeat_that_fails_in_an_unforeseen_way_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A heartbeat's thread that died would hand a live driver's run to the next start."""
    run, beats = Run(tmp_path / "mine"), []
    real = RunBoard.beat

    def beat(self: RunBoard, holder: Holder) -> None:
        beats.append(holder)
        if len(beats) == 2:
            raise RuntimeError("a library's own error")
        real(self, holder)

    monkeypatch.setattr(RunBoard, "beat", beat)
    with hold(run, 0.5):
        time.sleep(0.6)
    assert len(beats) > 3
