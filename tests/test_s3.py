"""A whole run on an object store, over the real S3 protocol: moto's server on the loopback."""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pyarrow.fs as pafs
import pytest
from conftest import Store

from slimsweep.saved_models import load
from slimsweep.tools.export import export_model

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]

QUICK = [
    *("--budgets", "0.5", "--data.limit", "256", "--dense.epochs", "1", "--dense.warmup_epochs", "0"),
    *("--search.epochs", "2", "--retrain.epochs", "2", "--retrain.warmup_epochs", "0", "--search.paces", "[{}]"),
    *("--resources.max_concurrent_trials", "1"),  # fewer processes that load torch
]


def slimsweep(module: str, *words: str, store: Store) -> str:
    environment = {**{k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}, **store.environment}
    command = [sys.executable, "-m", module, *words]
    done = subprocess.run(command, env=environment, text=True, capture_output=True, timeout=400, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.long
def test_a_run_on_an_object_store_is_whole_and_goes_on(store: Store, tmp_path: Path, monkeypatch) -> None:
    run = ["slimsweep.run", "--output", "s3://sweeps/team", "--name", "remote", *QUICK]
    said = slimsweep(*run, store=store)
    assert "Report: s3://sweeps/team/remote/report.html" in said
    for key, value in store.environment.items():
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
