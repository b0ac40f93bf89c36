"""The cluster itself fails under a run, with real processes: each ends with one sentence, and the same command goes on."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from processes import parent, title
from test_waiting_faults import (
    _no_process_outlives_its_test,  # noqa: F401  a fixture that each test here uses
    begin,
    wait_for,
)

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1200)]

DATA = Path(__file__).parent / "data"
# Neither training ends before its cluster fails.
LONG = [
    *("--name", "w", "--budgets", "0.5", "--data.limit", "256", "--dense.epochs", "1", "--dense.warmup_epochs", "0"),
    *("--search.epochs", "5000", "--search.paces", "[{}]"),
]
# A cluster of this Ray that says it were another's: what a driver reads when it joins. Its process ends with its output.
OTHER_VERSION = """
import json, ray, time
from ray._common.usage.usage_constants import CLUSTER_METADATA_KEY
from ray._private.ray_constants import KV_NAMESPACE_CLUSTER
ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
gcs = ray._private.worker.global_worker.gcs_client
stored = json.loads(gcs.internal_kv_get(CLUSTER_METADATA_KEY, namespace=KV_NAMESPACE_CLUSTER))
stored |= {"ray_version": "2.59.0", "python_version": "3.12.4"}
gcs.internal_kv_put(CLUSTER_METADATA_KEY, json.dumps(stored).encode(), True, namespace=KV_NAMESPACE_CLUSTER)
print(ray.get_runtime_context().gcs_address, flush=True)
time.sleep(600)
"""
SHOWS_ITS_RAY = {"RAY_AUTH_MODE": "token"}  # a cluster that `ray.init` starts wants it


def start(output: Path, log: Path, *words: str, **environment: str) -> subprocess.Popen:
    return begin([sys.executable, "-u", "-m", "slimsweep.run", "--output", str(output), *words], log, **environment)


def searched(run: Path) -> list[int]:
    """The epochs of the search that were trained, in order."""
    path = run / "epochs.log"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [line["epoch"] for line in lines if line["stage"] == "search"]


def ended_with(process: subprocess.Popen, log: Path, seconds: float) -> str:
    """What a run says at its end, which comes by itself, in one line, with exit code 1; Ray's own words are not there."""
    assert process.wait(seconds) == 1, log.read_text()
    said = log.read_text()
    assert "Traceback" not in said
    assert "(raylet)" not in said
    assert said.count("slimsweep: ") == 1
    return said.splitlines()[-1]


def test_a_cluster_of_another_ray_is_one_sentence(tmp_path: Path) -> None:
    held, log = tmp_path / "held", tmp_path / "log"
    holder = begin([sys.executable, "-c", OTHER_VERSION], held)
    wait_for(held.read_text, holder, held, 60)
    process = start(tmp_path, log, *LONG, RAY_ADDRESS=held.read_text().strip(), **SHOWS_ITS_RAY)
    said = ended_with(process, log, 60)
    assert "the cluster runs Ray 2.59.0 and Python 3.12.4, and this process Ray 2." in said
    assert "use the same on both" in said


def at_last(start_node: Callable[[], Any]) -> Any:
    """Start a node: Ray gives its processes 30 s, in which they may not come up on a busy machine."""
    for _ in range(2):
        try:
            return start_node()
        except Exception as problem:
            if "timed out during startup" not in str(problem):
                raise
    return start_node()


@contextmanager
def without_memory() -> Iterator[tuple[str, Callable[[], object]]]:
    """The address of a cluster whose head does no work, and a function that adds a node which is out of memory at once.

    Ray ends each worker there: its limit is 1 % of the machine's memory.
    """
    from ray.cluster_utils import Cluster

    limits = {"RAY_memory_usage_threshold": "0.01", "RAY_memory_monitor_refresh_ms": "100"}
    cluster: Any = at_last(lambda: Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}))
    try:
        yield cluster.address, lambda: at_last(lambda: cluster.add_node(num_cpus=1, env_vars=limits))
    finally:
        cluster.shutdown()


@pytest.fixture
def finished(tmp_path: Path) -> list[str]:
    """The words that go on with a run whose search is done."""
    shutil.copytree(DATA / "finished-run", tmp_path / "finished")
    return ["--config", str(tmp_path / "finished" / "config.yaml"), "--model.checkpoint", str(DATA / "start.safetensors")]


ONE_FAILURE = ["--resources.max_failures", "1", "--resources.max_workers", "1"]


def said_of_memory(said: str) -> None:
    assert "a node ran out of memory (" in said
    assert "GB / " in said
    assert "resources.max_concurrent_trials" in said
    assert "data.batch_size" in said


