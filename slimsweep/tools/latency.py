"""Latency on another device: models of the run's removal path for timing there, and the times that come back.

Latency does not depend on weights, so the models are cut and not trained. They are named after `Structure.id`, and so are the
times (`slimsweep.latency.table`).
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

import slimsweep
from slimsweep.errors import RefusedInput
from slimsweep.latency.curve import PREFIXES, prefix_lengths
from slimsweep.latency.onnx_files import INPUT, OUTPUT, refuse_missing, runtime_version, session, write_onnx, write_reference
from slimsweep.latency.table import COLUMNS, by_setting, read_times
from slimsweep.latency.time_on_device import MANIFEST, PROVIDERS, VERSION, TimingRefused, read_manifest
from slimsweep.ledger.latencies import structure_ids
from slimsweep.ledger.planning import distinct_paces
from slimsweep.ledger.run import Run
from slimsweep.saved_models import load
from slimsweep.slimming.cost import COSTS
from slimsweep.slimming.cut import slim
from slimsweep.slimming.structure import Structure, image_size
from slimsweep.terminal import counted
from slimsweep.tools.export import check_same, write_pt2, written_whole

Paces = Literal["chosen", "all"]
Format = Literal["onnx", "pt2"]

SCRIPT = ("time_on_device.py", "quiet_timing.py")  # modules of latency/ that are copied beside the models
GRAPH_BYTES = 400_000  # of a file, beside its weights
ROOM = 1.1  # how much more space than the estimate a disk must have
CHECKED_BATCH = 2  # images that a file of any batch size is checked with

Say = Callable[[str], None]


@dataclass
class Cut:
    """A structure that is exported."""

    structure: Structure
    of: list[str] = field(default_factory=list)  # what it is, in words: dense, a point's name, "path, 1200 of 4000 steps"

    def entry(self, formats: Sequence[str]) -> dict[str, Any]:
        """Its entry in the manifest."""
        name = self.structure.id
        costs = {"macs": self.structure.macs(), "params": self.structure.params()}
        return {"structure": name, **costs, "of": self.of, "files": {kind: f"{name}.{kind}" for kind in formats}}


def cuts_of(run: Run, paces: Paces | None = None, prefixes: int = PREFIXES) -> list[Cut]:
    """The structures of a run that are worth timing, each once: dense, prefixes of the removal path, and those of its points.

    The path is the one that budgets in ms are cut along (`Run.path_of`), whether or not the run has such budgets.

    Args:
        paces: "chosen" for the path at the run's pace, "all" for a path at each of search.paces; where not given the chosen
            one, or all before it is chosen, since they are compared at equal latency.
        prefixes: of each path, at most.

    Raises:
        RefusedInput: the search has not ended.
    """
    run.refuse_other_folders()
    if not run.search_done or not run.dense_done:
        raise RefusedInput(
            f"{run.uri} has no removal path yet: give a run whose search has ended (`slimsweep status {run.uri}` shows how far "
            "it is)"
        )
    if paces is None:
        known = run.pace_choice("ms") is not None or run.pace_choice() is not None
        paces = "chosen" if known or len(run.config.search.paces) == 1 else "all"
    found: dict[str, Cut] = {}

    def put(structure: Structure, what: str) -> None:
        found.setdefault(structure.id, Cut(structure)).of.append(what)

    put(run.shape.full(), "dense")
    tried = [run.pace_of("ms")] if paces == "chosen" else distinct_paces(run.config, run.shape.gate_shapes)
    for pace in tried:
        path = run.path_at(pace, run.latency.depth)
        said = "" if paces == "chosen" else " at pace " + ", ".join(f"{name} {value:g}" for name, value in pace.items())
        for length in prefix_lengths(path, prefixes):
            put(path.prefix(length), f"path{said}, {length} of {path.length} steps")
    rows = run.rows[run.rows.status == "ok"]
    for point, text in zip(rows.point, rows.structure, strict=True):
        if isinstance(text, str) and structure_ids(text)[0]:
            put(Structure.from_json(text), point)
    return sorted(found.values(), key=lambda cut: -cut.structure.macs())


def export_cuts(
    run: Run,
    output: str | os.PathLike[str] | None = None,
    *,
    batch_size: int | None = 1,
    formats: Sequence[Format] = ("onnx",),
    paces: Paces | None = None,
    prefixes: int = PREFIXES,
    say: Say = lambda line: None,
) -> Path:
    """Write a model per structure of `cuts_of`, `manifest.json`, and a program that times them where neither torch nor
    slimsweep is installed.

    Files that an earlier export has written to the folder stay, also those of other structures. A file is written whole or not
    at all, and kept only where it computes what the model computes.

    Args:
        output: the folder; exports/latency of the run where not given.
        batch_size: images per call, the only number that the files take; None for any number.
        formats: "onnx", "pt2" (torch.export).
        paces, prefixes: as for `cuts_of`.
        say: is told what is done, a line at a time; the size before anything is written.

    Returns:
        The folder.

    Raises:
        RefusedInput: the run has no path yet, packages are missing, the disk is too small, or the folder holds an export of
            another model, batch size or image size.
        ExportError: a model cannot be exported.
    """
    if not formats or set(formats) - {"onnx", "pt2"}:
        raise RefusedInput(f"--format is {' '.join(formats) or 'empty'}; give onnx, pt2, or both")
    if batch_size is not None and batch_size < 1:
        raise RefusedInput(f"--batch-size is {batch_size}; it must be at least 1, or any")
    # The program that times them compares with a reference that is an ONNX file too.
    refuse_missing("export for timing")
    if output is None and not run.folder.is_local:
        raise RefusedInput(f"{run.uri} is on an object store: give --output, a folder on this machine")
    folder = Path(output if output is not None else run.products.latency_exports.uri)
    cuts = cuts_of(run, paces, prefixes)
    dense = load(run.dense)
    manifest = _manifest(run, dense, cuts, batch_size, formats)
    entries = _with_earlier(folder, manifest)
    missing = [
        (cut, kind) for cut in cuts for kind in formats if not (folder / entries[cut.structure.id]["files"][kind]).is_file()
    ]
    size = sum(4 * cut.structure.params() + GRAPH_BYTES for cut, _ in missing)
    there = len(cuts) * len(formats) - len(missing)
    say(
        f"{counted(len(cuts), 'structure')} of {run.folder.name}: {counted(len(missing), 'file')} to write, about "
        f"{size / 1e6:,.0f} MB, to {folder}{f'; {there} are there already' if there else ''}"
    )
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if ROOM * size > free:
        raise RefusedInput(
            f"{folder} has {free / 1e6:,.0f} MB free, and {ROOM * size / 1e6:,.0f} MB are needed: give another --output"
        )
    for name in SCRIPT:
        (folder / name).write_bytes(files("slimsweep.latency").joinpath(name).read_bytes())
    for device, name in manifest["reference"].items():
        write_reference(folder / name, device)
    # Before the files: what is missing of an export that was interrupted is known from it.
    with written_whole(folder / MANIFEST) as unfinished:
        unfinished.write_text(json.dumps({**manifest, "structures": list(entries.values())}, indent=1) + "\n")
    for number, (cut, kind) in enumerate(missing, start=1):
        say(f"{number} of {len(missing)}: {cut.structure.id}.{kind}, {cut.of[0]}, {COSTS['macs'].text(cut.structure.macs())}")
        _write(slim(dense, cut.structure), folder / f"{cut.structure.id}.{kind}", kind, batch_size)
    return folder


def add_times(run: Run, path: str | os.PathLike[str]) -> list[str]:
    """Keep the times of a CSV file in a run's folder, for its page and for `slimsweep pick --max-ms`.

    Times of a structure and setting that the folder has already are replaced.

    Returns:
        What was added, in sentences.

    Raises:
        RefusedInput: the file cannot be read, a value is wrong, or none of its structures is one of the run.
    """
    run.refuse_other_folders()
    times = read_times(path)
    named = {time.structure for time in times}
    rows = run.rows[run.rows.status == "ok"]
    of_points = {point: structure_ids(text)[0] for point, text in zip(rows.point, rows.structure, strict=True)}
    known = {*of_points.values()} & named
    if not known and not (run.search_done and named & {cut.structure.id for cut in cuts_of(run, "all")}):
        raise RefusedInput(
            f"{path} has times of {counted(len(named), 'structure')}, such as {min(named)}, and none is one of {run.uri}: give "
            "a file of times of its own export (`slimsweep latency export`)"
        )
    now = datetime.now(UTC)
    run.products.write_device_times(
        [{**{name: getattr(time, name) for name in COLUMNS}, "file": Path(path).name, "created_at": now} for time in times]
    )
    said = []
    for setting, of_setting in by_setting(times).items():
        there = {time.structure for time in of_setting}
        timed = sum(own in there for own in of_points.values())
        busy = sum(bool(time.busy) for time in of_setting)
        said.append(
            f"{setting.label}: {counted(len(of_setting), 'time')}, of {timed} of {counted(len(of_points), 'point')}"
            + (f"; {busy} are not to be trusted, since the machine was busy, and are left out" if busy else "")
        )
    if of_points and not known:
        said.append(
            f"no point of {run.uri} has one of these structures: export again, now that points are done, and time what is new"
        )
    return said


def _manifest(
    run: Run, dense: nn.Module, cuts: Sequence[Cut], batch_size: int | None, formats: Sequence[Format]
) -> dict[str, Any]:
    versions = {name: metadata.version(name) for name in ("torch", "timm", "onnx", "onnxscript")}
    versions["onnxruntime"] = runtime_version()
    return {
        "version": VERSION,
        "run": run.folder.name,
        "model": run.config.model.name,
        "input": {"name": INPUT, "shape": [batch_size or "batch", *image_size(dense)], "dtype": "float32"},
        "output": OUTPUT,
        "batch_size": batch_size,
        "dtype": "float32",
        "reference": {device: f"reference-{device}.onnx" for device in PROVIDERS},
        "versions": {"slimsweep": slimsweep.__version__, **versions},
        "structures": [cut.entry(formats) for cut in cuts],
    }


def _with_earlier(folder: Path, manifest: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The manifest's entries by structure, with those of an earlier export to the same folder.

    Raises:
        RefusedInput: what is there is of another model, batch size or image size, or is no export.
    """
    entries: dict[str, dict[str, Any]] = {}
    if folder.is_dir() and any(folder.iterdir()):
        try:
            earlier = read_manifest(folder)
        except TimingRefused as problem:
            raise RefusedInput(
                f"{folder} is not empty, and holds no export for timing ({problem}): give another --output"
            ) from problem
        for key in ("model", "batch_size", "input"):
            if earlier.get(key) != manifest[key]:
                raise RefusedInput(
                    f"{folder} holds an export whose {key} is {_plain(earlier.get(key))}, not {_plain(manifest[key])}: give "
                    "another --output"
                )
        entries = {entry["structure"]: entry for entry in earlier["structures"]}
    for entry in manifest["structures"]:
        before = entries.get(entry["structure"], {"files": {}, "of": []})
        of = list(dict.fromkeys([*entry["of"], *before["of"]]))
        entries[entry["structure"]] = {**entry, "of": of, "files": {**before["files"], **entry["files"]}}
    return dict(sorted(entries.items(), key=lambda one: -one[1]["macs"]))


def _plain(value: Any) -> str:
    """A value of a manifest in words."""
    if isinstance(value, dict) and "shape" in value:
        return "x".join(map(str, value["shape"]))
    return "any" if value is None else str(value)


def _write(model: nn.Module, target: Path, kind: Format, batch_size: int | None) -> None:
    """Write one model, and check that the file computes the same."""
    with written_whole(target) as unfinished:
        compute: Callable[[Tensor], Tensor]
        if kind == "onnx":
            write_onnx(model, unfinished, batch_size=batch_size)
            opened = session(unfinished)
            compute = lambda x: torch.from_numpy(opened.run([OUTPUT], {INPUT: x.numpy()})[0])  # noqa: E731
        else:
            write_pt2(model, unfinished, batch_size=batch_size)
            compute = torch.export.load(unfinished).module()
        check_same(model, kind, compute, [batch_size or CHECKED_BATCH])
