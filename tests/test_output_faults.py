"""Real runs whose output goes away while they are at work, or whose files are damaged between two starts."""

import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest

from slimsweep.cli import main as command

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]

SETTINGS = [
    *("--name", "run", "--budgets", "0.5,0.25", "--data.limit", "256", "--resources.cpus_per_worker", "1"),
    *("--dense.epochs", "2", "--dense.warmup_epochs", "0", "--search.epochs", "2", "--search.paces", "[{}]"),
    *("--retrain.epochs", "2", "--retrain.warmup_epochs", "0"),
    *("--resources.max_concurrent_trials", "1"),  # fewer processes that load torch
]

# Runs a command as a shell does, also where nohup started the tests.
NO_NOHUP = "import os, signal, sys; signal.signal(signal.SIGHUP, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
STARTED: list[subprocess.Popen] = []


@pytest.fixture(autouse=True)
def _no_driver_outlives_its_test() -> Iterator[None]:
    yield
    while STARTED:
        process = STARTED.pop()
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(30)


def start(output: Path, *before: str, more: tuple[str, ...] = (), **streams: object) -> subprocess.Popen:
    words = [*before, sys.executable, "-m", "slimsweep.run", "--output", str(output), *SETTINGS, *more]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    process = subprocess.Popen(words, env=environment, start_new_session=True, **streams)  # type: ignore[call-overload]
    STARTED.append(process)
    return process


def wait_until(process: subprocess.Popen, reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 300
    while not reached():
        assert process.poll() is None
        assert time.monotonic() < deadline, "the moment did not come"
        time.sleep(0.05)


def epochs(run: Path) -> Counter:
    path = run / "epochs.log"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return Counter((entry["stage"], entry["point"]) for entry in lines)


def check_finished(run: Path) -> pd.DataFrame:
    rows = pd.read_parquet(run / "results")
    assert len(rows) == 3
    assert (rows.status == "ok").all()
    assert (run / "report.html").stat().st_size > 1_000_000
    assert not (run / "driver.json").exists()
    return rows


@pytest.mark.long
def test_a_run_outlives_the_reader_of_its_output_and_heals_what_is_damaged_afterwards(
    tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    """`slimsweep run 2>&1 | head -1`; then files are cut, and the same command makes again what they held, and nothing else."""
    run = tmp_path / "run"
    process = start(tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(600) == 0
    rows = check_finished(run)
    before = epochs(run)

    lost, without_model = sorted(rows.point)[:2]
    for path in (run / "results" / f"{lost}.parquet", run / "search" / "gates.parquet", run / "plan.json", run / "config.yaml"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    weights = run / "models" / without_model / "model.safetensors"
    weights.write_bytes(b"")
    with open(tmp_path / "log", "w") as log:
        assert start(tmp_path, stdout=log, stderr=log).wait(600) == 0
    said = (tmp_path / "log").read_text()
    for path in (f"results/{lost}.parquet", "search/gates.parquet", "plan.json", "config.yaml", str(weights)):
        assert sum(f"{path} is damaged" in line for line in said.splitlines()) == 1, said
    check_finished(run)
    trained = epochs(run) - before
    assert set(trained) == {("retrain", lost), ("retrain", without_model)}
    capfd.readouterr()
    assert command(["status", str(run)]) == 0
    assert "damaged" not in capfd.readouterr().out


def test_a_run_outlives_a_terminal_that_is_gone(tmp_path: Path) -> None:
    """nohup in a terminal that is closed during the search: all that it prints from then on fails with EIO."""
    run = tmp_path / "run"
    terminal, own = pty.openpty()
    process = start(tmp_path, "bash", "-c", 'trap "" HUP; exec "$@"', "bash", stdin=own, stdout=own, stderr=own)
    os.close(own)
    wait_until(process, lambda: bool(os.read(terminal, 65536)) and (run / "driver.json").exists())
    os.close(terminal)
    assert process.wait(600) == 0
    check_finished(run)


def test_a_terminal_that_is_closed_stops_a_run_cleanly(tmp_path: Path) -> None:
    """Without nohup: the kernel and the shell each send SIGHUP to all processes of the terminal, Ray's among them."""
    run = tmp_path / "run"
    terminal, own = pty.openpty()
    more = ("--search.epochs", "2000")
    process = start(tmp_path, sys.executable, "-c", NO_NOHUP, more=more, stdin=own, stdout=own, stderr=own)
    os.close(own)
    wait_until(process, lambda: bool(os.read(terminal, 65536)) and epochs(run)[("search", "")] > 2)
    os.close(terminal)
    os.killpg(process.pid, signal.SIGHUP)
    time.sleep(0.1)
    os.killpg(process.pid, signal.SIGHUP)
    assert process.wait(120) == 130
    assert not (run / "driver.json").exists()
    time.sleep(3)
    trained = epochs(run)
    time.sleep(3)
    assert epochs(run) == trained  # nobody works on
