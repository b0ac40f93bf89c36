"""Real processes, killed at recorded moments: no finished point is lost, no epoch before the last checkpoint trained again.

What was trained is read from the run's epochs.log, which only grows; what was kept, from its rows.
"""

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from processes import parent, title

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1500)]

# Points train long enough for workers, which live some seconds longer than a killed driver, not to end before they die.
EPOCHS = {"dense": 6, "search": 30, "retrain": 60}
SETTINGS = [
    *("--name", "killed", "--budgets", "0.5,0.25", "--data.limit", "256", "--resources.cpus_per_worker", "1"),
    *(word for stage, epochs in EPOCHS.items() for word in (f"--{stage}.epochs", str(epochs))),
    *("--dense.warmup_epochs", "0", "--retrain.warmup_epochs", "0", "--search.paces", "[{}]"),
]
# Columns that say when, how long, or which process; all others are the same whatever happened in between.
TIMES = ["train_seconds", "repair_seconds", "created_at"]

Entry = tuple[str, str, int]


STARTED: list[subprocess.Popen] = []


@pytest.fixture(autouse=True)
def _no_driver_outlives_its_test() -> Iterator[None]:
    """What a test that failed left at work would slow the next ones down."""
    yield
    while STARTED:
        process = STARTED.pop()
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(30)


def start(output: Path, *more: str, address: str | None = None) -> subprocess.Popen:
    """The command as a person starts it, in a process group of its own; `address` is the cluster's to join."""
    command = [sys.executable, "-m", "slimsweep.run", "--output", str(output), *SETTINGS, *more]
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | ({"RAY_ADDRESS": address} if address else {})
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, start_new_session=True
    )
    STARTED.append(process)
    return process


def entries(run: Path) -> list[dict[str, Any]]:
    """Every epoch that was trained, in order: stage, point, epoch, pid of rank 0, time."""
    path = run / "epochs.log"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def log(run: Path) -> list[Entry]:
    """(stage, point, epoch) of every epoch that was trained, in order."""
    return [(e["stage"], e["point"], e["epoch"]) for e in entries(run)]


def wait_until(process: subprocess.Popen, reached: Callable[[], bool]) -> None:
    deadline = time.time() + 240
    while not reached():
        assert process.poll() is None, f"it ended too early:\n{process.communicate()[0]}"
        assert time.time() < deadline, "the moment did not come"
        time.sleep(0.05)


def kill(process: subprocess.Popen, sent: int = signal.SIGKILL) -> str:
    """Send a signal to the driver; returns what it had printed once its workers have noticed that it is gone."""
    os.kill(process.pid, sent)
    said = process.communicate(timeout=180)[0]
    time.sleep(3)
    return said


def in_search(run: Path, epoch: int) -> Callable[[], bool]:
    return lambda: ("search", "", epoch) in log(run)


def in_sweep(run: Path, begun: int, epoch: int = 5) -> Callable[[], bool]:
    """So many points are begun, and the last of them has trained so many epochs."""

    def reached() -> bool:
        newest = {point: epoch for stage, point, epoch in log(run) if stage == "retrain"}  # in the order of their first epochs
        return len(newest) >= begun and list(newest.values())[-1] >= epoch

    return reached


def registered(run: Path) -> dict[str, int]:
    """The newest checkpoint of each stage and point at this moment."""
    return {folder.name: max(numbers) for folder in (run / "checkpoints").iterdir() if (numbers := checkpoints(folder))}


def checkpoints(folder: Path) -> list[int]:
    return [int(f.stem.split("-")[1]) for f in folder.glob("epoch-*.safetensors")]


def rows_of(run: Path) -> pd.DataFrame:
    return pd.read_parquet(run / "results")


def finish(process: subprocess.Popen, run: Path) -> pd.DataFrame:
    said, _ = process.communicate(timeout=900)
    assert process.returncode == 0, said
    return rows_of(run)


