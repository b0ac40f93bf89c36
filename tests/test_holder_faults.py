"""Real processes that lose a run: stopped and continued, in other namespaces, with clocks that are wrong.

What was trained is read from the run's epochs.log, which only grows and names the holder of each epoch.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from slimsweep.errors import LOST
from slimsweep.ledger.files import DRIVER, HOLDER
from slimsweep.ledger.lock import RunTaken, driver_alive, hold
from slimsweep.ledger.run import Run

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]

WATCH = 3.0
SETTINGS = [
    *("--name", "held", "--budgets", "0.5", "--data.limit", "256", "--resources.takeover_seconds", str(WATCH)),
    *("--dense.epochs", "1", "--dense.warmup_epochs", "0", "--search.epochs", "100", "--search.paces", "[{}]"),
    *("--retrain.epochs", "150", "--retrain.warmup_epochs", "0"),
]


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen]]:
    """The processes of a test; none outlives it."""
    processes: list[subprocess.Popen] = []
    yield processes
    for process in processes:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(30)


# SIGINT and SIGHUP are ignored: what nohup, a script's `cmd &` and sbatch do.
UNSIGNALLED = ["bash", "-c", 'trap "" INT HUP; exec "$@"', "bash"]


def start(output: Path, started: list[subprocess.Popen], *more: str) -> subprocess.Popen:
    command = [*UNSIGNALLED, sys.executable, "-m", "slimsweep.run", "--output", str(output), *SETTINGS, *more]
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        start_new_session=True,
    )
    started.append(process)
    return process


def entries(run: Path) -> list[dict[str, Any]]:
    path = run / "epochs.log"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def wait_until(reached: Callable[[], bool], *alive: subprocess.Popen) -> None:
    deadline = time.monotonic() + 240
    while not reached():
        for process in alive:
            assert process.poll() is None, f"it ended too early:\n{process.communicate()[0]}"
        assert time.monotonic() < deadline, "the moment did not come"
        time.sleep(0.05)


def record(run: Path, name: str = HOLDER) -> dict[str, Any]:
    return Run(run).driver_record(name)


@pytest.mark.long
@pytest.mark.parametrize(("stage", "workers"), [("search", "workers stop too"), ("retrain", "workers go on")])
def test_a_driver_that_is_stopped_and_goes_on_has_lost_its_run(
    tmp_path: Path, started: list[subprocess.Popen], stage: str, workers: str
) -> None:
    """No epoch of the loser, nor of its workers, is written after the takeover; each epoch comes once from who held the run."""
    run = tmp_path / "held"
    # What the other stage trains is of no interest here.
    more = ("--retrain.epochs", "2") if stage == "search" else ("--search.epochs", "2")
    first = start(tmp_path, started, *more)
    wait_until(lambda: any(e["stage"] == stage and e["epoch"] >= 3 for e in entries(run)), first)
    stopped = [first.pid] + ([entries(run)[-1]["pid"]] if workers == "workers stop too" else [])
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    at_stop = len(entries(run))
    second = start(tmp_path, started, *more)
    wait_until(lambda: record(run).get("pid") == second.pid, second)
    taken_at = record(run)["time"]
    wait_until(lambda: entries(run)[-1]["holder"] == 2, second)
    for pid in reversed(stopped):
        os.kill(pid, signal.SIGCONT)
        time.sleep(1.0)

    said, _ = first.communicate(timeout=120)
    assert first.returncode == LOST, said
    said = " ".join(said.split())
    assert f"another driver took over {run} at " in said
    assert f"(process {second.pid} on " in said
    assert "Traceback" not in said
    said, _ = second.communicate(timeout=600)
    assert second.returncode == 0, said
    log = entries(run)
    of_first, of_second = ([e for e in log if e["holder"] == holder] for holder in (1, 2))
    assert log == of_first + of_second, "the loser wrote after the other one had begun"
    assert max(e["time"] for e in of_first) < taken_at
    if workers == "workers go on":
        assert len(of_first) > at_stop  # they were at work until the takeover, on whichever point
    # An epoch whose checkpoint was under way is trained again; no other one is.
    keys = [(e["stage"], e["point"], e["epoch"]) for e in log]
    assert len(keys) - len(set(keys)) <= 2
    rows = pd.read_parquet(run / "results")
    assert len(rows) == 2
    assert (rows.status == "ok").all()
    assert not (run / "checkpoints").exists() or not list((run / "checkpoints").rglob("*.safetensors"))


HOLD = """
import sys, time
from rich.console import Console
from slimsweep.errors import exit_code
from slimsweep.ledger.lock import hold
from slimsweep.ledger.run import Run

def drive():
    with hold(Run(sys.argv[1]), float(sys.argv[2])):
        print("held", flush=True)
        time.sleep(600)