def test_a_node_out_of_memory_in_the_search_is_one_sentence(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with without_memory() as (address, add_node):
        process = start(tmp_path, log, *LONG, *ONE_FAILURE, RAY_ADDRESS=address)
        wait_for(lambda: "dense: " in log.read_text(), process, log, 90)
        add_node()
        said_of_memory(ended_with(process, log, 120))


def test_a_node_out_of_memory_while_methods_choose_is_one_sentence(tmp_path: Path, finished: list[str]) -> None:
    """Ray itself would start a task again and again there, without an end."""
    log = tmp_path / "log"
    with without_memory() as (address, add_node):
        process = start(tmp_path, log, *finished, *ONE_FAILURE, "--baselines", "taylor", RAY_ADDRESS=address)
        wait_for(lambda: "waiting for 1 CPU" in log.read_text(), process, log, 90)
        add_node()
        said = ended_with(process, log, 120)
    said_of_memory(said)
    assert "what the methods keep could not be chosen" in said


def test_a_node_out_of_memory_in_a_trial_is_in_its_row(tmp_path: Path, finished: list[str]) -> None:
    log = tmp_path / "log"
    more = ["--budgets", "0.6,0.4,0.5,0.45", "--baselines", "[]"]
    with without_memory() as (address, add_node):
        process = start(tmp_path, log, *finished, *ONE_FAILURE, *more, RAY_ADDRESS=address)
        wait_for(lambda: "Sweep: 2 points" in log.read_text(), process, log, 90)
        add_node()
        assert process.wait(120) == 1, log.read_text()
    said = log.read_text()
    assert "Traceback" not in said
    assert "(raylet)" not in said
    failed = " ".join(said.split()).partition(" points failed; ")[2].split("searched-0.")[1:]
    assert sorted(row[:4] for row in failed) == ["4500", "5000"]
    for row in failed:
        said_of_memory(row)


def marked(mark: str) -> dict[int, str]:
    """The processes whose environment has a mark, and the names of their programs."""
    found = {}
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if f"MARK={mark}".encode() in (place / "environ").read_bytes().split(b"\0"):
                found[int(place.name)] = Path(os.readlink(place / "exe")).name
        except OSError:  # it has ended, or is somebody else's
            continue
    return found


@pytest.mark.long
def test_a_run_ends_and_goes_on_when_the_gcs_and_when_the_raylet_is_killed(tmp_path: Path) -> None:
    """The GCS of a cluster that the run joined, and then the raylet of the one that the same command starts."""
    run = tmp_path / "w"
    mark = str(tmp_path)
    place = Path("/tmp", f"slim-{os.getpid()}")  # paths of sockets are short
    words = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--port=0", "--num-cpus=1", f"--temp-dir={place}"]
    head_log, log = tmp_path / "head", tmp_path / "log"
    # The driver gives a GCS up after 15 s, and Ray's own processes after 45 s.
    settings = {"MARK": mark, "RAY_gcs_rpc_server_reconnect_timeout_s": "45"}
    try:
        open_to_all = {"RAY_AUTH_MODE": "disabled"}
        head = begin([*words, "--include-dashboard=false", "--disable-usage-stats"], head_log, **settings, **open_to_all)
        if head.wait(150) != 0:  # as `at_last` says
            head = begin([*words, "--include-dashboard=false", "--disable-usage-stats"], head_log, **settings, **open_to_all)
        assert head.wait(150) == 0, head_log.read_text()
        address = (place / "ray_current_cluster").read_text().strip()
        process = start(tmp_path, log, *LONG, RAY_ADDRESS=address, **settings, **open_to_all)
        wait_for(lambda: len(searched(run)) >= 3, process, log)
        (gcs,) = (pid for pid, program in marked(mark).items() if program == "gcs_server")
        os.kill(gcs, signal.SIGKILL)
        said = ended_with(process, log, 90)
        assert f"the head of the Ray cluster (its GCS at {address}) has not answered" in said
        assert "the same command goes on from the last epoch" in said
        assert not (run / "driver.json").exists()

        process = start(tmp_path, log, *LONG, RAY_ADDRESS="local", **settings)
        wait_for(lambda: raylets_of(process.pid, mark), process, log)
        # The driver holds the folder by now, which refuses the workers of the lost cluster: they write no epochs any more.
        before = len(searched(run))
        wait_for(lambda: len(searched(run)) >= before + 3, process, log)
        epochs = searched(run)
        assert len(epochs) - len(set(epochs)) <= 1, epochs
        (raylet,) = raylets_of(process.pid, mark)
        os.kill(raylet, signal.SIGKILL)
        began = time.monotonic()
        assert "Ray's process on the driver's node (the raylet) died" in ended_with(process, log, 60)
        assert time.monotonic() - began < 40
        assert not (run / "driver.json").exists()
        deadline = time.monotonic() + 60
        while {"ray::RayTrainWorker", "ray::search_alone"} & {title(pid) for pid in marked(mark)}:
            assert time.monotonic() < deadline, "a worker of the lost cluster lives on"
            time.sleep(0.5)
    finally:
        for pid in marked(mark):
            os.kill(pid, signal.SIGKILL)
        shutil.rmtree(place, ignore_errors=True)


def raylets_of(driver: int, mark: str) -> list[int]:
    """The raylet of the cluster that a driver started; empty where it has started none yet."""
    return [pid for pid, program in marked(mark).items() if program == "raylet" and parent(pid) == driver]
