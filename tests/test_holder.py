"""Who holds a run: a model of several drivers that start, stop, go on and die, and the same in a run's folder."""

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, ClassVar

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, rule

from slimsweep.errors import LOST, RunLost, exit_code
from slimsweep.ledger import lock, process
from slimsweep.ledger.checkpoints import Checkpoints
from slimsweep.ledger.files import DRIVER, EPOCHS_LOG, HOLDER
from slimsweep.ledger.holder import BEATS_PER_WATCH, Holder, Look, Watch, superseded, take
from slimsweep.ledger.lock import RunTaken, driver_alive, hold
from slimsweep.ledger.run import Run

WATCH, SETTLE, TICK = 15.0, 0.5, 0.25
EVERY = WATCH / BEATS_PER_WATCH
SLOWEST = 4.0  # seconds that a write takes
LONGEST = WATCH + 3 * SLOWEST + SETTLE + 1  # in which a dead driver is replaced, with writes that slow


# A model: drivers in three places, which see each other's processes only in their own.


class Store:
    """What drivers see of each other: who took the run last, and the heartbeat."""

    def __init__(self) -> None:
        self.claimed: tuple[Holder, ModelDriver] | None = None
        self.beaten: tuple[Holder, ModelDriver, int] | None = None


class ModelDriver:
    """A driver in the model; also its board."""

    def __init__(self, world: "Drivers", place: int, delay: float, skew: float) -> None:
        self.world, self.place, self.delay, self.skew = world, place, delay, skew
        self.began = self.awake = world.now
        self.stopped = self.dead = False
        self.was_stopped = False
        self.steps: Generator[float, None, Holder | Look] | None = take(self, WATCH, SETTLE, lambda: world.now + skew)
        self.wake = world.now
        self.holder: Holder | None = None
        self.held_since = 0.0
        self.next_beat = 0.0
        self.count = 0
        self.end = ""  # refused, lost, left

    @property
    def acts(self) -> bool:
        return not (self.stopped or self.dead or self.end)

    def look(self) -> Look:
        store = self.world.store
        beat, claim = store.beaten, store.claimed
        judged = claim if claim and (beat is None or beat[0] != claim[0]) else beat
        other = judged[1] if judged else None
        state: process.State = "unknown"
        if other is not None and other.place == self.place:
            state = "gone" if other.dead or other.end else "unknown" if other.stopped else "running"
        return Look(
            claim=claim[0] if claim else None,
            beaten_by=beat[0] if beat else None,
            token=judged[0].token if judged else "",
            heartbeat=None if beat is None else f"{beat[0].token} {beat[2]}",
            process=state,
            every=EVERY,
        )

    def claim(self, holder: Holder) -> None:
        def land() -> None:
            self.world.store.claimed = (holder, self)

        self.write(land)

    def beat(self, holder: Holder) -> None:
        self.count += 1
        count = self.count

        def land() -> None:
            self.world.store.beaten = (holder, self, count)

        self.write(land)

    def write(self, land: Callable[[], None]) -> None:
        """A write lands after a while, also if its driver dies meanwhile; until then the driver waits for it."""
        if not self.delay:
            land()
            return
        self.world.in_flight.append((self.world.now + self.delay, land))
        self.wake = max(self.wake, self.world.now + self.delay)

    def act(self) -> None:
        """What is due at this moment."""
        self.awake = self.world.now
        if self.world.now < self.wake:
            return
        if self.steps is not None:
            try:
                pause = next(self.steps)
            except StopIteration as end:
                self.steps = None
                self.decided(end.value)
            else:
                self.wake = max(self.wake, self.world.now) + pause
        elif self.holder is not None and self.world.now >= self.next_beat:
            self.next_beat = self.world.now + EVERY
            if superseded(self, self.holder) is not None:
                self.lose()
            else:
                self.beat(self.holder)

    def decided(self, found: Holder | Look) -> None:
        if isinstance(found, Look):
            self.end = "refused"
            assert not self.alone, "a run whose driver had died before was refused to its own restart"
        else:
            self.holder, self.held_since, self.next_beat = found, self.world.now, self.world.now + EVERY

    @property
    def alone(self) -> bool:
        """Whether no other driver has done anything since this one started."""
        return all(other is self or (other.awake <= self.began and not other.acts) for other in self.world.drivers)

    def work(self) -> None:
        """A worker writes for the holder that started it, after the check that each writer makes.

        It goes on while its driver is stopped, and for a while after that died.
        """
        if self.holder is None or self.end:
            return
        claimed = self.world.store.claimed
        if claimed is not None and claimed[0] == self.holder:
            self.world.wrote(self.holder)
        else:
            self.lost_by_worker()

    def lost_by_worker(self) -> None:
        assert self.was_stopped or self.dead or self.world.slow, "a worker lost the run of a driver that was never stopped"

    def lose(self) -> None:
        self.end = "lost"
        assert self.was_stopped or self.world.slow, "a driver that was never stopped lost its run"


