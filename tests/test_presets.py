"""The configurations that come with slimsweep: each can be run as it is, but for its images."""

import subprocess
import tomllib
from pathlib import Path

import pytest
import timm

import slimsweep
from slimsweep.checks import check_cuts
from slimsweep.config import ConfigError, load_config, presets
from slimsweep.slimming.structure import macs
from slimsweep.training.dense_model import check_model

FOLDER = Path(slimsweep.__file__).parent / "config" / "presets"
IMAGENET = [name for name in presets() if "imagenet" in name]


TAUGHT = ("deit-base-distilled", "deit3-base-21k", "deit3-small-21k")  # by another model than the dense one
HEADLESS = ("dinov2-small", "dinov3-small", "siglip-base")
OTHERS = [pytest.param(name, marks=pytest.mark.slow) if name in (*TAUGHT, *HEADLESS) else name for name in presets()]


@pytest.mark.parametrize("preset", HEADLESS)
def test_presets_of_models_without_a_head_load_and_have_weights(preset: str) -> None:
    config, _ = load_config(["--config", preset])
    assert config.data.num_classes == 0
    assert config.dense.epochs == 0
    assert timm.is_model_pretrained(config.model.name)
    assert timm.get_pretrained_cfg(config.model.name).num_classes == 0
    assert config.search.axes
    assert config.retrain.repair


@pytest.mark.parametrize("preset", TAUGHT)
def test_presets_with_a_teacher_load_and_name_models_with_weights(preset: str) -> None:
    config, _ = load_config(["--config", preset])
    (teacher,) = config.teachers
    for name in (config.model.name, teacher.name):
        assert timm.is_model_pretrained(name)
        assert timm.get_pretrained_cfg(name).num_classes == config.data.num_classes == 1000
    answers = "hard" if preset == "deit-base-distilled" else "soft"
    assert {config.teacher_in_words(stage) for stage in ("search", "retrain")} == {f"{teacher.name}, {answers}, alpha 0.5"}
    assert config.search.axes
    assert config.retrain.repair
    assert config.dense.epochs == 0


@pytest.mark.parametrize("preset", OTHERS)
def test_every_preset_cuts_its_model_and_shrinks_to_a_smoke_test(preset: str) -> None:
    config, _ = load_config(["--config", preset])
    assert config.name == preset
    assert config.budgets or config.shares
    command = "python -m slimsweep.run" + ("" if preset == "digits" else f" --config {preset}")
    assert command in (FOLDER / f"{preset}.yaml").read_text()
    model = check_model(config)
    assert all(p.is_meta for p in model.parameters())
    check_cuts(config, model)
    small, options = load_config(["--config", preset, "--smoke"])
    assert options.smoke
    assert small.search.epochs == min(2, config.search.epochs)
    assert (small.retrain.epochs, small.target_count) == (1, min(2, config.target_count))
    assert small.model == config.model
    check_cuts(small, model)


@pytest.mark.parametrize("preset", IMAGENET)
def test_imagenet_presets_keep_the_public_validation_split_for_the_test(preset: str) -> None:
    config, _ = load_config(["--config", preset])
    assert config.data.num_classes == 1000
    assert (config.data.train_split, config.data.val_split, config.data.test_split) == ("train", None, "validation")
    assert round(config.data.val_share * 1_281_167) == 10_000
    assert config.dense.epochs == 0
    assert timm.is_model_pretrained(config.model.name)


