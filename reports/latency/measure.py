"""Budgets in milliseconds beside budgets in MACs and Torch-Pruning, on DeiT-S; writes the tables of README.md.

    python reports/latency/measure.py prepare                               # times nothing: the machine may be busy
    python reports/latency/measure.py structures --runtime torch --batch 1  # chooses structures, writes torch-batch-1.json
    python reports/latency/measure.py times --runtime torch --batch 1       # times them in five processes, one after the other
    python reports/latency/measure.py anew --runtime torch --batch 1        # chooses five times anew, times each choice later
    python reports/latency/measure.py accuracy --run runs/dinov2-ms         # copies the rows of the sweep of dinov2.yaml
    python reports/latency/measure.py tables --check                        # the tables are those of the files beside them

Runtimes are torch and onnxruntime, batches 1 and 8. `structures`, `times` and `anew` need a machine that does nothing else.
`times` wants the file of structures committed, so that they stand before they are timed. `--rehearse FOLDER` does any step with
a tiny model, short, and writes into that folder alone.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import timm
import torch
from torch import nn

from slimsweep import Structure, add_gates, slim
from slimsweep.config import Search
from slimsweep.latency.calls import WARM_UP_CALLS, about, check_device, prepared_calls, time_calls
from slimsweep.latency.curve import DENSE, LatencyCurve, TimedStructure, measure_curve, prefix_lengths, solve_ms
from slimsweep.latency.device import torch_threads
from slimsweep.latency.onnx_files import session, session_call, write_onnx
from slimsweep.latency.quiet_timing import Measured
from slimsweep.latency.setting import LatencySetting
from slimsweep.ledger.run import Run
from slimsweep.methods.torch_pruning import prune_by_ratio, structure_of
from slimsweep.slimming.budget import Budget
from slimsweep.slimming.removal_path import RemovalPath, size_multiple

sys.path.append(str(Path(__file__).parent))  # for the modules that reports share
sys.path.append(str(Path(__file__).parents[1] / "speed"))
from latency_tables import ACCURACY, ANEW, IN_MACS, IN_MS, IN_MS_FEW_TOKENS, TIMES, TORCH_PRUNING, write_tables
from make_structures import draw_gates

HERE = Path(__file__).parent
BUDGETS = (Budget(0.5, "ms"), Budget(0.3, "ms"))
RUNTIMES, BATCHES = ("torch", "onnxruntime"), (1, 8)
TRIES = 4  # sessions in which a budget in ms is looked for, and then structures of the same latency
EQUAL = 0.01  # a structure whose ms differ by no more is not improved
RATIOS = np.arange(0.3, 0.96, 0.05)  # of channels, that Torch-Pruning is first asked for
SHARES = (0.2, 0.62)  # of dense MACs, between which its models are made denser
STEP, LEAST_RATIO = 0.025, 0.004  # until neighbours differ by less in MACs, or in the ratio


@dataclass(frozen=True)
class Study:
    """What is cut, and how long it is timed."""

    folder: Path = HERE  # of the results
    work: Path = (
        Path(tempfile.gettempdir()) / "slimsweep-latency"
    )  # of what can be made again: ONNX files, Torch-Pruning's cuts
    model: Mapping[str, Any] = field(default_factory=lambda: {"model_name": "deit_small_patch16_224"})
    threads: int = 2
    rounds: Mapping[int, int] = field(default_factory=lambda: {1: 6, 8: 4})  # by batch size
    min_seconds: float = 0.1
    prefixes: int = 9  # of a curve
    runs: int = 5
    rehearsed: bool = False

    @cached_property
    def dense(self) -> nn.Module:
        """The dense model with fresh weights, the same ones each time."""
        torch.manual_seed(0)
        made: nn.Module = timm.create_model(**self.model).eval()
        return made

    @cached_property
    def gated(self) -> Any:
        return add_gates(self.dense)

    def path(self, kind: str) -> RemovalPath:
        """The removal path of a kind of budget, over the gates of reports/speed, with slimsweep's defaults.

        Floors, multiples and paces are those defaults. Budgets in ms may remove branches whole.
        """
        shape, search = self.gated.shape, Search()
        pace = search.paces[-1 if kind == IN_MS_FEW_TOKENS else 0].model_dump()
        scores = draw_gates(shape.gate_shapes, shape.grid)
        return RemovalPath(shape, scores, search.floors.model_dump(), search.round_to, pace, depth=kind != IN_MACS)

    def setting(self, runtime: str, batch: int) -> LatencySetting:
        return LatencySetting(device="cpu", batch_size=batch, threads=self.threads, runtime=runtime)

    def onnx_file(self, structure: Structure) -> Path:
        """The ONNX file of a structure, written where it is not there."""
        path = self.work / f"{structure.id}.onnx"
        if not path.exists():
            unfinished = path.with_name(f"{structure.id}.{os.getpid()}.unfinished")
            write_onnx(self.built(structure), unfinished)
            unfinished.rename(path)
        return path

    def built(self, structure: Structure) -> nn.Module:
        return self.dense if structure.id == self.gated.shape.full().id else slim(self.dense, structure).eval()

    def timed(self, structures: Mapping[str, Structure], setting: LatencySetting, known: float | None) -> Measured:
        """Time structures in interleaved rounds.

        Args:
            known: fastest seconds of the reference in earlier sessions, as in `time_rounds`.
        """
        with torch_threads(setting.threads), ExitStack() as stack:
            if setting.runtime == "torch":
                models = {name: self.built(structure) for name, structure in structures.items()}
                calls = stack.enter_context(prepared_calls(models, setting))
            else:
                files = {name: self.onnx_file(structure) for name, structure in structures.items()}
                calls = {
                    name: session_call(session(file, threads=setting.threads), setting.batch_size)
                    for name, file in files.items()
                }
                for call in calls.values():
                    for _ in range(WARM_UP_CALLS):
                        call()
            rounds = self.rounds[setting.batch_size]
            return time_calls(calls, setting, rounds=rounds, min_seconds=self.min_seconds, known=known)


def rehearsal(folder: Path) -> Study:
    """A tiny model, timed for seconds; all files are in one folder."""
    folder.mkdir(parents=True, exist_ok=True)
    page = folder / "README.md"
    if not page.exists():
        page.write_text((HERE / "README.md").read_text())
    sizes = {"img_size": 32, "patch_size": 4, "embed_dim": 64, "depth": 4, "num_heads": 4, "num_classes": 10}
    return Study(
        folder=folder,
        work=folder / "work",
        model={"model_name": "vit_tiny_patch16_224", **sizes},
        threads=1,
        rounds={1: 4, 8: 4},
        min_seconds=0.01,
        prefixes=5,
        runs=2,
        rehearsed=True,
    )


# Torch-Pruning.


class Ladder(NamedTuple):
    """Structures to choose from, from the largest to the smallest."""

    macs: np.ndarray
    at: Callable[[int], Structure]


def torch_pruning_ladder(study: Study) -> Ladder:
    """What Torch-Pruning leaves at many ratios of channels: head dims and MLP units, ranked over all layers by magnitude.

    Its cuts take seconds each, so they are kept in a file.
    """
    file = study.work / "torch-pruning.json"
    known: dict[str, str] = json.loads(file.read_text()) if file.exists() else {}
    shape = study.gated.shape
    multiple = max(2, size_multiple(shape, None))  # its heads stay even
    dense = shape.full().macs()

    def share(ratio: float) -> float:
        """What is left of the MACs; 0 where nothing is left of a layer."""
        key = f"{ratio:.5f}"
        if key not in known:
            options: dict[str, Any] = {"importance": "magnitude", "embed_dim": False, "isomorphic": True, "round_to": multiple}
            pruned = prune_by_ratio(study.dense, ratio, **options)
            known[key] = "" if pruned is None else structure_of(pruned.kept, shape).to_json()
            file.write_text(json.dumps(known))
            print(f"Torch-Pruning, ratio {key}: {_share(known[key], dense):.3f} of the MACs", flush=True)
        return _share(known[key], dense)

    ratios = [float(ratio) for ratio in RATIOS]
    at = 0
    while at + 1 < len(ratios):
        left, right = share(ratios[at]), share(ratios[at + 1])
        if not 0 < right <= left:  # at high ratios it leaves layers alone that would lose all, and more is left again
            del ratios[at + 1 :]
        elif left > SHARES[0] and right < SHARES[1] and right < (1 - STEP) * left and ratios[at + 1] - ratios[at] > LEAST_RATIO:
            ratios.insert(at + 1, (ratios[at] + ratios[at + 1]) / 2)
        else:
            at += 1
    of_macs = {one.macs(): one for one in (Structure.from_json(known[f"{ratio:.5f}"]) for ratio in ratios)}
    falling = sorted(of_macs, reverse=True)
    return Ladder(np.array(falling), lambda index: of_macs[falling[index]])


def _share(text: str, dense: int) -> float:
    return Structure.from_json(text).macs() / dense if text else 0.0


# Structures.


@dataclass
class EqualMs:
    """The structure of a ladder that takes as long as another structure."""

    ladder: Ladder
    ms: float  # of the other structure
    predicted: np.ndarray  # ms of the ladder's structures, as far as is known
    known: dict[int, float] = field(default_factory=dict)  # by place in the ladder, ms in units of the other structure's

    def next(self) -> int | None:
        """The place to time next; None where one is near enough, or none is left in between."""
        if any(abs(ratio - 1) <= EQUAL for ratio in self.known.values()):
            return None
        scale = 1.0
        if self.known:
            last, ratio = next(reversed(self.known.items()))
            scale = ratio * self.ms / self.predicted[last]
        slower = [place for place, ratio in self.known.items() if ratio > 1]
        faster = [place for place, ratio in self.known.items() if ratio < 1]
        first, end = max(slower, default=-1) + 1, min(faster, default=len(self.predicted))
        if first >= end:
            return None
        return first + int(np.argmin(np.abs(scale * self.predicted[first:end] - self.ms)))

    @property
    def best(self) -> int:
        return min(self.known, key=lambda place: abs(self.known[place] - 1))


class Timer:
    """Times structures in one setting, and remembers the fastest reference and what disturbed."""

    def __init__(self, study: Study, setting: LatencySetting) -> None:
        self.study, self.setting = study, setting
        self.reference: float | None = None
        self.busy: list[str] = []

    def __call__(self, structures: Mapping[str, Structure]) -> Measured:
        found = self.study.timed(structures, self.setting, self.reference)
        self.reference = found.reference if self.reference is None else min(self.reference, found.reference)
        self.busy += sorted({timed.busy for timed in found.calls.values() if timed.busy})
        return found


def solve(study: Study, kind: str, timer: Timer) -> tuple[LatencyCurve, dict[Budget, tuple[Structure, TimedStructure]]]:
    """The curve of a kind of budget in ms, and what each budget that can be reached leaves, with its latency here."""
    path = study.path(kind)
    curve = measure_curve(path, timer, study.prefixes)
    print(f"{kind}: {len(curve.ms)} prefixes, dense {curve.ms[0]:.2f} ms, the last {curve.ms[-1]:.2f} ms", flush=True)
    found: dict[Budget, tuple[Structure, TimedStructure]] = {}
    for budget, solved in zip(BUDGETS, solve_ms(path, curve, BUDGETS, timer, TRIES, say=print), strict=True):
        if solved.length is None:
            print(f"{kind}: {solved.error}", flush=True)
        else:
            found[budget] = path.prefix(solved.length), solved.timed
    return curve, found


def structures(study: Study, runtime: str, batch: int) -> None:
    """Choose the structures of a setting: of budgets in ms, and of the other two kinds what takes as long."""
    setting = study.setting(runtime, batch)
    check_device(setting)
    ladders = {TORCH_PRUNING: torch_pruning_ladder(study)}
    timer, dense = Timer(study, setting), study.gated.shape.full()
    models: dict[str, dict[str, Any]] = {}
    curves: dict[str, LatencyCurve] = {}
    found: dict[tuple[Budget, str], tuple[Structure, float]] = {}
    for kind in (IN_MS, IN_MS_FEW_TOKENS):
        curves[kind], of_budgets = solve(study, kind, timer)
        for budget, (structure, timed) in of_budgets.items():
            found[budget, kind] = structure, timed.ms
            models[f"{budget}, {kind}"] = _entry(budget, kind, structure, dense, _timed(timed))
    path, curve = study.path(IN_MACS), curves[IN_MS]
    ladders[IN_MACS] = Ladder(path.macs, path.prefix)
    of_curve = study.path(IN_MS)
    macs_of_curve = of_curve.macs[np.asarray(curve.lengths)][::-1]
    ms_of_curve = curve.ms_of_path(of_curve)[np.asarray(curve.lengths)][::-1]
    searches = {
        (budget, kind): EqualMs(ladder, found[budget, IN_MS][1], np.interp(ladder.macs, macs_of_curve, ms_of_curve))
        for budget in BUDGETS
        for kind, ladder in ladders.items()
        if (budget, IN_MS) in found
    }
    for attempt in range(TRIES):
        places = {key: place for key, search in searches.items() if (place := search.next()) is not None}
        if not places:
            break
        print(f"equal ms, try {attempt + 1}: {len(places)} structures beside those of the budgets in ms", flush=True)
        targets = {str(budget): found[budget, IN_MS][0] for budget, _ in places}
        asked = {f"{budget}, {kind}": ladders[kind].at(place) for (budget, kind), place in places.items()}
        calls = timer(targets | asked).calls
        for (budget, kind), place in places.items():
            searches[budget, kind].known[place] = calls[f"{budget}, {kind}"].median / calls[str(budget)].median
    for (budget, kind), search in searches.items():
        chosen = {"ms_of_ms_budget": search.known[search.best], "tries": len(search.known)}
        models[f"{budget}, {kind}"] = _entry(budget, kind, ladders[kind].at(search.best), dense, chosen)
    written = {
        "setting": about(setting),
        "chosen_at": f"{datetime.now(UTC):%Y-%m-%d}",
        "reference": timer.reference,  # fastest seconds
        "busy": sorted(set(timer.busy)),  # what disturbed; empty where the machine was quiet
        "curves": {kind: curve.to_dict() for kind, curve in curves.items()},
        "models": models,
    }
    structures_file(study, runtime, batch).write_text(json.dumps(written, indent=1) + "\n")
    print(f"wrote {structures_file(study, runtime, batch)}")
    for disturbed in written["busy"]:
        print(f"machine busy while structures were chosen: {disturbed}")


def _timed(timed: TimedStructure) -> dict[str, Any]:
    return {"ms": timed.ms, "ms_dense": timed.ms_dense}


def _entry(budget: Budget, kind: str, structure: Structure, dense: Structure, chosen: dict[str, Any]) -> dict[str, Any]:
    branches = sum((layer.dims > 0) + (layer.units > 0) for layer in structure.layer_sizes())
    return {
        "budget": str(budget),
        "kind": kind,
        "id": structure.id,
        "macs": structure.macs(),
        "share_of_macs": structure.macs() / dense.macs(),
        "branches": int(branches),
        "chosen": chosen,
        "structure": structure.to_json(),
    }


def structures_file(study: Study, runtime: str, batch: int) -> Path:
    return study.folder / f"{runtime}-batch-{batch}.json"


# Times.


def times(study: Study, runtime: str, batch: int) -> None:
    """Time a setting's structures in several processes, one after the other, and put the rows in the place of earlier ones."""
    file = structures_file(study, runtime, batch)
    if not file.exists():
        sys.exit(
            f"{file} is not there: choose the structures first (measure.py structures --runtime {runtime} --batch {batch})"
        )
    if not study.rehearsed and not committed(file):
        sys.exit(f"{file} is not committed: commit it, so that the structures stand before they are timed")
    rows: list[dict[str, Any]] = []
    for number in range(1, study.runs + 1):
        rows += _rows_of_a_run(study, runtime, batch, number, file)
    replace_rows(study.folder / TIMES, rows)
    write_tables(study.folder)


