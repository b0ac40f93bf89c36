"""One driver per run: two small files in its folder name the driver that holds it and show that it is alive.

`HOLDER` says who holds the run. It stays when the driver ends, so that generations go on growing. `DRIVER` is its heartbeat:
it is there while a driver is at work. `ledger/holder.py` decides, `Run.check_held` holds all writers to it.
"""

import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from slimsweep.errors import LOST, RefusedInput, RunLost
from slimsweep.ledger import process
from slimsweep.ledger.files import DRIVER, HOLDER
from slimsweep.ledger.holder import BEATS_PER_WATCH, Holder, Look, lost_to, superseded, take, who
from slimsweep.ledger.run import Run

log = logging.getLogger(__name__)

WATCH_SECONDS = 15.0  # a driver whose heartbeat does not change for so long counts as dead
# Drivers that start at the same moment have all written their claims after these seconds: on this machine, on an object store.
SETTLE_LOCAL, SETTLE_REMOTE = 0.2, 1.0
END_SECONDS = 60.0  # that a driver which lost its run has to end its workers and itself
# Wakes the main thread. By default systems ignore it, and no program sends it: what nohup, a shell or Slurm does to SIGINT and
# SIGTERM makes no difference here.
WAKE = signal.SIGURG

held_here: set[str] = set()  # tokens of the runs that this process holds


class RunTaken(RefusedInput):
    """Another driver works on this run."""


class RunBoard:
    """A run's folder as the place where drivers see each other (`holder.Board`).

    Args:
        every: seconds between the heartbeats that are written here.
    """

    def __init__(self, run: Run, every: float) -> None:
        self.run, self.every = run, every
        self.me = process.identity()
        self.count = 0
        self.written: int | None = None  # the highest generation of the checkpoints; None: not looked up
        self.looked: Look | None = None  # the last look

    def look(self) -> Look:
        claimed, beat = self.run.driver_record(HOLDER), self.run.driver_record(DRIVER)
        # A heartbeat of an older holder is no sign of the driver that took the run from it. Earlier versions claim nothing.
        stale = not beat or ("generation" in beat and beat.get("token") != claimed.get("token"))
        judged = claimed if "generation" in claimed and stale else beat
        own = judged.get("token") in held_here
        # This process without the run in its hands: its own leftover, from an end at which the folder could not be written.
        gone = not own and process.same(judged, self.me)
        if "generation" not in claimed and self.written is None:
            # Checkpoints of a higher generation would count as newer than all of this driver's.
            self.written = self.run.highest_generation()
        self.looked = Look(
            written=self.written or 0,
            claim=Holder.from_json(claimed) if "generation" in claimed else None,
            beaten_by=Holder.from_json(beat) if "generation" in beat else None,
            token=str(judged.get("token", "")),
            heartbeat=json.dumps(beat, sort_keys=True) if beat else None,
            own=own,
            process="gone" if gone else process.state(judged),
            every=float(judged.get("every", 0.0)),
            record=judged,
        )
        return self.looked

    def claim(self, holder: Holder) -> None:
        self.run.unchecked.write_json(HOLDER, {**holder.to_json(), **self.me, "every": self.every, "time": time.time()})

    def beat(self, holder: Holder) -> None:
        self.count += 1  # what changes; the time is for people, and for earlier versions
        said = {**holder.to_json(), **self.me, "every": self.every, "count": self.count, "time": time.time()}
        # Checked by this holder: the same `Run` may have been held before.
        Run(self.run.unchecked, holder=holder).folder.write_json(DRIVER, said)


@contextmanager
def hold(run: Run, watch_seconds: float | None = None, say: Callable[[str], object] | None = None) -> Iterator[None]:
    """Be the run's driver while the block runs; a dead driver is replaced. `run` writes as its holder from then on.

    Where another driver takes the run meanwhile, the main thread gets a KeyboardInterrupt, and RunLost leaves this block. If
    the block does not end then, the whole process is ended.

    Args:
        watch_seconds: a driver whose heartbeat does not change for so long counts as dead.
        say: is given one line for people where the start has to wait for that.

    Raises:
        RunTaken: another driver works on the run and is alive.
        RunLost: another driver has taken the run from this one.
        RefusedInput: the folder cannot be written to.
    """
    seconds = WATCH_SECONDS if watch_seconds is None else watch_seconds
    board = RunBoard(run, seconds / BEATS_PER_WATCH)
    holder = _taken(run, board, seconds, say)
    keeper = Keeper(run, board, holder)
    held_here.add(holder.token)
    run.hold_as(holder)
    try:
        try:
            keeper.start()
            yield
        finally:
            keeper.end()
    except (Exception, KeyboardInterrupt):
        if keeper.lost is not None:  # what failed after the loss failed because of it
            raise keeper.lost from None
        raise
    finally:
        held_here.discard(holder.token)
    if keeper.lost is not None:
        raise keeper.lost


