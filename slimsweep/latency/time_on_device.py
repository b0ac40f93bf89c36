"""Time the ONNX files of `slimsweep latency export` on this machine, and write the times as CSV.

    python time_on_device.py [FOLDER] [--output times.csv] [--threads 2] [--device cpu] [--name "Jetson Orin Nano"]

This needs numpy, onnxruntime and Python 3.10 or newer, and neither slimsweep nor torch: the export puts a copy of this file and
of quiet_timing.py, which it uses, beside the ONNX files. Files are timed in interleaved rounds, so that a machine that is slow
for a while is slow for all, and the column `busy` says where the times are not to be trusted.
"""

import argparse
import csv
import importlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

if __package__:
    from slimsweep.latency.quiet_timing import ONNXRUNTIME_SETTLE, Measured, Timed, seconds_by_wall, time_rounds
else:  # copied: quiet_timing.py lies beside this file
    from quiet_timing import (  # type: ignore[import-not-found, no-redef]
        ONNXRUNTIME_SETTLE,
        Measured,
        Timed,
        seconds_by_wall,
        time_rounds,
    )

MANIFEST, TIMES = "manifest.json", "times.csv"
VERSION = 1  # of the manifest
COLUMNS = ("structure", "ms", "spread", "device", "runtime", "batch_size", "dtype", "busy")
SETTING = ("device", "runtime", "batch_size", "dtype")
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
INTERRUPTED = (
    "interrupted; the CSV file is whole, without the models that were being timed: --only-missing keeps what it has, and times "
    "the others"
)
WARM_UP_CALLS = 3
MEMORY_SHARE = 0.4  # of the free memory that models are loaded into at once
MEMORY_PER_BYTE = 2.5  # of a file: a session holds weights in its file's order and in its own

Row = dict[str, str]


class TimingRefused(ValueError):
    """What was asked for cannot be timed; the text says why, and the way out."""