sys.exit(exit_code(drive, Console()))
"""


def holder(
    run: Path, started: list[subprocess.Popen], *before: str, script: str = HOLD, **environment: str
) -> subprocess.Popen:
    """A process that holds a run and does nothing else."""
    process = subprocess.Popen(
        [*UNSIGNALLED, *before, sys.executable, "-c", script, str(run), str(WATCH)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **environment},
        start_new_session=True,
    )
    started.append(process)
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line == "held\n", line + process.stdout.read()
    return process


def stop(process: subprocess.Popen) -> None:
    os.kill(process.pid, signal.SIGSTOP)
    wait_until(lambda: Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")


def test_a_stopped_holder_ends_with_its_own_exit_code(tmp_path: Path, started: list[subprocess.Popen]) -> None:
    loser = holder(tmp_path / "run", started)
    stop(loser)
    assert not driver_alive(Run(tmp_path / "run"))
    winner = holder(tmp_path / "run", started)
    os.kill(loser.pid, signal.SIGCONT)
    said, _ = loser.communicate(timeout=30)
    assert loser.returncode == LOST
    assert f"(process {winner.pid} on " in " ".join(said.split())
    time.sleep(WATCH)
    assert winner.poll() is None
    assert record(tmp_path / "run", DRIVER)["pid"] == winner.pid


def test_a_holder_that_does_not_end_when_it_is_interrupted_is_ended(tmp_path: Path, started: list[subprocess.Popen]) -> None:
    """A library may swallow a KeyboardInterrupt, or the shell may have blocked the signal that wakes the driver."""
    stubborn = HOLD.replace(
        "time.sleep(600)",
        """
        from slimsweep.ledger import lock
        lock.END_SECONDS = 1.0
        while True:
            try:
                time.sleep(600)
            except KeyboardInterrupt:
                print("swallowed", flush=True)
""",
    )
    loser = holder(tmp_path / "run", started, script=stubborn)
    time.sleep(1.0)  # until it is in its loop
    stop(loser)
    holder(tmp_path / "run", started)
    os.kill(loser.pid, signal.SIGCONT)
    said, _ = loser.communicate(timeout=30)
    assert loser.returncode == LOST
    assert "swallowed" in said
    assert "another driver took over" in said


def test_a_killed_holder_is_replaced_at_once(tmp_path: Path, started: list[subprocess.Popen]) -> None:
    process = holder(tmp_path / "run", started)
    process.kill()
    process.wait()
    began = time.monotonic()
    assert not driver_alive(Run(tmp_path / "run"))
    with hold(Run(tmp_path / "run"), 60.0):
        assert time.monotonic() - began < 5


def namespace(*words: str) -> list[str]:
    """A command that runs another one in new namespaces."""
    command = ["unshare", "--pid", "--fork", "--kill-child", *words]
    tried = subprocess.run([*command, "true"], capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"no namespace can be made here: {tried.stderr.strip()}")
    return command


@pytest.mark.parametrize("words", [["--mount-proc"], ["--mount-proc", "--uts"], []], ids=["own /proc", "uts", "foreign /proc"])
def test_a_holder_in_another_pid_namespace_is_alive(tmp_path: Path, started: list[subprocess.Popen], words: list[str]) -> None:
    """It has the host name of this process, and a pid that is somebody else's here."""
    holder(tmp_path / "run", started, *namespace(*words))
    assert record(tmp_path / "run")["pid"] == 1
    assert driver_alive(Run(tmp_path / "run"))
    with pytest.raises(RunTaken, match="process 1 on"), hold(Run(tmp_path / "run"), WATCH):
        pass


def test_a_container_that_is_started_again_takes_its_run_back(tmp_path: Path, started: list[subprocess.Popen]) -> None:
    """Its driver is process 1 again, under the same host name: after one watch it replaces the one that was killed."""
    inside = namespace("--mount-proc")
    first = holder(tmp_path / "run", started, *inside)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    began = time.monotonic()
    second = holder(tmp_path / "run", started, *inside)
    assert time.monotonic() - began < WATCH + 15  # of which some seconds are imports
    assert record(tmp_path / "run")["pid"] == 1
    assert record(tmp_path / "run")["generation"] == 2
    assert second.poll() is None


@pytest.mark.parametrize("seconds", [-90.0, 86400.0])
def test_a_holder_whose_clock_is_wrong_is_alive(tmp_path: Path, started: list[subprocess.Popen], seconds: float) -> None:
    shim = tmp_path / "shim"
    shim.mkdir()
    (shim / "sitecustomize.py").write_text(f"import time\nreal = time.time\ntime.time = lambda: real() + {seconds}\n")
    path = os.pathsep.join(filter(None, [str(shim), str(Path.cwd()), os.environ.get("PYTHONPATH")]))
    live = holder(tmp_path / "run", started, *namespace("--mount-proc"), PYTHONPATH=path)
    assert abs(record(tmp_path / "run")["time"] - time.time() - seconds) < 30
    assert driver_alive(Run(tmp_path / "run"))
    with pytest.raises(RunTaken), hold(Run(tmp_path / "run"), WATCH):
        pass
    assert live.poll() is None
