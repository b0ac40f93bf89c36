"""Defaults that fit the data: what nobody sets follows the images and the weights; what is set, and a begun run, stay."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from slimsweep.cli import main as command
from slimsweep.cluster import worker
from slimsweep.config import FITTING, Config, fitting_defaults, load_config, load_configs, presets
from slimsweep.data import splits
from slimsweep.ledger.run import Run
from slimsweep.run import main

ROOT = Path(__file__).parents[1]
MODEL = {
    "name": "vit_tiny_patch16_224",
    "kwargs": {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3},
}
IMAGENET = 1_281_167


def values(config: Config, unset: Any = FITTING, **found: Any) -> dict[str, Any]:
    fitted = fitting_defaults(config, unset, **{"side": 224, **found})
    return {name: one.value for name, one in fitted.items()}


# The rules.


def test_few_images_get_small_batches_enough_steps_a_short_warm_up_and_gentle_crops() -> None:
    found = values(Config(), train=126)
    assert set(found) == {*FITTING} - {"search.epochs", "dense.lr", "search.lr", "retrain.lr"}
    assert found["data.batch_size"] == 8
    assert found["data.eval_batch_size"] == 32
    assert found["data.augment.scale"] == (0.5, 1.0)
    steps = {stage: 126 // 8 * found[f"{stage}.epochs"] for stage in ("dense", "retrain")}
    assert all(300 <= count <= 1500 for count in steps.values())
    assert all(0 < found[f"{stage}.warmup_epochs"] <= found[f"{stage}.epochs"] / 10 for stage in ("dense", "retrain"))
    assert values(Config(), train=1500)["data.batch_size"] == 128


def test_many_images_keep_the_usual_values() -> None:
    assert values(Config(), train=IMAGENET) == {}
    assert values(Config(model={"pretrained": True}), train=IMAGENET) == {}
    assert values(Config(), train=50_000, side=32) == {"data.augment.scale": (0.5, 1.0)}


def test_pretrained_weights_are_fine_tuned_for_a_short_time_where_their_head_is_of_other_classes() -> None:
    config = Config(model={"pretrained": True})
    assert "dense.epochs" not in values(config, train=126)
    for train in (126, 3000, 60_000, IMAGENET):
        found = values(config, train=train, new_head=True)
        assert 10 <= found["dense.epochs"] <= 30
        assert found["dense.lr"] < Config().dense.lr
    backbone = Config(model={"pretrained": True}, data={"num_classes": 0})
    assert not [name for name in values(backbone, train=126) if name.startswith("dense.")]


@pytest.mark.parametrize(("data", "rate"), [({}, 2e-5), ({"num_classes": 0}, 1e-5)])
def test_a_repaired_cut_of_pretrained_weights_is_retrained_at_a_low_rate(data: dict[str, Any], rate: float) -> None:
    config = Config(model={"pretrained": True}, data=data)
    assert values(config, train=4650)["retrain.lr"] == rate
    assert values(config.changed(**{"retrain.repair": False}), train=4650)["retrain.lr"] == 2e-4
    assert "retrain.lr" not in values(config, train=IMAGENET)
    assert "retrain.lr" not in values(Config(), train=4650)


SIZES = st.one_of(st.integers(1, 300), st.integers(1, 2 * 10**6))


@settings(max_examples=40)
@given(
    train=SIZES,
    side=st.sampled_from([8, 32, 224]),
    unset=st.sets(st.sampled_from(FITTING)),
    new_head=st.booleans(),
    pretrained=st.booleans(),
    workers=st.sampled_from([1, 2, 4]),
    accumulate=st.sampled_from([1, 4]),
    mixup=st.sampled_from([0.0, 0.8]),
    warmup=st.sampled_from([0, 5, 40]),
    min_lr=st.sampled_from([1e-6, 3e-4]),
)
def test_what_follows_the_data_always_fits_together_and_changes_nothing_that_was_set(
    train, side, unset, new_head, pretrained, workers, accumulate, mixup, warmup, min_lr
):
    dense = {"epochs": 50} if pretrained and "dense.epochs" not in unset else {}
    config = Config(
        model={"pretrained": pretrained},
        data={"augment": {"mixup": mixup}},
        dense={"accumulate": accumulate, "min_lr": min_lr, **dense},
        search={"min_lr": min_lr},
        retrain={"warmup_epochs": warmup, "min_lr": min_lr},
        resources={"search_workers": workers},
    )
    unset -= {"retrain.warmup_epochs"} if warmup else set()
    found = values(config, unset, train=train, side=side, new_head=new_head)
    assert set(found) <= unset
    fitting = config.changed(**found)  # refuses what does not fit together
    assert all(fitting.value(name) == config.value(name) for name in set(FITTING) - set(found))
    assert fitting.data.batch_size <= 256
    usual = Config(model={"pretrained": pretrained})
    assert 0 < fitting.retrain.epochs <= usual.retrain.epochs
    if warmup and "retrain.epochs" in found:
        assert warmup <= fitting.retrain.epochs / 5
    # A start of what was written has all values, so it derives none.
    assert fitting_defaults(fitting, (), train=train, side=side, new_head=new_head) == {}


# What was set.


def test_a_value_that_is_set_anywhere_is_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text("data: {batch_size: 256}\nsearch:\nmodel: {pretrained: true}\n")
    monkeypatch.setenv("SLIMSWEEP_RETRAIN__LR", "5e-4")
    _, options = load_config(
        ["--config", str(file), "--data.augment", '{"scale": null}', "--dense.warmup_epochs", "0", "--quick"]
    )
    said = {"data.batch_size", "retrain.lr", "data.augment.scale", "dense.warmup_epochs"}
    assert options.unset == set(FITTING) - said  # dense.epochs is 0 with weights, which nobody said
    assert load_config(["--config", str(file), "--smoke"])[1].unset == set()
    file.write_text(Config().to_yaml())
    assert load_config(["--config", str(file)])[1].unset == set()


def test_presets_speak_for_all_fields(tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text("extends: deit-small-imagenet\ndata: {root: /images}\n")
    for words in ([], ["--config", str(tmp_path / "sweep.yaml")], *(["--config", name] for name in presets())):
        assert load_configs(words)[1].unset == set()


STUDIES = sorted([*ROOT.glob("reports/*/*.yaml"), *ROOT.glob("jobs/**/sweep.yaml")])


@pytest.mark.parametrize("file", STUDIES, ids=lambda file: str(file.relative_to(ROOT)))
def test_studies_and_jobs_mean_what_they_meant(file: Path) -> None:
    configs, options = load_configs(["--config", str(file)])
    for config in configs:
        on_imagenet = config.data.root is not None and config.data.root.endswith("imagenet")
        for train in [IMAGENET] if on_imagenet else [100, 1293, 9000, 54_000, IMAGENET]:
            for side in [224] if on_imagenet else [8, 28, 70, 224]:
                assert values(config, options.unset, train=train, side=side) == {}


# A run.


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The command of a sweep on a folder of 60 images, 42 of them for training; it ends before anything is trained."""
    grow(tmp_path / "pets", 30)
    file = tmp_path / "sweep.yaml"
    file.write_text(json.dumps({"name": "pets", "budgets": [0.5], "model": MODEL, "data": {"name": "folder"}}))
    monkeypatch.setattr("slimsweep.run.sweep", lambda *given: 0)
    where = ["--output", str(tmp_path / "runs"), "--data.root", str(tmp_path / "pets")]
    return ["--config", str(file), *where]


