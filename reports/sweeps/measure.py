"""How long a sweep takes besides its trainings, and what a run of many points costs to look at; writes README.md's tables.

    python reports/sweeps/measure.py trials  # eight equal trainings on two CPUs, and half the time that they train
    python reports/sweeps/measure.py points  # `slimsweep status` and `slimsweep report` of a run of 2,000 points

Nothing else may run on the machine: where something does, the table says so.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import ray
import torch

from slimsweep.ledger.run import Run

sys.path.append(str(Path(__file__).parents[1]))  # reports/, for the module that they share
sys.path.append(str(Path(__file__).parents[2] / "tests"))  # for their run of many points
from many_points import run_of_many_points
from measured_parts import measure_parts

HERE = Path(__file__).parent
TRIALS, CPUS = 8, 2
EPOCHS = (20, 60)  # of each training: those of the default job, and more
POINTS, ROUNDS = 2000, 5
SWEEP = ["--budgets", "0.9", "--retrain.seeds", str(TRIALS // 2), "--search.epochs", "0", "--search.paces", "[{}]"]


def trials(folder: Path) -> str:
    """Markdown: a line per length of the trainings."""
    lines = [
        f"| epochs of each training | seconds of all epochs, sum / {CPUS} | seconds of the sweep | ratio |",
        "| ---: | ---: | ---: | ---: |",
    ]
    for epochs in EPOCHS:
        trained, took = one_sweep(folder / str(epochs), epochs)
        lines.append(f"| {epochs} | {trained:.1f} | {took:.1f} | {took / trained:.2f} |")
    return "\n".join(lines)


def one_sweep(output: Path, epochs: int) -> tuple[float, float]:
    """Seconds of the epochs of eight points of digits, divided by the CPUs, and seconds from Tune's start to the last row.

    The dense model and its cut to nine tenths, with four seeds each, so that all take nearly as long.
    """
    words = [sys.executable, "-m", "slimsweep.run", "--output", str(output), *SWEEP, "--retrain.epochs", str(epochs)]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        began = next(time.time() for line in process.stdout if line.startswith(f"Sweep: {TRIALS} points"))
        process.stdout.read()
    if process.returncode:
        raise SystemExit(f"the sweep ended with {process.returncode}")
    run = Run(output / "digits")
    assert len(run.rows) == TRIALS
    ended = max(file.stat().st_mtime for file in (output / "digits" / "results").iterdir())
    times: dict[str, list[float]] = {}
    for line in (output / "digits" / "epochs.log").read_text().splitlines():
        entry = json.loads(line)
        if entry["stage"] == "retrain":
            times.setdefault(entry["point"], []).append(entry["time"])
    # The log says when epochs ended, so the first one is counted as long as the others.
    seconds = sum((ends[-1] - ends[0]) * epochs / (epochs - 1) for ends in times.values())
    return seconds / CPUS, ended - began


def points(folder: Path) -> str:
    """Markdown: a line per command."""
    run_of_many_points(folder / "many", POINTS)
    for file in folder.rglob("*.parquet"):  # of files that are minutes old, `report` keeps the rows in one
        os.utime(file, (time.time() - 3600,) * 2)
    seconds: dict[str, list[float]] = {"status": [], "report": []}
    for _ in range(ROUNDS):
        for command, took in seconds.items():
            began = time.perf_counter()
            subprocess.run(
                [Path(sys.executable).with_name("slimsweep"), command, folder / "many"], check=True, capture_output=True
            )
            took.append(time.perf_counter() - began)
    lines = [f"| `slimsweep` ..., {POINTS:,} points | seconds, median | least | most |", "| --- | ---: | ---: | ---: |"]
    for command, took in seconds.items():
        lines.append(f"| {command} | {statistics.median(took):.2f} | {min(took):.2f} | {max(took):.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    versions = f"torch {torch.__version__}, ray {ray.__version__}, pandas {pd.__version__}"
    sys.exit(measure_parts({"trials": trials, "points": points}, sys.argv[1:], HERE / "README.md", versions))
