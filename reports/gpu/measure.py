"""Times training, attention and cut models on one GPU, in minutes; writes the tables of README.md.

    python reports/gpu/measure.py measure --output FOLDER --seconds 330  # writes FOLDER/measured.json as it goes
    python reports/gpu/measure.py tables [--check]                       # README.md from measured.json beside it

What is most wanted is measured first; what does not fit into the time is recorded as not measured. `--rehearse` does the same
with tiny models on the CPU. Needs neither Ray nor Torch-Pruning.
"""

import argparse
import json
import math
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gpu_plan import REHEARSAL, STUDY, Group, Job, Plan, Sizes, make_plan
from gpu_pool import Pool
from gpu_tables import MEASURED, write_tables

HERE = Path(__file__).parent
NO_TIME = "not measured: no time left"
TURN_ESTIMATE = 0.25  # seconds that a turn is thought to take before any was timed
CLOSING = 6.0  # seconds that are kept for the end
FIRST_WAVE_SHARE = 0.55  # of the time: preparation of the first wave ends there at the latest
ASKED = "name,driver_version,clocks.sm,clocks.max.sm,clocks.mem,temperature.gpu,power.draw,power.limit,memory.used,pstate"


class Study:
    """One measurement: what is prepared and timed so far, written to a file after each step.

    Args:
        lock: a file that processes lock while they alone use the GPU.
    """

    def __init__(self, plan: Plan, sizes: Sizes, folder: Path, seconds: float, processes: int, lock: Path) -> None:
        self.began = time.monotonic()
        self.plan, self.sizes, self.seconds = plan, sizes, seconds
        folder.mkdir(parents=True, exist_ok=True)
        self.file = folder / MEASURED
        self.variants: dict[str, dict[str, Any]] = {
            name: {**labels, "error": NO_TIME, "info": {}, "measured": {}} for name, labels in plan.labels.items()
        }
        self.prepared: set[str] = set()
        self.jobs_of = [{id(job) for jobs in plan.waves[: wave + 1] for job in jobs} for wave in range(len(plan.waves))]
        self.reference: float | None = None  # fastest seconds
        self.turn_seconds: list[float] = []
        self.prepare_seconds: list[float] = []  # of each job
        self.log: list[str] = []
        self.about: dict[str, Any] = {"gpu": {}}
        self.pool = Pool(processes, "gpu_variants", lock)
        self.about = {**environment(sizes), "seconds": seconds, "processes": processes}
        self.say(f"{len(self.variants)} variants, {processes} processes")

    @property
    def passed(self) -> float:
        return time.monotonic() - self.began

    @property
    def left(self) -> float:
        return self.seconds - CLOSING - self.passed

    def say(self, line: str) -> None:
        self.log.append(f"{self.passed:6.1f} s  {line}")
        print(self.log[-1], flush=True)
        self.write()

    def write(self) -> None:
        found = {"about": self.about, "log": self.log, "variants": self.variants}
        unfinished = self.file.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(found, indent=1) + "\n")
        unfinished.replace(self.file)

    def run(self) -> None:
        waiting = [(wave, job) for wave, jobs in enumerate(self.plan.waves) for job in jobs]
        for wave in range(len(self.plan.waves)):
            self._prepare(wave, waiting)
            self.about["gpu"][f"before timing, wave {wave + 1}"] = gpu_state(self.sizes)
            with self.pool.quiet():
                for group in self.plan.groups:
                    if group.wave <= wave:  # of earlier waves, what was not prepared in time
                        self._time(group)
            self.about["gpu"][f"after timing, wave {wave + 1}"] = gpu_state(self.sizes)
            later = {name for group in self.plan.groups if group.wave > wave for name in group.names}
            timed = {name for name in self.prepared if self.variants[name]["measured"]}
            self.pool.drop(timed - later)
        self.about["took_seconds"] = self.passed
        self.say("done")

    def _prepare(self, wave: int, waiting: list[tuple[int, Job]]) -> None:
        """Prepare all jobs of a wave, and of later ones in processes that hold nothing of it.

        Of the last wave only as much as there is time to time.
        """
        wanted = {id(job) for of_wave, job in waiting if of_wave <= wave}
        wanted |= {id(job) for job in self.pool.busy if id(job) in self.jobs_of[wave]}
        names = {name for group in self.plan.groups if group.wave <= wave for name in group.names}
        last = wave == len(self.plan.waves) - 1
        while wanted:
            until = self._timing_seconds(wave) if last else (1 - FIRST_WAVE_SHARE) * self.seconds if wave == 0 else 25.0
            if self.left < until or (last and not self.pool.busy and self.left < until + self.preparing):
                break
            # Of the last wave, what is begun has to be ready in time: its process cannot time anything until then.
            while waiting and not (last and self.left < until + self.preparing):
                if not self.pool.give(waiting[0][1], frozenset() if waiting[0][0] <= wave else names):
                    break
                waiting.pop(0)
            for job, answers, seconds in self.pool.answers(0.5):
                wanted.discard(id(job))
                self.prepare_seconds.append(seconds)
                for name, (error, info) in answers.items():
                    self.variants[name].update(error=error or NO_TIME, info=info)
                    if error is None:
                        self.prepared.add(name)
                failed = dict.fromkeys(error for error, _ in answers.values() if error)
                self.say(
                    f"prepared {job.names[0]} ({len(job.names)}) in {seconds:.1f} s" + "".join(f"; FAILED: {e}" for e in failed)
                )
        late_jobs = ", ".join(job.names[0] for job in self.pool.busy)
        self.say(f"wave {wave + 1} is prepared" + (f"; still preparing: {late_jobs}" if late_jobs else ""))

    @property
    def preparing(self) -> float:
        """How long a job may take, from the last ones."""
        return min(60.0, max(self.prepare_seconds[-12:], default=20.0))

    def _timing_seconds(self, wave: int) -> float:
        """How long the timing of what is prepared of a wave will take."""
        turn = sum(self.turn_seconds[-100:]) / len(self.turn_seconds[-100:]) if self.turn_seconds else TURN_ESTIMATE
        groups = [group for group in self.plan.groups if group.wave == wave]
        return sum(
            (group.turn_seconds or turn) * group.rounds * sum(name in self.prepared for name in group.names) for group in groups
        )

    def _time(self, group: Group) -> None:
        """Time what is prepared of a group in interleaved rounds, each of which starts with another variant."""
        ready = self.prepared.intersection(name for name in group.names if group.title not in self.variants[name]["measured"])
        names = [name for name in group.names if name in ready and self.pool.can_time(name)]
        for name in ready.difference(names):
            if not self.variants[name]["measured"]:
                self.variants[name]["error"] = self.pool.lost.get(name, "its process was still preparing another variant")
        if not names:
            return
        rounds = 0
        failed: dict[str, str] = {}
        for number in range(group.rounds):
            first = number % len(names)
            for name in names[first:] + names[:first]:
                if self.left < 0:
                    break
                if name in failed:
                    continue
                began = time.monotonic()
                times, error = self.pool.turn(name, self.reference, min(group.turn_limit, max(self.left, 1.0)))
                self.turn_seconds.append(time.monotonic() - began)
                if times is None:
                    failed[name] = error or "failed"
                    self.prepared.discard(name)
                    self.variants[name]["error"] = failed[name]
                    continue
                self._keep(name, group, times)
            else:
                rounds += 1
                continue
            break
        self.say(
            f"timed {group.title}: {len(names)} variants, {rounds} of {group.rounds} rounds"
            + "".join(f"; FAILED: {name}: {error}" for name, error in failed.items())
        )

    def _keep(self, name: str, group: Group, times: dict[str, Any]) -> None:
        reference = times["reference"]
        if reference is not None:
            self.reference = min(reference, self.reference or math.inf)
        variant = self.variants[name]
        kept = variant["measured"].setdefault(group.title, {"ms": [], "ms_together": [], "reference_ms": [], "busy": []})
        middle = sorted(times["seconds"])[len(times["seconds"]) // 2]
        kept["ms"].append(round(1e3 * middle, 5))
        kept["ms_together"].append(round(1e3 * times["together"][0], 5))
        if reference is not None:
            kept["reference_ms"].append(round(1e3 * reference, 5))
        if times["busy"]:
            kept["busy"].append(times["busy"])
        variant["error"] = None


def environment(sizes: Sizes) -> dict[str, Any]:
    """The machine, versions and day."""
    import timm
    import torch

    from slimsweep.latency.device import hardware

    return {
        "hardware": hardware(torch.device(sizes.device)),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "timm": timm.__version__,
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "gpu": {"at the start": gpu_state(sizes)},
        "rehearsed": sizes.rehearsed,
    }


def gpu_state(sizes: Sizes) -> dict[str, str]:
    """What nvidia-smi says of the GPU; nothing is set."""
    if sizes.device != "cuda":
        return {}
    asked = ["nvidia-smi", f"--query-gpu={ASKED}", "--format=csv,noheader"]
    try:
        answer = subprocess.run(asked, check=True, capture_output=True, text=True, timeout=10).stdout.splitlines()[0]
    except (OSError, subprocess.SubprocessError, IndexError) as problem:
        return {"nvidia-smi": f"{type(problem).__name__}: {problem}"}
    return dict(zip(ASKED.split(","), (value.strip() for value in answer.split(",")), strict=False))


def measure(sizes: Sizes, folder: Path, seconds: float, processes: int) -> None:
    # So that the end of a time limit ends the processes too, some of which may stand still.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    with tempfile.TemporaryDirectory(prefix="slimsweep-gpu-") as shared:
        study = Study(make_plan(sizes), sizes, folder, seconds, processes, Path(shared, "gpu.lock"))
        try:
            study.run()
        finally:
            study.write()
            study.pool.close()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = parser.add_subparsers(dest="step", required=True)
    measuring = steps.add_parser("measure", help="time on this machine's GPU")
    measuring.add_argument("--output", type=Path, required=True, help="the folder of measured.json")
    measuring.add_argument("--seconds", type=float, default=360.0, help="how long it may take in all")
    measuring.add_argument(
        "--processes", type=int, help="that prepare side by side; by default two more than there are cores, 18 at most"
    )
    measuring.add_argument("--rehearse", action="store_true", help="tiny models on the CPU, one round")
    tables = steps.add_parser("tables", help="write the tables of README.md")
    tables.add_argument("--check", action="store_true", help="write nothing; fail where the page has other tables")
    tables.add_argument("--folder", type=Path, default=HERE, help="of README.md and measured.json")
    options = parser.parse_args(argv)
    if options.step == "tables":
        return write_tables(options.folder, options.check)
    sizes = REHEARSAL if options.rehearse else STUDY
    processes = options.processes or min(18, (os.cpu_count() or 1) + 2)
    measure(sizes, options.output.resolve(), options.seconds, processes)
    return 0


if __name__ == "__main__":
    sys.exit(main())
