"""A folder of runs as the service shows them: finished, at work, failed, stopped, of several models and data."""

import re
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slimsweep.ledger import process
from slimsweep.ledger.lock import held_here
from slimsweep.ledger.run import Run
from slimsweep.storage import Folder

if TYPE_CHECKING:
    import pytest

FINISHED = Path(__file__).parent / "data" / "finished-run"
TOKEN = "a-token-of-the-tests-0123456789"
WHY = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB of which 1.07 GiB is free."


def make_run(folder: Path, *, model: str = "", data: str = "") -> Run:
    """A copy of the finished run, under its folder's name, as a run of another model or on other data."""
    shutil.copytree(FINISHED, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config = folder / "config.yaml"
    name = re.sub(r"[^\w.-]", "-", folder.name).lstrip("-")
    config.write_text(re.sub(r"^name: .*$", f"name: {name}", config.read_text(), flags=re.MULTILINE))
    run = Run(folder)
    if model or data:
        changes: dict[str, Any] = {**({"model": model} if model else {}), **({"data": data} if data else {})}
        for row in run.rows.to_dict("records"):
            run.write_row({**run.row(row["point"]), **changes})
    return run


def better(run: Run, gains: Mapping[str, float]) -> None:
    """Raise the accuracy of points whose names begin so."""
    for row in run.rows.to_dict("records"):
        for start, gain in gains.items():
            if row["point"].startswith(start):
                full = run.row(row["point"])
                run.write_row({**full, **{name: full[name] + gain for name in ("val_top1", "test_top1")}})


def fail(run: Run, point: str, why: str = WHY) -> None:
    """Let the point whose name begins so have failed."""
    name = next(row["point"] for row in run.rows.to_dict("records") if row["point"].startswith(point))
    kept = {key: value for key, value in run.row(name).items() if not key.startswith(("val_", "test_", "macs", "params"))}
    run.write_row({**kept, "status": "failed", "error": why})


def stop_in_search(run: Run) -> None:
    """Let the run have ended in its search."""
    for name in ("results", "models"):
        shutil.rmtree(Path(run.uri) / name)
    (Path(run.uri) / "search" / "search.json").unlink()


def at_work(run: Run) -> None:
    """Let this process be the driver of the run."""
    held_here.add("of-the-tests")
    driver = {"generation": 1, "token": "of-the-tests", "every": 3.0, "count": 1, "time": time.time(), **process.identity()}
    for name in ("holder.json", "driver.json"):
        run.folder.write_json(name, driver)


@contextmanager
def beating(run: Run) -> Iterator[None]:
    """While the block runs, the run's driver is at work: its heartbeat goes on."""
    over = threading.Event()

    def beat() -> None:
        while not over.wait(1.0):
            at_work(run)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    yield
    over.set()
    thread.join()


def make_shelf(output: Path) -> Path:
    """A folder with runs of all states."""
    output.mkdir(parents=True, exist_ok=True)
    better(make_run(output / "digits"), {"dense": 55, "searched": 44, "uniform": 52, "scratch": 60})
    better(
        make_run(output / "flowers-deit-s", model="deit_small_patch16_224", data="flowers"), {"dense": 40, "uniform-0.6": 40.5}
    )
    fail(make_run(output / "scans-vit-b", model="vit_base_patch16_224", data="lung-scans"), "searched-0.4")
    live = make_run(output / "birds-swin", model="swin_tiny_patch4_window7_224", data="birds")
    stop_in_search(live)
    at_work(live)
    stopped = make_run(output / "leaves")
    stop_in_search(stopped)
    stopped.logs.add_error("Traceback (most recent call last):\n  ...\nRuntimeError: DataLoader worker (pid 4711) was killed")
    for name in ("small", "base"):
        make_run(output / "sizes" / name)
    broken = make_run(output / "cut-short")
    (Path(broken.uri) / "config.yaml").write_text("name: [")
    return output


def refuse_folder(monkeypatch: "pytest.MonkeyPatch", name: str) -> None:
    """Let nobody look into folders of a name, as the system does where a right is missing; root has all rights."""
    list_of = Folder.list

    def refusing(folder: Folder, inside: str = "") -> list[str]:
        if folder.name == name:
            raise PermissionError(13, "Cannot list directory", folder.uri)
        return list_of(folder, inside)

    monkeypatch.setattr(Folder, "list", refusing)
