"""`slimsweep push` against a hub on loopback: what arrives there, who may see it, and what is said where it cannot work."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from hub_stub import TOKEN, running_hub
from zoo import small_vit

from slimsweep import save
from slimsweep.cli import main

POINT = Path(__file__).parent / "data" / "finished-run" / "models" / "searched-0.4000-s0-1eef"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    from huggingface_hub import constants

    with running_hub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "half"
    save(small_vit(), folder, metrics={"test_top1": 91.5})
    (folder / "notes.txt").write_text("private")
    (folder / "model.onnx").write_bytes(b"another")
    return folder


def test_the_models_own_files_arrive_and_nothing_else(hub, model, capsys):
    assert main(["push", str(model), "me/half"]) == 0
    printed = capsys.readouterr()
    assert printed.out.strip() == f"{hub.url}/me/half"
    assert 'timm.create_model("hf-hub:me/half", pretrained=True)' in printed.err
    found = hub.repositories["me/half"]
    assert found["private"]
    assert set(found["files"]) == {"model.safetensors", "config.json", "README.md"}
    for name in ("model.safetensors", "config.json"):
        assert found["files"][name] == (model / name).read_bytes()
    assert 'timm.create_model("hf-hub:me/half", pretrained=True)' in found["files"]["README.md"].decode()
    assert hub.tokens == {TOKEN}


def test_a_public_one_is_asked_for_and_a_second_push_changes_no_visibility(hub, model):
    assert main(["push", str(model), "me/open", "--public"]) == 0
    assert not hub.repositories["me/open"]["private"]
    (model / "README.md").write_text("# mine\n")
    assert main(["push", str(model), "me/open"]) == 0
    assert not hub.repositories["me/open"]["private"]
    assert hub.repositories["me/open"]["files"]["README.md"] == b"# mine\n"
    assert len(hub.commits) == 2


def test_an_old_runs_model_gets_a_card(hub):
    assert main(["push", str(POINT), "me/old"]) == 0
    assert "method searched" in hub.repositories["me/old"]["files"]["README.md"].decode()
    assert not (POINT / "README.md").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["half"], 2, "'half', and the hub has no such names (it must be OWNER/NAME): give OWNER/NAME"),
        (["a/b/c"], 2, "give OWNER/NAME"),
        (["me/ü"], 2, "give OWNER/NAME"),
        (["me/.."], 2, "give OWNER/NAME"),
        (["others/half"], 1, "this token may not write to others/half (You don't have the rights"),
    ],
)
def test_repositories_that_cannot_be(hub, model, arguments, code, said, capsys):
    assert main(["push", str(model), *arguments]) == code
    line = " ".join(capsys.readouterr().out.split())
    assert said in line
    assert "traceback" not in line
    assert not hub.repositories


def test_no_token_and_a_wrong_one(hub, model, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert main(["push", str(model), "me/half"]) == 1
    assert "the hub does not know this token (Invalid credentials" in " ".join(capsys.readouterr().out.split())
    monkeypatch.delenv("HF_TOKEN")
    assert main(["push", str(model), "me/half"]) == 2
    assert "set the variable HF_TOKEN, or log in once with `hf auth login`" in " ".join(capsys.readouterr().out.split())
    assert not hub.repositories


def test_what_is_no_model_and_a_hub_that_is_not_there(hub, model, tmp_path, monkeypatch, capsys):
    from huggingface_hub import constants

    assert main(["push", str(tmp_path), "me/half"]) == 2
    assert "is not a model that slimsweep saved" in " ".join(capsys.readouterr().out.split())
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
        assert main(["push", str(model), "me/half"]) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "cannot be reached" in said
    assert "HF_ENDPOINT" in said
    assert not hub.repositories


@pytest.mark.slow
def test_what_was_pushed_loads_from_the_hub_in_a_fresh_process(hub, model, tmp_path):
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-m", "slimsweep.cli", "push", str(model), "me/half"]
    subprocess.run(command, env=environment, check=True, timeout=120)
    program = (
        "import sys, torch, slimsweep, timm\n"
        "from_hub = timm.create_model('hf-hub:me/half', pretrained=True).eval()\n"
        "here = slimsweep.load(sys.argv[1])\n"
        "x = torch.randn(2, *here.pretrained_cfg['input_size'])\n"
        "assert torch.equal(from_hub(x), here(x))\n"
    )
    subprocess.run([sys.executable, "-c", program, str(model)], env=environment, check=True, timeout=120)
