"""Files that training scripts write: read without running code in them, and what is done to their weights is said."""

import argparse
import collections
import datetime
import io
import json
import logging
import pathlib
import pickle
import sys
import types

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed

from slimsweep import add_gates, save, slim, solve
from slimsweep.config import ConfigError, checkpoint_token, load_config
from slimsweep.training.dense_model import build_dense, check_model, check_values, start_of

ARGUMENTS = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": 32}


@pytest.fixture(scope="module")
def config():
    model = {"model.name": "vit_tiny_patch16_224", "model.kwargs": ARGUMENTS}
    return load_config([])[0].changed(**model)


@pytest.fixture(scope="module")
def trained(config):
    """A model whose every tensor differs from a fresh one."""
    model = build_dense(config, 10)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    return model.eval()


@pytest.fixture
def load(config, tmp_path, caplog):
    """Writes something to a file, and builds the model from it; what is said is in caplog."""

    def write_and_build(content, **changes):
        path = tmp_path / "checkpoint.pth"
        torch.save(content, path)
        asked = config.changed(**{"model.checkpoint": str(path), **changes})
        check_model(asked)  # the check before a run agrees
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            return build_dense(asked, 10)

    return write_and_build


def same(model, state) -> bool:
    return all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def refused(config, path) -> str:
    asked = config.changed(**{"model.checkpoint": str(path)})
    texts = []
    for build in (check_model, lambda asked: build_dense(asked, 10)):
        with pytest.raises(ConfigError) as caught:
            build(asked)
        texts.append(str(caught.value))
    assert texts[0] == texts[1]
    assert "\n" not in texts[0]
    return texts[0]


def test_a_checkpoint_of_timms_training_script(load, trained, caplog):
    """timm's CheckpointSaver: arguments as a Namespace, numbers of numpy, optimizer and scaler beside the weights."""
    optimizer = torch.optim.AdamW(trained.parameters())
    trained(torch.zeros(1, 3, 32, 32)).sum().backward()
    optimizer.step()
    trained.zero_grad()
    zeros = {key: torch.zeros_like(value) for key, value in trained.state_dict().items()}
    content = {
        "epoch": np.int64(7),
        "arch": "vit_tiny_patch16_224",
        "state_dict": zeros,
        "state_dict_ema": trained.state_dict(),
        "optimizer": optimizer.state_dict(),
        "args": argparse.Namespace(
            lr=np.float64(1e-3),
            opt_betas=None,
            output=pathlib.Path("/tmp/out"),
            began=datetime.datetime(2024, 1, 1),
            extra=types.SimpleNamespace(more=[1, (2, 3), {4}]),
        ),
        "amp_scaler": {"scale": 65536.0},
        "metric": np.float32(81.2),
        "random": np.random.RandomState(0).get_state(),
        "history": collections.defaultdict(list, {"loss": [np.float16(0.5)]}),
    }
    assert same(load(content), trained.state_dict())
    assert "took state_dict_ema (the file also has state_dict)" in caplog.text


def test_numbers_of_numpy_1_are_read(config, trained, tmp_path):
    """Files name numpy's modules as the version that wrote them did."""
    torch.save(
        {"model": trained.state_dict(), "top1": np.float64(81.5)}, tmp_path / "new.pth", _use_new_zipfile_serialization=False
    )
    written = (tmp_path / "new.pth").read_bytes()
    assert b"numpy._core.multiarray" in written
    (tmp_path / "old.pth").write_bytes(written.replace(b"cnumpy._core.multiarray", b"cnumpy.core.multiarray"))
    loaded = build_dense(config.changed(**{"model.checkpoint": str(tmp_path / "old.pth")}), 10)
    assert same(loaded, trained.state_dict())


def test_settings_of_other_packages_are_read_without_them(load, trained, monkeypatch):
    """A container of a package that is not installed here, such as omegaconf's, pickled as it pickles itself."""
    module = types.ModuleType("omegaconf.dictconfig")

    class DictConfig(dict):
        def __reduce__(self):
            return (DictConfig, (dict(self),), {"_metadata": None, "_content": {"lr": 0.1}})

    DictConfig.__module__, DictConfig.__qualname__ = "omegaconf.dictconfig", "DictConfig"
    module.DictConfig = DictConfig
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "omegaconf", types.ModuleType("omegaconf"))
        patched.setitem(sys.modules, "omegaconf.dictconfig", module)
        stream = io.BytesIO()
        torch.save({"cfg": DictConfig(lr=0.1), "model": trained.state_dict()}, stream)
    content = stream.getvalue()
    with pytest.raises(pickle.UnpicklingError):
        torch.load(io.BytesIO(content), weights_only=True)
    real_save = torch.save
    monkeypatch.setattr(torch, "save", lambda _, path: pathlib.Path(path).write_bytes(content))
    assert same(load(None), trained.state_dict())
    monkeypatch.setattr(torch, "save", real_save)


