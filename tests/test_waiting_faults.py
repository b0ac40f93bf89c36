"""Real processes that wait: for a cluster that is not there, for CPUs that somebody holds, for a store that is away."""

import contextlib
import http.client
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pandas as pd
import pyarrow.fs as pafs
import pytest
from conftest import files_of_store, free_port

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]

QUICK = [
    *("--budgets", "0.5", "--data.limit", "256", "--dense.epochs", "1", "--dense.warmup_epochs", "0"),
    *("--search.epochs", "1", "--retrain.epochs", "2", "--retrain.warmup_epochs", "0", "--search.paces", "[{}]"),
    *("--resources.max_concurrent_trials", "1"),  # fewer processes that load torch
]
# Somebody's cluster of two CPUs, who holds both until a signal comes.
HOLDER = """
import ray, signal, time
ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
@ray.remote(num_cpus=2)
class Holder:
    def ready(self):
        pass
holder = Holder.remote()
ray.get(holder.ready.remote())
signal.signal(signal.SIGUSR1, lambda *_: ray.kill(holder))
print(ray.get_runtime_context().gcs_address, flush=True)
while True:
    time.sleep(0.1)
"""
STARTED: list[subprocess.Popen] = []


@pytest.fixture(autouse=True)
def _no_process_outlives_its_test() -> Iterator[None]:
    yield
    while STARTED:
        process = STARTED.pop()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)


def begin(words: list, log: Path, **environment: str) -> subprocess.Popen:
    """A process in a group of its own, whose output goes to a file."""
    variables = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | environment
    with log.open("w") as stream:
        process = subprocess.Popen(words, stdout=stream, stderr=subprocess.STDOUT, env=variables, start_new_session=True)
    STARTED.append(process)
    return process


def start(output: Path | str, log: Path, *more: str, **environment: str) -> subprocess.Popen:
    words = [sys.executable, "-u", "-m", "slimsweep.run", "--output", str(output), "--name", "w", *QUICK, *more]
    return begin(words, log, **environment)


def wait_for(reached: Callable[[], object], process: subprocess.Popen, log: Path, seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not reached():
        assert process.poll() is None, f"it ended too early:\n{log.read_text()}"
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)


def status(run: str, **environment: str) -> str:
    words = [sys.executable, "-m", "slimsweep.cli", "status", run]
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, **environment}, timeout=120, check=True)
    return " ".join(done.stdout.split())


@pytest.mark.long
def test_nobody_at_the_address_is_said_at_once_and_given_up_in_a_minute(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        log = tmp_path / "log"
        process = start(tmp_path, log, RAY_ADDRESS=address)
        wait_for(lambda: f"connecting to the Ray cluster at {address} (from RAY_ADDRESS)" in log.read_text(), process, log, 120)
        began = time.monotonic()
        assert process.wait(120) == 2
        assert time.monotonic() - began < 80
    assert "unset it" in log.read_text()
    assert "Traceback" not in log.read_text()
    assert not (tmp_path / "w" / "driver.json").exists()


def test_the_file_of_an_earlier_ray_start_is_named_and_the_run_goes_on(tmp_path: Path) -> None:
    place, log = Path("/tmp", f"slim-{secrets.token_hex(3)}"), tmp_path / "log"  # paths of sockets are short
    (place / "ray").mkdir(parents=True)
    (place / "ray" / "ray_current_cluster").write_text("127.0.0.1:9")
    try:
        process = start(tmp_path, log, RAY_TMPDIR=str(place))
        assert process.wait(400) == 0, log.read_text()
    finally:
        shutil.rmtree(place, ignore_errors=True)
    assert f"{place}/ray/ray_current_cluster is left from an earlier `ray start`" in log.read_text()
    assert len(pd.read_parquet(tmp_path / "w" / "results")) == 2


def test_a_run_whose_cpus_somebody_holds_says_so_until_they_are_free(tmp_path: Path) -> None:
    held, log = tmp_path / "held", tmp_path / "log"
    holder = begin([sys.executable, "-c", HOLDER], held)
    wait_for(lambda: held.read_text().strip(), holder, held)
    process = start(tmp_path, log, RAY_ADDRESS=held.read_text().strip(), RAY_AUTH_MODE="token")
    text = "waiting for 1 CPU (0 of 2 free)"
    wait_for(lambda: text in log.read_text(), process, log)
    said = status(str(tmp_path / "w"))
    assert f"dense is at epoch 0 of 1; {text}" in said
    assert "dense waiting 0/1" in said
    assert log.read_text().count(text) == 1
    holder.send_signal(signal.SIGUSR1)
    wait_for(lambda: "dense: done" in log.read_text(), process, log)
    assert text not in status(str(tmp_path / "w"))
    assert process.wait(400) == 0, log.read_text()
    assert not (tmp_path / "w" / "waiting.json").exists()


def test_another_token_is_one_sentence(tmp_path: Path) -> None:
    held, log = tmp_path / "held", tmp_path / "log"
    holder = begin([sys.executable, "-c", HOLDER], held)
    wait_for(lambda: held.read_text().strip(), holder, held)
    process = start(
        tmp_path, log, RAY_ADDRESS=held.read_text().strip(), RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32)
    )
    assert process.wait(120) == 2
    assert "refused this driver's token: set RAY_AUTH_MODE=token" in log.read_text()
    assert len(log.read_text().splitlines()) <= 2


