"""Files of a model from the service: made once, checked, equal to the model, and only of models that are there."""

import io
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from zoo import difference

pytest.importorskip("fastapi")
from fastapi.testclient import TestClient

from slimsweep import load
from slimsweep.cluster.commands import Ended
from slimsweep.errors import RefusedInput
from slimsweep.ledger import tables
from slimsweep.ledger.run import Run
from slimsweep.service import downloads, make_download
from slimsweep.service.app import make_app
from slimsweep.service.settings import Settings
from slimsweep.storage import Folder

FINISHED = Path(__file__).parent / "data" / "finished-run"
POINT = "searched-0.4000-s0-1eef"
TOKEN = "a token of the test, long"
OF = f"?run=old&point={POINT}"


@pytest.fixture
def output(tmp_path):
    shutil.copytree(FINISHED, tmp_path / "old")
    return tmp_path


@pytest.fixture
def here(monkeypatch):
    """Commands run in this process: what a worker does is the same, and starting Python takes seconds."""
    ran = []

    def run_command(words, *, seconds, files=None):
        assert words[:2] == ["-m", "slimsweep.service.make_download"]
        ran.append(words[2:])
        return Ended(code=make_download.main(words[2:]), output="", errors="")

    monkeypatch.setattr("slimsweep.cluster.commands.run_command", run_command)
    return ran


def client(output, **settings):
    return TestClient(make_app(Settings(output=str(output), token=TOKEN, **settings)), base_url="http://localhost")


def waited(service, kind, of=OF):
    """The state of a file that is no longer being made."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        found = next(file for file in service.get(f"/api/downloads{of}").json() if file["format"] == kind)
        if found["state"] != "making":
            return found
        time.sleep(0.02)
    raise AssertionError("it is still being made")


def fetched(service, kind):
    assert service.post(f"/api/downloads{OF}&format={kind}").status_code == 202
    state = waited(service, kind)
    assert state["state"] == "ready", state
    answer = service.get(f"/api/downloads/file{OF}&format={kind}")
    assert answer.status_code == 200
    assert len(answer.content) == state["bytes"]
    assert f'filename="{state["file"]}"' in answer.headers["content-disposition"]
    return answer.content, state


def loaded_and_called(content, state, kind, x, folder):
    """What a downloaded file computes in a fresh process, which loads it by the two lines that the page shows."""
    (folder / state["file"]).write_bytes(content)
    if kind == "timm":
        with zipfile.ZipFile(folder / state["file"]) as archive:
            archive.extractall(folder)
    torch.save(x, folder / "x.pt")
    compute = {
        "timm": "model.eval()(x)",
        "onnx": "model.run(None, {'images': x.numpy()})[0]",
        "pt2": "model(x)",
    }[kind]
    program = f"import torch, json\n{state['load']}\nx = torch.load('x.pt')\nwith torch.no_grad():\n    y = {compute}\n"
    program += "print(json.dumps(torch.as_tensor(y).tolist()))\n"
    done = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr
    return torch.tensor(json.loads(done.stdout))


def test_a_timm_folder_is_the_model_and_is_made_once(output, here, tmp_path):
    with client(output) as service:
        content, state = fetched(service, "timm")
        assert fetched(service, "timm")[0] == content
    assert len(here) == 1
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert {name.partition("/")[2] for name in archive.namelist()} == {"model.safetensors", "config.json", "README.md"}
        archive.extractall(tmp_path / "taken")
    folder = tmp_path / "taken" / POINT
    assert f'"local-dir:{POINT}"' in state["load"]
    assert difference(load(FINISHED / "models" / POINT), load(folder)) == 0
    # Trained again, it is made again.
    model = output / "old" / "models" / POINT / "config.json"
    model.write_bytes(model.read_bytes())
    with client(output) as service:
        assert service.get(f"/api/downloads{OF}").json()[0]["state"] == "missing"


@pytest.mark.slow
def test_a_torch_program_computes_what_the_model_does(output, here):
    with client(output) as service:
        content, state = fetched(service, "pt2")
    model = load(FINISHED / "models" / POINT)
    x = torch.randn(3, *model.pretrained_cfg["input_size"])
    with torch.no_grad():
        torch.testing.assert_close(torch.export.load(io.BytesIO(content)).module()(x), model(x), rtol=1e-4, atol=1e-5)
    assert (output / "old" / "exports" / state["file"]).read_bytes() == content


@pytest.mark.parametrize(
    ("of", "status", "said"),
    [
        ("?run=other&point=a", 404, "there is no run 'other'"),
        ("?run=../old&point=a", 404, "there is no run '../old'"),
        (f"?run=old&point=../models/{POINT}", 404, "has no model"),
        ("?run=old&point=dense", 404, "has no model 'dense' that is done"),
    ],
)
def test_no_path_is_made_from_what_a_request_says(output, here, of, status, said):
    with client(output) as service:
        for answer in (
            service.get(f"/api/downloads{of}"),
            service.post(f"/api/downloads{of}&format=timm"),
            service.get(f"/api/downloads/file{of}&format=timm"),
        ):
            assert answer.status_code == status
            assert said in answer.json()["detail"]
        assert service.post(f"/api/downloads{OF}&format=pickle").status_code == 422
        assert service.get(f"/api/downloads/file{OF}&format=pt2").status_code == 409
    assert not here
    assert not (output / "old" / "exports").exists()


def test_reading_needs_the_token_where_the_settings_say_so(output, here):
    with client(output, reading="token") as service:
        assert service.get(f"/api/downloads{OF}").status_code == 401
        assert service.post(f"/api/downloads{OF}&format=timm").status_code == 401
        assert service.get(f"/api/downloads{OF}", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200
    assert not here


def test_a_model_that_is_too_large_or_damaged_is_refused_in_a_sentence(output, here, monkeypatch):
    with client(output) as service:
        monkeypatch.setattr(make_download, "LARGEST", 10)
        answer = service.post(f"/api/downloads{OF}&format=timm")
        assert answer.status_code == 413
        assert "downloads are limited to" in answer.json()["detail"]
        monkeypatch.undo()
        monkeypatch.setattr(
            "slimsweep.cluster.commands.run_command",
            lambda words, **_: Ended(code=make_download.main(words[2:]), output="slimsweep: it is damaged\n", errors=""),
        )
        (output / "old" / "models" / POINT / "model.safetensors").write_bytes(b"cut short")
        service.post(f"/api/downloads{OF}&format=timm")
        state = waited(service, "timm")
        assert (state["state"], state["why"]) == ("failed", "it is damaged")
    assert list((output / "old" / "exports").glob("*")) == []


def test_a_link_that_leads_out_of_the_run_is_not_followed(output, here, tmp_path):
    folder = output / "old" / "models" / POINT
    shutil.move(folder, tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    run = Run(Folder(output / "old").confined())
    with pytest.raises(RefusedInput, match="leads out of"):
        make_download.make(run, POINT, "timm")
    assert not (output / "old" / "exports").exists()


@pytest.mark.parametrize("point", ["../../secret", "a\r\nSet-Cookie: a=b", 'a"b', "\u2028", "", "/etc/passwd", "x" * 400])
def test_a_row_of_another_point_leads_nowhere(output, here, point):
    """Whoever may write to the run's folder chooses what its rows say."""
    run = Run(output / "old")
    planted = pa.Table.from_pylist([{**run.row(POINT), "point": point}], schema=tables.RESULTS)
    pq.write_table(planted, output / "old" / "results" / "planted.parquet")
    service = client(output)
    asked = {"run": "old", "point": point, "format": "onnx"}
    for answer in (
        service.get("/downloads", params=asked),
        service.get("/api/downloads", params=asked),
        service.get("/api/downloads/file", params=asked),
        service.post("/api/downloads", params=asked),
    ):
        assert answer.status_code == 404
    assert here == []


