"""Times of several calls, and whether the machine was quiet while they were taken.

Calls are timed in interleaved rounds. Before and after each call's turn a reference is timed: work of a known, fixed cost.
Where the reference is slow, waits for a core, or other processes use the cores, the times beside it are not to be trusted,
however steady they look: on a machine that is busy all the time, all times are wrong in the same way.
"""

import math
import os
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

Call = Callable[[], object]

# Times are not to be trusted where:
SLOWER = 1.3  # the reference took this many times its fastest
SLOW_TURNS = 0.25  # beside more than this share of a call's turns
CORE_SHARE = 0.9  # or the reference had a core for less than this share of its time
SPARE_CORES = 0.25  # or other processes used more than this many of the cores that are needed
WIDEST_SPREAD = 0.25  # or the middle half of a call's rounds spans more than this share of its median
FEWEST_ROUNDS = 4  # from which a spread can be told

ONNXRUNTIME_SETTLE = 0.1  # seconds: after a run the threads of its sessions keep cores for some tens of milliseconds
REFERENCE_CALLS = 5  # timed at each look at the reference, after one that is not timed
SHORTEST_LOOK = 0.5  # seconds from which the load is known: the system counts in hundredths of a second


class Machine:
    """The machine's clocks and load. A test gives one whose time it sets."""

    @property
    def cores(self) -> int:
        """Processor cores of the whole machine, as `used` and `load` count."""
        return os.cpu_count() or 1

    def wall(self) -> float:
        """Seconds that have passed."""
        return time.perf_counter()

    def cpu(self) -> float:
        """Seconds for which this thread had a core."""
        return time.thread_time()

    def used(self) -> tuple[float, float] | None:
        """Core seconds used since the start of the machine by all processes, and since its start by this one.

        None where the system does not count them in /proc/stat, as outside Linux.
        """
        try:
            words = Path("/proc/stat").read_text().split("\n", 1)[0].split()
            # user, nice, system, idle, iowait, irq, softirq, steal: what a hypervisor gives to others counts as used
            ticks = [int(word) for word in words[1:9]]
        except (OSError, ValueError):
            return None
        if len(ticks) < 8:
            return None
        own = os.times()
        return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK"), own.user + own.system

    def load(self) -> float | None:
        """Processes that used or waited for a core in the last minute; None where the system does not say."""
        try:
            return os.getloadavg()[0]
        except (OSError, AttributeError):
            return None


@dataclass
class Timed:
    """The times of one call."""

    seconds: list[float] = field(default_factory=list)  # of each call
    rounds: list[float] = field(default_factory=list)  # the median of each round
    together: list[float] = field(default_factory=list)  # per round: seconds per call of calls that follow without a pause
    busy: str = ""  # why the times are not to be trusted; empty where they are

    def percentile(self, percent: float) -> float:
        """Seconds which that share of the calls did not exceed."""
        return float(np.percentile(self.seconds, percent))

    @property
    def median(self) -> float:
        """Seconds of one call."""
        return self.percentile(50)

    @property
    def spread(self) -> float:
        """Width of the middle half of the rounds' medians, as a share of their median; nan for less than four rounds."""
        if len(self.rounds) < FEWEST_ROUNDS:
            return math.nan
        low, middle, high = np.percentile(self.rounds, [25, 50, 75])
        return float((high - low) / middle) if middle else math.nan


@dataclass
class Measured:
    """Times per call's name, and what was seen of the machine meanwhile."""

    calls: dict[str, Timed]
    reference: float  # fastest seconds of the reference
    others: float | None = None  # cores that other processes used, on average; None where that is not known

    @property
    def quiet(self) -> bool:
        """Whether all times can be trusted."""
        return not any(timed.busy for timed in self.calls.values())


@dataclass(frozen=True)
class _Look:
    """One look at the reference."""

    seconds: float  # of one call, the median
    fastest: float
    core: float  # share of the time for which this thread had a core