def check_each_once(run: Path, rows: pd.DataFrame, faults: int) -> None:
    """Each point has one row, each epoch was trained, and a fault cost at most an epoch of each of two trials under way."""
    assert len(rows) == 3
    assert rows.point.is_unique
    assert (rows.status == "ok").all()
    counts = Counter(log(run))
    names = {"dense": [""], "search": [""], "retrain": list(rows.point)}
    assert set(counts) == {(s, p, e) for s, points in names.items() for p in points for e in range(1, EPOCHS[s] + 1)}
    again = {key: n - 1 for key, n in counts.items() if n > 1}
    assert sum(again.values()) <= 2 * faults, again


def check_went_on(run: Path, before: int, kept: dict[str, int]) -> None:
    """Nothing was trained again that a checkpoint held at the moment of the fault."""
    for stage, point, epoch in log(run)[before:]:
        assert epoch > kept.get(point or stage, 0), f"epoch {epoch} of {point or stage} was trained again"


@pytest.mark.long
def test_the_driver_is_killed_in_every_stage(tmp_path: Path) -> None:
    """In dense, in the search, in the sweep and in the report; with damaged files, and a second driver meanwhile."""
    run = tmp_path / "killed"
    first = start(tmp_path)
    wait_until(first, lambda: ("dense", "", 2) in log(run))
    kill(first)
    before, kept = len(log(run)), registered(run)

    second = start(tmp_path)
    # The dead driver's mark is taken over.
    wait_until(second, lambda: json.loads((run / "driver.json").read_text())["pid"] == second.pid)
    rival = start(tmp_path)
    said, _ = rival.communicate(timeout=180)
    assert rival.returncode == 2, said
    assert f"is being worked on by process {second.pid}" in " ".join(said.split())
    wait_until(second, in_search(run, 5))
    kill(second)
    check_went_on(run, before, kept)
    before, kept = len(log(run)), registered(run)
    assert kept["search"] >= 4
    # What Ray Train keeps for itself is cut short, as a kill in the middle of its write would.
    for folder in (run / "ray").iterdir():
        (folder / "checkpoint_manager_snapshot.json").write_text('{"checkpoint_results": [')
    for file in (f for f in (run / "ray").rglob("*") if f.is_file()):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])

    third = start(tmp_path)
    wait_until(third, in_sweep(run, begun=3))
    kill(third)
    check_went_on(run, before, kept)
    before, kept = len(log(run)), registered(run)
    done = rows_of(run)
    assert len(done)
    # Workers live a moment longer than the driver: the one that trained last may have ended, which leaves it no checkpoint.
    point = next(p for stage, p, _ in reversed(log(run)) if stage == "retrain" and p in kept and p not in set(done.point))
    (newest,) = (run / "checkpoints" / point).glob(f"epoch-{kept[point]:05d}*.safetensors")
    newest.write_bytes(newest.read_bytes()[:-1000])
    kept[point] -= 1  # it falls back to the one before

    fourth = start(tmp_path)
    wait_until(fourth, lambda: len(rows_of(run)) == 3)
    kill(fourth)  # every row is there, the report is being written or about to be
    check_went_on(run, before, kept)
    assert not {p for _, p, _ in log(run)[before:]} & set(done.point)
    (run / "report.html").unlink(missing_ok=True)
    before = len(log(run))

    rows = finish(start(tmp_path), run)
    assert len(log(run)) == before
    assert (run / "report.html").stat().st_size > 100_000
    check_each_once(run, rows, faults=4)


@pytest.mark.long
def test_a_worker_and_a_trial_are_killed(tmp_path: Path) -> None:
    """One of two data-parallel workers in the search, then a trial in the sweep; the driver lives and goes on by itself."""
    run = tmp_path / "killed"
    process = start(tmp_path, "--resources.search_workers", "2")
    for stage, reached in (("search", in_search(run, 5)), ("retrain", in_sweep(run, begun=1))):
        wait_until(process, reached)
        before, kept = len(log(run)), registered(run)
        victim = entries(run)[-1]
        assert victim["stage"] == stage
        os.kill(victim["pid"], signal.SIGKILL)
        wait_until(process, lambda before=before: len(log(run)) > before + 3)  # type: ignore[misc]
        check_went_on(run, before + 1, kept)  # an epoch may have been under way
    check_each_once(run, finish(process, run), faults=2)