def _rows_of_a_run(study: Study, runtime: str, batch: int, number: int, structures: Path) -> list[dict[str, Any]]:
    answer = json.loads(in_a_process(study, "one-run", runtime, batch, "--structures", str(structures)))
    rows = [{"runtime": runtime, "batch_size": batch, "run": number, **row} for row in answer]
    print(f"run {number} of {study.runs}: {rows[-1]['busy'] or 'quiet'}", flush=True)
    return rows


def in_a_process(study: Study, step: str, runtime: str, batch: int, *more: str) -> str:
    """Do a step of this file in a process of its own; returns the last line that it prints."""
    rehearse = ["--rehearse", str(study.folder)] if study.rehearsed else []
    command = [sys.executable, __file__, step, "--runtime", runtime, "--batch", str(batch), *rehearse, *more]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]


def replace_rows(table: Path, rows: list[dict[str, Any]]) -> None:
    """Put the rows of one setting in the place of its earlier ones."""
    new = pd.DataFrame(rows)
    if table.exists():
        earlier = pd.read_parquet(table)
        of_setting = (earlier.runtime == new.runtime.iloc[0]) & (earlier.batch_size == new.batch_size.iloc[0])
        new = pd.DataFrame(earlier[~of_setting].to_dict("records") + rows)
    new.to_parquet(table, index=False)


