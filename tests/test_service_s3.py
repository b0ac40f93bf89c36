"""The service over runs in an object store, by the real S3 protocol: what it shows, makes and keeps, and how little it asks."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow.fs as pafs
import pytest
from conftest import Store

pytest.importorskip("fastapi", reason="fastapi is not installed (pip install 'slimsweep[serve]')")
pytest.importorskip("httpx", reason="httpx is not installed, which starlette's test client needs")

import torch
from service_runs import FINISHED, WHY, at_work, fail
from starlette.testclient import TestClient
from test_service import client, shown
from test_service_downloads import POINT, fetched, loaded_and_called

from slimsweep import load
from slimsweep.ledger import run as run_folder
from slimsweep.ledger.run import Run
from slimsweep.storage import Folder

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]

LOOK, PER_RUN = 3, 1  # requests of a look that finds nothing new: at the folder, and per run in it


@pytest.fixture
def team(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A folder of the store with two runs, for a test to change."""
    for key, value in store.environment.items():
        monkeypatch.setenv(key, value)
    path = f"sweeps/{tmp_path.name}"
    fs, _ = pafs.FileSystem.from_uri("s3://sweeps")
    for name in ("old", "other"):
        pafs.copy_files(str(FINISHED), f"{path}/{name}", destination_filesystem=fs)
    yield f"s3://{path}"
    fs.delete_dir(path)


def test_shelf_and_pages_show_what_the_bucket_holds(team: str) -> None:
    reader = client(team)
    runs = shown(reader)
    assert {name: run["state"] for name, run in runs.items()} == {"old": "finished", "other": "finished"}
    assert (runs["old"]["done"], runs["old"]["planned"], runs["old"]["smallest"]["macs"]) == (7, 7, 48264)
    page = reader.get("/runs/old")
    assert (page.status_code, '<a href="../">All runs</a>' in page.text) == (200, True)
    assert reader.get("/compare?run=old&run=other").status_code == 200
    assert reader.get("/runs/..%2Fold").status_code == 404


def test_what_happens_in_the_bucket_is_shown_at_the_next_look(team: str) -> None:
    reader = client(team)
    shown(reader)
    tag = reader.get("/runs/old").headers["etag"]
    fail(Run(f"{team}/old"), "searched-0.4")
    runs = shown(reader)
    assert (runs["old"]["state"], runs["old"]["failed"], runs["old"]["why"]) == ("failed", 1, WHY)
    assert runs["other"]["state"] == "finished"
    assert reader.get("/runs/old").headers["etag"] != tag
    # A sweep over several models begins, and ends with an error; another run is deleted.
    fs, path = pafs.FileSystem.from_uri(team)
    pafs.copy_files(str(FINISHED), f"{path}/sizes/small", destination_filesystem=fs)
    small = Run(f"{team}/sizes/small")
    small.folder.delete("results")
    small.folder.delete("search/search.json")
    fs.delete_dir(f"{path}/other")
    assert {name: run["state"] for name, run in shown(reader).items()} == {"old": "failed", "sizes/small": "stopped"}
    small.logs.add_error("Traceback (most recent call last):\n  ...\nRuntimeError: DataLoader worker (pid 4711) was killed")
    assert shown(reader)["sizes/small"]["why"] == "RuntimeError: DataLoader worker (pid 4711) was killed"
    assert reader.get("/runs/sizes/small").status_code == 200
    assert reader.get("/runs/other").status_code == 404


def pages(reader: TestClient) -> list[bytes]:
    """The page of a run, and that of both."""
    answers = [reader.get(address) for address in ("/runs/old", "/compare?run=old&run=other")]
    assert {answer.status_code for answer in answers} == {200}
    return [answer.content for answer in answers]


def test_a_look_asks_once_per_run_however_many_files_it_has(team: str, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_folder, "SETTLED", 0)
    reader = client(team)
    shown(reader)
    before = pages(reader)
    with store.requests() as asked:
        shown(reader)
    assert len(asked) <= LOOK + 2 * PER_RUN
    run = Run(f"{team}/old")
    row, curve = run.row(POINT), run.curve(POINT)
    for number in range(40):
        run.write_row({**row, "point": f"{POINT}-{number}", "seed": number})
        run.write_curve(f"{POINT}-{number}", curve)
    shown(reader)
    assert all(now != then for now, then in zip(pages(reader), before, strict=True))
    with store.requests() as asked:
        for _ in range(3):
            shown(reader)
    assert len(asked) <= 3 * (LOOK + 2 * PER_RUN)
    with store.requests() as asked:
        pages(reader)
    assert not [one for one in asked if one.startswith("GET") and "list-type" not in one]
    # One row and one curve more: of 90 files these are read.
    run.write_row({**row, "point": f"{POINT}-new", "seed": 99})
    run.write_curve(f"{POINT}-new", curve)
    with store.requests() as asked:
        assert shown(reader)["old"]["done"] == 48
        assert reader.get("/runs/old").status_code == 200
    points = {one.rpartition("/")[2] for one in asked if one.startswith("GET") and POINT in one}
    assert points == {f"{POINT}-new.parquet"}
    # Other files of the run change: rows and curves still count as read.
    run.logs.write_notes(["something"])
    run.write_waiting("waiting for 1 CPU")
    with store.requests() as asked:
        shown(reader)
    assert len(asked) < 40
    assert not [one for one in asked if one.startswith("GET") and POINT in one]


def test_a_driver_elsewhere_costs_the_same_few_requests_per_look(team: str, store: Store) -> None:
    reader = client(team)
    run = Run(f"{team}/old")
    run.folder.delete("results")
    run.folder.delete("search/search.json")
    at_work(run)
    assert shown(reader)["old"]["state"] == "running"
    run.folder.write_json("driver.json", {**run.driver_record("driver.json"), "count": 2})
    with store.requests() as asked:
        assert shown(reader)["old"]["state"] == "running"
    assert len(asked) <= LOOK + 2 * PER_RUN + 6  # its heartbeat


def test_a_model_is_made_once_and_kept_in_the_bucket(
    team: str, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The Ray of other tests may run in this process, and its workers were started without the keys of this store.
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with client(team) as service:  # made by a real process
        content, state = fetched(service, "timm")
    exports = Folder(f"{team}/old/exports")
    assert exports.read_bytes(state["file"]) == content
    with client(team) as service, store.requests() as asked:  # of a service that was started again
        assert fetched(service, "timm")[0] == content
    assert not [one for one in asked if one.startswith(("PUT", "POST")) or "model.safetensors" in one]
    model = load(f"{team}/old/models/{POINT}")
    x = torch.randn(2, *model.pretrained_cfg["input_size"])
    with torch.no_grad():
        torch.testing.assert_close(loaded_and_called(content, state, "timm", x, tmp_path), model(x), rtol=1e-4, atol=1e-5)