def _taken(run: Run, board: RunBoard, seconds: float, say: Callable[[str], object] | None) -> Holder:
    steps = take(board, seconds, SETTLE_LOCAL if run.folder.is_local else SETTLE_REMOTE, time.monotonic)
    try:
        while True:
            pause = next(steps)
            if say is not None and board.looked is not None and board.looked.heartbeat is not None:
                longest = max(seconds, BEATS_PER_WATCH * board.looked.every)
                driver = who(board.looked.record)
                say(f"{run.uri}: watching {driver}, which counts as dead after {longest:g} seconds without a heartbeat")
                say = None
            time.sleep(pause)
    except StopIteration as end:
        found: Holder | Look = end.value
    except OSError as problem:
        raise RefusedInput(f"output: nothing can be written to {run.uri} ({problem}); give a folder that can be") from problem
    if isinstance(found, Look):
        raise RunTaken(f"{run.uri} is being worked on by {who(found.record)}; wait for it, stop it, or take another --name")
    return found


class Keeper:
    """Writes the heartbeats of a driver, and interrupts it when another driver has taken its run."""

    def __init__(self, run: Run, board: RunBoard, holder: Holder) -> None:
        self.run, self.board, self.holder = run, board, holder
        self.lost: RunLost | None = None
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._beat, daemon=True, name="heartbeat")
        self.interrupts = threading.current_thread() is threading.main_thread()

    def start(self) -> None:
        if self.interrupts:
            self.handler_before = signal.signal(WAKE, self._wake)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [WAKE])
        self.thread.start()

    def end(self) -> None:
        """End the heartbeats; sets `lost` where another driver has taken the run."""
        self.stop.set()
        self.thread.join()
        if self.interrupts:
            signal.signal(WAKE, self.handler_before or signal.SIG_DFL)
        try:
            self._look()  # workers may have found out before the next beat would
            if self.lost is None:
                self.run.folder.delete(DRIVER)
        except RunLost as lost:  # at this very moment
            self.lost = lost
        except OSError as problem:
            log.warning("the end of this driver could not be written to %s (%s)", self.run.uri, problem)

    def _look(self) -> None:
        if self.lost is not None or (look := superseded(self.board, self.holder)) is None:
            return
        if look.claim != self.holder:
            self.run.check_held()  # raises, except where the claim could not be read for a moment
        else:  # an earlier version claims nothing
            self.lost = lost_to(self.run.uri, look.record)

    def _beat(self) -> None:
        failed = 0  # beats in a row
        while self.lost is None and not self.stop.wait(self.board.every):
            try:
                self._look()
                if self.lost is None:
                    self.board.beat(self.holder)
                failed = 0
            except RunLost as lost:  # at this very moment
                self.lost = lost
            except Exception as problem:
                # A full disk, or a store that fails for a moment: the next beat tries again. Whatever else it is: without a
                # heartbeat, the run of a driver that is alive would be taken.
                failed += 1
                if failed & (failed - 1) == 0:  # the 1st, 2nd, 4th, 8th ...: an outage of hours must not fill the log
                    log.warning("no heartbeat could be written, %d times in a row (%s)", failed, problem)
        end = time.monotonic() + END_SECONDS
        while self.lost is not None and self.interrupts and not self.stop.is_set():
            signal.pthread_kill(threading.main_thread().ident or 0, WAKE)
            self.stop.wait(END_SECONDS / 3)  # a library that swallowed an interrupt gets another one
            if time.monotonic() >= end and not self.stop.is_set():
                try:
                    print(f"slimsweep: {self.lost}", file=sys.stderr, flush=True)
                finally:  # also where standard error is closed
                    os._exit(LOST)

    def _wake(self, number: int, frame: object) -> None:
        if self.lost is not None and not self.stop.is_set():
            raise KeyboardInterrupt


def driver_alive(run: Run) -> bool:
    """Whether a driver works on the run.

    A process of this machine and PID namespace is looked up. Elsewhere the heartbeat is watched for one change, which takes a
    little more than the seconds between two beats.
    """
    board = RunBoard(run, every=0.0)  # only looks
    look = board.look()
    if look.heartbeat is None or look.process == "gone":
        return False
    if look.own or look.process == "running":
        return True
    every = look.every or WATCH_SECONDS / 2  # earlier versions beat every 5 seconds
    end = time.monotonic() + 1.5 * every + 0.5
    while time.monotonic() < end:
        time.sleep(min(0.25, every / 10))
        found = board.look()
        if found.heartbeat is None:
            return False
        if found.heartbeat != look.heartbeat:
            return True
    return False
