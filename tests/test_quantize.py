"""INT8 versions of models: as accurate as their rows say, with the layers in float32 that were asked for."""

import functools
import importlib
import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from PIL import Image
from sklearn.datasets import load_digits
from zoo import build, randomised
from zoo import images as images_of

from slimsweep import save
from slimsweep.cli import main
from slimsweep.latency import int8_files
from slimsweep.latency.device import hardware
from slimsweep.latency.int8_files import (
    Prepared,
    SessionModel,
    calibrate,
    layer_losses,
    matching_layers,
    prepare,
    products_overflow,
    quantized_nodes,
    write_int8,
)
from slimsweep.ledger.measures import TOP1
from slimsweep.ledger.model_card import run_of_model
from slimsweep.ledger.run import Run
from slimsweep.ledger.tables import QUANTIZED
from slimsweep.report.page_data import page_data
from slimsweep.report.run_tables import read_run
from slimsweep.saved_models import load
from slimsweep.tools.quantize import quantize_dir, quantize_run
from slimsweep.tools.quantize_work import Settings, Timing
from slimsweep.tools.quantize_work import _is_timed as is_timed
from slimsweep.tools.quantized_table import warning

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

FINISHED = Path(__file__).parent / "data" / "finished-run"
POINT = "searched-0.4000-s0-1eef"
QUICK = Timing(threads=1, repeats=1, min_seconds=0.0)
SMALL = {"img_size": 8, "patch_size": 2, "in_chans": 1, "embed_dim": 32, "num_heads": 2, "mlp_ratio": 2, "num_classes": 10}
PREPROCESSING = {"mean": (0.5,), "std": (0.5,), "input_size": (1, 8, 8), "interpolation": "nearest", "crop_pct": 1.0}
MLP = "blocks.1.mlp.fc2"


@functools.cache
def suited_bits():
    """Of weights, on this processor, as `slimsweep quantize` chooses them."""
    return 7 if products_overflow() else 8


def digits_vit(**arguments):
    return timm.create_model("vit_tiny_patch16_224", **{**SMALL, "depth": 2, **arguments})


def make_hard_to_quantize(model, block, unit=0):
    """Give fc2 of a block an outlier weight in each channel, on a hidden unit that is always 0: float32 stays as it is."""
    mlp = model.blocks[block].mlp
    with torch.no_grad():
        mlp.fc1.weight[unit] = 0
        mlp.fc1.bias[unit] = 0
        mlp.fc2.weight[:, unit] = 1000 * mlp.fc2.weight.abs().max()


def mlp_as_onnx(folder):
    """Two linear layers as an ONNX file; the second has an outlier weight in each channel, on a unit that is always 0."""
    helper, floats = onnx.helper, onnx.TensorProto.FLOAT
    generator = np.random.default_rng(0)
    first, second = (generator.standard_normal(shape).astype(np.float32) for shape in ((4, 8), (8, 4)))
    first[:, 0], second[0] = 0, 1000
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["images", "first"], ["hidden"], name="fc1"),
            helper.make_node("Relu", ["hidden"], ["positive"]),
            helper.make_node("MatMul", ["positive", "second"], ["logits"], name="fc2"),
        ],
        "mlp",
        [helper.make_tensor_value_info("images", floats, ["batch", 4])],
        [helper.make_tensor_value_info("logits", floats, ["batch", 4])],
        [onnx.numpy_helper.from_array(array, name) for name, array in (("first", first), ("second", second))],
    )
    path = folder / "ready.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path)
    layers = {"fc1": ["fc1"], "fc2": ["fc2"]}
    return Prepared(plain=path, ready=path, layers=layers, ranges=folder / "ranges.json", metadata={"config.json": "{}"})