def anew(study: Study, runtime: str, batch: int) -> None:
    """Choose the structures of budgets in ms several times anew, each time in a process, and time each in another."""
    rows: list[dict[str, Any]] = []
    for number in range(1, study.runs + 1):
        chosen = json.loads(in_a_process(study, "one-choice", runtime, batch))
        file = study.work / "chosen-anew.json"
        file.write_text(json.dumps(chosen))
        for row in _rows_of_a_run(study, runtime, batch, number, file):
            timed = chosen["models"][row["budget"]]["chosen"]
            busy = "; ".join(chosen["busy"])
            rows.append({**row, "chosen_ms": timed["ms"], "chosen_ms_dense": timed["ms_dense"], "chosen_busy": busy})
    replace_rows(study.folder / ANEW, rows)
    write_tables(study.folder)


def one_choice(study: Study, runtime: str, batch: int) -> None:
    """Choose the structures of budgets in ms, and print them as JSON: what `anew` starts."""
    setting = study.setting(runtime, batch)
    timer, dense = Timer(study, setting), study.gated.shape.full()
    _, found = solve(study, IN_MS, timer)
    models = {
        str(budget): _entry(budget, IN_MS, structure, dense, _timed(timed)) for budget, (structure, timed) in found.items()
    }
    print(
        json.dumps({"setting": about(setting), "reference": timer.reference, "busy": sorted(set(timer.busy)), "models": models})
    )


