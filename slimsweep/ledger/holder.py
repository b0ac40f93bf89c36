"""Who holds a run: how a driver is judged alive or dead, and how its place is taken. No files, clocks or threads here.

Each driver that takes a run gets a token and a generation, one above the last, which stand in the run's folder. A run is held
by the driver whose token stands there: nobody else writes. So a driver that was wrongly taken for dead can do no harm; it
finds another token, and ends.

Whether the driver of a run is alive is judged by whether its heartbeat changes while one watches, on the watcher's own
monotonic clock. No clocks of two machines are compared.
"""

import time
import uuid
from collections.abc import Callable, Generator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol

from slimsweep.errors import RunLost
from slimsweep.ledger.process import State

BEATS_PER_WATCH = 5  # a driver that missed so many heartbeats counts as dead

Verdict = Literal["alive", "free", "watch"]


@dataclass(frozen=True)
class Holder:
    """What a driver, and everything that works for it, shows to be allowed to write."""

    generation: int
    token: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def name(self) -> str:
        """For names of files: no two holders have the same, and it shows the generation."""
        return f"{self.generation}-{self.token[:6]}"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> "Holder":
        """The holder in what `to_json` returned, which other keys may stand beside."""
        return Holder(int(data["generation"]), str(data["token"]))


@dataclass(frozen=True, kw_only=True)
class Look:
    """What one look at a run's folder shows of its driver."""

    claim: Holder | None  # who took the run last; None in a new folder, or one of an earlier version
    beaten_by: Holder | None = None  # whose heartbeat is there; None also for that of an earlier version
    token: str = ""  # of the driver that is judged
    heartbeat: str | None = None  # any text that is another one after each beat; None where no driver is at work
    written: int = 0  # the highest generation that other files name, where no claim can be read
    own: bool = False  # whether the run is held in this very process
    process: State = "unknown"  # of the driver that is judged
    every: float = 0.0  # seconds between its beats; 0 where it does not say
    record: Mapping[str, Any] = field(default_factory=dict)  # what the driver that is judged wrote about itself, for people

    @property
    def generation(self) -> int:
        """The highest that is known."""
        return max(self.written, *(known.generation for known in (self.claim, self.beaten_by) if known is not None), 0)


class Watch:
    """Judges a driver by one look after another.

    Args:
        seconds: a driver whose heartbeat does not change for so long counts as dead, also if its process is there but stopped.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.last: Look | None = None
        self.since = 0.0  # when the heartbeat was first seen as it is now
        self.changes = 0

    def judge(self, look: Look, now: float) -> Verdict:
        """Whether the driver is alive, whether the run is free, or whether to go on watching.

        Args:
            now: time in seconds before this look was begun, on a monotonic clock. (Between a look and a later time the
                watcher itself may have been stopped.)
        """
        if look.heartbeat is None or look.process == "gone":
            return "free"
        if look.own:
            return "alive"
        if self.last is None or look.token != self.last.token:
            self.since, self.changes = now, 0
        elif look.heartbeat != self.last.heartbeat:
            self.since, self.changes = now, self.changes + 1
        self.last = look
        # One change may be the last write of a driver that has died meanwhile, which a slow store shows late.
        if self.changes >= (1 if look.process == "running" else 2):
            return "alive"
        return "free" if now - self.since >= max(self.seconds, BEATS_PER_WATCH * look.every) else "watch"


class Board(Protocol):
    """Where drivers see each other: the run's folder, or its model in a test."""

    def look(self) -> Look: ...

    def claim(self, holder: Holder) -> None:
        """Write that this driver takes the run. Where two do so at the same moment, the later write stays."""
        ...

    def beat(self, holder: Holder) -> None:
        """Write a heartbeat."""
        ...


def take(board: Board, seconds: float, settle: float, now: Callable[[], float]) -> Generator[float, None, Holder | Look]:
    """Take a run, unless its driver is alive. Yields seconds to wait.

    Args:
        seconds: as for `Watch`.
        settle: after which another driver, which saw the run free at the same moment, has written its claim too.
        now: a monotonic clock.

    Returns:
        The holder that this driver is now, with its first heartbeat written; or a look at the driver that is alive.
    """
    while True:
        watch = Watch(seconds)
        while True:
            before = now()
            if (verdict := watch.judge(look := board.look(), before)) != "watch":
                break
            yield min(0.5, seconds / 20)
        if verdict == "alive":
            return look
        mine = Holder(look.generation + 1)
        while True:
            board.claim(mine)
            yield settle
            look = board.look()
            if look.claim != mine:
                # Another driver was later. It finds its own claim, and writes its heartbeat, before this one looks again. Two
                # that claimed the run again at once would do so for ever.
                yield 2 * settle
                break
            if look.beaten_by is None or look.beaten_by.generation < mine.generation:
                board.beat(mine)
                return mine
            # The claim was written long after the look at the run, and others have held it in between.
            mine = Holder(look.generation + 1, mine.token)


def superseded(board: Board, holder: Holder) -> Look | None:
    """A look at the driver that took the run from this holder; None where nobody did."""
    look = board.look()
    return None if look.claim == holder and look.token == holder.token else look


def who(record: Mapping[str, Any]) -> str:
    """The driver that a record names, for people."""
    return f"process {record.get('pid', '?')} on {record.get('host', '?')}"


def lost_to(uri: str, record: Mapping[str, Any]) -> RunLost:
    """The error of a driver, or of a process that works for it, whose run is held by somebody else.

    Args:
        record: of the driver that holds the run now; empty where the folder names none.
    """
    if not record:
        return RunLost(f"{uri} names no driver any more: its files were moved or deleted; this driver has ended")
    at = time.strftime("%H:%M:%S", time.localtime(float(record.get("time", 0.0))))
    return RunLost(f"another driver took over {uri} at {at} ({who(record)}): this one has ended and writes nothing more there")
