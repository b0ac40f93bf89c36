"""Another device: what a run exports for timing there, the program that times it, and the times that come back."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from slimsweep.cli import main
from slimsweep.errors import RefusedInput
from slimsweep.latency import time_on_device
from slimsweep.latency.curve import curve_of_times, prefix_lengths
from slimsweep.latency.table import Time, read_times, write_times
from slimsweep.latency.time_on_device import TimingRefused, time_folder
from slimsweep.ledger.planning import distinct_paces
from slimsweep.ledger.run import Run
from slimsweep.report.page_data import page_data
from slimsweep.report.run_tables import read_run
from slimsweep.slimming.structure import Structure
from slimsweep.tools import latency
from slimsweep.tools.latency import add_times, cuts_of, export_cuts

FINISHED = Path(__file__).parent / "data" / "finished-run"


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run of two budgets, three methods and a dense point, of which all that was searched is there."""
    return Run(shutil.copytree(FINISHED, tmp_path / "finished"))


def ids_of_points(run: Run) -> set[str]:
    return {Structure.from_json(text).id for text in run.rows.structure}


# What is exported.


def test_each_structure_is_exported_once_with_those_of_points(run: Run) -> None:
    cuts = cuts_of(run, prefixes=5)
    ids = [cut.structure.id for cut in cuts]
    assert len(ids) == len(set(ids))
    assert ids_of_points(run) <= set(ids)
    assert ids[0] == run.shape.full().id
    path = run.path_of("ms")
    assert cuts[0].of == ["dense", f"path, 0 of {path.length} steps", "dense-1.0000-s0-4ecb"]
    assert path.prefix(path.length).id in ids
    macs = [cut.structure.macs() for cut in cuts]
    assert macs == sorted(macs, reverse=True)


def test_a_run_that_was_only_searched_exports_its_path(run: Run) -> None:
    for folder in ("results", "models", "curves", "baselines"):
        shutil.rmtree(Path(run.uri) / folder)
    searched = cuts_of(Run(run.uri), prefixes=3)
    assert len(searched) == 3
    shutil.rmtree(Path(run.uri) / "search")
    with pytest.raises(RefusedInput, match="no removal path yet"):
        cuts_of(Run(run.uri))
    with pytest.raises(RefusedInput, match=r"is not a run of slimsweep"):
        cuts_of(Run(Path(run.uri).parent / "nothing"))


def test_all_paces_are_exported_before_one_is_chosen(run: Run) -> None:
    paces = run.config.search.paces
    assert len(paces) > 1
    chosen = {cut.structure.id for cut in cuts_of(run, prefixes=5)}
    every = {cut.structure.id for cut in cuts_of(run, "all", prefixes=5)}
    assert chosen < every
    for file in (Path(run.uri) / "search").glob("pace-*"):
        file.unlink()
    assert {cut.structure.id for cut in cuts_of(Run(run.uri), prefixes=5)} == every


def test_the_exported_prefixes_are_those_that_a_table_is_read_by(run: Run) -> None:
    """What comes back as latency.table has a time of every prefix that the curve of its path asks for."""
    for paces, tried in (("chosen", [run.pace_of("ms")]), ("all", distinct_paces(run.config, run.shape.gate_shapes))):
        ms = {cut.structure.id: float(cut.structure.macs()) for cut in cuts_of(run, paces)}
        for pace in tried:
            path = run.path_at(pace, run.latency.depth)
            curve = curve_of_times(path, ms, "latency.table is 'jetson.csv'")
            assert list(curve.lengths) == prefix_lengths(path)


def test_what_cannot_be_exported_is_refused_before_anything_is_written(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnx")
    output = tmp_path / "timing"
    with pytest.raises(RefusedInput, match="--batch-size is 0"):
        export_cuts(run, output, batch_size=0)
    with pytest.raises(RefusedInput, match="--format is timm; give onnx, pt2, or both"):
        export_cuts(run, output, formats=["timm"])
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").touch()
    with pytest.raises(RefusedInput, match="is not empty, and holds no export"):
        export_cuts(run, tmp_path / "other")
    assert not output.exists()
    full = shutil.disk_usage(tmp_path)._replace(free=1_000_000)
    monkeypatch.setattr(latency.shutil, "disk_usage", lambda path: full)
    with pytest.raises(RefusedInput, match=r"1 MB free, and .* MB are needed"):
        export_cuts(run, output)
    assert not list(output.iterdir())


def exported(folder: Path, **changes: object) -> Path:
    """A folder with the manifest of an export of two structures, whose files are empty."""
    folder.mkdir()
    entries = [{"structure": name, "files": {"onnx": f"{name}.onnx"}} for name in ("0" * 12, "1" * 12)]
    about = {"version": 1, "batch_size": 1, "dtype": "float32", "input": {}, "structures": entries}
    reference = {device: f"reference-{device}.onnx" for device in ("cpu", "cuda")}
    (folder / "manifest.json").write_text(json.dumps({**about, "reference": reference, **changes}))
    for name in ("0" * 12, "1" * 12):
        (folder / f"{name}.onnx").touch()
    return folder


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"threads": 0}, "--threads is 0"),
        ({"rounds": 0}, "--rounds is 0"),
        ({"batch_size": 8}, "--batch-size is 8, and these files take 1 images per call"),
        ({"device": "tpu"}, "--device is 'tpu'"),
        ({"output": "nowhere/times.csv"}, "nowhere is no folder"),
        ({}, "lacks reference-cpu.onnx"),
    ],
)
def test_what_cannot_be_timed_is_refused(tmp_path: Path, options: dict, said: str) -> None:
    pytest.importorskip("onnxruntime")
    with pytest.raises(TimingRefused, match=said):
        time_folder(exported(tmp_path / "timing"), **options)


