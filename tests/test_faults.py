"""Real processes, killed at recorded moments: no finished point is lost, no epoch before the last checkpoint trained again."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]

SETTINGS = [
    *("--name", "killed", "--budgets", "0.5,0.25", "--data.limit", "256", "--resources.cpus_per_worker", "1"),
    *("--dense.epochs", "3", "--dense.warmup_epochs", "0", "--search.epochs", "30"),
    *("--retrain.epochs", "30", "--retrain.warmup_epochs", "0"),
]


def start(output: Path, *more: str) -> subprocess.Popen:
    """The command as a person starts it, in a process group of its own."""
    command = [sys.executable, "-m", "slimsweep.run", "--output", str(output), *SETTINGS, *more]
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, start_new_session=True
    )


def log(run: Path) -> list[tuple[str, str, int]]:
    """(stage, point, epoch) of every epoch that was trained, in order."""
    path = run / "epochs.log"
    if not path.exists():
        return []
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    return [(e["stage"], e["point"], e["epoch"]) for e in entries]


def kill_when(process: subprocess.Popen, run: Path, reached: Callable[[list], bool], sent: int = signal.SIGKILL) -> str:
    """Send a signal to the driver once the log says so; returns what it had printed."""
    deadline = time.time() + 240
    while not reached(log(run)):
        assert process.poll() is None, f"it ended too early:\n{process.communicate()[0]}"
        assert time.time() < deadline, "the moment to kill did not come"
        time.sleep(0.05)
    os.kill(process.pid, sent)
    return process.communicate(timeout=60)[0]


def registered(run: Path) -> dict[str, int]:
    """The newest checkpoint of each stage and point at this moment."""
    return {
        folder.name: max(int(f.stem.split("-")[1]) for f in folder.glob("epoch-*.safetensors"))
        for folder in (run / "checkpoints").iterdir()
        if list(folder.glob("epoch-*.safetensors"))
    }


def finish(output: Path, *more: str) -> pd.DataFrame:
    process = start(output, *more)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return pd.read_parquet(output / "killed" / "results")


def check_nothing_lost(run: Path, rows: pd.DataFrame, before: list, kept: dict[str, int]) -> None:
    """Each point once, and nothing trained again that a checkpoint held when the process was killed."""
    assert len(rows) == 3
    assert rows.point.is_unique
    assert (rows.status == "ok").all()
    after = log(run)[len(before) :]
    for stage, point, epoch in after:
        assert epoch > kept.get(point or stage, 0), f"epoch {epoch} of {point or stage} was trained again"
    wanted = {("dense", "", e) for e in range(1, 4)} | {("search", "", e) for e in range(1, 31)}
    wanted |= {("retrain", point, e) for point in rows.point for e in range(1, 31)}
    counts = Counter(log(run))
    assert set(counts) == wanted
    again = {key: n for key, n in counts.items() if n > 1}
    # At most the one epoch a stage or point that was trained but not yet registered.
    assert all(n == 2 for n in again.values()), again
    assert len(again) <= 2, again


def test_killed_in_the_search_it_goes_on_from_the_last_checkpoint(tmp_path: Path) -> None:
    run = tmp_path / "killed"
    kill_when(start(tmp_path), run, lambda entries: ("search", "", 5) in entries)
    time.sleep(3)  # Ray's workers notice that their driver is gone
    before, kept = log(run), registered(run)
    assert kept["search"] >= 4
    check_nothing_lost(run, finish(tmp_path), before, kept)


def test_killed_in_the_sweep_it_loses_no_point(tmp_path: Path) -> None:
    run = tmp_path / "killed"
    # Two points are done and the third is under way.
    kill_when(
        start(tmp_path), run, lambda entries: len({p for s, p, e in entries if s == "retrain"}) == 3 and entries[-1][2] >= 5
    )
    time.sleep(3)
    before, kept = log(run), registered(run)
    done = set(pd.read_parquet(run / "results").point)
    assert done
    rows = finish(tmp_path)
    check_nothing_lost(run, rows, before, kept)
    assert not {p for _, p, _ in log(run)[len(before) :]} & done


def test_sigterm_ends_cleanly_and_says_how_to_go_on(tmp_path: Path) -> None:
    run = tmp_path / "killed"
    process = start(tmp_path)
    said = kill_when(process, run, lambda entries: ("search", "", 3) in entries, signal.SIGTERM)
    assert process.returncode == 130, said
    assert "the same command goes on" in " ".join(said.split())
    assert not (run / "driver.json").exists()


def test_trials_of_two_workers_never_deadlock(tmp_path: Path) -> None:
    """Three budgets and the dense point, each a Ray Train job of two workers, on two CPUs."""
    quick = ("--search.epochs", "1", "--retrain.epochs", "1", "--dense.epochs", "1", "--budgets", "0.7,0.5,0.3")
    process = start(tmp_path, *quick, "--retrain.workers_per_trial", "2", "--resources.search_workers", "2")
    said, _ = process.communicate(timeout=500)
    assert process.returncode == 0, said
    rows = pd.read_parquet(tmp_path / "killed" / "results")
    assert len(rows) == 4
    assert (rows.status == "ok").all()
