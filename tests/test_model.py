"""The dense model: what timm builds, what a checkpoint may be, and what is refused before any cluster time."""

import logging
import time

import pytest
import torch
from safetensors.torch import save_file

from slimsweep.checks import check
from slimsweep.config import ConfigError, load_config
from slimsweep.slimming.structure import image_size
from slimsweep.training.dense_model import build_dense, check_model, start_of


@pytest.fixture(scope="module")
def config():
    return load_config([])[0]


@pytest.fixture(scope="module")
def trained(config):
    """A digits model whose every tensor differs from a fresh one."""
    model = build_dense(config, 10)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    return model


def refusal(config, build=check_model) -> str:
    with pytest.raises(ConfigError) as caught:
        build(config) if build is check_model else build(config, 10)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_model_is_built_as_named(config):
    model = build_dense(config, 7)
    assert image_size(model) == (1, 8, 8)
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 7)


def test_the_image_size_of_the_data_sets_the_models(config):
    bare = {k: v for k, v in config.model.kwargs.items() if k != "img_size"}
    assert image_size(check_model(config.changed(**{"model.kwargs": bare, "data.image_size": 12}))) == (1, 12, 12)
    text = refusal(config.changed(**{"data.image_size": 12}))
    assert "data.image_size is 12" in text
    assert "8" in text


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("deit_small_patch16_224", (3, 224, 224)),
        ("deit_small_distilled_patch16_224", (3, 224, 224)),
        ("swin_tiny_patch4_window7_224", (3, 224, 224)),
        ("eva02_small_patch14_224", (3, 224, 224)),
        ("vit_small_patch14_reg4_dinov2", (3, 518, 518)),
        ("vit_base_patch16_siglip_224", (3, 224, 224)),
    ],
)
def test_checking_a_large_model_takes_no_memory_and_little_time(config, name, size):
    start = time.perf_counter()
    model = check_model(config.changed(**{"model.name": name, "model.kwargs": {}}))
    assert time.perf_counter() - start < 2
    assert image_size(model) == size
    assert all(p.is_meta for p in model.parameters())


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"model.name": "deit_smal"}, ["'deit_smal'", "did you mean deit_small"]),
        ({"model.name": "vit_tiny_patch16_225"}, ["vit_tiny_patch16_224"]),
        ({"model.name": "no such thing"}, ["no such thing", "deit_small_patch16_224"]),
        ({"model.name": "vit_tiny_patch16_224.augreg"}, ["tag", "augreg_in21k"]),
        ({"model.kwargs.img_size": 9}, ["9 x 9", "2 x 2", "8 x 8"]),
        ({"model.kwargs.num_head": 4}, ["num_head", "did you mean num_heads"]),
        ({"model.kwargs.num_heads": 5}, ["num_heads"]),
        ({"model.kwargs.img_size": "large"}, ["img_size"]),
        ({"model.name": "resnet18", "model.kwargs": {"img_size": 64}}, ["any size"]),
        ({"search.optimizer": "adamm"}, ["search.optimizer", "did you mean adam"]),
        ({"retrain.optimizer": "adan", "retrain.betas": (0.8, 0.9)}, ["retrain.betas is [0.8, 0.9]", "takes 3 betas"]),
        ({"model.checkpoint": "/no/such.safetensors"}, ["/no/such.safetensors", "fix the path"]),
    ],
)
def test_what_cannot_be_built_is_refused_in_one_sentence(config, changes, wanted):
    text = refusal(config.changed(**changes))
    for part in wanted:
        assert part in text


def test_pretrained_weights_that_do_not_exist_are_refused(config):
    asked = config.changed(**{"model.kwargs": {}, "model.pretrained": True})
    check_model(asked)
    assert "timm has no weights" in refusal(asked.changed(**{"model.name": "vit_base_patch16_xp_224"}))