def test_a_folder_that_is_no_whole_export_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TimingRefused, match=r"manifest\.json cannot be read"):
        time_folder(tmp_path)
    with pytest.raises(TimingRefused, match="is of version 2, this program reads version 1"):
        time_folder(exported(tmp_path / "later", version=2))
    with pytest.raises(TimingRefused, match="has no ONNX file"):
        time_folder(exported(tmp_path / "empty", structures=[]))
    folder = exported(tmp_path / "timing")
    (folder / f"{'1' * 12}.onnx").unlink()
    with pytest.raises(TimingRefused, match=r"lacks 1 of 2 ONNX files, such as 111111111111\.onnx"):
        time_folder(folder)
    (folder / "manifest.json").write_text("{")
    with pytest.raises(TimingRefused, match="is damaged"):
        time_folder(folder)


def test_another_program_s_file_is_not_overwritten(tmp_path: Path) -> None:
    folder = exported(tmp_path / "timing")
    (folder / "times.csv").write_text("a,b\n1,2\n")
    with pytest.raises(TimingRefused, match="was not written by this program"):
        time_folder(folder)
    assert (folder / "times.csv").read_text() == "a,b\n1,2\n"


def test_models_are_timed_in_groups_that_memory_has_room_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {}
    for name in "abc":
        (tmp_path / f"{name}.onnx").write_bytes(b"0" * 1000)
        files[name] = tmp_path / f"{name}.onnx"
    pages = {"SC_AVPHYS_PAGES": 1000, "SC_PAGE_SIZE": 1000}
    monkeypatch.setattr(time_on_device.os, "sysconf", lambda name: pages[name])

    def groups(device: str = "cpu") -> list[list[str]]:
        return [list(group) for group in time_on_device._groups(files, time_on_device._free_memory(device))]

    assert groups() == [["a", "b", "c"]]
    pages["SC_AVPHYS_PAGES"] = 13  # 13 kB: of 0.4 of it each file takes 2.5 times its size
    assert groups() == [["a", "b"], ["c"]]
    pages["SC_AVPHYS_PAGES"] = 1  # no room for one: each alone
    assert groups() == [["a"], ["b"], ["c"]]
    # A GPU's memory is its own, and that of the GPU that is visible.
    pages["SC_AVPHYS_PAGES"] = 10_000
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,1")
    asked: list[list[str]] = []
    monkeypatch.setattr(time_on_device, "_said", lambda command: asked.append(command) or "0")
    assert groups("cuda") == [["a"], ["b"], ["c"]]
    assert "--id=3" in asked[0]


# The times that come back.


def times_of(run: Run, device: str = "Jetson", busy: str = "") -> list[Time]:
    """Times in proportion to MACs of the structures of a run's points."""
    structures = {Structure.from_json(text) for text in run.rows.structure}
    by_id = {one.id: one for one in structures}
    return [Time(name, one.macs() / 1e4, 0.01, device, "TensorRT", 1, "fp16", busy) for name, one in by_id.items()]


