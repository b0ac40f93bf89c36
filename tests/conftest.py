"""Ray is started once for the whole suite, and one small sweep is run through it that many tests look at."""

import atexit
import gc
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest
from chromium import CHROMIUM

if TYPE_CHECKING:
    import pyarrow.fs as pafs
    import torch

    from slimsweep.ledger.run import Run

# Until all modules of the tests are loaded: they leave no garbage, and looking for it takes a quarter of the time.
gc.disable()

# Side by side (`-n 2`), every process of the tests has one core; set before torch is imported, and for what tests start. Each
# also has its own place for Ray's files: a driver without an address joins the cluster whose address lies there.
if worker := os.environ.get("PYTEST_XDIST_WORKER"):
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    place = Path("/tmp", f"slim-{os.getpid()}-{worker}")  # paths of sockets are short
    place.mkdir()
    os.environ["RAY_TMPDIR"] = str(place)
    atexit.register(shutil.rmtree, place, ignore_errors=True)

# The device of the tests that are marked gpu; they can be rehearsed on a CPU. Read here, before tests forget such variables.
GPU_TEST_DEVICE = os.environ.get("SLIMSWEEP_TEST_DEVICE", "cuda")

# How long an example takes says more about the machine than about the code.
hypothesis.settings.register_profile("slimsweep", deadline=None)
hypothesis.settings.load_profile("slimsweep")

QUICK = [
    *("--dense.epochs", "3", "--dense.warmup_epochs", "0", "--search.epochs", "2"),
    *("--retrain.epochs", "1", "--retrain.warmup_epochs", "0", "--data.limit", "256", "--search.paces", "[{}]"),
]


# Fixtures that are slow to start: side by side, one process runs all tests that need one, so that the suite starts it once.
GROUPS = {"ray_cluster": "ray", "browser": "browser", "mlflow_server": "mlflow"}


@pytest.hookimpl(wrapper=True)  # before xdist reads the groups, and after all that has another order
def pytest_collection_modifyitems(items: list[pytest.Item]) -> Iterator[None]:
    """Put each test into the group of the first of GROUPS that it needs, and those that are marked long at the beginning."""
    for item in items:
        needed = getattr(item, "fixturenames", ())
        if (group := next((group for fixture, group in GROUPS.items() if fixture in needed), None)) is not None:
            item.add_marker(pytest.mark.xdist_group(group))
    yield
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


def pytest_collection_finish() -> None:
    """Collect garbage from now on, but leave alone what has been loaded."""
    gc.freeze()
    atexit.register(gc.unfreeze)  # libraries warn of what is left at the end
    gc.enable()


@pytest.fixture(autouse=True, scope="module")
def _garbage_is_collected_by_modules() -> Iterator[None]:
    """What outlives the tests of a module is not looked at again: that took 8 % of the time."""
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the person who runs the tests has set for slimsweep does not reach them."""
    for name in [n for n in os.environ if n.startswith("SLIMSWEEP_")]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A local Ray of two CPUs, with the settings of one that `slimsweep.run` starts, which it joins here."""
    from slimsweep.cluster import set_ray_defaults

    set_ray_defaults()
    import ray

    from slimsweep.cluster.own_cluster import PROCESSES_STAY, SETTINGS, in_environment
    from slimsweep.cluster.tasks import environment

    with in_environment(SETTINGS | PROCESSES_STAY):
        quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
        ray.init(address="local", num_cpus=2, **environment(), **quiet)
        yield
        ray.shutdown()


@pytest.fixture(scope="session")
def small_run(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished sweep of digits: two budgets and the dense point, an epoch each."""
    from slimsweep.run import main

    output = tmp_path_factory.mktemp("runs")
    assert main(["--output", str(output), "--name", "small", "--budgets", "0.5,0.25", *QUICK]) == 0
    return output / "small"


@pytest.fixture
def finished(small_run: Path, tmp_path: Path) -> "Run":
    """A copy of that sweep, to go on with."""
    from slimsweep.ledger.run import Run

    shutil.copytree(small_run, tmp_path / "small")
    return Run(tmp_path / "small")


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@dataclass(frozen=True)
class Store:
    """A server on this machine that speaks S3, with one bucket, `sweeps`."""

    environment: dict[str, str]  # in which s3:// means this server
    log: Path

    @contextmanager
    def requests(self) -> Iterator[list[str]]:
        """The requests that come in while the block runs, such as "GET /sweeps/team/config.yaml"; filled at its end."""
        before, found = len(self._logged()), list[str]()
        yield found
        found += self._logged()[before:]

    def _logged(self) -> list[str]:
        return re.findall(r"((?:GET|HEAD|PUT|POST|DELETE) /\S*) HTTP/", self.log.read_text())


def files_of_store(port: int) -> "pafs.S3FileSystem":
    """The files of a server on this machine that speaks S3."""
    import pyarrow.fs as pafs

    return pafs.S3FileSystem(
        access_key="key",
        secret_key="secret",
        region="us-east-1",
        scheme="http",
        endpoint_override=f"127.0.0.1:{port}",
        allow_bucket_creation=True,
    )


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """moto's server on the loopback."""
    pytest.importorskip("moto", reason="moto, whose server speaks S3, is not installed")
    port, log = free_port(), tmp_path_factory.mktemp("store") / "log"
    command = [Path(sys.executable).with_name("moto_server"), "-H", "127.0.0.1", "-p", str(port)]
    with log.open("w") as said:
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said)
    try:
        deadline = time.time() + 180
        while socket.socket().connect_ex(("127.0.0.1", port)):
            assert server.poll() is None, log.read_text()
            assert time.time() < deadline
            time.sleep(0.2)
        keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
        files_of_store(port).create_dir("sweeps")
        yield Store({**keys, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}, log)
    finally:
        server.terminate()
        server.wait(30)


def changed(run: "Run", **changes: Any) -> "Run":
    """The run's folder as it is now, for a driver with other values in its configuration."""
    from slimsweep.cluster.worker import data_for
    from slimsweep.ledger.run import Run

    other = Run(run.folder, run.config.changed(**changes))
    if any(name.startswith("data.") for name in changes):  # other splits, which a driver's start would record
        other.write_known_data(data_for(other.config).fingerprint)
    return other


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium, started once: playwright allows one start per process. Tests that ask for it skip where there is none."""
    from playwright import sync_api

    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture
def device() -> Iterator["torch.device"]:
    """The GPU, or what SLIMSWEEP_TEST_DEVICE names; convolutions and products of float32 are not rounded to TF32 on it."""
    import torch

    if GPU_TEST_DEVICE == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA GPU; SLIMSWEEP_TEST_DEVICE=cpu rehearses this test on a CPU")
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield torch.device(GPU_TEST_DEVICE)
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.fixture
def cuda(device: "torch.device") -> "torch.device":
    """The GPU, for a test that says nothing on a CPU."""
    if device.type != "cuda":
        pytest.skip(f"needs a CUDA GPU, and SLIMSWEEP_TEST_DEVICE is {GPU_TEST_DEVICE}")
    return device