def check_hard_layer(prepared, images, hard, folder):
    """The hard layer is the first of all, and all is well without it."""
    assert calibrate(prepared, images, "minmax") == len(images)
    how = {"method": "minmax", "weight_bits": suited_bits()}
    losses = layer_losses(prepared, images, **how, layers=list(prepared.layers))
    (worst, most), *others = losses.items()
    assert worst == hard
    assert most > 10 * max(loss for _, loss in others)

    def loss_of(path):
        plain = SessionModel(prepared.plain, 1)(images)
        return float((SessionModel(path, 1)(images) - plain).square().sum() / (plain - plain.mean(0)).square().sum())

    kept = [layer for layer in prepared.layers if layer != hard]
    whole, without = folder / "whole.onnx", folder / "without.onnx"
    write_int8(prepared, whole, **how)
    write_int8(prepared, without, **how, layers=kept, settings="mine")
    assert quantized_nodes(whole) == set(prepared.layers)
    assert quantized_nodes(without) == set(kept)
    assert loss_of(without) < loss_of(whole) / 10
    about = {entry.key: entry.value for entry in onnx.load(without).metadata_props}
    assert about == {"config.json": "{}", int8_files.SETTINGS_KEY: "mine"}

    def largest_weight(path):
        tensors = [onnx.numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer if t.data_type == 3]  # int8
        return max(int(np.abs(t.astype(int)).max()) for t in tensors)

    for bits, largest in ((8, 127), (7, 64)):
        write_int8(prepared, whole, method="minmax", weight_bits=bits)
        assert largest_weight(whole) == largest
    with pytest.raises(ValueError, match="no layer is left to quantize"):
        write_int8(prepared, whole, **how, layers=[])


def test_the_hard_layer_is_named_and_stays_float32_where_asked(tmp_path):
    images = torch.randn(24, 4, generator=torch.Generator().manual_seed(0))
    check_hard_layer(mlp_as_onnx(tmp_path), images, "fc2", tmp_path)


def many_layers_as_onnx(folder, layers=20, hard=13):
    """Square linear layers as an ONNX file, each beside a way around it; the hard one has outlier weights that do nothing."""
    helper, floats = onnx.helper, onnx.TensorProto.FLOAT
    generator = np.random.default_rng(1)
    nodes, weights = [helper.make_node("Relu", ["images"], ["x0"])], []
    for layer in range(layers):
        weight = generator.standard_normal((8, 8)).astype(np.float32) / 8
        weight[:, 0] = 0  # the first unit stays as it is, which is 0 in the images
        if layer == hard:
            weight[0] = 1000
        weights.append(onnx.numpy_helper.from_array(weight, f"w{layer}"))
        nodes.append(helper.make_node("MatMul", [f"x{layer}", f"w{layer}"], [f"y{layer}"], name=f"fc{layer}"))
        last = "logits" if layer == layers - 1 else f"x{layer + 1}"
        nodes.append(helper.make_node("Add", [f"x{layer}", f"y{layer}"], [last]))
    ends = [helper.make_tensor_value_info(name, floats, ["batch", 8]) for name in ("images", "logits")]
    graph = helper.make_graph(nodes, "many", ends[:1], ends[1:], weights)
    path = folder / "ready.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path)
    names = {f"fc{layer}": [f"fc{layer}"] for layer in range(layers)}
    return Prepared(plain=path, ready=path, layers=names, ranges=folder / "ranges.json", metadata={})


@pytest.mark.parametrize(("seconds", "first", "closer"), [(1e9, 16, 200), (1e-9, 4, 4)])
def test_all_layers_are_compared_on_few_images_and_the_worst_on_more(seconds, first, closer, tmp_path, monkeypatch):
    """Files sorted by class, such as folders: the images of both looks are from all of them."""
    monkeypatch.setattr(int8_files, "SessionModel", seen := Seen)
    seen.images = []
    images = torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
    images[:, 0] = 0
    images[:, 1] = torch.linspace(0, 4, 200)
    prepared, said = many_layers_as_onnx(tmp_path), []
    calibrate(prepared, images, "minmax")
    how = {"method": "minmax", "weight_bits": suited_bits(), "seconds": seconds, "threads": 1, "progress": said.append}
    losses = layer_losses(prepared, images, layers=list(prepared.layers), **how)
    assert next(iter(losses)) == "fc13"
    assert set(losses) == set(prepared.layers)
    assert list(losses.values()) == sorted(losses.values(), reverse=True)
    assert (said[0], said[19]) == (f"fc0 alone (1 of 20, {first} images)", f"fc19 alone (20 of 20, {first} images)")
    assert said[20] == f"fc13 alone (1 of 8, {closer} images)"
    assert len(said) == 28
    assert sum(map(len, seen.images)) <= 5 + 21 * first + 9 * closer
    assert {round(float(batch[0, 1])) for batch in seen.images} >= {0}
    assert {round(float(batch[-1, 1])) for batch in seen.images} >= {4}