def test_links_in_a_run_are_refused_in_a_sentence(output, here, tmp_path):
    (output / "old" / "exports").symlink_to(tmp_path.parent)
    service = client(output)
    for answer in (service.get(f"/api/downloads{OF}"), service.get(f"/api/downloads/file{OF}&format=onnx")):
        assert answer.status_code == 409
        assert "by a symbolic link" in answer.json()["detail"]
    (output / "old" / "exports").unlink()
    weights = output / "old" / "models" / POINT / "model.safetensors"
    weights.unlink()
    os.mkfifo(weights)  # no file, and never read to an end
    refused = service.post(f"/api/downloads{OF}&format=timm")
    assert (refused.status_code, here) == (413, [])
    assert "has no model" in refused.json()["detail"]


def test_one_worker_makes_a_file_however_many_ask(output, monkeypatch):
    import threading

    begun, go_on, ran = threading.Event(), threading.Event(), []

    def slow(words, **_):
        ran.append(words)
        begun.set()
        assert go_on.wait(30)
        return Ended(code=1, output="", errors="")

    monkeypatch.setattr("slimsweep.cluster.commands.run_command", slow)
    with client(output) as service:
        for _ in range(5):
            assert service.post(f"/api/downloads{OF}&format=timm").json() == {"state": "making"}
        assert begun.wait(30)
        go_on.set()
        waited(service, "timm")
    assert len(ran) == 1
    # And no more wait than are allowed to.
    go_on.clear()
    making = downloads.Making()
    run = Run(output / "old")
    points = [f"p{number}" for number in range(downloads.AT_ONCE + downloads.WAITING)]
    for point in points:
        making.begin(run, point, "timm")
    with pytest.raises(Exception, match="try again in a minute"):
        making.begin(run, "one more", "timm")
    go_on.set()
    deadline = time.monotonic() + 30  # those that waited are made too, and not beside the next test
    while any(making.state(run, point, "timm")["state"] == "making" for point in points):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert len(ran) == 1 + len(points)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["timm", "onnx", "pt2"])
def test_the_two_lines_load_it_in_a_fresh_process(output, kind, tmp_path):
    if kind == "onnx":
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    with client(output) as service:  # by a real process
        content, state = fetched(service, kind)
    model = load(FINISHED / "models" / POINT)
    x = torch.randn(2, *model.pretrained_cfg["input_size"])
    with torch.no_grad():
        torch.testing.assert_close(loaded_and_called(content, state, kind, x, tmp_path), model(x), rtol=1e-4, atol=1e-5)