def one_run(study: Study, runtime: str, batch: int, structures: Path) -> None:
    """Time the structures of a file once, and print the rows as JSON: what `times` and `anew` start."""
    setting = study.setting(runtime, batch)
    chosen = json.loads(structures.read_text())
    models = {name: Structure.from_json(model["structure"]) for name, model in chosen["models"].items()}
    setup = about(setting)
    known = chosen["reference"] if chosen["setting"]["hardware"] == setup["hardware"] else None
    found = study.timed({DENSE: study.gated.shape.full(), **models}, setting, known)
    shared = {
        "ms_dense": 1e3 * found.calls[DENSE].median,
        "busy": next((timed.busy for timed in found.calls.values() if timed.busy), ""),
        "reference_ms": 1e3 * found.reference,
        "others": found.others,
        **{name: setup.get(name) for name in ("threads", "dtype", "hardware", "torch_version", "onnxruntime_version")},
        "timm_version": timm.__version__,
        "rounds": study.rounds[batch],
        "measured_at": f"{datetime.now(UTC):%Y-%m-%d}",
    }
    rows = [
        {
            **{key: chosen["models"][name][key] for key in ("budget", "kind", "id", "macs", "share_of_macs")},
            "ms": 1e3 * found.calls[name].median,
            "spread": found.calls[name].spread,
            **shared,
        }
        for name in models
    ]
    print(json.dumps(rows))