def time_folder(
    folder: str | os.PathLike[str],
    *,
    output: str | os.PathLike[str] | None = None,
    threads: int | None = None,
    device: str = "cpu",
    batch_size: int | None = None,
    rounds: int = 10,
    min_seconds: float = 0.2,
    name: str | None = None,
    only_missing: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[Path, list[Row]]:
    """Time every ONNX file of a manifest, and write one row per structure.

    Where memory has room for some of the files only, the rows of each group are written when it is done.

    Args:
        folder: what `slimsweep latency export` wrote: manifest.json and its files.
        output: the CSV file; times.csv in the folder where not given. Rows of other settings that it has stay.
        threads: CPU threads of one call; onnxruntime's own number where not given.
        device: cpu or cuda, where onnxruntime computes; images and outputs are in the CPU's memory, so that a call on a GPU
            takes them there and back.
        batch_size: images per call; of an export with a fixed batch only that one.
        rounds: interleaved; each file is timed once per round.
        min_seconds: calls are repeated for this long when a file is timed; at least one call is made.
        name: of the device; the processor's own name where not given.
        only_missing: leave out structures whose time in this setting, taken on a quiet machine, the CSV file has.
        say: is told what is done, a line at a time.

    Returns:
        The CSV file and its rows of this setting, whose `busy` is empty where the machine was quiet.

    Raises:
        TimingRefused: an argument is out of range, the folder or a file is missing, the CSV file cannot be written, or
            onnxruntime cannot compute there.
    """
    folder = Path(folder)
    for what, number in (("threads", threads), ("batch-size", batch_size), ("rounds", rounds)):
        if number is not None and number < 1:
            raise TimingRefused(f"--{what} is {number}; it must be at least 1")
    manifest = read_manifest(folder)
    files = {
        entry["structure"]: folder / entry["files"]["onnx"] for entry in manifest["structures"] if "onnx" in entry["files"]
    }
    if not files:
        raise TimingRefused(f"{folder} has no ONNX file: export again with --format onnx")
    if missing := [path.name for path in files.values() if not path.is_file()]:
        raise TimingRefused(
            f"{folder} lacks {len(missing)} of {len(files)} ONNX files, such as {missing[0]}: copy the whole folder, or export "
            "it again, which writes what is missing"
        )
    fixed = manifest["batch_size"]
    if fixed is not None and batch_size not in (None, fixed):
        raise TimingRefused(
            f"--batch-size is {batch_size}, and these files take {fixed} images per call: export to another folder with "
            f"--batch-size {batch_size}, or with --batch-size any"
        )
    batch = batch_size or fixed or 1
    target = Path(output) if output is not None else folder / TIMES
    if not target.parent.is_dir():
        raise TimingRefused(f"--output is {target}, and {target.parent} is no folder: give a file in a folder that exists")
    kept = _rows_there(target)  # refused before the work, where it is something else
    _refuse_read_only(target)
    runtime = _onnxruntime(device)
    reference = folder / manifest["reference"][device]
    if not reference.is_file():
        raise TimingRefused(f"{folder} lacks {reference.name}, by which a busy machine is seen: copy the whole folder")
    setting = {
        "device": " ".join((name or processor(device)).split()),
        "runtime": f"onnxruntime {runtime.__version__}, " + (device if device != "cpu" else _threads(threads)),
        "batch_size": str(batch),
        "dtype": str(manifest["dtype"]),
    }
    others = [row for row in kept if any(row[column] != setting[column] for column in SETTING)]
    own = {row["structure"]: row for row in kept if row not in others and row["structure"] in files}
    if only_missing:
        there = {structure for structure, row in own.items() if not row["busy"]}
        files = {structure: path for structure, path in files.items() if structure not in there}
        say(f"{target} has times of {len(there)} of {len(there) + len(files)} models, which stay")
    if files:
        said = ", ".join((*list(setting.values())[:2], f"batch {batch}"))
        say(f"timing {len(files)} model{'' if len(files) == 1 else 's'} on {said}: {rounds} rounds")
    settings: dict[str, Any] = {"threads": threads, "device": device, "batch": batch, "rounds": rounds}
    groups = _measured(files, reference, runtime, **settings, min_seconds=min_seconds, say=say) if files else ()
    for of_group in groups:
        own |= {structure: _row(structure, timed, setting) for structure, timed in of_group.calls.items()}
        _write(target, [*others, *own.values()])
    return target, list(own.values())


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of an export.

    Raises:
        TimingRefused: there is none, or it cannot be read.
    """
    path = folder / MANIFEST
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if found["version"] != VERSION:
            raise TimingRefused(f"{path} is of version {found['version']}, this program reads version {VERSION}: export again")
        for key in ("batch_size", "dtype", "reference", "input"):
            found[key]
        for entry in found["structures"]:
            entry["structure"], entry["files"]
    except OSError as problem:
        raise TimingRefused(
            f"{path} cannot be read ({problem.strerror}): give the folder that slimsweep latency export wrote"
        ) from problem
    except (ValueError, KeyError, TypeError) as problem:
        if isinstance(problem, TimingRefused):
            raise
        raise TimingRefused(f"{path} is damaged ({problem!r}): copy it again, or export again") from problem
    return found


def processor(device: str) -> str:
    """The name of this machine's processor, or of its first GPU."""
    board = Path("/proc/device-tree/model")  # of boards such as a Jetson or a Raspberry Pi, whose processors have no name
    if device == "cuda":
        said = _of_gpu("name")
    else:
        said = _said(["sysctl", "-n", "machdep.cpu.brand_string"]) if platform.system() == "Darwin" else ""
    if said:
        return said
    if device == "cpu" and Path("/proc/cpuinfo").is_file():
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    if board.is_file():
        return board.read_text(errors="replace").strip("\0 \n") + (" GPU" if device == "cuda" else "")
    return platform.processor() or platform.machine() or device


def _of_gpu(what: str) -> str:
    """What nvidia-smi says of the GPU that onnxruntime takes, the first visible one; empty where it says nothing."""
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    ask = ["nvidia-smi", f"--query-gpu={what}", "--format=csv,noheader,nounits"]
    return _said([*ask, f"--id={first}"]) or _said([*ask, "--id=0"])  # it does not know the names of parts of a GPU


def _said(command: list[str]) -> str:
    """The first line that a command prints; empty where there is no such command, or it fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.split("\n")[0].strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def busy_sentence(rows: Sequence[Row]) -> str:
    """One sentence that says why the times are not to be trusted, and what to do; empty where they are."""
    busy = [row for row in rows if row["busy"]]
    if not busy:
        return ""
    of = "the times are" if len(busy) == len(rows) else f"{len(busy)} of {len(rows)} times are"
    return (
        f"machine busy: {of} not to be trusted ({busy[0]['busy']}); the column busy says so, and slimsweep leaves them out: "
        "end other programs, or give fewer --threads, and time again"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Time a folder from the command line; returns 2 where the input was refused."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", nargs="?", default=str(Path(__file__).parent), metavar="FOLDER", help="default: this file's")
    add_options(parser)
    chosen = vars(parser.parse_args(argv))
    try:
        target, rows = time_folder(chosen.pop("folder"), say=print, **chosen)
    except (TimingRefused, OSError) as problem:
        print(f"time_on_device: {problem}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"time_on_device: {INTERRUPTED}", file=sys.stderr)
        return 130
    print(target)
    if said := busy_sentence(rows):
        print(said, file=sys.stderr)
    return 0


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `time_folder`, for this script and for `slimsweep latency time`."""
    parser.add_argument(
        "--output",
        metavar="FILE",
        help=f"the CSV file; times of other settings that it has stay (default: {TIMES} in FOLDER)",
    )
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: onnxruntime's own number)")
    parser.add_argument("--device", choices=tuple(PROVIDERS), default="cpu", help="where to compute (default: cpu)")
    parser.add_argument(
        "--batch-size", type=int, metavar="N", help="images per call, where the export left it open (default: 1)"
    )
    parser.add_argument("--rounds", type=int, default=10, metavar="N", help="interleaved rounds (default: 10)")
    parser.add_argument("--name", metavar="TEXT", help="the device's name in the CSV (default: the processor's)")
    parser.add_argument(
        "--only-missing", action="store_true", help="time only what the CSV file has no time of in this setting, or a busy one"
    )


def _threads(threads: int | None) -> str:
    if threads is None:
        return "all threads"
    return f"{threads} thread{'' if threads == 1 else 's'}"


def _row(structure: str, timed: Timed, setting: Row) -> Row:
    spread = "" if timed.spread != timed.spread else f"{timed.spread:.4f}"  # nan: too few rounds
    return {"structure": structure, "ms": f"{1e3 * timed.median:.6g}", "spread": spread, **setting, "busy": timed.busy}


def _onnxruntime(device: str) -> Any:
    try:
        runtime = importlib.import_module("onnxruntime")
    except ImportError as problem:
        raise TimingRefused("onnxruntime is not installed: pip install onnxruntime (for a GPU: onnxruntime-gpu)") from problem
    if device not in PROVIDERS:
        raise TimingRefused(f"--device is {device!r}; it can be {' or '.join(PROVIDERS)}")
    if PROVIDERS[device] not in runtime.get_available_providers():
        raise TimingRefused(
            f"onnxruntime {runtime.__version__} has no {PROVIDERS[device]} here, for --device {device}: pip install "
            "onnxruntime-gpu in place of onnxruntime, or take --device cpu"
        )
    if device == "cuda" and hasattr(runtime, "preload_dlls"):
        runtime.preload_dlls()  # it does not look for CUDA where pip installs it
    return runtime


def _measured(
    files: dict[str, Path],
    reference: Path,
    runtime: Any,
    *,
    threads: int | None,
    device: str,
    batch: int,
    rounds: int,
    min_seconds: float,
    say: Callable[[str], None],
) -> Iterator[Measured]:
    """Times of the files, by structure: of all at once where memory has room, else of one group after the other."""
    known = None
    groups = list(_groups(files, _free_memory(device)))
    for number, group in enumerate(groups, start=1):
        if len(groups) > 1:
            say(f"group {number} of {len(groups)}: {len(group)} models at a time fit into memory")
        calls = {structure: _call(runtime, path, threads, device, batch) for structure, path in group.items()}
        measured = time_rounds(
            calls,
            _call(runtime, reference, threads, device, batch),
            rounds=rounds,
            min_seconds=min_seconds,
            threads=(threads or os.cpu_count() or 1) if device == "cpu" else 1,
            known=known,
            settle=ONNXRUNTIME_SETTLE,
            seconds_of=None if device == "cpu" else seconds_by_wall,
        )
        known = measured.reference if known is None else min(known, measured.reference)
        yield measured


def _free_memory(device: str) -> float:
    """Bytes that are free where models are held: infinite where the system does not tell."""
    try:
        free: float = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        free = float("inf")
    if device == "cuda" and (mebibytes := _of_gpu("memory.free")).isdigit():
        free = min(free, 2**20 * int(mebibytes))
    return free


def _groups(files: dict[str, Path], free: float) -> Iterator[dict[str, Path]]:
    """The files in groups that so many bytes of free memory have room for."""
    room = MEMORY_SHARE * free
    group: dict[str, Path] = {}
    needed = 0.0
    for structure, path in files.items():
        # Weights of 2 GB and more lie in a second file beside the first.
        size = MEMORY_PER_BYTE * sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*"))
        if group and needed + size > room:
            yield group
            group, needed = {}, 0.0
        group[structure] = path
        needed += size
    yield group


def _call(runtime: Any, path: Path, threads: int | None, device: str, batch: int) -> Callable[[], object]:
    """A call that computes one batch of random images of an ONNX file, warmed up."""
    import numpy as np

    options = runtime.SessionOptions()
    options.log_severity_level = 3  # errors
    # Threads of a session that is not computing must not take a core from the one that is.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        session = runtime.InferenceSession(str(path), options, providers=[PROVIDERS[device]])
        if PROVIDERS[device] not in session.get_providers():  # it falls back to the CPU with a warning only
            raise TimingRefused(
                f"onnxruntime could not start {PROVIDERS[device]} for --device {device}, as its own message above says: "
                "install the CUDA and cuDNN that it needs, or take --device cpu"
            )
        (wanted,) = session.get_inputs()
        size = [n if isinstance(n, int) else batch for n in wanted.shape]
        feed = {wanted.name: np.random.default_rng(0).standard_normal(size).astype(np.float32)}
        for _ in range(WARM_UP_CALLS):
            session.run(None, feed)
    except TimingRefused:
        raise
    except Exception as problem:  # onnxruntime has exceptions of its own, without a common base
        reason = (str(problem).strip().splitlines() or [type(problem).__name__])[0]
        raise TimingRefused(f"onnxruntime cannot compute {path} ({reason}): copy or export it again") from problem
    return lambda: session.run(None, feed)


def _rows_there(target: Path) -> list[Row]:
    """The rows of a CSV file that this program wrote earlier; none where there is no file.

    Raises:
        TimingRefused: the file is something else, which is not overwritten.
    """
    if not target.exists():
        return []
    try:
        with target.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if tuple(reader.fieldnames or ()) != COLUMNS:
                raise TimingRefused(f"{target} is there and was not written by this program: give another --output")
            return [{column: row[column] or "" for column in COLUMNS} for row in reader]
    except (OSError, UnicodeDecodeError) as problem:
        raise TimingRefused(f"{target} cannot be read ({problem}): give another --output") from problem


def _refuse_read_only(target: Path) -> None:
    """Refuse a CSV file that cannot be written, before the work.

    Raises:
        TimingRefused: names it and the reason.
    """
    unfinished = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        unfinished.touch()
        unfinished.unlink()
    except OSError as problem:
        raise TimingRefused(f"{target} cannot be written ({problem.strerror or problem}): give another --output") from problem


def _write(target: Path, rows: Sequence[Row]) -> None:
    """Write the CSV file, whole or not at all."""
    unfinished = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with unfinished.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        os.replace(unfinished, target)
    finally:
        unfinished.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