@pytest.mark.parametrize("kind", ["safetensors", "plain", "state_dict", "model", "parallel", "compiled"])
def test_weights_come_from_a_checkpoint_of_any_usual_kind(config, trained, tmp_path, kind):
    state = trained.state_dict()
    path = tmp_path / ("weights.safetensors" if kind == "safetensors" else "weights.pth")
    if kind == "safetensors":
        save_file(state, path)
    elif kind == "plain":
        torch.save(state, path)
    elif kind == "parallel":
        torch.save({"model": {f"module.{k}": v for k, v in state.items()}, "epoch": 3}, path)
    elif kind == "compiled":  # torch.compile around DistributedDataParallel
        torch.save({f"_orig_mod.module.{k}": v for k, v in state.items()}, path)
    else:
        torch.save({kind: state, "optimizer": {"lr": 0.1}}, path)
    asked = config.changed(**{"model.checkpoint": str(path)})
    check_model(asked)
    loaded = build_dense(asked, 10).state_dict()
    assert all(torch.equal(loaded[k], state[k]) for k in state)


def test_averaged_weights_come_first(config, trained, tmp_path):
    zeros = {k: torch.zeros_like(v) for k, v in trained.state_dict().items()}
    torch.save({"state_dict": zeros, "state_dict_ema": trained.state_dict()}, tmp_path / "both.pth")
    loaded = build_dense(config.changed(**{"model.checkpoint": str(tmp_path / "both.pth")}), 10)
    assert torch.equal(loaded.head.weight, trained.head.weight)


def test_another_head_is_replaced_and_said(config, trained, tmp_path, caplog):
    save_file(trained.state_dict(), tmp_path / "ten.safetensors")
    asked = config.changed(**{"model.checkpoint": str(tmp_path / "ten.safetensors")})
    with caplog.at_level(logging.WARNING):
        model = build_dense(asked, 7)
    assert model.head.weight.shape == (7, 64)
    assert torch.equal(model.blocks[3].mlp.fc2.weight, trained.blocks[3].mlp.fc2.weight)
    assert "7 classes" in caplog.text


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"model.kwargs.embed_dim": 32}, ["cls_token", "(1, 1, 64)", "(1, 1, 32)"]),
        ({"model.kwargs.reg_tokens": 1}, ["reg_token", "(1, 1, 64)"]),
        ({"model.kwargs.depth": 3}, ["blocks.3", "does not have"]),
        ({"model.kwargs.depth": 5}, ["blocks.4", "lacks"]),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_with_the_tensor_and_both_shapes(config, trained, tmp_path, changes, wanted):
    save_file(trained.state_dict(), tmp_path / "weights.safetensors")
    torch.save(trained.state_dict(), tmp_path / "weights.pth")
    for name in ("weights.safetensors", "weights.pth"):
        asked = config.changed(**{**changes, "model.checkpoint": str(tmp_path / name)})
        for build in (check_model, build_dense):
            text = refusal(asked, build)
            for part in (name, *wanted):
                assert part in text


class Runs:
    """What a hostile or careless checkpoint may hold."""

    def __reduce__(self):
        return (print, ("code of a checkpoint was run",))


def test_a_checkpoint_that_is_not_weights_is_refused_and_never_run(config, tmp_path, capsys):
    torch.save({"model": Runs()}, tmp_path / "code.pth")
    (tmp_path / "noise.pth").write_bytes(b"not a checkpoint")
    (tmp_path / "noise.safetensors").write_bytes(b"not a checkpoint")
    torch.save({"epoch": 3}, tmp_path / "empty.pth")
    for name in ("code.pth", "noise.pth", "noise.safetensors", "empty.pth"):
        assert name in refusal(config.changed(**{"model.checkpoint": str(tmp_path / name)}))
    assert "was run" not in capsys.readouterr().out


def test_weights_without_a_head_for_the_data_are_no_dense_model(config, tmp_path):
    """Untrained, the head would be what the search, distillation and gradients start from."""
    save_file(build_dense(config, 7).state_dict(), tmp_path / "seven.safetensors")
    asked = config.changed(
        **{"model.checkpoint": str(tmp_path / "seven.safetensors"), "dense.epochs": 0, "dense.warmup_epochs": 0}
    )
    assert not start_of(asked, 7).new_head
    with pytest.raises(ConfigError, match=r"dense\.epochs is 0, but .* no head for the 10 classes of digits: set"):
        check(asked)
    check(asked.changed(**{"dense.epochs": 1}))
    pretrained = config.changed(**{"model.kwargs": {}, "model.pretrained": True})
    assert [bool(start_of(pretrained, classes).new_head) for classes in (10, 1000)] == [True, False]