def test_a_dictionary_of_another_package_is_read_with_its_items(load, trained, monkeypatch, caplog):
    """Lightning's hyperparameters and yacs's CfgNode are dictionaries of their own, pickled item by item."""
    module = types.ModuleType("lightning")
    module.AttributeDict = type("AttributeDict", (dict,), {"__module__": "lightning"})
    monkeypatch.setitem(sys.modules, "lightning", module)
    names = [f"class {number}" for number in range(10)]
    content = {
        "state_dict": {f"model.{key}": value for key, value in trained.state_dict().items()},
        "hyper_parameters": module.AttributeDict(lr=0.1, classes=names),
    }
    assert same(load(content), trained.state_dict())


class Unknown:
    """A class of somebody's training script."""


class Hostile:
    def __reduce__(self):
        return (print, ("code of a checkpoint was run",))


def test_a_class_that_could_run_code_is_named_and_never_run(config, trained, tmp_path, capsys):
    for number, thing in enumerate((Unknown(), Hostile())):
        path = tmp_path / f"{number}.pth"
        torch.save({"model": trained.state_dict(), "args": argparse.Namespace(inner=[thing])}, path)
        said = refused(config, path)
        assert "code in it is not run" in said
        assert ("Unknown" if number == 0 else "print") in said
    assert "was run" not in capsys.readouterr().out


PREFIXES = ("model.", "net.", "backbone.", "encoder.", "student.", "model._orig_mod.", "module.model.", "a.b.c.")


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("beside", [{}, {"criterion.weight": torch.ones(3), "metric.total": torch.ones(())}])
def test_a_prefix_is_taken_off_and_said(load, trained, caplog, prefix, beside):
    state = {f"{prefix}{key}": value for key, value in trained.state_dict().items()}
    lightning = {"state_dict": {**beside, **state}, "hyper_parameters": {"lr": 0.1}, "pytorch-lightning_version": "2.4"}
    assert same(load(lightning), trained.state_dict())
    shown = prefix.replace("_orig_mod.", "")
    assert f"took the tensors behind {shown.removeprefix('module.') if not beside else shown!r}".replace("'", "") in (
        caplog.text.replace("'", "")
    )
    if beside:
        assert "left the other 2 (criterion.weight, metric.total)" in caplog.text


def test_of_a_students_and_an_averaged_copy_the_averaged_one_is_taken_and_said(load, trained, caplog):
    zeros = {key: torch.zeros_like(value) for key, value in trained.state_dict().items()}
    both = {f"student.backbone.{k}": v for k, v in zeros.items()} | {
        f"teacher.backbone.{k}": v for k, v in trained.state_dict().items()
    }
    assert same(load(both), trained.state_dict())
    assert "took the tensors behind 'teacher.backbone.'" in caplog.text
    assert same(load({"student": zeros, "teacher": trained.state_dict(), "epoch": 3}), trained.state_dict())
    assert "took teacher (the file also has student)" in caplog.text


def test_a_teacher_of_another_size_is_not_taken(load, trained, config, caplog):
    large = build_dense(config.changed(**{"model.kwargs.embed_dim": 64}), 10).state_dict()
    both = {f"teacher.{k}": v for k, v in large.items()} | {f"student.{k}": v for k, v in trained.state_dict().items()}
    assert same(load({"state_dict": both}), trained.state_dict())
    assert "behind 'student.'" in caplog.text


def test_wrappers_inside_the_names_are_taken_off(load, trained):
    state = {key.replace("blocks.0.", "blocks.0._fsdp_wrapped_module."): value for key, value in trained.state_dict().items()}
    assert same(load({"ema": {"module": {f"_orig_mod.{k}": v for k, v in state.items()}, "decay": 0.9}}), trained.state_dict())


def test_plain_weights_are_taken_without_a_word(load, trained, caplog):
    assert same(load(trained.state_dict()), trained.state_dict())
    assert same(load({"model": trained.state_dict(), "epoch": 1}), trained.state_dict())
    assert not caplog.records


def test_another_image_size_resamples_the_position_embedding_as_timm_does(load, trained, caplog):
    model = load({"model": trained.state_dict()}, **{"model.kwargs.img_size": 48})
    expected = resample_abs_pos_embed(trained.pos_embed.detach(), new_size=(6, 6), num_prefix_tokens=1)
    assert torch.equal(model.pos_embed, expected)
    assert torch.equal(model.blocks[1].mlp.fc2.weight, trained.blocks[1].mlp.fc2.weight)
    assert "resampled pos_embed from (1, 17, 32) to (1, 37, 32), as timm does" in caplog.text
    # The same values as timm's own loading gives.
    overlay = {"state_dict": trained.state_dict(), "num_classes": 10, "url": "", "hf_hub_id": None}
    arguments = {**ARGUMENTS, "img_size": 48}
    of_timm = timm.create_model(
        "vit_tiny_patch16_224", pretrained=True, pretrained_cfg_overlay=overlay, num_classes=10, **arguments
    )
    assert same(model, of_timm.state_dict())


def test_another_patch_size_is_resampled_too(load, trained, caplog):
    model = load(trained.state_dict(), **{"model.kwargs.patch_size": 16})
    assert model.patch_embed.proj.weight.shape == (32, 3, 16, 16)
    assert "resampled patch_embed.proj.weight" in caplog.text


