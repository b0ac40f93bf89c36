"""A busy machine is seen, in whatever way it is busy, and a quiet one is not called busy. Time is set by the tests."""

import math
import re
import subprocess
import sys

import pandas as pd
import pytest
import torch
from zoo import small_vit

from slimsweep.errors import RefusedInput
from slimsweep.latency import calls
from slimsweep.latency.quiet_timing import Machine, Measured, Timed, time_rounds
from slimsweep.ledger.run import Run
from slimsweep.ledger.tables import BENCH, last_timed, not_trusted
from slimsweep.report.page import build_page
from slimsweep.report.run_tables import read_run
from slimsweep.tools import bench as bench_module
from slimsweep.tools.bench import bench, busy_sentence, table
from slimsweep.tools.pick import pick

MODEL, REFERENCE = 0.004, 0.002  # seconds on a quiet machine


class Faked(Machine):
    """A machine whose calls take `cost` seconds of a core, and longer on the clock where it is busy.

    Args:
        slow: how many times as long work takes at a time, though it has a core.
        core: the share of the time for which this thread has a core.
        others: cores that other processes use.
        counts: whether the system counts what all processes use.
    """

    cores = 2

    def __init__(self, slow=lambda now: 1.0, core=1.0, others=0.0, counts=True, load=0.0):
        self.slow, self.core, self.others, self.counts = slow, core, others, counts
        self.now = self.own = 0.0
        self.load = lambda: load

    def work(self, cost):
        took = cost * self.slow(self.now)
        self.own += took
        self.now += took / self.core

    def wall(self):
        return self.now

    def cpu(self):
        return self.own

    def used(self):
        return (self.own + self.others * self.now, self.own) if self.counts else None

    def measure(self, **options) -> Measured:
        calls = {"dense": lambda: self.work(MODEL), "half": lambda: self.work(MODEL / 2)}
        return time_rounds(calls, lambda: self.work(REFERENCE), machine=self, min_seconds=0.05, **options)


def test_a_quiet_machine_is_trusted_and_its_times_are_right():
    found = Faked(slow=lambda now: 1.0 + 0.1 * math.sin(now)).measure()  # a little noise, as every machine has
    assert found.quiet, found.calls
    assert found.calls["dense"].median == pytest.approx(MODEL, rel=0.1)
    assert found.calls["half"].median == pytest.approx(MODEL / 2, rel=0.1)
    assert found.reference == pytest.approx(REFERENCE, rel=0.11)
    assert len(found.calls["dense"].rounds) == len(found.calls["dense"].together) == 10
    assert found.others == 0


def busy_all_the_time():
    """Every time is 30 times as long, and steady: only what the process waits shows it."""
    return Faked(core=1 / 30)


def busy_now_and_then():
    return Faked(slow=lambda now: 3.0 if now % 1.0 > 0.5 else 1.0)


def busy_by_load():
    return Faked(others=1.5)


def busy_by_load_without_counts():
    return Faked(counts=False, load=1.8)


@pytest.mark.parametrize(
    ("machine", "said"),
    [
        (busy_all_the_time, "waited for a core for 97 % of its time"),
        (busy_now_and_then, r"took up to 3\.0 times as long as it can, beside \d+ of 10 rounds"),
        (busy_by_load, "other processes used 1.5 of 2 cores"),
        (busy_by_load_without_counts, "other processes used 1.8 of 2 cores"),
    ],
)
def test_a_busy_machine_is_seen(machine, said):
    found = machine().measure(threads=2)
    assert not found.quiet
    for timed in found.calls.values():
        assert re.search(said, timed.busy), timed.busy


def test_cores_that_are_not_needed_may_be_used():
    assert Faked(others=1.0).measure(threads=1).quiet
    assert not Faked(others=1.0).measure(threads=2).quiet


def test_a_short_disturbance_is_outvoted():
    found = Faked(slow=lambda now: 4.0 if 0.5 < now < 0.7 else 1.0).measure()
    assert found.quiet
    assert found.calls["dense"].median == pytest.approx(MODEL)


def test_a_machine_slower_than_in_an_earlier_measurement_is_seen():
    assert Faked(slow=lambda now: 1.2).measure(known=REFERENCE).quiet
    slowed = Faked(slow=lambda now: 2.0).measure(known=REFERENCE)
    assert "2.0 times as long as in an earlier benchmark" in slowed.calls["half"].busy


