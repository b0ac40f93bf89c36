"""`ray job submit` against a running cluster with token authentication, as a person does it."""

import json
import os
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
from conftest import free_port

# Side by side, one process runs all of them, so that the cluster starts once.
pytestmark = [pytest.mark.faults, pytest.mark.timeout(600), pytest.mark.xdist_group("submitted")]

PROJECT = Path(__file__).parents[1]
RAY = Path(sys.executable).with_name("ray")
QUICK = [
    *("--budgets", "0.5", "--data.limit", "256", "--dense.epochs", "1", "--dense.warmup_epochs", "0"),
    *("--retrain.epochs", "1", "--retrain.warmup_epochs", "0", "--search.paces", "[{}]"),
    *("--resources.max_concurrent_trials", "1"),  # fewer processes that load torch
]


@dataclass
class Head:
    """A running cluster and what a submitter needs to know of it."""

    environment: dict[str, str]
    scratch: Path

    def ray(self, *words: str, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [RAY, *words],
            cwd=PROJECT,
            env={**self.environment, **environment},
            text=True,
            capture_output=True,
            timeout=300,
            check=False,
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    def submit(self, output: Path, *more: str, name: str, wait: bool = True, check: bool = True) -> str:
        """Submit the project's own folder as the working directory."""
        words = [*(() if wait else ("--no-wait",)), "--submission-id", name, "--working-dir", "."]
        command = [sys.executable, "-m", "slimsweep.run", "--output", str(output), "--name", "submitted", *QUICK, *more]
        done = self.ray("job", "submit", *words, "--", *command, check=check)
        return done.stdout + done.stderr


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """A cluster of one node and two CPUs, which lets in only who knows its token."""
    scratch = tmp_path_factory.mktemp("head")
    token = scratch / "token"
    token.write_text(secrets.token_hex(32))
    gcs, dashboard = free_port(), free_port()
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith("RAY_")},
        **{"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_USAGE_STATS_ENABLED": "0"},
    }
    place = Path("/tmp", f"ray-{secrets.token_hex(3)}")  # socket paths are limited to 107 characters
    words = ["--head", "--block", f"--port={gcs}", f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1"]
    # A cluster that another test left behind may still hold the agent's usual port, and without one no job can be submitted.
    words += ["--dashboard-agent-listen-port=0"]
    with (scratch / "log").open("w") as log:
        process = subprocess.Popen(
            [RAY, "start", *words, "--num-cpus=2", f"--temp-dir={place}", "--disable-usage-stats"],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        found = Head({**environment, "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}"}, scratch)
        deadline = time.time() + 180
        # The dashboard answers before the agent that starts jobs does: ready is who has run one.
        while (said := found.ray("job", "submit", "--", "true", check=False)).returncode:
            assert process.poll() is None, (scratch / "log").read_text()
            assert time.time() < deadline, said.stdout + said.stderr + (scratch / "log").read_text()
            time.sleep(1)
        yield found
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # asked to end, `ray start --block` would wait half a minute for its processes
        process.wait(30)


@pytest.mark.parametrize("output", [[], ["--output", "results"]], ids=["without --output", "relative"])
def test_a_job_whose_results_would_lie_in_rays_copy_is_refused(head: Head, output: list[str]) -> None:
    name = f"lost-{len(output)}"
    command = [sys.executable, "-m", "slimsweep.run", *output, *QUICK]
    done = head.ray("job", "submit", "--submission-id", name, "--working-dir", ".", "--", *command, check=False)
    assert done.returncode == 1  # Ray's own code for any job that did not end with 0
    logs = " ".join(head.ray("job", "logs", name).stdout.split())
    assert re.search(r"output is \S+/working_dir_files/\S+, in Ray's own copy of the working directory", logs), logs
    assert "give a folder that all nodes share, or an object store" in logs
    assert "exit code 2" in done.stdout + done.stderr
    assert "epoch 0/" not in logs
    assert "Traceback" not in logs


def test_a_submitted_run_ends_with_its_report_and_readable_logs(head: Head, tmp_path: Path) -> None:
    said = head.submit(tmp_path, "--search.epochs", "1", name="ends")
    assert "succeeded" in said
    run = tmp_path / "submitted"
    rows = pd.read_parquet(run / "results")
    assert len(rows) == 2
    assert (rows.status == "ok").all()
    assert (run / "report.html").exists()
    logs = head.ray("job", "logs", "ends").stdout
    lines = [line for line in re.sub(r"\x1b\[[0-9;]*m", "", logs).splitlines() if line.strip()]
    assert any("searched-0.5000" in line and "done" in line for line in lines)
    assert any(line.startswith("Report: ") for line in lines)
    assert len(lines) < 60, "the log is no longer something that a person reads"

    # From anywhere that sees the storage, without a cluster.
    status = subprocess.run(
        [sys.executable, "-m", "slimsweep.cli", "status", str(run)], capture_output=True, text=True, check=True
    ).stdout
    assert "all points are done" in " ".join(status.split())


def test_who_has_no_token_is_not_let_in(head: Head, tmp_path: Path) -> None:
    wrong = tmp_path / "token"
    wrong.write_text(secrets.token_hex(32))
    for environment in ({"RAY_AUTH_TOKEN_PATH": str(wrong)}, {"RAY_AUTH_MODE": "disabled"}):
        done = head.ray("job", "submit", "--", "true", check=False, **environment)
        assert done.returncode != 0
        assert "succeeded" not in done.stdout


def test_a_job_fails_when_its_input_is_refused_or_a_point_failed(head: Head, tmp_path: Path) -> None:
    refused = head.ray("job", "submit", "--submission-id", "refused", "--working-dir", ".", "--",
                       sys.executable, "-m", "slimsweep.run", "--budgets", "7", check=False)  # fmt: skip
    assert refused.returncode == 1
    assert "budget" in refused.stdout + refused.stderr
    said = head.submit(
        tmp_path, "--search.epochs", "1", "--retrain.lr", "1e30", "--retrain.clip_grad", "null", name="fails", check=False
    )
    assert "failed" in said
    assert "failed" in head.ray("job", "status", "fails").stdout.lower()
    assert (pd.read_parquet(tmp_path / "submitted" / "results").status == "failed").all()


def test_a_stopped_job_keeps_its_state_and_goes_on(head: Head, tmp_path: Path) -> None:
    run = tmp_path / "submitted"
    long = ("--search.epochs", "40")

    def epochs() -> list[int]:
        file = run / "epochs.log"
        entries = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        return [e["epoch"] for e in entries if e["stage"] == "search"]

    head.submit(tmp_path, *long, name="stopped", wait=False)
    deadline = time.time() + 300
    while len(epochs()) < 3:
        assert time.time() < deadline, head.ray("job", "logs", "stopped").stdout
        time.sleep(0.1)
    head.ray("job", "stop", "stopped")
    assert "the same command goes on" in " ".join(head.ray("job", "logs", "stopped").stdout.split())
    assert not (run / "driver.json").exists()
    before = epochs()
    assert len(before) < 40
    assert "succeeded" in head.submit(tmp_path, *long, name="goes-on")
    assert min(epochs()[len(before) :]) > before[-2]
    assert (pd.read_parquet(run / "results").status == "ok").all()