def grow(folder: Path, images: int) -> None:
    """Images of two classes, as many of each."""
    worker.prepared.clear()  # a new process has read nothing yet
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(images):
            noise = np.random.default_rng(random.Random(f"{name}{number}").getrandbits(32))
            Image.fromarray(noise.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(folder / name / f"{number}.png")


def test_a_first_start_says_and_stores_what_follows_the_data_and_later_starts_keep_it(
    sweep: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(sweep) == 0
    out = capsys.readouterr().out
    run = Run(tmp_path / "runs" / "pets")
    first = run.stored_config()
    assert first.data.batch_size == 8  # the usual 256 would be refused
    assert "data.batch_size 8 (42 training images)" in out
    assert "data.augment.scale 0.5,1.0 (42 training images)" in out
    assert f"dense.epochs {first.dense.epochs} (42 training images, 5 steps per epoch)" in out

    # Also where the images have become more, as nothing was trained yet: a run that has begun derives nothing.
    grow(tmp_path / "pets", 120)
    assert main(sweep) == 0
    assert run.stored_config() == first
    capsys.readouterr()

    assert main([*sweep, "--data.batch_size", "16"]) == 0  # what is set wins
    assert "data.batch_size" not in capsys.readouterr().out
    assert run.stored_config() == first.changed(**{"data.batch_size": 16})


@pytest.mark.slow
def test_quick_keeps_its_epochs_and_leaves_the_others_to_a_later_start(sweep: list[str], tmp_path: Path) -> None:
    run = Run(tmp_path / "runs" / "pets")
    assert main([*sweep, "--quick"]) == 0
    quick = run.stored_config()
    assert (quick.search.epochs, quick.retrain.epochs, quick.data.batch_size) == (0, 0, 8)
    assert main([*sweep, "--search.epochs", "0"]) == 0
    later = run.stored_config()
    assert (later.search.epochs, later.data.batch_size, later.dense) == (0, 8, quick.dense)
    assert 0 < later.retrain.epochs < Config().retrain.epochs


@pytest.mark.slow
def test_a_run_of_an_earlier_version_goes_on_with_the_usual_values(sweep: list[str], tmp_path: Path) -> None:
    assert main([*sweep, "--data.batch_size", "8"]) == 0
    run = Run(tmp_path / "runs" / "pets")
    (tmp_path / "runs" / "pets" / "derived.json").unlink()  # which no earlier version wrote
    assert main([*sweep, "--data.batch_size", "8"]) == 0
    assert run.stored_config().dense.epochs == Config().dense.epochs
    assert main(sweep) == 2  # 256 are more than the images


@pytest.mark.slow
def test_a_damaged_record_is_named_and_found_again(
    sweep: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(sweep) == 0
    run, file = Run(tmp_path / "runs" / "pets"), tmp_path / "runs" / "pets" / "derived.json"
    first, whole = run.stored_config(), file.read_text()
    for damaged in (whole[:40], '{"data.batch_size": 8}'):
        file.write_text(damaged)
        capsys.readouterr()
        assert main(sweep) == 0
        assert "derived.json is damaged" in capsys.readouterr().out.replace("\n", "")
        assert file.read_text() == whole
    assert run.stored_config() == first


def test_a_first_start_lists_the_images_once(sweep: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    listed: list[Config] = []
    listing = splits.sources_of
    monkeypatch.setattr(splits, "sources_of", lambda config, mode: listed.append(config) or listing(config, mode))
    assert main(sweep) == 0
    assert len(listed) == 1


def test_weights_of_other_classes_are_fine_tuned_and_not_refused(
    sweep: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = timm.create_model(MODEL["name"], num_classes=7, **MODEL["kwargs"]).state_dict()
    torch.save(weights, tmp_path / "seven.pt")
    words = [*sweep, "--model.checkpoint", str(tmp_path / "seven.pt")]
    assert main([*words, "--dense.epochs", "0"]) == 2  # said, it means the weights as they are
    capsys.readouterr()
    assert main(words) == 0
    assert "dense.epochs 30 (pretrained weights have a head for other classes)" in capsys.readouterr().out
    config = Run(tmp_path / "runs" / "pets").stored_config()
    assert (config.dense.lr, config.retrain.lr) == (1e-4, 2e-5)


def test_what_is_refused_is_still_said_with_all_else(sweep: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*sweep, "--data.root", "/nowhere", "--budgets", "900G"]) == 2
    out = " ".join(capsys.readouterr().out.split())
    assert "/nowhere" in out
    assert "900G" in out


@pytest.mark.slow
def test_plan_plans_the_same_values(
    sweep: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    planned: list[Config] = []
    monkeypatch.setattr("slimsweep.tools.plan.plan", lambda config, **given: planned.append(config))
    monkeypatch.setattr("slimsweep.tools.estimate.show", lambda *given: None)
    assert command(["plan", *sweep]) == 0
    assert "data.batch_size 8 (42 training images)" in capsys.readouterr().out
    assert command(["plan", *sweep, "--images", "42,9,9", "--data.root", "/nowhere"]) == 0
    assert main(sweep) == 0
    assert planned[0] == Run(tmp_path / "runs" / "pets").stored_config()
    assert planned[1].data.batch_size == 8
    grow(tmp_path / "pets", 120)
    assert command(["plan", *sweep, "--run", str(tmp_path / "runs" / "pets")]) == 0
    assert planned[2] == planned[0]


def test_settings_of_the_gates_training_are_noticed_where_no_gates_are_trained() -> None:
    said = Config(search={"lr": 1e-3, "l1": {"mlp": 0.1}}).without_effect()
    assert said.startswith("search.lr and search.l1 are set, but search.epochs is 0, its default")
    assert Config().without_effect() == ""
    assert Config(search={"lr": 1e-3, "epochs": 0}).without_effect() == ""  # somebody wants it so
    assert Config(search={"lr": 1e-3, "epochs": 5}).without_effect() == ""