def test_rounds_that_differ_are_seen_though_the_reference_is_steady():
    machine, turns = Faked(), iter(range(1000))

    def uneven():
        machine.work(MODEL * (1 + next(turns) // 13 % 2))

    calls = {"uneven": uneven, "even": lambda: machine.work(MODEL)}
    found = time_rounds(calls, lambda: machine.work(REFERENCE), machine=machine, min_seconds=0.05)
    assert "half of its rounds differ" in found.calls["uneven"].busy
    assert not found.calls["even"].busy
    assert math.isnan(Timed(rounds=[1.0, 2.0]).spread)  # two rounds say nothing


def test_a_device_of_its_own_is_timed_by_its_own_clock():
    """While a GPU computes, the process only waits: that is no sign of a busy machine."""
    counts = []

    def seconds_of(call, count):
        counts.append(count)
        call()
        return 0.001 * count

    machine = Faked(core=0.01)
    found = time_rounds(
        {"dense": lambda: machine.work(MODEL)},
        lambda: machine.work(REFERENCE),
        machine=machine,
        seconds_of=seconds_of,
        min_seconds=2.0,
        rounds=4,
    )
    assert found.quiet
    assert found.calls["dense"].median == found.calls["dense"].together[0] == 0.001
    assert max(counts) > 1  # calls that follow each other without a pause


def test_the_real_clocks_agree():
    machine = Machine()
    wall, cpu, used = machine.wall(), machine.cpu(), machine.used()
    while machine.wall() < wall + 0.05:
        pass
    assert 0 < machine.cpu() - cpu <= machine.wall() - wall + 0.01
    assert machine.cores >= 1
    if used is not None:
        after = machine.used()
        assert after[0] >= used[0]
        assert after[1] >= used[1]


# What becomes of such rows.


def rows_of(busy: dict[str, str], at: str = "2026-01-01", **changes) -> pd.DataFrame:
    setting = {"device": "cpu", "hardware": "EPYC", "threads": 2, "dtype": "float32", "compile": False, "batch_size": 1}
    times = {"dense": 9.0, "large": 7.0, "small": 4.0}
    rows = [
        {"point": point, "busy": busy.get(point, ""), "latency_p50_ms": times[point], **setting, **changes} for point in times
    ]
    return pd.DataFrame(rows).assign(created_at=pd.Timestamp(at, tz="UTC")).reindex(columns=BENCH.names)


RESULTS = pd.DataFrame(
    {
        "point": ["dense", "large", "small"],
        "status": "ok",
        "macs": [1000, 700, 300],
        "macs_dense": 1000,
        "val_top1": [80.0, 79.0, 76.0],
        "params": [20, 15, 8],
        "params_dense": 20,
    }
)


def test_pick_takes_no_time_of_a_busy_machine():
    quiet = rows_of({})
    slowed = rows_of(dict.fromkeys(("dense", "large", "small"), "busy cores"), at="2026-02-01", latency_p50_ms=1.0)
    assert pick(RESULTS, pd.concat([quiet, slowed]), max_latency_ms=5).point == "small"
    with pytest.raises(
        RefusedInput, match=r"the machine was busy when this run was timed \(busy cores\): run `slimsweep bench"
    ):
        pick(RESULTS, slowed, max_latency_ms=5)
    with pytest.raises(RefusedInput, match="was timed at that batch size"):
        pick(RESULTS, slowed, max_latency_ms=5, batch_size=8)


def test_what_is_left_out_is_said_until_it_is_timed_again():
    slowed = rows_of({"small": "busy cores"})
    assert list(last_timed(slowed).point) == ["dense", "large"]
    assert not_trusted(slowed, "slimsweep bench runs/x").startswith("1 timing of `slimsweep bench` is left out")
    assert "busy cores" in not_trusted(slowed)
    again = pd.concat([slowed, rows_of({}, at="2026-02-01")])
    assert not_trusted(again) == ""
    assert len(last_timed(again)) == 3
    assert not_trusted(rows_of({}).assign(busy=None)) == ""  # of an earlier version


def test_the_page_leaves_them_out_and_says_so(tmp_path):
    run = Run(tmp_path / "digits")
    rows = rows_of({"small": "busy cores"}).astype(object).where(lambda t: t.notna(), None)
    run.products.write_bench(rows.to_dict("records"))
    tables = read_run(run)
    assert list(tables.bench.point) == ["dense", "large"]
    page = build_page([tables])
    assert "1 timing of `slimsweep bench` is left out, because the machine was busy (busy cores)" in page
    assert f"slimsweep bench {run.uri}" in page


def test_the_terminal_marks_them(monkeypatch: pytest.MonkeyPatch):
    def seen(timed, reference, **options):
        reference()
        return Measured({name: Timed([0.1], [0.1], [0.1], busy="cores in use") for name in timed}, 0.001)

    monkeypatch.setattr(calls, "time_rounds", seen)
    rows = bench({"dense": small_vit()}, device="cpu", batch_sizes=[1])
    assert rows[0]["busy"] == "cores in use"
    assert rows[0]["reference_ms"] == 1.0
    said = busy_sentence(rows, "slimsweep bench runs/digits")
    assert "machine busy: the times are not to be trusted (cores in use)" in said
    assert said.endswith("slimsweep bench runs/digits")
    assert table(rows).columns[-1]._cells == ["machine busy"]
    assert busy_sentence([{**rows[0], "busy": ""}], "") == ""


def test_an_earlier_reference_counts_on_the_same_machine_only(monkeypatch: pytest.MonkeyPatch):
    asked = []

    def seen(timed, reference, *, known, **options):
        asked.append(known)
        return Measured({name: Timed([0.1], [0.1], [0.1]) for name in timed}, 0.001)

    monkeypatch.setattr(calls, "time_rounds", seen)
    monkeypatch.setattr(bench_module, "hardware", lambda place: "EPYC")
    same = {"threads": 1, "torch_version": torch.__version__}
    earlier = pd.concat(
        [
            rows_of({}, **same, reference_ms=2.0),
            rows_of({}, **same, reference_ms=3.0),
            rows_of(dict.fromkeys(("dense", "large", "small"), "busy"), **same, reference_ms=1.0),
            rows_of({}, **{**same, "threads": 2}, reference_ms=0.5),
        ]
    )
    for rows in (earlier, earlier.assign(hardware="other"), None):
        bench({"dense": small_vit()}, device="cpu", batch_sizes=[1], threads=1, earlier=rows)
    assert asked == [0.002, None, None]


def test_the_reference_waits_until_a_call_has_let_go_of_its_cores(monkeypatch: pytest.MonkeyPatch):
    waited: list[float] = []
    monkeypatch.setattr("slimsweep.latency.quiet_timing.time.sleep", waited.append)
    time_rounds({"a": lambda: None, "b": lambda: None}, lambda: None, rounds=3, min_seconds=0.0, settle=0.1)
    assert waited == [0.1] * 6


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's memory is kept on Linux only")
def test_a_process_that_times_models_keeps_its_memory() -> None:
    """Else the time that the system takes for new pages would depend on what the process did before."""
    code = """
import resource, timm, torch
from slimsweep.latency.calls import prepared_calls
from slimsweep.latency.setting import LatencySetting

model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1)
with prepared_calls({"dense": model}, LatencySetting(device="cpu", batch_size=1, threads=1)):
    pages = []
    for _ in range(5):
        torch.ones(2**24)  # 64 MiB: 16,384 pages where they are new
        pages.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print(pages[-1] - pages[-2])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 1000


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's memory is kept on Linux only")
def test_a_process_that_trains_models_in_one_thread_after_the_other_keeps_the_memory_of_none() -> None:
    """Beside threads that stay, which take over what ended threads freed."""
    code = """
import threading, torch
from pathlib import Path
from slimsweep.latency.device import give_memory_back, keep_memory

def resident():
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * 4096 / 2**20

def work():
    keep_memory()
    [torch.ones(2**20) for _ in range(50)]  # 200 MiB
    bytearray(40 * 2**20)  # at the end of the thread's memory
    give_memory_back()

torch.set_num_threads(1)
end, before = threading.Event(), resident()
for _ in range(6):
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    threading.Thread(target=lambda: (bytearray(100), end.wait()), daemon=True).start()
print(resident() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 20