class Drivers(RuleBasedStateMachine):
    """Drivers that start, are stopped and go on, die anywhere and leave, with clocks of their own and a store that is slow."""

    drivers_: ClassVar[Bundle[ModelDriver]] = Bundle("drivers")

    @initialize(slow=st.booleans())
    def begin(self, slow: bool) -> None:
        self.slow = slow
        self.now = 0.0
        self.store = Store()
        self.drivers: list[ModelDriver] = []
        self.in_flight: list[tuple[float, Callable[[], None]]] = []
        self.writers: list[Holder] = []  # in the order in which they wrote first

    @rule(
        target=drivers_, place=st.integers(0, 2), delay=st.sampled_from([0.5, SLOWEST]), skew=st.sampled_from([0.0, -90.0, 1e6])
    )
    def start(self, place: int, delay: float, skew: float) -> Any:
        if sum(driver.acts for driver in self.drivers) >= 3:
            return multiple()
        self.drivers.append(driver := ModelDriver(self, place, delay if self.slow else 0.0, skew))
        return driver

    @rule(driver=drivers_)
    def stop(self, driver: ModelDriver) -> None:
        if driver.acts:
            driver.stopped = driver.was_stopped = True

    @rule(driver=drivers_)
    def go_on(self, driver: ModelDriver) -> None:
        driver.stopped = False

    @rule(driver=drivers_)
    def crash(self, driver: ModelDriver) -> None:
        driver.dead = True

    @rule(driver=drivers_)
    def leave(self, driver: ModelDriver) -> None:
        if driver.acts and driver.holder is not None:
            if superseded(driver, driver.holder) is None:
                self.store.beaten = None
            driver.end = "left"

    @rule(seconds=st.sampled_from([TICK, 1.0, 5.0, 20.0, 60.0]), backwards=st.booleans())
    def pass_time(self, seconds: float, backwards: bool) -> None:
        for _ in range(int(seconds / TICK)):
            self.now += TICK
            for landed in [one for one in self.in_flight if one[0] <= self.now]:
                self.in_flight.remove(landed)
                landed[1]()
            for driver in self.drivers[:: -1 if backwards else 1]:
                if driver.acts:
                    driver.act()
                    waits = driver.steps is not None and driver.alone and not driver.was_stopped
                    assert not waits or self.now - driver.began <= LONGEST, "a dead driver was not replaced in time"
                driver.work()

    def wrote(self, holder: Holder) -> None:
        if not self.writers or self.writers[-1] != holder:
            assert holder not in self.writers, "a driver wrote after another one had taken the run from it"
            assert self.slow or not self.writers or holder.generation > self.writers[-1].generation
            self.writers.append(holder)

    @invariant()
    def at_most_one_may_write(self) -> None:
        if hasattr(self, "store"):
            claimed = self.store.claimed
            holding = [d for d in self.drivers if d.holder is not None and not d.end and claimed and claimed[0] == d.holder]
            assert len(holding) <= 1