def test_a_token_that_the_cluster_does_not_ask_for_is_one_sentence(tmp_path: Path) -> None:
    """The head then asks this driver without one, and is refused."""
    held, log = tmp_path / "held", tmp_path / "log"
    holder = begin([sys.executable, "-c", HOLDER], held, RAY_AUTH_MODE="disabled")
    wait_for(lambda: held.read_text().strip(), holder, held)
    process = start(
        tmp_path, log, RAY_ADDRESS=held.read_text().strip(), RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32)
    )
    assert process.wait(120) == 1, log.read_text()
    said = log.read_text()
    assert "Traceback" not in said
    assert "where the cluster asks for no token, unset RAY_AUTH_MODE" in said.splitlines()[-1]


class Gate(ThreadingHTTPServer):
    """Passes requests on to an S3 server; while it is shut it answers as a store does whose credentials have expired."""

    daemon_threads = True
    shut = False
    EXPIRED = b"<?xml version='1.0'?><Error><Code>ExpiredToken</Code><Message>The provided token has expired.</Message></Error>"

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", 0), Passing)
        self.port = port
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Passing(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Gate

    def answer(self) -> None:
        body = self.chunks() if self.headers.get("Transfer-Encoding") == "chunked" else self.exactly(self.headers)
        if self.server.shut:
            status, headers, content = 400, [("Content-Type", "application/xml")], Gate.EXPIRED
        else:
            there = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=60)
            skipped = ("transfer-encoding", "content-length", "expect", "connection")
            headers_there = {name: value for name, value in self.headers.items() if name.lower() not in skipped}
            there.request(self.command, self.path, body, headers_there)
            answer = there.getresponse()
            status, headers, content = answer.status, answer.getheaders(), answer.read()
            there.close()
        self.send_response(status)
        length = str(len(content))
        for name, value in headers:
            if name.lower() == "content-length":
                length = value  # of a HEAD: that of the content which is not sent
            elif name.lower() not in ("transfer-encoding", "connection", "date", "server"):
                self.send_header(name, value)
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def exactly(self, headers: Message) -> bytes:
        return self.rfile.read(int(headers.get("Content-Length", 0)))

    def chunks(self) -> bytes:
        """The content of a request that comes in chunks, each after a line with its length."""
        found = b""
        while length := int(self.rfile.readline().split(b";")[0], 16):
            found += self.rfile.read(length)
            self.rfile.readline()
        while self.rfile.readline().strip():  # what follows the last
            pass
        return found

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = answer

    def log_message(self, *_: object) -> None:
        """Nothing on standard error."""


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    """A gate before an S3 server on the loopback, which has one bucket, `sweeps`."""
    pytest.importorskip("moto", reason="moto, whose server speaks S3, is not installed")
    port = free_port()
    log = tmp_path / "moto"
    words = [str(Path(sys.executable).with_name("moto_server")), "-H", "127.0.0.1", "-p", str(port)]
    process = begin(words, log)
    wait_for(lambda: not socket.socket().connect_ex(("127.0.0.1", port)), process, log)
    with Gate(port) as found:
        files(found).create_dir("sweeps")
        yield found
        found.shutdown()


def files(gate: Gate) -> pafs.S3FileSystem:
    return files_of_store(gate.server_address[1])


def keys(gate: Gate) -> dict[str, str]:
    """The environment in which s3:// means the gate."""
    address = f"http://127.0.0.1:{gate.server_address[1]}"
    keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
    return {**keys, "AWS_ENDPOINT_URL": address}


LONGER = ("--search.epochs", "30")


def in_the_middle_without_credentials(gate: Gate, log: Path) -> subprocess.Popen:
    """A run whose store has refused it for half a minute, in the middle of its search."""
    process = start("s3://sweeps", log, *LONGER, **keys(gate))
    wait_for(lambda: "search: running, epoch" in log.read_text(), process, log)
    gate.shut = True
    wait_for(lambda: "cannot be read or written just now" in log.read_text(), process, log)
    time.sleep(30)
    assert process.poll() is None, log.read_text()
    assert log.read_text().count("AWS Error") <= 6, log.read_text()  # a line of the display, one per failed beat at first
    assert "Traceback" not in log.read_text()
    return process


@pytest.mark.long
def test_a_store_whose_credentials_expire_and_are_renewed_costs_no_point(gate: Gate, tmp_path: Path) -> None:
    log = tmp_path / "log"
    process = in_the_middle_without_credentials(gate, log)
    gate.shut = False
    assert process.wait(400) == 0, log.read_text()
    assert "can be read and written again" in log.read_text()
    rows = pd.read_parquet("sweeps/w/results", filesystem=files(gate))
    assert list(rows.status) == ["ok", "ok"]


@pytest.mark.long
def test_sigterm_ends_a_run_whose_store_is_away_with_stopped(gate: Gate, tmp_path: Path) -> None:
    log = tmp_path / "log"
    process = in_the_middle_without_credentials(gate, log)
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 130, log.read_text()
    assert "slimsweep: stopped" in log.read_text()
    assert "Traceback" not in log.read_text()