def test_original_names_are_read_by_timms_own_filters(config, tmp_path, caplog):
    """Swin's files have buffers that timm's model does not, DeiT-III's another layer scale, DINOv2's a mask token."""
    swin = {"embed_dim": 16, "depths": (2, 2), "num_heads": (2, 4), "img_size": 32, "window_size": 4, "patch_size": 4}
    deit = {**ARGUMENTS, "init_values": 1e-4}
    cases = (
        (
            "swin_tiny_patch4_window7_224",
            swin,
            lambda k: k,
            {"layers.0.blocks.0.attn.relative_position_index": torch.zeros(49)},
        ),
        ("deit3_small_patch16_224", deit, lambda k: k.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"), {}),
        ("vit_small_patch14_dinov2", deit, lambda k: k, {"mask_token": torch.zeros(1, 32)}),
    )
    for name, arguments, rename, more in cases:
        asked = config.changed(**{"model.name": name, "model.kwargs": arguments})
        model = build_dense(asked, 10)
        path = tmp_path / f"{name}.pth"
        torch.save({"model": {rename(k): v for k, v in model.state_dict().items()} | more}, path)
        asked = asked.changed(**{"model.checkpoint": str(path)})
        check_model(asked)
        assert same(build_dense(asked, 10), model.state_dict()), name
        assert not start_of(asked, 10).new_head


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_any_precision_become_float32(load, trained, dtype):
    state = {key: value.to(dtype) for key, value in trained.state_dict().items()}
    model = load(state)
    assert all(value.dtype == torch.float32 for value in model.state_dict().values())
    assert same(model, {key: value.float() for key, value in state.items()})


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor", "ignore:TypedStorage")
def test_weights_that_cannot_be_what_the_model_needs_are_refused(config, trained, tmp_path):
    state = trained.state_dict()
    adapters = {k.replace("attn.qkv.", "attn.qkv.base_layer."): v for k, v in state.items()}
    adapters["blocks.0.attn.qkv.lora_A.default.weight"] = torch.zeros(2, 32)
    masked = {("blocks.0.mlp.fc1.weight_orig" if k == "blocks.0.mlp.fc1.weight" else k): v for k, v in state.items()}
    quantized = torch.quantize_per_tensor(state["norm.weight"], 0.1, 0, torch.qint8)
    whole = {k: (v.to(torch.int8) if k == "blocks.0.mlp.fc1.weight" else v) for k, v in state.items()}
    for name, content, wanted in (
        ("lora", adapters, "merge_and_unload"),
        ("masked", masked, "prune.remove"),
        ("whole", whole, "torch.int8"),
        ("quantized", {**state, "norm.weight": quantized}, "quantized"),
    ):
        torch.save(content, tmp_path / f"{name}.pth")
        assert wanted in refused(config, tmp_path / f"{name}.pth")
    state = {**state, "norm.weight": torch.full((32,), torch.nan)}
    torch.save(state, tmp_path / "broken.pth")
    for refuse in (check_values, lambda broken: build_dense(broken, 10)):  # before a run, and by a worker
        with pytest.raises(ConfigError, match=r"norm\.weight that are not finite"):
            refuse(config.changed(**{"model.checkpoint": str(tmp_path / "broken.pth")}))


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_program_is_refused_by_name(config, tmp_path):
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "program.pt")
    assert "TorchScript" in refused(config, tmp_path / "program.pt")


def test_a_saved_folder_is_a_checkpoint_with_its_preprocessing(config, trained, tmp_path):
    save(trained, tmp_path / "dense", preprocessing={"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6), "crop_pct": 1.0})
    for given in (tmp_path / "dense", tmp_path / "dense" / "model.safetensors"):
        asked = config.changed(**{"model.checkpoint": str(given)})
        for model in (check_model(asked), build_dense(asked, 10)):
            assert tuple(model.pretrained_cfg["mean"]) == (0.1, 0.2, 0.3)
        assert same(build_dense(asked, 10), trained.state_dict())
    assert checkpoint_token(tmp_path / "dense") == checkpoint_token(tmp_path / "dense" / "model.safetensors")
    assert "a vit_tiny_patch16_224" in refused(config.changed(**{"model.kwargs.embed_dim": 64}), tmp_path / "dense")


def test_folders_that_are_no_dense_model_are_refused(config, trained, tmp_path):
    gated = add_gates(trained)
    save(slim(gated, solve(gated, 0.5)), tmp_path / "cut")
    assert "was cut already: give the dense model" in refused(config, tmp_path / "cut")
    (tmp_path / "empty").mkdir()
    assert "config.json" in refused(config, tmp_path / "empty")
    (tmp_path / "empty" / "config.json").write_text(json.dumps({"architecture": "vit_tiny_patch16_224"}))
    assert "model.safetensors" in refused(config, tmp_path / "empty")


def test_metadata_of_safetensors_is_no_weight(config, trained, tmp_path):
    save_file(trained.state_dict(), tmp_path / "weights.safetensors", metadata={"format": "pt", "classes": "not json"})
    assert same(
        build_dense(config.changed(**{"model.checkpoint": str(tmp_path / "weights.safetensors")}), 10), trained.state_dict()
    )
