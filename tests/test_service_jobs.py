"""Sweeps through the service on a real cluster: submitted by its Jobs API, stopped in the middle, gone on with and extended."""

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from conftest import free_port

pytest.importorskip("fastapi")
from fastapi.testclient import TestClient

from slimsweep.service.app import make_app
from slimsweep.service.settings import Settings
from slimsweep.service.sweeps import Sweeps

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

RAY = Path(sys.executable).with_name("ray")
TOKEN = "a token of the test, long"
SIGNED = {"Authorization": f"Bearer {TOKEN}"}
EPOCHS = 8
FIELDS = {
    "name": "asked",
    "budgets": "0.5",
    "data.limit": "256",
    "dense.epochs": "1",
    "dense.warmup_epochs": "0",
    "retrain.epochs": str(EPOCHS),
    "retrain.warmup_epochs": "0",
    "search.paces": "[{}]",
}


@pytest.fixture(scope="module")
def dashboard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A cluster of one node and two CPUs on loopback; the address of its dashboard."""
    scratch = tmp_path_factory.mktemp("head")
    gcs, port = free_port(), free_port()
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    environment |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    place = Path("/tmp", f"ray-{secrets.token_hex(3)}")  # socket paths are limited to 107 characters
    words = ["--head", "--block", f"--port={gcs}", f"--dashboard-port={port}", "--dashboard-host=127.0.0.1"]
    words += ["--dashboard-agent-listen-port=0", "--num-cpus=2", f"--temp-dir={place}"]
    with (scratch / "log").open("w") as log:
        process = subprocess.Popen(
            [RAY, "start", *words, "--disable-usage-stats"],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def wait_for(what, seconds=420.0, why=lambda: ""):
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, why()
        time.sleep(1.0)
    return found


def test_a_sweep_is_submitted_stopped_gone_on_with_and_extended(dashboard: str, tmp_path: Path) -> None:
    app = make_app(Settings(output=str(tmp_path), token=TOKEN))
    app.state.sweeps = Sweeps(str(tmp_path), dashboard)
    run = tmp_path / "asked"
    with TestClient(app, base_url="http://localhost") as service:

        def post(path, body=None):
            return service.post(path, json=body, headers=SIGNED)

        def log():
            return service.get("/api/sweeps/log?run=asked", headers=SIGNED).json()

        def epochs():
            lines = (run / "epochs.log").read_text().splitlines() if (run / "epochs.log").exists() else []
            return [json.loads(line) for line in lines]

        said: list[str] = []

        def started():
            answer = post("/api/sweeps", {"preset": "digits", "fields": FIELDS})
            assert answer.status_code in (201, 503), answer.text  # the dashboard may not answer yet
            said.append(answer.text)
            return answer.status_code == 201

        wait_for(started, why=lambda: said[-1])
        assert post("/api/sweeps", {"preset": "digits", "fields": FIELDS}).status_code == 409

        def retrains():
            assert log()["state"] in ("waiting", "running"), log()
            return [one for one in epochs() if one["stage"] == "retrain"]

        wait_for(retrains, why=lambda: log()["log"])
        assert post("/api/sweeps/stop?run=asked").status_code == 202
        wait_for(lambda: log()["state"] == "stopped")
        before = [(one["stage"], one.get("point"), one["epoch"]) for one in epochs()]
        done = pd.read_parquet(run / "results") if (run / "results").exists() else pd.DataFrame({"point": []})
        assert len(done) < 2

        answer = post("/api/sweeps/go-on?run=asked", {"budgets": ["0.3"]})
        assert answer.status_code == 201, answer.text
        wait_for(lambda: log()["state"] not in ("waiting", "running"), why=lambda: log()["log"])
        assert log()["state"] == "done", log()["log"]
        rows = pd.read_parquet(run / "results")
        assert sorted(rows.budget.round(2)) == [0.3, 0.5, 1.0]
        assert set(rows.status) == {"ok"}
        assert (run / "report.html").exists()
        # Nothing that was done before was trained again: the dense model's epoch, and those of points before a checkpoint.
        after = [(one["stage"], one.get("point"), one["epoch"]) for one in epochs()]
        assert after[: len(before)] == before
        assert len([one for one in after if one[0] == "dense"]) == 1
        listed = service.get("/api/sweeps", headers=SIGNED).json()
        assert listed["runs"] == ["asked"]
        assert [job["state"] for job in listed["jobs"]] == ["done", "stopped"]
        # And a point of it can be taken away: each model has its card.
        for point in rows.point:
            assert f"# {point}" in (run / "models" / point / "README.md").read_text()
