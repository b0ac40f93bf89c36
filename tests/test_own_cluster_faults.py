"""The cluster that a run starts for itself while the driver loads: where it is not needed after all, nothing of it stays."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest
from test_cluster_faults import marked
from test_waiting_faults import (
    _no_process_outlives_its_test,  # noqa: F401  a fixture that each test here uses
    begin,
    wait_for,
)

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """Where Ray keeps its files; also the mark of the processes of a run and its cluster."""
    folder = Path("/tmp", f"slim-{os.getpid()}-own")  # paths of sockets are short
    folder.mkdir()
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def ray_processes(place: Path) -> list[str]:
    return [name for name in marked(str(place)).values() if name in ("gcs_server", "raylet")]


def gone(place: Path, seconds: float = 20) -> bool:
    """Whether no process of the run or its cluster is left, if need be after some seconds."""
    end = time.monotonic() + seconds
    while marked(str(place)) and time.monotonic() < end:
        time.sleep(0.1)
    return not marked(str(place))


def start(place: Path, tmp_path: Path, *words: str) -> subprocess.Popen:
    words = (sys.executable, "-u", "-m", "slimsweep.run", "--output", str(tmp_path / "runs"), *words)
    return begin(list(words), tmp_path / "log", RAY_TMPDIR=str(place), MARK=str(place))


def test_refused_input_ends_the_cluster_that_was_started_beside_its_check(place: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    process = start(place, tmp_path, "--model.name", "deit_nonsense")
    wait_for(lambda: ray_processes(place), process, log)
    wait_for(log.read_text, process, log)
    assert process.wait(60) == 2
    assert log.read_text().startswith("slimsweep: model.name is 'deit_nonsense'")
    assert len(log.read_text().splitlines()) == 1
    assert gone(place)
    assert not (tmp_path / "runs").exists()


def test_workers_that_do_not_fit_are_refused_although_ray_is_being_started(place: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    process = start(place, tmp_path, "--resources.cpus_per_worker", "999", "--model.name", "deit_nonsense")
    wait_for(lambda: ray_processes(place), process, log)
    assert process.wait(90) == 2
    assert "resources.search_workers is 1, but this cluster of 1 nodes holds at most 0 workers of 999 CPUs" in log.read_text()
    assert "model.name is 'deit_nonsense'" in log.read_text()
    assert gone(place)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_run_that_is_stopped_while_its_cluster_starts_leaves_none(
    place: Path, tmp_path: Path, number: signal.Signals
) -> None:
    log = tmp_path / "log"
    process = start(place, tmp_path)
    wait_for(lambda: ray_processes(place), process, log)
    process.send_signal(number)
    assert process.wait(120) == (-signal.SIGKILL if number == signal.SIGKILL else 130)
    assert gone(place)
    if number != signal.SIGKILL:
        assert "slimsweep: stopped; what is done is kept" in log.read_text()
        assert "Traceback" not in log.read_text()


def test_a_search_whose_process_is_killed_goes_on_in_another(place: Path, tmp_path: Path) -> None:
    """The search is a task below Ray Train's worker, which is started again."""
    log, run = tmp_path / "log", tmp_path / "runs" / "digits"

    def epochs(pids: Collection[int] = ()) -> dict[int, int]:
        """The epochs of the search, and which process trained each last."""
        lines = (run / "epochs.log").read_text().splitlines() if (run / "epochs.log").exists() else []
        found = [entry for entry in map(json.loads, lines) if entry["stage"] == "search"]
        return {entry["epoch"]: entry["pid"] for entry in found if entry["pid"] not in pids}

    short = ("--dense.epochs", "1", "--dense.warmup_epochs", "0", "--search.epochs", "500", "--data.limit", "256")
    process = start(place, tmp_path, *short)
    wait_for(lambda: len(epochs()) >= 3, process, log)
    (killed,) = set(epochs().values())
    os.kill(killed, signal.SIGKILL)
    before = len(epochs())
    wait_for(lambda: len(epochs({killed})) >= 3, process, log)
    assert min(epochs({killed})) in (before, before + 1)  # one may end between its checkpoint and its entry
    process.send_signal(signal.SIGINT)
    assert process.wait(120) == 130
    assert gone(place)


def test_a_run_that_is_done_starts_no_cluster(place: Path, tmp_path: Path) -> None:
    data, log = Path(__file__).parent / "data", tmp_path / "log"
    finished = shutil.copytree(data / "finished-run", tmp_path / "runs" / "finished")
    words = ["--config", str(finished / "config.yaml"), "--model.checkpoint", str(data / "start.safetensors")]
    process = start(place, tmp_path, *words)
    while process.poll() is None:
        assert not ray_processes(place)
        time.sleep(0.05)
    assert process.returncode == 0, log.read_text()
    assert "Sweep" not in log.read_text()
    assert "report.html" in log.read_text()