def test_added_times_are_axes_of_the_page_for_the_points_of_their_structures(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "jetson.csv"
    write_times(file, [*times_of(run), *times_of(run, "Pixel")[:3]])
    said = add_times(run, file)
    assert said[0] == "Jetson, TensorRT, batch 1, fp16: 5 times, of 7 of 7 points"
    data = page_data([read_run(run)])
    assert data["settings"] == ["Jetson, TensorRT, batch 1, fp16", "Pixel, TensorRT, batch 1, fp16"]
    place = next(i for i, column in enumerate(data["timings"]) if column["name"] == "latency_ms")
    shown = {data["points"]["point"][point]: values[place] for point, setting, values in data["bench"] if setting == 0}
    assert shown == {row.point: pytest.approx(row.macs / 1e4, abs=1e-4) for row in run.rows.itertuples()}
    assert data["bench_dense"]["0|0"] == pytest.approx(run.shape.full().macs() / 1e4, abs=1e-4)
    assert data["groups"]["mean"]["latency_ms:0"][0] is not None


def test_the_latest_times_count_and_damaged_ones_are_named(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "jetson.csv"
    for factor in (1, 2):
        write_times(file, [Time(**{**vars(time), "ms": factor * time.ms}) for time in times_of(run)])
        add_times(run, file)
    times = run.products.device_times()
    assert len(times) == 5
    assert sorted(times.ms) == pytest.approx(sorted(2 * time.ms for time in times_of(run)))
    for stored in (Path(run.uri) / "device-times").iterdir():
        stored.write_bytes(b"")
    again = Run(run.uri)
    assert again.products.device_times().empty
    assert len(again.damaged) == 2


def test_times_of_another_model_are_refused(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "other.csv"
    write_times(file, [Time("0123456789ab", 1.0, None, "Jetson", "TensorRT", 1, "fp16")])
    with pytest.raises(RefusedInput, match=r"times of 1 structure, such as 0123456789ab, and none is one of"):
        add_times(run, file)
    assert run.products.device_times().empty
    # A prefix of the path is one of the run, also before a point has it.
    path = run.path_of("ms")
    write_times(file, [Time(path.prefix(path.length).id, 1.0, None, "Jetson", "TensorRT", 1, "fp16")])
    assert "no point of" in add_times(run, file)[-1]


# The whole way.


@pytest.mark.slow
def test_from_a_run_to_a_device_without_torch_and_back(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Export, the script in a process that can import neither torch nor slimsweep, and its times in the run."""
    for package in ("onnxruntime", "onnxscript"):
        pytest.importorskip(package)
    said: list[str] = []
    folder = export_cuts(run, formats=["onnx", "pt2"], prefixes=2, say=said.append)
    assert folder == Path(run.uri) / "exports" / "latency"
    assert "structures of finished" in said[0]
    assert f"about {sum(4 * cut.structure.params() + 400_000 for cut in cuts_of(run, prefixes=2)) * 2 / 1e6:,.0f} MB" in said[0]
    manifest = json.loads((folder / "manifest.json").read_text())
    names = {entry["structure"] for entry in manifest["structures"]}
    assert ids_of_points(run) < names
    assert {path.name for path in folder.iterdir()} == {
        *(f"{name}.{kind}" for name in names for kind in ("onnx", "pt2")),
        *("manifest.json", "time_on_device.py", "quiet_timing.py", "reference-cpu.onnx", "reference-cuda.onnx"),
    }

    # What is there is not written again.
    first = sorted(names)[0]
    (folder / f"{first}.onnx").unlink()
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.onnx")}
    export_cuts(run, formats=["onnx", "pt2"], prefixes=2, say=said.append)
    after = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.onnx")}
    changed = {name for name, time in after.items() if before.get(name) != time}
    assert changed - {"reference-cpu.onnx", "reference-cuda.onnx"} == {f"{first}.onnx"}
    with pytest.raises(RefusedInput, match="whose batch_size is 1, not 8"):
        export_cuts(run, batch_size=8, prefixes=2)

    copied = shutil.copytree(folder, tmp_path / "on the device")
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    for name in ("torch", "slimsweep", "timm", "pandas"):
        (blocked / f"{name}.py").write_text("raise ImportError('not on this device')\n")
    options = ["--threads", "1", "--rounds", "4", "--name", "a small board"]
    command = [sys.executable, str(copied / "time_on_device.py"), *options]
    environment = {**os.environ, "PYTHONPATH": str(blocked)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    times = read_times(copied / "times.csv")
    assert {time.structure for time in times} == names
    assert {time.device for time in times} == {"a small board"}
    assert all(time.ms > 0 and time.spread is not None for time in times)
    assert ("machine busy" in done.stderr) == any(time.busy for time in times)

    # The command of slimsweep writes the same rows, and keeps those of the other setting.
    assert main(["latency", "time", str(copied), "--threads", "2", "--rounds", "1", "--name", "a small board"]) == 0
    with (copied / "times.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * len(names)
    assert {row["runtime"].partition(", ")[2] for row in rows} == {"1 thread", "2 threads"}
    assert main(["latency", "time", str(copied), "--batch-size", "4"]) == 2

    quiet = tmp_path / "quiet.csv"
    write_times(quiet, [Time(**{**vars(time), "busy": ""}) for time in times])
    assert main(["latency", "add", run.uri, str(quiet)]) == 0
    capsys.readouterr()
    assert main(["pick", run.uri, "--max-ms", "1000"]) == 0
    assert "/models/" in capsys.readouterr().out


@pytest.mark.slow
def test_files_that_leave_the_batch_open(run: Run, tmp_path: Path) -> None:
    for package in ("onnxruntime", "onnxscript"):
        pytest.importorskip(package)
    for folder in ("results", "models"):
        shutil.rmtree(Path(run.uri) / folder)
    folder = export_cuts(Run(run.uri), tmp_path / "timing", batch_size=None, prefixes=2)
    target, rows = time_folder(folder, batch_size=3, rounds=1, min_seconds=0.0, threads=1, output=tmp_path / "three.csv")
    assert {row["batch_size"] for row in rows} == {"3"}
    assert [time.batch_size for time in read_times(target)] == [3, 3]