def committed(file: Path) -> bool:
    """Whether git has the file as it is now."""
    asked = ["git", "-C", str(file.parent)]
    known = subprocess.run([*asked, "ls-files", "--error-unmatch", file.name], capture_output=True, check=False).returncode == 0
    changed = subprocess.run([*asked, "diff", "--quiet", "HEAD", "--", file.name], capture_output=True, check=False).returncode
    return known and changed == 0


# Steps.


def prepare(study: Study, runtime: str | None) -> None:
    """Make what takes long and is not timed: Torch-Pruning's cuts, and the ONNX files of the curves' prefixes."""
    torch_pruning_ladder(study)
    if runtime == "torch":
        return
    for kind in (IN_MS, IN_MS_FEW_TOKENS):
        path = study.path(kind)
        for length in prefix_lengths(path, study.prefixes):
            print(study.onnx_file(path.prefix(length)), flush=True)


def copy_rows(study: Study, run: str) -> None:
    """Copy the rows of a run of dinov2.yaml."""
    Run(run).rows.sort_values("point", ignore_index=True).to_parquet(study.folder / ACCURACY)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    of_setting = {"structures": structures, "times": times, "anew": anew, "one-choice": one_choice}
    parser.add_argument("step", choices=("prepare", *of_setting, "one-run", "accuracy", "tables"))
    parser.add_argument("--runtime", choices=RUNTIMES)
    parser.add_argument("--batch", type=int, choices=BATCHES)
    parser.add_argument("--structures", type=Path, help="one-run: the file of the structures that are timed")
    parser.add_argument("--run", help="accuracy: the folder of the run whose rows are copied")
    parser.add_argument("--check", action="store_true", help="tables: write nothing; fail where the page has other tables")
    parser.add_argument("--rehearse", metavar="FOLDER", type=Path, help="a tiny model, short, into this folder")
    options = parser.parse_args(argv)
    if options.step in (*of_setting, "one-run") and None in (options.runtime, options.batch):
        parser.error(f"{options.step} needs --runtime and --batch")
    if options.step == "one-run" and options.structures is None:
        parser.error("one-run needs --structures")
    if options.step == "accuracy" and options.run is None:
        parser.error("accuracy needs --run")
    study = rehearsal(options.rehearse.resolve()) if options.rehearse else Study()
    study.work.mkdir(parents=True, exist_ok=True)
    if options.step == "prepare":
        prepare(study, options.runtime)
    elif options.step == "accuracy":
        copy_rows(study, options.run)
        write_tables(study.folder)
    elif options.step == "tables":
        return write_tables(study.folder, options.check)
    elif options.step == "one-run":
        one_run(study, options.runtime, options.batch, options.structures)
    else:
        of_setting[options.step](study, options.runtime, options.batch)
    return 0


if __name__ == "__main__":
    sys.exit(main())