def test_the_papers_settings_are_the_papers() -> None:
    """ViT-Slim, section 4; DeiT's and Swin's own recipes after the cut."""
    for preset, batch in (
        ("deit-tiny-imagenet", 1024),
        ("deit-small-imagenet", 1024),
        ("deit-base-imagenet", 512),
        ("swin-tiny-imagenet", 1024),
    ):
        config, _ = load_config(["--config", preset])
        search, retrain = config.search, config.retrain
        assert config.data.batch_size == batch
        assert (search.epochs, search.lr, search.gate_lr, search.weight_decay) == (50, 5e-4, 5e-4, 1e-3)
        assert (search.scheduler, search.warmup_epochs, search.optimizer) == ("constant", 0, "adamw")
        assert (search.gate_optimizer, search.penalty, search.token_gate) == ("adam", "l1", "tanh")
        assert (search.l1.attention, search.l1.mlp, search.l1.token) == (2e-4, 5e-5, 1e-4)
        assert retrain.epochs == 300
        assert retrain.lr == pytest.approx(5e-4 * batch / 512)
        assert (retrain.min_lr, retrain.weight_decay, retrain.label_smoothing) == (1e-5, 0.05, 0.1)
        swin = preset.startswith("swin")
        assert (retrain.drop_path, retrain.warmup_epochs) == ((0.2, 20) if swin else (0.1, 5))
        assert (retrain.clip_grad, retrain.ema_decay) == ((5.0, None) if swin else (None, 0.99996))
        augment = config.data.augment
        assert (augment.auto_augment, augment.mixup, augment.cutmix) == ("rand-m9-mstd0.5-inc1", 0.8, 1.0)
        assert (augment.reprob, augment.repeated) == (0.25, 1 if swin else 3)
        assert {s.amp for s in (config.dense, search, retrain)} == {"bf16"}


def test_the_large_distilled_model_is_slimmed_to_the_macs_of_a_tiny_one() -> None:
    config, _ = load_config(["--config", "deit-base-distilled-imagenet-best"])
    assert config.budgets == [0.5, 0.25, 0.12, 0.07]
    tiny, _ = load_config(["--config", "deit-tiny-imagenet-best"])
    assert 0.07 * macs(check_model(config)) < macs(check_model(tiny)) < 0.12 * macs(check_model(config))


def test_a_configuration_starts_from_a_preset_and_writes_the_whole(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("extends: deit-base-imagenet-best\nname: mine\nsearch: {epochs: 3}\n")
    with pytest.raises(ConfigError, match=r"extends is 'deit-base-imagenet-best'.*extends 'deit-small-imagenet-best' itself"):
        load_config(["--config", str(path)])
    path.write_text("extends: deit-small-imagenet-best\nname: mine\nsearch: {epochs: 3}\n")
    config, _ = load_config(["--config", str(path), "--search.lr", "1e-3"])
    base, _ = load_config(["--config", "deit-small-imagenet-best"])
    assert config == base.changed(**{"name": "mine", "search.epochs": 3, "search.lr": 1e-3})
    (tmp_path / "whole.yaml").write_text(config.to_yaml())
    assert "extends" not in config.to_yaml()
    assert load_config(["--config", str(tmp_path / "whole.yaml")])[0] == config


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("extends: deit-smal-imagenet", ["'deit-smal-imagenet'", "did you mean deit-small-imagenet"]),
        ("extends: [digits]", ["no preset", "digits"]),
        ("extends: digits\nserch: {epochs: 3}", ["serch", "mine.yaml", "did you mean search"]),
    ],
)
def test_what_cannot_be_extended_is_refused_in_one_sentence(text: str, wanted: list[str], tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(["--config", str(path)])
    assert "\n" not in str(caught.value)
    for part in wanted:
        assert part in str(caught.value)


def test_presets_are_in_the_wheel() -> None:
    """Hatch takes all of the package but what git ignores."""
    root = FOLDER.parents[1]
    if not (root / ".git").exists():
        pytest.skip("an installed package has no repository to build a wheel from")
    settings = tomllib.loads((root / "pyproject.toml").read_text())
    assert settings["tool"]["hatch"]["build"]["targets"]["wheel"] == {"packages": ["slimsweep"]}
    files = [str(path.relative_to(root)) for path in FOLDER.iterdir() if path.suffix == ".yaml"]
    assert len(files) == len(presets())
    ignored = subprocess.run(["git", "check-ignore", *files], cwd=root, capture_output=True, text=True, check=False)
    assert ignored.stdout == ""