class Seen(SessionModel):
    """A model that keeps the images that it computes."""

    images: list[torch.Tensor] = []  # noqa: RUF012

    def forward(self, images):
        self.images.append(images)
        return super().forward(images)


@pytest.mark.slow
def test_layers_of_a_timm_model_have_the_names_of_its_modules(tmp_path):
    model = randomised(digits_vit())
    make_hard_to_quantize(model, 1)
    prepared = prepare(model, tmp_path, {"config.json": "{}"})
    expected = [f"blocks.{i}.{name}" for i in range(2) for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")]
    assert list(prepared.layers) == ["patch_embed.proj", *expected, "head"]
    images = torch.randn(24, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    check_hard_layer(prepared, images, MLP, tmp_path)
    assert (tmp_path / "without.onnx").stat().st_size < prepared.plain.stat().st_size / 2


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["map pooling", "distilled", "eva02", "dinov3", "swin"])
def test_every_linear_layer_of_every_family_is_quantized(kind, tmp_path):
    model = build(kind)
    prepared = prepare(model, tmp_path)
    x = images_of(model, 4)
    calibrate(prepared, x, "minmax")
    write_int8(prepared, tmp_path / "int8.onnx", method="minmax", weight_bits=suited_bits())
    linear = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    assert all(matching_layers(prepared.layers, linear).values()), "such as --keep-fp32 takes them"
    with torch.no_grad():
        after, before = SessionModel(tmp_path / "int8.onnx", 1)(x), model(x)
    assert float((after - before).square().sum()) < 0.01 * float(before.square().sum())


def test_a_name_stands_for_the_layers_inside_it():
    layers = ["blocks.1.attn.qkv", "blocks.1.mlp.fc1", "blocks.11.mlp.fc1", "blocks.2.attn", "head"]
    names = ["blocks.1", "blocks.1.mlp.fc1", "blocks.2.attn.qkv", "blocks.3"]
    assert list(matching_layers(layers, names).values()) == [layers[:2], [layers[1]], ["blocks.2.attn"], []]


def test_where_products_overflow_weights_have_seven_bits(monkeypatch):
    from slimsweep.tools import quantize

    for overflow, bits in ((True, 7), (False, 8)):
        monkeypatch.setattr(quantize, "products_overflow", lambda overflow=overflow: overflow)
        assert quantize._checked(Settings(), QUICK)[0].weight_bits == bits
        assert quantize._checked(Settings(weight_bits=8), QUICK)[0].weight_bits == 8


@pytest.mark.parametrize("method", ["minmax", "entropy", "percentile"])
def test_without_images_there_is_no_calibration(method, tmp_path):
    with pytest.raises(ValueError, match="no training image"):
        calibrate(mlp_as_onnx(tmp_path), torch.empty(0, 4), method)


@pytest.mark.parametrize("method", ["entropy", "percentile"])
def test_histograms_hold_the_activations_of_one_batch(method, tmp_path, monkeypatch):
    calibration = importlib.import_module("onnxruntime.quantization.calibrate")
    most, collected = 0, calibration.HistogramCalibrater.collect_data

    def collect(self, reader):
        nonlocal most
        run = self.infer_session.run
        batches = 0

        class Counted:
            def __getattr__(self, name):
                return getattr(session, name)

            def run(self, *arguments):
                nonlocal batches
                batches += 1
                return run(*arguments)

        session, self.infer_session = self.infer_session, Counted()
        collected(self, reader)
        self.infer_session = session
        most = max(most, batches)
        assert not self.intermediate_outputs

    monkeypatch.setattr(calibration.HistogramCalibrater, "collect_data", collect)
    images = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    assert calibrate(mlp_as_onnx(tmp_path), images, method) == 64
    assert most == 1


def test_a_loss_is_said_with_layers_and_the_way_out():
    row = {"run": "digits", "point": POINT, "val_top1": 90.0, "val_top1_fp32": 93.456, "keep_fp32": '["head"]'}
    row["worst_layers"] = json.dumps({MLP: 0.9, "blocks.0.attn.qkv": 0.1, "patch_embed.proj": 0.01, "head": 0.001})
    said = warning(row, TOP1, "slimsweep quantize runs/digits")
    assert said == (
        f"{POINT}: INT8 loses 3.46 points of top-1 on validation (93.46 % to 90.00 %); the layers that change its output most "
        f"are {MLP}, blocks.0.attn.qkv, patch_embed.proj; to leave them in float32: slimsweep quantize runs/digits --points "
        f"{POINT} --keep-fp32 head {MLP} blocks.0.attn.qkv patch_embed.proj"
    )
    assert not warning({**row, "val_top1": 92.5}, TOP1, "slimsweep quantize runs/digits")


# Refusals.


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--points", "searched-0.3"], "--points: .* has no model 'searched-0.3'; it has dense, dense-1"),
        (["--keep-fp32", "blocks.7.mlp"], "--keep-fp32 is 'blocks.7.mlp', and these models have no layer of that name: give"),
        (["--images", "0"], "--images is 0: give at least 1"),
        (["--batch-size", "0"], "--batch-size is 0; it must be"),
        (["--threads", "0"], "--threads is 0; it must be"),
        (["--repeats", "0"], "--repeats is 0; it must be"),
        (["--data", "/data/mine"], "--data is /data/mine, and .* is a run, which has its own images"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_made(options, said, tmp_path, capsys):
    shutil.copytree(FINISHED, tmp_path / "run")
    assert main(["quantize", str(tmp_path / "run"), "--points", "dense", *options]) == 2
    text = " ".join(capsys.readouterr().out.split())
    assert pd.Series([text]).str.contains(f"slimsweep: .*{said}").all(), text
    assert not (tmp_path / "run" / "exports").exists()


def test_a_model_of_no_run_needs_data(tmp_path, capsys):
    shutil.copytree(FINISHED / "dense", tmp_path / "model")
    assert run_of_model(str(tmp_path / "model")) is None
    assert main(["quantize", str(tmp_path / "model")]) == 2
    assert "--data /data/my-images" in " ".join(capsys.readouterr().out.split())
    assert main(["quantize", str(tmp_path / "model"), "--points", "dense"]) == 2
    assert "is no run" in " ".join(capsys.readouterr().out.split())
    assert main(["quantize", str(tmp_path)]) == 2
    found = run_of_model(str(FINISHED / "models" / POINT))
    assert (found[0].folder.name, found[1]) == ("finished-run", POINT)


def test_missing_packages_are_named(tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnx" else find(name))
    with pytest.raises(ValueError, match=r"INT8 quantization needs packages .* \(onnx\): pip install onnx onnxscript"):
        quantize_run(Run(FINISHED), ["dense"])


def test_weights_above_one_file_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(int8_files, "ONE_FILE_LIMIT", 1000)
    with pytest.raises(ValueError, match=r"GB of weights, and onnxruntime quantizes ONNX files of at most"):
        prepare(digits_vit(depth=1), tmp_path)


# A run.

ACCURACY = """
import sys, numpy, onnxruntime
images = numpy.load(sys.argv[2])
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
right = 0
for i in range(0, len(images["y"]), 60):
    (logits,) = session.run(["logits"], {"images": images["x"][i : i + 60]})
    right += int((logits.argmax(1) == images["y"][i : i + 60]).sum())
print(100 * right / len(images["y"]))
"""


@pytest.mark.slow
def test_a_run_is_quantized_once_and_shown(tmp_path, capsys):
    from slimsweep.cluster.worker import data_of

    shutil.copytree(FINISHED, tmp_path / "run")
    run = Run(tmp_path / "run")
    settings = Settings(images=64)
    first = quantize_run(run, ["dense", POINT], settings=settings, timing=QUICK)
    assert [row["point"] for row in first.rows] == ["dense", POINT]
    files = [tmp_path / "run" / row["file"] for row in first.rows]
    assert [file.name for file in files] == ["dense-int8.onnx", f"{POINT}-int8.onnx"]
    table = run.products.quantized()
    assert set(table.columns) == set(QUANTIZED.names)
    assert set(table.point) == {"dense", POINT}
    assert (table.model_bytes == [file.stat().st_size for file in files]).all()
    assert table[["test_top1", "test_top1_fp32", "latency_p50_ms", "latency_p50_ms_fp32"]].notna().all().all()
    assert float(table.test_top1_fp32[table.point == POINT].iloc[0]) == run.row(POINT)["test_top1"]

    # The file computes the row's accuracy in a process that has only onnxruntime.
    data = data_of(run, load(run.dense))
    for split in ("val", "test"):
        pairs = [getattr(data, split)[i] for i in range(len(getattr(data, split)))]
        arrays = {"x": torch.stack([x for x, _ in pairs]).numpy(), "y": np.array([y for _, y in pairs])}
        np.savez(tmp_path / f"{split}.npz", **arrays)
        command = [sys.executable, "-c", ACCURACY, str(files[1]), str(tmp_path / f"{split}.npz")]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert float(done.stdout) == pytest.approx(first.rows[1][f"{split}_top1"], abs=1e-4)

    # Again: nothing is made anew, unless it is asked for or the settings are others.
    made = [file.stat().st_mtime_ns for file in files]
    second = quantize_run(run, [POINT], settings=settings, timing=QUICK)
    assert [file.stat().st_mtime_ns for file in files] == made
    (said,) = second.said
    assert "taken over; --again" in said
    assert second.rows[0]["val_top1"] == first.rows[1]["val_top1"]
    quantize_run(run, [POINT], settings=settings, timing=QUICK, again=True)
    assert files[1].stat().st_mtime_ns > made[1]
    kept = quantize_run(run, [POINT], settings=Settings(images=64, keep_fp32=("blocks.0.mlp",)), timing=QUICK)
    assert not kept.said
    assert not any(name.startswith("blocks.0.mlp") for name in quantized_nodes(files[1]))
    assert kept.rows[0]["layers"] == first.rows[1]["layers"] - 2
    files[1].unlink()
    assert not quantize_run(run, [POINT], settings=settings, timing=QUICK).said
    assert files[1].is_file()

    shown = page_data([read_run(Run(run.folder))])
    (model,) = shown["int8"]["models"]  # the untouched dense model is no point
    assert shown["points"]["point"][model["point"]] == POINT
    capsys.readouterr()
    assert (
        main(["quantize", str(tmp_path / "run" / "models" / POINT), "--images", "64", "--threads", "1", "--repeats", "1"]) == 0
    )
    said = capsys.readouterr()
    assert str(files[1]) in said.out
    assert "taken over" in said.err


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A trained model's folder, and the folder of the images that it was trained on: shared, so copy before changing."""
    folder = tmp_path_factory.mktemp("digits")
    found = load_digits()
    images, labels = torch.tensor(found.images, dtype=torch.float32)[:, None], torch.tensor(found.target)
    for number, (image, label) in enumerate(zip(found.images, found.target, strict=True)):
        (folder / "images" / str(label)).mkdir(parents=True, exist_ok=True)
        grey = np.round(image * 255 / 16).astype(np.uint8)
        Image.fromarray(grey).save(folder / "images" / str(label) / f"{number:04}.png")
    images = (torch.round(images * 255 / 16) / 255 - 0.5) / 0.5
    torch.manual_seed(0)
    model = digits_vit()
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    for _ in range(15):
        for batch in torch.randperm(len(labels)).split(100):
            loss = torch.nn.functional.cross_entropy(model(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    save(model.eval(), folder / "model", preprocessing=PREPROCESSING, labels=[str(i) for i in range(10)])
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("method", ["minmax", "percentile"])
def test_a_trained_model_keeps_its_accuracy(digits, method, tmp_path):
    settings = Settings(calibration=method)
    done = quantize_dir(digits / "model", str(digits / "images"), settings=settings, timing=QUICK, output=tmp_path)
    (row,) = done.rows
    assert row["val_top1_fp32"] > 90
    for split in ("val", "test"):
        assert abs(row[f"{split}_top1_fp32"] - row[f"{split}_top1"]) < 1
    assert not done.warnings
    assert row["images_used"] == 512
    assert Path(row["file"]) == tmp_path / "model-int8.onnx"
    assert row["model_bytes"] == (tmp_path / "model-int8.onnx").stat().st_size


@pytest.mark.slow
def test_a_model_that_loses_is_helped_by_what_the_warning_says(digits, tmp_path, capsys):
    model = load(digits / "model")
    make_hard_to_quantize(model, 1)
    save(model, tmp_path / "hard", preprocessing=PREPROCESSING, labels=[str(i) for i in range(10)])
    command = ["quantize", str(tmp_path / "hard"), "--data", str(digits / "images"), "--threads", "1", "--repeats", "1"]
    assert main(command) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert f"the layers that change its output most are {MLP}," in said
    words = said.split("--keep-fp32 ")[1].split()[:3]
    done = quantize_dir(
        tmp_path / "hard", str(digits / "images"), settings=Settings(keep_fp32=tuple(words[:1])), timing=QUICK, output=tmp_path
    )
    assert words[0] == MLP
    assert not done.warnings
    assert done.rows[0]["val_top1_fp32"] - done.rows[0]["val_top1"] <= 1


@pytest.mark.slow
def test_classes_that_are_not_the_models_are_refused(digits, tmp_path):
    shutil.copytree(digits / "images", tmp_path / "images")
    (tmp_path / "images" / "9").rename(tmp_path / "images" / "nine")
    with pytest.raises(ValueError, match="has 'nine' as class 9, which is '9' for the model"):
        quantize_dir(digits / "model", str(tmp_path / "images"), timing=QUICK)
    shutil.rmtree(tmp_path / "images" / "nine")
    with pytest.raises(ValueError, match="has 9 classes, and the model tells 10 apart"):
        quantize_dir(digits / "model", str(tmp_path / "images"), timing=QUICK)


@pytest.mark.slow
def test_a_backbone_is_judged_by_its_features(digits, tmp_path):
    model = load(digits / "model")
    model.reset_classifier(0)
    backbone = digits_vit(num_classes=0)
    backbone.load_state_dict(model.state_dict())
    save(backbone.eval(), tmp_path / "backbone", preprocessing=PREPROCESSING)
    done = quantize_dir(tmp_path / "backbone", str(digits / "images"), timing=QUICK)
    (row,) = done.rows
    assert row["val_r2_fp32"] == pytest.approx(1, abs=1e-6)
    assert 0.99 < row["val_r2"] < 1
    assert 0.99 < row["test_r2"] < 1
    assert "val_top1" not in row
    assert (tmp_path / "backbone" / "model-int8.onnx").is_file()


def test_times_of_another_onnxruntime_are_taken_anew() -> None:
    """`pick` compares those of one version only."""
    onnxruntime = pytest.importorskip("onnxruntime")
    row = {"latency_p50_ms": 3.0, "busy": "", "threads": 1, "batch_size": 1, "hardware": hardware(torch.device("cpu"))}
    timing = Timing(threads=1)
    assert is_timed({**row, "onnxruntime_version": onnxruntime.__version__}, timing)
    assert not is_timed({**row, "onnxruntime_version": "1.0.0"}, timing)