TestDrivers = Drivers.TestCase
TestDrivers.settings = settings(
    max_examples=150, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


def test_the_model_finds_a_lock_that_trusts_one_change(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model can fail: by the rule that one new heartbeat is enough, a dead driver's last write counts as life."""
    world = Drivers()
    world.begin(slow=True)
    first = world.start(place=0, delay=SLOWEST, skew=0.0)
    while first.count < 3:  # its third heartbeat is on its way
        world.pass_time(TICK, False)
    world.crash(first)
    world.pass_time(TICK, False)

    def hasty(self: Watch, look: Look, now: float) -> str:
        changed = self.last is not None and look.heartbeat != self.last.heartbeat
        self.last = look
        return "alive" if changed else "watch"

    monkeypatch.setattr(Watch, "judge", hasty)
    world.start(place=1, delay=0.5, skew=0.0)
    with pytest.raises(AssertionError, match="refused to its own restart"):
        world.pass_time(60.0, False)


# The same in a run's folder.


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "mine")


def rob(run: Run) -> Holder:
    """Another driver takes the run, whatever its holder does."""
    holder = Holder(int(run.driver_record(HOLDER).get("generation", 0)) + 1)
    record = {**holder.to_json(), "host": "robber", "pid": 7, "time": time.time()}
    run.unchecked.write_json(HOLDER, record)
    run.unchecked.write_json(DRIVER, {**record, "count": 1, "every": 0.2})
    return holder


def files(run: Run) -> dict[str, bytes]:
    root = Path(run.uri)
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


# What a driver or one of its workers writes.
WRITES: dict[str, Callable[[Run], Any]] = {
    "row": lambda run: run.write_row({"point": "a", "method": "dense", "budget": 1.0, "seed": 0}),
    "deleted row": lambda run: run.delete_row("old"),
    "curve": lambda run: run.write_curve("old", []),
    "deleted curve": lambda run: run.delete_curve("old"),
    "epoch": lambda run: run.logs.add_epoch({"stage": "dense", "point": "", "epoch": 1}),
    "damaged image": lambda run: run.logs.add_damaged_image("train", "a.png", "cut"),
    "pace": lambda run: run.write_pace_try("pace-x", {}),
    "begun": lambda run: run.begin("a", "start"),
    "forgotten": lambda run: run.forget_begun(),
    "report": lambda run: run.write_report("html", b""),
    "model": lambda run: run.write_model("models/old", Path(run.uri, "models", "old")),
    "checkpoint": lambda run: Checkpoints(run, "old").save(9, {"a": torch.ones(1)}),
    "cleared": lambda run: Checkpoints(run, "old").clear(),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_who_lost_the_run_changes_nothing(run: Run, write: Callable[[Run], Any]) -> None:
    """Before the loss each of these is a change; after it each raises, and no file is another one."""
    run.write_row({"point": "old", "method": "dense", "budget": 1.0, "seed": 0})
    run.write_curve("old", [{"stage": "dense", "point": "", "epoch": 1}])
    run.begin("old", "start")
    model = Path(run.uri, "models", "old")
    model.mkdir(parents=True)
    (model / "model.safetensors").write_bytes(b"weights")
    run.hold_as(rob(run))
    Checkpoints(run, "old").save(1, {"a": torch.zeros(1)})
    worker = Run(run.uri, holder=Holder.from_json(run.holder.to_json() if run.holder else {}))
    rob(run)
    before = files(run)
    with pytest.raises(RunLost, match=r"another driver took over .*mine at \d\d:\d\d:\d\d \(process 7 on robber\)"):
        write(worker)
    assert files(run) == before
    worker.hold_as(rob(run))
    write(worker)


def test_a_checkpoint_of_an_older_holder_harms_none_of_a_later_one(run: Run) -> None:
    """Also one whose write was under way when the run was taken: it was allowed, and lands late."""
    first, second = rob(run), Holder(9, "second")
    late = Run(run.uri, holder=first)
    for epoch in (1, 2, 3):
        Checkpoints(late, "dense").save(epoch, {"by": "first"})
    run.unchecked.write_json(HOLDER, second.to_json())
    later = Checkpoints(Run(run.uri, holder=second), "dense")
    assert later.load() == (3, {"by": "first"})
    for epoch in (4, 5):
        later.save(epoch, {"by": "second"})
    late.folder = late.unchecked
    for epoch in (4, 6):
        Checkpoints(late, "dense").save(epoch, {"by": "first"})
        assert later.load() == (5, {"by": "second"})
    Checkpoints(late, "dense").clear()
    assert later.load() == (5, {"by": "second"})
    later.save(6, {"by": "second"})
    assert sorted(path.name for path in Path(run.uri, "checkpoints", "dense").iterdir()) == [
        "epoch-00005-9-second.safetensors",
        "epoch-00006-9-second.safetensors",
    ]


def test_a_damaged_checkpoint_of_an_earlier_holder_is_replaced(run: Run) -> None:
    held = Checkpoints(Run(run.uri, holder=rob(run)), "dense")
    for epoch in (1, 2, 3):
        held.save(epoch, {"epoch": epoch})
    newest = next(Path(run.uri, "checkpoints", "dense").glob("epoch-00003*"))
    newest.write_bytes(newest.read_bytes()[:20])
    held = Checkpoints(Run(run.uri, holder=rob(run)), "dense")
    assert held.load() == (2, {"epoch": 2})
    held.save(3, {"epoch": "again"})
    assert not newest.exists()
    assert held.load() == (3, {"epoch": "again"})
    assert len(list(newest.parent.iterdir())) == 2


def test_a_driver_that_lost_its_run_is_woken_and_says_by_whom(run: Run, capsys: pytest.CaptureFixture) -> None:
    """It waits in a call that returns no more by itself, with SIGINT and SIGTERM ignored."""
    from rich.console import Console

    waiting = threading.Event()

    def drive() -> None:
        with hold(run, 1.0):
            threading.Timer(0.1, rob, [run]).start()
            waiting.wait(60)

    handlers = {number: lock.signal.signal(number, lock.signal.SIG_IGN) for number in (lock.signal.SIGINT, lock.signal.SIGTERM)}
    try:
        began = time.monotonic()
        assert exit_code(drive, Console(width=300)) == LOST == 3
        assert time.monotonic() - began < 10
    finally:
        for number, handler in handlers.items():
            lock.signal.signal(number, handler)
    assert re.search(r"another driver took over .*mine at .* \(process 7 on robber\)", capsys.readouterr().out)
    assert run.driver_record(DRIVER)["host"] == "robber"  # the heartbeat of the other one stays


def test_what_fails_after_the_loss_is_the_loss(run: Run) -> None:
    """A worker may find out before its driver: the driver does not call that a failed training."""

    def fail() -> None:
        with hold(run, 60.0):
            rob(run)
            raise RuntimeError("a worker failed")

    with pytest.raises(RunLost):
        fail()


def test_an_earlier_version_that_takes_the_run_is_noticed(run: Run) -> None:
    """It knows nothing of holders, and writes its own heartbeat over the one that is there."""
    old = {"token": "old", "host": "old-pod", "pid": 3, "time": time.time()}

    def drive() -> None:
        with hold(run, 1.0):
            run.unchecked.write_json(DRIVER, old)
            time.sleep(5)

    with pytest.raises(RunLost, match="process 3 on old-pod"):
        drive()


# Who is alive.


def left_behind(run: Run, **changes: Any) -> None:
    """A driver like this process has died without a word."""
    record = {**Holder(4, "dead").to_json(), **process.identity(), "every": 0.2, "count": 3, "time": time.time(), **changes}
    run.unchecked.write_json(HOLDER, record)
    run.unchecked.write_json(DRIVER, record)


def taken_in(run: Run, seconds: float) -> float:
    began = time.monotonic()
    with hold(run, seconds):
        return time.monotonic() - began


on_linux = pytest.mark.skipif("boot" not in process.identity(), reason="/proc does not say which process this is")


@pytest.fixture
def ended() -> Iterator[int]:
    """The pid of a process that has ended, and that nobody has waited for."""
    child = subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.read()
    while process.state(process.identity(child.pid)) == "running":
        time.sleep(0.01)
    yield child.pid
    child.wait()


@on_linux
@pytest.mark.parametrize(
    "changes", [{"started": 1}, {}, {"pid": 2**22 + 1}], ids=["another process had this pid", "this process", "no such pid"]
)
def test_a_dead_process_of_this_machine_is_replaced_at_once(run: Run, changes: dict[str, Any]) -> None:
    left_behind(run, **changes)
    assert not driver_alive(run)
    assert taken_in(run, 60.0) < 5
    assert run.driver_record(HOLDER)["generation"] == 5


@on_linux
def test_a_process_that_nobody_waited_for_is_dead(run: Run, ended: int) -> None:
    left_behind(run, **process.identity(ended))
    assert taken_in(run, 60.0) < 5


@pytest.mark.parametrize(
    "changes",
    [{"namespace": "pid:[1]"}, {"boot": "another"}, {"boot": None}, {"pid": 1, "namespace": "pid:[1]"}],
    ids=["another container", "another machine", "without /proc", "restarted container"],
)
def test_a_dead_process_that_cannot_be_looked_up_is_replaced_after_one_watch(run: Run, changes: dict[str, Any]) -> None:
    left_behind(run, every=0.1, **changes)
    assert not driver_alive(run)
    assert 0.5 <= taken_in(run, 0.5) < 5


@pytest.mark.parametrize("behind", [90.0, -1e6])
def test_a_driver_whose_clock_is_wrong_is_alive(run: Run, behind: float) -> None:
    """Same host name and pid as this process, in another container, by a clock that is behind or ahead."""
    stop = threading.Event()

    def beats() -> None:
        count = 0
        while not stop.wait(0.2):
            left_behind(run, namespace="pid:[1]", count=(count := count + 1), time=time.time() - behind)

    thread = threading.Thread(target=beats)
    left_behind(run, namespace="pid:[1]", count=0, time=time.time() - behind)
    thread.start()
    try:
        assert driver_alive(run)
        with pytest.raises(RunTaken, match=f"process {os.getpid()} on"), hold(run, 2.0):
            pass
    finally:
        stop.set()
        thread.join()


def test_who_is_stopped_in_the_middle_of_a_look_does_not_take_a_live_driver_for_dead() -> None:
    """The look shows what was there before the stop; only time that passed before it counts."""
    clock, looks = 0.0, 0

    class Stopped:
        """A board whose driver beats each second, and whose second look lasts a minute after it has read."""

        def look(self) -> Look:
            nonlocal clock, looks
            seen = Look(claim=Holder(1, "live"), token="live", heartbeat=str(int(clock)), every=1.0)
            looks += 1
            clock += 60.0 if looks == 2 else 0.1
            return seen

        def claim(self, holder: Holder) -> None:
            raise AssertionError("the live driver lost its run")

        beat = claim

    steps = take(Stopped(), WATCH, SETTLE, lambda: clock)
    assert list(steps)  # it ends, and has taken nothing


def test_a_driver_that_beats_slowly_is_watched_for_longer(run: Run) -> None:
    """It was started with more seconds than this one: those count that its heartbeat names."""
    watch = Watch(1.0)
    slow = Look(claim=Holder(1, "slow"), token="slow", heartbeat="1", every=10.0)
    assert [watch.judge(slow, now) for now in (0.0, 1.0, 49.0, 50.0)] == ["watch", "watch", "watch", "free"]


def test_the_seconds_of_a_takeover_are_a_setting_that_renames_no_point() -> None:
    from slimsweep.config import Config

    config = Config()
    assert config.resources.takeover_seconds == lock.WATCH_SECONDS
    assert config.resources.takeover_seconds + BEATS_PER_WATCH <= 20
    assert config.changed(**{"resources.takeover_seconds": 3}).fingerprint("retrain") == config.fingerprint("retrain")


def test_the_log_of_epochs_says_which_holder_trained(run: Run) -> None:
    run.logs.add_epoch({"epoch": 1})
    run.hold_as(rob(run))
    run.logs.add_epoch({"epoch": 2})
    assert run.folder.read_lines(EPOCHS_LOG) == ['{"epoch": 1}', '{"epoch": 2, "holder": 1}']
