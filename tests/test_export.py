"""Exported models compute what the model does, at any batch size, or are not there."""

import importlib.util
import json

import pytest
import timm
import torch
from zoo import build, difference, images, random_gates, slow, small_vit

from slimsweep import add_gates, load, save, slim, solve
from slimsweep.tools import export
from slimsweep.tools.export import ExportError, export_model


def saved(folder, model, budget=0.5):
    gated = add_gates(model)
    gated.set_gates(random_gates(gated))
    structure = solve(gated, budget)
    structure.masks["mlp"][1][:] = False  # a branch without units
    small = slim(gated, structure)
    save(small, folder, labels=[str(i) for i in range(10)])
    return small


@pytest.mark.parametrize("kind", ["class token", *slow("map pooling", "eva02", "swin")])
def test_onnx(kind, tmp_path, capfd):
    ort = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    small = saved(tmp_path, build(kind))
    path = export_model(tmp_path, "onnx")
    assert path == tmp_path / "model.onnx"
    assert {p.name for p in tmp_path.iterdir()} == {"config.json", "model.safetensors", "model.onnx"}
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    for batch in (1, 2, 5):
        x = images(small, batch)
        (got,) = session.run(["logits"], {"images": x.numpy()})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(got), small(x), rtol=1e-4, atol=1e-4)
    about = json.loads(session.get_modelmeta().custom_metadata_map["config.json"])
    assert about["label_names"][3] == "3"
    assert about["pretrained_cfg"]["mean"]
    assert not any(capfd.readouterr()), "the exporter talks"


@pytest.mark.parametrize("kind", ["dinov3", *slow("distilled")])
def test_pt2(kind, tmp_path):
    small = saved(tmp_path, build(kind))
    path = export_model(tmp_path, "pt2", tmp_path / "new" / "program.pt2")
    assert {p.name for p in path.parent.iterdir()} == {"program.pt2"}
    about = {"config.json": ""}
    program = torch.export.load(path, extra_files=about).module()
    for batch in (1, 2, 5):
        x = images(small, batch)
        with torch.no_grad():
            torch.testing.assert_close(program(x), small(x), rtol=1e-4, atol=1e-5)
    assert json.loads(about["config.json"])["label_names"][3] == "3"


def test_timm(tmp_path):
    small = saved(tmp_path / "model", small_vit())
    path = export_model(tmp_path / "model", "timm")
    assert path == tmp_path / "model-timm"
    assert difference(small, timm.create_model(f"local-dir:{path}", pretrained=True).eval()) == 0
    assert "vit_tiny_patch16_224, cut by slimsweep" in (path / "README.md").read_text()
    assert export_model(tmp_path / "model", "timm") == path  # again, over the one before
    (path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="something else than an earlier export"):
        export_model(tmp_path / "model", "timm")
    with pytest.raises(ValueError, match="own folder"):
        export_model(tmp_path / "model", "timm", tmp_path / "model")
    assert difference(small, load(tmp_path / "model")) == 0


@pytest.mark.parametrize("format", ["onnx", "pt2"])
def test_what_differs_is_removed_and_what_was_there_stays(format, tmp_path, monkeypatch):
    if format == "onnx":
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    saved(tmp_path, small_vit())
    monkeypatch.setattr(export, "TOLERANCE", -1.0)
    target = tmp_path / f"model.{format}"
    target.write_bytes(b"an older one")
    with pytest.raises(ExportError, match=r"differs from the model by \d"):
        export_model(tmp_path, format)
    assert target.read_bytes() == b"an older one"
    assert {p.name for p in tmp_path.iterdir()} == {"config.json", "model.safetensors", target.name}


def test_a_timm_folder_that_differs_is_not_kept(tmp_path, monkeypatch):
    saved(tmp_path / "model", small_vit())
    monkeypatch.setattr(export, "TOLERANCE", -1.0)
    with pytest.raises(ExportError, match=r"differs from the model by \d"):
        export_model(tmp_path / "model", "timm")
    assert {p.name for p in tmp_path.iterdir()} == {"model"}


@pytest.mark.parametrize("format", ["onnx", "pt2"])
def test_what_torch_cannot_export_is_said_in_one_sentence(format, tmp_path, monkeypatch):
    if format == "onnx":
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    saved(tmp_path, small_vit())

    def data_dependent(self, x):
        return x * 2 if x.sum() > 0 else x

    monkeypatch.setattr(timm.models.vision_transformer.Block, "forward", data_dependent)
    with pytest.raises(ExportError, match=r"torch .* cannot turn this model into .*; try another format$") as caught:
        export_model(tmp_path, format)
    assert "\n" not in str(caught.value)
    assert {p.name for p in tmp_path.iterdir()} == {"config.json", "model.safetensors"}


def test_missing_packages_are_named(tmp_path, monkeypatch):
    saved(tmp_path, small_vit())
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else find(name))
    with pytest.raises(ValueError, match=r"\(onnxruntime\): pip install onnx onnxscript onnxruntime$"):
        export_model(tmp_path, "onnx")


@pytest.mark.parametrize("format", ["onnx", "pt2"])
def test_a_file_of_another_kind_is_not_replaced(format, tmp_path):
    saved(tmp_path, small_vit())
    before = (tmp_path / "model.safetensors").read_bytes()
    with pytest.raises(ValueError, match=rf"no \.{format} file, so that .* such as .*model\.{format}$"):
        export_model(tmp_path, format, tmp_path / "model.safetensors")
    assert (tmp_path / "model.safetensors").read_bytes() == before
    assert not list(tmp_path.glob(f"*.{format}"))


def test_wrong_input_is_refused(tmp_path):
    with pytest.raises(ValueError, match="onnx, pt2, timm"):
        export_model(tmp_path, "gguf")
    with pytest.raises(ValueError, match=r"has no config\.json"):
        export_model(tmp_path, "pt2")