def commands_beside(process: subprocess.Popen) -> list[str]:
    """The command lines of the processes in a driver's group, Ray's among them."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has just ended
            if os.getpgid(int(folder.name)) == process.pid:
                found.append((folder / "cmdline").read_text().replace("\0", " "))
    return found


def test_sigterm_ends_cleanly_and_says_how_to_go_on(tmp_path: Path) -> None:
    run = tmp_path / "killed"
    process = start(tmp_path)
    wait_until(process, in_search(run, 3))
    beside = commands_beside(process)
    assert any("raylet" in command for command in beside)
    assert not any("ray-dashboard" in command for command in beside)  # nobody would look at it
    assert not any("PreemptionWatcher" in command for command in beside)  # nobody takes this node away
    assert not any("DatasetManager" in command for command in beside)  # Ray loads no images
    said = kill(process, signal.SIGTERM)
    assert process.returncode == 130, said
    assert "the same command goes on" in " ".join(said.split())
    assert not (run / "driver.json").exists()


@contextmanager
def cluster_of(nodes: int) -> Iterator[Any]:
    """A head that does no work, and nodes of one CPU."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        for _ in range(nodes):
            cluster.add_node(num_cpus=1)
        yield cluster
    finally:
        cluster.shutdown()


def parents_of(name: str) -> set[int]:
    """Those of all processes whose titles begin so: of a process of Ray, the raylet of its node."""
    pids = [place.name for place in Path("/proc").glob("[0-9]*")]
    return {parent(pid) for pid in pids if title(pid).startswith(name)} - {0}


def lose_node_of(cluster: Any, pid: int) -> None:
    """The node on which a process runs dies with all its processes, and a new one joins."""
    ancestors = set()
    while pid > 1:
        pid = parent(pid)
        ancestors.add(pid)
    node = next(n for n in cluster.worker_nodes if n.all_processes["raylet"][0].process.pid in ancestors)
    cluster.remove_node(node, allow_graceful=False)
    cluster.add_node(num_cpus=1)


@pytest.mark.long
def test_chaos_changes_no_figure(tmp_path: Path) -> None:
    """Driver, worker, node, trial, node and driver again are lost in one sweep: its rows are those of an undisturbed one.

    What a checkpoint held when a node was lost is not trained again.
    """
    calm = finish(start(tmp_path / "calm"), tmp_path / "calm" / "killed")
    run = tmp_path / "chaos" / "killed"

    def lose_a_node() -> None:
        before, kept = len(log(run)), registered(run)
        lose_node_of(cluster, entries(run)[-1]["pid"])
        wait_until(process, lambda: len(log(run)) > before + 3)
        check_went_on(run, before + 1, kept)  # an epoch may have been under way

    with cluster_of(2) as cluster:
        process = start(run.parent, address=cluster.address)
        wait_until(process, lambda: ("dense", "", 2) in log(run))
        kill(process)
        process = start(run.parent, address=cluster.address)
        wait_until(process, in_search(run, 5))
        searching = entries(run)[-1]["pid"]
        assert parent(searching) in parents_of("ray::RayTrainWorker")  # on the node whose CPU the search holds
        os.kill(searching, signal.SIGKILL)
        wait_until(process, in_search(run, 15))
        lose_a_node()
        wait_until(process, in_sweep(run, begun=1))
        os.kill(entries(run)[-1]["pid"], signal.SIGKILL)
        wait_until(process, in_sweep(run, begun=2))
        lose_a_node()
        wait_until(process, in_sweep(run, begun=3))
        kill(process)
        rows = finish(start(run.parent, address=cluster.address), run)
    check_each_once(run, rows, faults=6)
    same = [c for c in calm.columns if c not in TIMES]
    pd.testing.assert_frame_equal(
        calm.sort_values("point")[same].reset_index(drop=True), rows.sort_values("point")[same].reset_index(drop=True)
    )


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(disk)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


