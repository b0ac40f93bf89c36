"""The program that times an export: stopped and gone on with, in a folder that was moved, is read-only, or is damaged."""

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_latency_export import exported

from slimsweep.cli import main
from slimsweep.latency import time_on_device
from slimsweep.latency.quiet_timing import Measured, Timed
from slimsweep.latency.time_on_device import TimingRefused, time_folder

A, B = "0" * 12, "1" * 12


class Device:
    """Times each file as a group of its own, by what the test sets; and stops before a file."""

    def __init__(self) -> None:
        self.seconds, self.busy, self.stop_before, self.timed = 0.01, "", "", list[str]()

    def __call__(self, files: dict[str, Path], *others: Any, **settings: Any) -> Iterator[Measured]:
        for structure in files:
            if structure == self.stop_before:
                raise KeyboardInterrupt
            self.timed.append(structure)
            yield Measured({structure: Timed([self.seconds], [self.seconds], [self.seconds], self.busy)}, 0.001)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(time_on_device, "_measured", found := Device())
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = exported(tmp_path / "timing")
    (made / "reference-cpu.onnx").touch()
    return made


def rows_of(file: Path) -> dict[str, str]:
    """Milliseconds by structure."""
    with file.open(newline="") as opened:
        return {row["structure"]: row["ms"] for row in csv.DictReader(opened)}


def test_what_was_stopped_is_gone_on_with_in_another_place(
    device: Device, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    device.stop_before = B
    assert time_on_device.main([str(folder), "--name", "board"]) == 130
    assert "the CSV file is whole, without the models that were being timed" in capsys.readouterr().err
    assert rows_of(folder / "times.csv") == {A: "10"}

    moved = folder.rename(tmp_path / "another place")
    device.stop_before, device.seconds, device.timed = "", 0.02, []
    said: list[str] = []
    target, rows = time_folder(moved, name="board", only_missing=True, say=said.append)
    assert device.timed == [B]
    assert rows_of(target) == {A: "10", B: "20"} == {row["structure"]: row["ms"] for row in rows}
    assert said[0] == f"{target} has times of 1 of 2 models, which stay"
    assert said[1].startswith("timing 1 model on board, ")

    # All is there: nothing is timed. Another setting has nothing; without the option all is timed again.
    device.timed = []
    assert len(time_folder(moved, name="board", only_missing=True)[1]) == 2
    assert device.timed == []
    time_folder(moved, name="board", threads=3, only_missing=True)
    time_folder(moved, name="board")
    assert device.timed == [A, B, A, B]
    assert len(target.read_text().splitlines()) == 5


def test_times_of_a_busy_machine_are_missing(device: Device, folder: Path) -> None:
    device.busy = "a build"
    time_folder(folder)
    device.busy, device.seconds = "", 0.03
    assert not any(row["busy"] for row in time_folder(folder, only_missing=True)[1])
    assert device.timed == [A, B, A, B]


def test_slimsweep_s_command_says_that_it_was_stopped(device: Device, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    device.stop_before = A
    with pytest.raises(SystemExit) as ended:
        main(["latency", "time", str(folder)])
    assert ended.value.code == 130
    assert "--only-missing keeps what it has" in " ".join(capsys.readouterr().err.split())


def test_a_file_that_cannot_be_written_is_refused_before_the_timing(device: Device, folder: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.csv"
    nowhere = tmp_path / ("n" * 254)  # no room for the name of the unfinished file, also for who may write everywhere
    with pytest.raises(TimingRefused, match=r"cannot be written .*: give another --output"):
        time_folder(folder, output=nowhere)
    assert device.timed == []
    time_folder(folder, output=link)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.csv", "timing"]


@pytest.mark.parametrize("entry", [{}, {"structure": A}, "text", None])
def test_a_manifest_whose_entries_are_damaged_is_refused(folder: Path, entry: object) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "structures": [entry]}))
    with pytest.raises(TimingRefused, match="is damaged"):
        time_folder(folder)


def test_neither_the_program_nor_the_command_needs_torch(folder: Path, tmp_path: Path) -> None:
    """Up to where the models are opened, in a process in which torch and timm cannot be imported."""
    for name in ("time_on_device.py", "quiet_timing.py"):
        shutil.copy(Path(time_on_device.__file__).with_name(name), folder)
    (folder / "reference-cpu.onnx").unlink()
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    for name in ("torch", "timm"):
        (blocked / f"{name}.py").write_text("raise ImportError('not on this device')\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(blocked), *sys.path])}
    script = [sys.executable, str(folder / "time_on_device.py")]
    command = [sys.executable, "-m", "slimsweep.cli", "latency", "time", str(folder)]
    for words in (script, command):
        done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False, env=environment, cwd=tmp_path)
        assert done.returncode == 2, done.stderr
        assert "lacks reference-cpu.onnx" in " ".join((done.stdout + done.stderr).split())
