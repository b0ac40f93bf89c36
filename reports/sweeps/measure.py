"""How long a sweep takes besides its trainings, and what a run of many points costs to look at; writes README.md's tables.

    python reports/sweeps/measure.py job     # the default job, and how long nothing trains in it
    python reports/sweeps/measure.py trials  # eight equal trainings on two CPUs, and half the time that they train
    python reports/sweeps/measure.py points  # `slimsweep status` and `slimsweep report` of a run of 2,000 points

Nothing else may run on the machine: where something does, the table says so. `EARLIER=FOLDER` names a checkout of an earlier
state, whose default job and sweeps are measured in turn with those of this one.
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


def states() -> dict[str, Path]:
    """The states of the code to measure, by how the tables name them."""
    found = {"this": HERE.parents[1]}
    if earlier := os.environ.get("EARLIER"):
        found = {"earlier": Path(earlier).resolve()} | found
    for state in found.values():
        if not (state / "slimsweep" / "run.py").exists():
            raise SystemExit(f"{state} is no checkout of slimsweep")
    return found


def started(state: Path, output: Path, *words: str) -> subprocess.Popen:
    """A run of a state of the code, which writes to `output`."""
    command = [sys.executable, "-m", "slimsweep.run", "--output", str(output), *words]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(state)}
    output.mkdir(parents=True, exist_ok=True)  # `python -m` would find slimsweep in its own folder first
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=output)


def job(folder: Path) -> str:
    """Markdown: a line per state of the code."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in states()}
    for number in range(ROUNDS):
        for name, state in states().items():
            output = folder / f"{name}-{number}"
            began = time.time()
            with started(state, output) as process:
                process.communicate()
            if process.returncode:
                raise SystemExit(f"the default job ended with {process.returncode}")
            found[name].append((time.time() - began, seconds_of_training(output / "digits")))
            print(name, *(f"{seconds:.1f}" for seconds in found[name][-1]), flush=True)
    lines = [
        "| state | seconds in all | something trains | nothing trains | least | most |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, runs in found.items():
        besides = [total - training for total, training in runs]
        medians = [statistics.median(one) for one in (*zip(*runs, strict=True), besides)]
        lines.append(f"| {name} | {' | '.join(f'{m:.1f}' for m in medians)} | {min(besides):.1f} | {max(besides):.1f} |")
    return "\n".join(lines)


def ends_of_epochs(run: Path) -> dict[str, list[float]]:
    """When each epoch of each training ended, in seconds, by stage and point."""
    times: dict[str, list[float]] = {}
    for line in (run / "epochs.log").read_text().splitlines():
        entry = json.loads(line)
        times.setdefault(f"{entry['stage']} {entry['point']}", []).append(entry["time"])
    return times


def seconds_of_training(run: Path) -> float:
    """For how long at least one training of several epochs ran.

    The log says when epochs ended: the first one is taken to be as long as the second.
    """
    spans = sorted((2 * ends[0] - ends[1], ends[-1]) for ends in ends_of_epochs(run).values() if len(ends) > 1)
    total, reached = 0.0, 0.0
    for began, ended in spans:
        total += max(0.0, ended - max(began, reached))
        reached = max(reached, ended)
    return total


def trials(folder: Path) -> str:
    """Markdown: a line per length of the trainings and state of the code."""
    lines = [
        f"| epochs of each training | state | seconds of all epochs, sum / {CPUS} | seconds of the sweep | ratio |",
        "| ---: | --- | ---: | ---: | ---: |",
    ]
    for epochs in EPOCHS:
        for name, state in states().items():
            trained, took = one_sweep(state, folder / f"{name}-{epochs}", epochs)
            lines.append(f"| {epochs} | {name} | {trained:.1f} | {took:.1f} | {took / trained:.2f} |")
    return "\n".join(lines)


def one_sweep(state: Path, output: Path, epochs: int) -> tuple[float, float]:
    """Seconds of the epochs of eight points of digits, divided by the CPUs, and seconds from Tune's start to the last row.

    The dense model and its cut to nine tenths, with four seeds each, so that all take nearly as long.
    """
    with started(state, output, *SWEEP, "--retrain.epochs", str(epochs)) as process:
        assert process.stdout is not None
        began = next(time.time() for line in process.stdout if line.startswith(f"Sweep: {TRIALS} points"))
        process.stdout.read()
    if process.returncode:
        raise SystemExit(f"the sweep ended with {process.returncode}")
    run = Run(output / "digits")
    assert len(run.rows) == TRIALS
    ended = max(file.stat().st_mtime for file in (output / "digits" / "results").iterdir())
    times = {name: ends for name, ends in ends_of_epochs(output / "digits").items() if name.startswith("retrain")}
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
    sys.exit(measure_parts({"job": job, "trials": trials, "points": points}, sys.argv[1:], HERE / "README.md", versions))
