"""A whole run on an object store, over the real S3 protocol: moto's server on the loopback."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pyarrow.fs as pafs
import pytest
from conftest import free_port

from slimsweep.saved_models import load
from slimsweep.tools.export import export_model

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]

QUICK = [
    *("--budgets", "0.5", "--data.limit", "256", "--dense.epochs", "1", "--dense.warmup_epochs", "0"),
    *("--search.epochs", "2", "--retrain.epochs", "2", "--retrain.warmup_epochs", "0", "--search.paces", "[{}]"),
]


@pytest.fixture(scope="module")
def store() -> Iterator[dict[str, str]]:
    """The environment in which s3:// means the server here, which has one empty bucket, `sweeps`."""
    pytest.importorskip("moto", reason="moto, whose server speaks S3, is not installed")
    port = free_port()
    server = subprocess.Popen(
        [Path(sys.executable).with_name("moto_server"), "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.time() + 180
        while socket.socket().connect_ex(("127.0.0.1", port)):
            assert server.poll() is None
            assert time.time() < deadline
            time.sleep(0.2)
        keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
        pafs.S3FileSystem(
            access_key="key",
            secret_key="secret",
            region="us-east-1",
            scheme="http",
            endpoint_override=f"127.0.0.1:{port}",
            allow_bucket_creation=True,
        ).create_dir("sweeps")
        yield {**keys, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}
    finally:
        server.terminate()
        server.wait(30)


def slimsweep(module: str, *words: str, store: dict[str, str]) -> str:
    environment = {**{k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}, **store}
    command = [sys.executable, "-m", module, *words]
    done = subprocess.run(command, env=environment, text=True, capture_output=True, timeout=400, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_run_on_an_object_store_is_whole_and_goes_on(store: dict[str, str], tmp_path: Path, monkeypatch) -> None:
    run = ["slimsweep.run", "--output", "s3://sweeps/team", "--name", "remote", *QUICK]
    said = slimsweep(*run, store=store)
    assert "Report: s3://sweeps/team/remote/report.html" in said
    for key, value in store.items():
        monkeypatch.setenv(key, value)
    fs, path = pafs.FileSystem.from_uri("s3://sweeps/team/remote")
    rows = pd.read_parquet("sweeps/team/remote/results", filesystem=fs)
    assert len(rows) == 2
    assert (rows.status == "ok").all()
    # One budget more: only that point is trained.
    more = slimsweep(*run, "--budgets", "0.5,0.3", store=store)
    assert "Sweep: 1 points" in more
    rows = pd.read_parquet("sweeps/team/remote/results", filesystem=fs)
    assert len(rows) == 3
    assert not fs.get_file_info(pafs.FileSelector(f"{path}/checkpoints", recursive=True, allow_not_found=True))
    assert fs.get_file_info(f"{path}/driver.json").type == pafs.FileType.NotFound

    assert "all points are done" in " ".join(
        slimsweep("slimsweep.cli", "status", "s3://sweeps/team/remote", store=store).split()
    )
    page = tmp_path / "page.html"
    slimsweep("slimsweep.cli", "report", "s3://sweeps/team/remote", "--output", str(page), store=store)
    assert page.stat().st_size > 1_000_000
    picked = slimsweep("slimsweep.cli", "pick", "s3://sweeps/team/remote", "--min-top1", "0", store=store).strip()
    assert picked.startswith("s3://sweeps/team/remote/models/")
    assert sum(p.numel() for p in load(picked).parameters()) > 0
    assert export_model(picked, "timm", tmp_path / "exported").is_dir()