def time_rounds(
    calls: Mapping[str, Call],
    reference: Call,
    *,
    rounds: int = 10,
    min_seconds: float = 0.2,
    threads: int = 1,
    known: float | None = None,
    settle: float = 0.0,
    seconds_of: Callable[[Call, int], float] | None = None,
    machine: Machine | None = None,
) -> Measured:
    """Time calls in interleaved rounds, with a reference before and after each turn.

    Args:
        calls: by name. Each has one turn per round, so that a machine that is slow for a while is slow for all.
        reference: work of a fixed cost, of some milliseconds, on the device and with the threads of the calls.
        min_seconds: calls are repeated for this long in a turn; at least one call is made.
        threads: cores that the calls use.
        known: the fastest seconds of the same reference in an earlier, quiet measurement on this machine.
        settle: seconds to wait before the reference is timed, where a call's threads hold on to their cores after it.
        seconds_of: seconds that a number of calls takes on a device that works by itself, such as a GPU; where it is not given,
            the time of this thread counts.
        machine: its clocks and load; the real ones where not given.
    """
    machine = machine or Machine()
    found = {name: Timed() for name in calls}
    looks: dict[str, list[_Look]] = {name: [] for name in calls}
    names = list(calls)
    load = machine.load()  # before this process works
    began, used_before = machine.wall(), machine.used()
    before = _look(reference, seconds_of, machine)
    for number in range(rounds):
        # Each round starts with another call: whichever comes first finds the caches of the last one.
        first = number % len(names)
        for name in names[first:] + names[:first]:
            call, timed = calls[name], found[name]
            call()  # untimed: brings what the call works on back into the caches
            took = _timed_calls(call, seconds_of, min_seconds, machine)
            timed.seconds += took
            timed.rounds.append(statistics.median(took))
            timed.together.append((seconds_of(call, len(took)) if seconds_of else sum(took)) / len(took))
            time.sleep(settle)
            after = _look(reference, seconds_of, machine)
            looks[name] += [before, after]
            before = after
    others = _used_by_others(machine, used_before, machine.wall() - began, load)
    everywhere = [look for of_name in looks.values() for look in of_name]
    fastest = min(look.fastest for look in everywhere)
    seen = [_loaded(machine.cores, others, threads)]
    seen += [_disturbed(of_call, fastest, known, by_thread=seconds_of is None) for of_call in looks.values()]
    # Times of one measurement are compared with each other, so what disturbs one call counts for all.
    disturbed = next(filter(None, seen), "")
    for timed in found.values():
        timed.busy = disturbed or _unsteady(timed)
    return Measured(found, fastest, others)


def seconds_by_wall(call: Call, count: int) -> float:
    """Seconds of calls that wait for a GPU: the thread that waits needs no core, which counts as no disturbance."""
    start = time.perf_counter()
    for _ in range(count):
        call()
    return time.perf_counter() - start


def _look(reference: Call, seconds_of: Callable[[Call, int], float] | None, machine: Machine) -> _Look:
    """Time the reference."""
    reference()
    seconds = []
    wall, cpu = machine.wall(), machine.cpu()
    for _ in range(REFERENCE_CALLS):
        seconds.append(_seconds(reference, seconds_of, machine))
    wall, cpu = machine.wall() - wall, machine.cpu() - cpu
    return _Look(statistics.median(seconds), min(seconds), min(1.0, cpu / wall) if wall > 0 else 1.0)


def _seconds(call: Call, seconds_of: Callable[[Call, int], float] | None, machine: Machine) -> float:
    if seconds_of is not None:
        return seconds_of(call, 1)
    start = machine.wall()
    call()
    return machine.wall() - start


def _timed_calls(
    call: Call, seconds_of: Callable[[Call, int], float] | None, min_seconds: float, machine: Machine
) -> list[float]:
    """The seconds of each call, for as many calls as `min_seconds` has room for, and at least one."""
    took: list[float] = []
    end = machine.wall() + min_seconds
    while not took or machine.wall() < end:
        took.append(_seconds(call, seconds_of, machine))
    return took


def _used_by_others(machine: Machine, before: tuple[float, float] | None, seconds: float, load: float | None) -> float | None:
    """Cores that other processes used on average during the measurement; where that was not counted, the load before it."""
    after = machine.used()
    if before is None or after is None:
        return load
    everybody, own = after[0] - before[0], after[1] - before[1]
    if everybody <= 0 < own:  # a sandbox that shows no counts
        return load
    return max(0.0, everybody - own) / seconds if seconds >= SHORTEST_LOOK else None


def _loaded(cores: int, others: float | None, threads: int) -> str:
    if others is None or others <= max(0, cores - threads) + SPARE_CORES:
        return ""
    needs = "1 thread needs a core" if threads == 1 else f"{threads} threads need a core each"
    return f"other processes used {others:.1f} of {cores} cores, and {needs}"


def _disturbed(looks: list[_Look], fastest: float, known: float | None, *, by_thread: bool) -> str:
    """What the reference says of the times beside it; empty where it ran as it should.

    Args:
        looks: before and after each turn of a call.
        by_thread: whether the reference is computed by this thread, and not by a device of its own.
    """
    core = statistics.mean(look.core for look in looks)
    if by_thread and core < CORE_SHARE:
        return f"a reference computation waited for a core for {100 * (1 - core):.0f} % of its time"
    pairs = list(zip(looks[::2], looks[1::2], strict=True))
    slow = sum(max(one.seconds for one in pair) > SLOWER * fastest for pair in pairs)
    if slow > SLOW_TURNS * len(pairs):
        worst = max(look.seconds for look in looks) / fastest
        return f"a reference computation took up to {worst:.1f} times as long as it can, beside {slow} of {len(pairs)} rounds"
    usual = statistics.median(look.seconds for look in looks)
    if known is not None and usual > SLOWER * known:
        return f"a reference computation took {usual / known:.1f} times as long as in an earlier benchmark on this machine"
    return ""


def _unsteady(timed: Timed) -> str:
    if not timed.spread > WIDEST_SPREAD:  # nan where there are too few rounds
        return ""
    return f"half of its rounds differ by more than {100 * timed.spread:.0f} %"