@pytest.mark.long
def test_a_full_disk_loses_no_finished_point(small_disk: Path) -> None:
    run = small_disk / "killed"
    quick = ("--search.epochs", "2", "--retrain.epochs", "40")  # long enough for the third point to meet the full disk
    process = start(small_disk, *quick)
    wait_until(process, lambda: (run / "results").exists() and len(rows_of(run)) >= 1)
    done = rows_of(run)
    filler, end = small_disk / "filler", time.time() + 600
    with filler.open("ab", buffering=0) as file:
        while process.poll() is None and time.time() < end:  # what the run deletes makes room again
            with suppress(OSError):
                while file.write(bytes(4096)):
                    pass
            time.sleep(0.02)
    said, _ = process.communicate(timeout=600)
    assert process.returncode in (1, 2), said
    assert "No space left on device" in said
    assert "Traceback" not in said
    filler.unlink()
    before = len(log(run))
    rows = finish(start(small_disk, *quick), run)
    assert len(rows) == 3
    assert (rows.status == "ok").all()
    assert set(done.point) <= set(rows.point)
    assert not {p for _, p, _ in log(run)[before:]} & set(done.point)


@pytest.mark.long
def test_trials_of_two_workers_never_deadlock(tmp_path: Path) -> None:
    """Three budgets and the dense point, each a Ray Train job of two workers, on two CPUs."""
    run = tmp_path / "killed"
    quick = ("--search.epochs", "1", "--retrain.epochs", "1", "--dense.epochs", "1", "--budgets", "0.7,0.5,0.3")
    rows = finish(start(tmp_path, *quick, "--retrain.workers_per_trial", "2", "--resources.search_workers", "2"), run)
    assert len(rows) == 4
    assert (rows.status == "ok").all()


@pytest.fixture
def growing_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a cluster whose autoscaler adds up to two nodes of one CPU to a head that does no work."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # also for drivers: a Ray of another test in this process has set it
    node = {"resources": {"CPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 2}
    description = {
        "cluster_name": "growing",
        "max_workers": 2,
        "idle_timeout_minutes": 5,
        "upscaling_speed": 1.0,
        # Ray's own provider of nodes that are processes of this machine.
        "provider": {
            "type": "fake_multinode",
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "worker": node,
        },
        "head_node_type": "ray.head.default",
        "auth": {},
        "file_mounts": {},
        "cluster_synced_files": [],
        "file_mounts_sync_continuously": False,
        "rsync_exclude": [],
        "rsync_filter": [],
        "initialization_commands": [],
        "setup_commands": [],
        "head_setup_commands": [],
        "worker_setup_commands": [],
        "head_start_ray_commands": [],
        "worker_start_ray_commands": [],
    }
    file = tmp_path / "autoscaling.json"
    file.write_text(json.dumps(description))
    port = 6379  # where the provider's nodes look for the head
    # A folder of its own, so that nobody joins it who was not told to; sockets' paths are limited to 107 characters.
    place = Path("/tmp", f"ray-{secrets.token_hex(3)}")
    words = ["--head", "--block", f"--port={port}", f"--autoscaling-config={file}", f"--temp-dir={place}"]
    words += ["--num-cpus=0", "--include-dashboard=false"]
    environment = {**os.environ, "AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_FAKE_CLUSTER": "1"}
    log = tmp_path / "head.log"
    with log.open("w") as stream:
        head = subprocess.Popen(
            [Path(sys.executable).with_name("ray"), "start", *words],
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    deadline = time.time() + 180
    while "Ray runtime started" not in log.read_text():
        assert head.poll() is None, log.read_text()
        assert time.time() < deadline, log.read_text()
        time.sleep(0.2)
    yield f"127.0.0.1:{port}"
    os.killpg(head.pid, signal.SIGKILL)


@pytest.mark.long
def test_a_cluster_that_starts_without_cpus_grows_as_far_as_it_was_said_to(growing_cluster: str, tmp_path: Path) -> None:
    quick = ("--search.epochs", "2", "--retrain.epochs", "2", "--dense.epochs", "1")
    refused = start(tmp_path, *quick, address=growing_cluster)
    said, _ = refused.communicate(timeout=300)
    assert refused.returncode == 2, said
    assert "resources.max_workers" in said
    process = start(tmp_path, *quick, "--resources.max_workers", "2", address=growing_cluster)
    rows = finish(process, tmp_path / "killed")
    assert (rows.status == "ok").all()
    assert len(rows) == 3
