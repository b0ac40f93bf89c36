"""`slimsweep serve` as people start it: on Ray Serve, on a Ray of its own."""

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="fastapi is not installed (pip install 'slimsweep[serve]')")

from service_runs import TOKEN, make_run


def status_of(address: str, method: str = "GET", **headers: str) -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(address, method=method, headers=headers), timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as refused:
        return refused.code


@pytest.mark.cluster
def test_it_serves_until_it_is_stopped_and_leaves_nothing_behind(tmp_path: Path) -> None:
    make_run(tmp_path / "runs" / "one")
    (tmp_path / "token").write_text(TOKEN)
    port = 18000 + os.getpid() % 10000
    words = [
        "serve",
        str(tmp_path / "runs"),
        "--port",
        str(port),
        "--token-file",
        str(tmp_path / "token"),
        "--reading",
        "token",
    ]
    environment = {**os.environ, "RAY_ADDRESS": "local", "HOME": str(tmp_path)}  # with a token of its own for Ray
    started = subprocess.Popen(
        [sys.executable, "-m", "slimsweep.cli", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        start_new_session=True,
    )
    assert started.stdout is not None
    said = ""
    try:
        while "Ctrl+C ends the service" not in said:
            line = started.stdout.readline()
            assert line, said
            said += line
        address = f"http://localhost:{port}"
        assert address in said
        assert "reading asks for the token; acting asks for the token" in said
        assert status_of(f"{address}/runs/one") == 401
        assert status_of(f"{address}/runs/one", Authorization=f"Bearer {TOKEN}") == 200
        assert status_of(f"{address}/runs/one", Authorization=f"Bearer {TOKEN}", Host="evil.example") == 421
        assert status_of(f"{address}/api/sign-in", "POST", Authorization=f"Bearer {TOKEN}") == 204
    finally:
        started.send_signal(signal.SIGTERM)
        rest = started.communicate(timeout=120)[0]
    assert started.returncode == 0, rest
    assert "the service has ended" in rest
    assert TOKEN not in said + rest
    time.sleep(1)
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"{address}/", timeout=5)
