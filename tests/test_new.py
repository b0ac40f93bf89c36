"""`slimsweep new`: what it finds in a folder, and that a sweep takes the file that it writes."""

import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from slimsweep.cli import main
from slimsweep.config import Config, load_config, presets
from slimsweep.data import load_data
from slimsweep.data.survey import Survey, survey
from slimsweep.tools.new import sweep_file


def images(folder: Path, count: int, size: tuple[int, int] = (40, 30), mode: str = "RGB") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).convert(mode).save(folder / f"{number}.png")
    return folder


def written(folder: Path, tmp_path: Path, *words: str) -> tuple[Config, str]:
    """The configuration that `slimsweep new` writes, as a sweep reads it, and its text."""
    file = tmp_path / "sweep.yaml"
    assert main(["new", str(folder), "--output", str(file), *words]) == 0
    return load_config(["--config", str(file)])[0], file.read_text()


def test_class_folders(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    root = tmp_path / "my pets: 2026"  # a name that YAML would read otherwise
    for name, count in (("cat", 24), ("dog", 16)):
        images(root / name, count)
    config, _ = written(root, tmp_path)
    assert config.data.root == str(root)
    assert config.name == "my-pets-2026"
    assert config.model.kwargs["img_size"] == 28  # not larger than the images
    assert config.data.batch_size <= 28 // 2
    out = capsys.readouterr().out
    assert "40 images in 2 classes (cat 24, dog 16); no splits; colour, 40 x 30 pixels" in out
    assert f"python -m slimsweep.run --config {tmp_path / 'sweep.yaml'}" in out
    assert f"slimsweep plan --config {tmp_path / 'sweep.yaml'}" in out


def test_train_and_validation_folders_of_grey_images(tmp_path: Path) -> None:
    for split, count in (("train", 12), ("validation", 3)):
        for name in ("a", "b"):
            images(tmp_path / "set" / split / name, count, mode="L")
    seen = survey(tmp_path / "set")
    assert seen.counts == {"train": 24, "val": 6}
    assert seen.grey
    config, _ = written(tmp_path / "set", tmp_path)
    assert config.model.kwargs["in_chans"] == 1
    data = load_data(config, (1, 28, 28))
    assert len(data.train) + len(data.val) + len(data.test) == 30


def test_folders_of_splits_with_other_names_are_named(tmp_path: Path) -> None:
    for split in ("Training", "Valid", "Test"):
        for name in ("a", "b"):
            images(tmp_path / "set" / split / name, 2)
    config, _ = written(tmp_path / "set", tmp_path)
    data = load_data(config, (3, 28, 28))
    assert [len(split) for split in (data.train, data.val, data.test)] == [4, 4, 4]


def test_images_without_labels_get_a_backbone(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    config, _ = written(images(tmp_path / "shots", 10), tmp_path)
    assert config.backbone
    data = load_data(config, (3, 224, 224))
    assert [len(split) for split in (data.train, data.val, data.test)] == [8, 1, 1]
    assert "10 images without labels" in capsys.readouterr().out


def test_subfolders_are_no_classes_where_that_is_said(tmp_path: Path) -> None:
    for name in ("monday", "tuesday"):
        images(tmp_path / "shots" / name, 4)
    assert not written(tmp_path / "shots", tmp_path)[0].backbone
    (tmp_path / "sweep.yaml").unlink()
    assert written(tmp_path / "shots", tmp_path, "--unlabelled")[0].backbone


@pytest.mark.parametrize("labelled", [True, False])
def test_the_lines_in_comments_are_settings_too(labelled: bool, tmp_path: Path) -> None:
    """A reader who takes the comment marks away gets a configuration, of a model that a preset uses too."""
    for name in ("a", "b") if labelled else (".",):
        images(tmp_path / "set" / name, 4)
    text = sweep_file(survey(tmp_path / "set"))
    fields = tuple(f"# {name}: " for name in Config.model_fields)
    said = [line.removeprefix("# ") for line in text.splitlines() if line.startswith(fields)]
    assert len(said) >= 2
    config = Config(**{**yaml.safe_load(text), **yaml.safe_load("\n".join(said))})
    known = {load_config(["--config", name])[0].model.name.partition(".")[0] for name in presets()}
    assert config.model.name.partition(".")[0] in known


def test_more_images_get_fewer_epochs_and_larger_batches(tmp_path: Path) -> None:
    small, large = (survey_of(count, tmp_path) for count in (100, 100_000))
    one, other = (Config(**yaml.safe_load(sweep_file(seen))) for seen in (small, large))
    assert one.retrain.epochs > other.retrain.epochs
    assert one.data.batch_size < other.data.batch_size


def survey_of(count: int, tmp_path: Path) -> Survey:
    counts, classes = {"train": count}, {"a": count // 2, "b": count // 2}
    return Survey(
        root=tmp_path, splits={}, counts=counts, classes=classes, width=300, height=200, grey=False,
        unreadable={}, notes=[],
    )  # fmt: skip


def test_what_cannot_be_used_is_refused_and_nothing_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    def refused(folder: Path, *words: str) -> str:
        assert main(["new", str(folder), *words]) == 2
        return " ".join(capsys.readouterr().out.split())

    mine = tmp_path / "mine.yaml"
    mine.write_text("budgets: [0.5]")
    assert "is there already, and is not overwritten" in refused(tmp_path, "--output", str(mine))
    assert mine.read_text() == "budgets: [0.5]"
    other = ["--output", str(tmp_path / "other.yaml")]
    assert "is not there: give a folder of images" in refused(tmp_path / "none", *other)
    assert "holds no images" in refused(tmp_path, *other)
    images(tmp_path / "set" / "train" / "a", 1)
    images(tmp_path / "set" / "train" / "b", 1)
    assert "neither validation nor test" in refused(tmp_path / "set", *other)
    images(tmp_path / "mixed" / "a", 1)
    images(tmp_path / "mixed", 1)
    assert "give --unlabelled" in refused(tmp_path / "mixed", *other)
    (tmp_path / "broken" / "a").mkdir(parents=True)
    (tmp_path / "broken" / "a" / "1.png").write_bytes(b"no picture")
    images(tmp_path / "broken" / "b", 0)
    (tmp_path / "broken" / "b" / "2.png").write_bytes(b"no picture")
    assert "none of 2 images" in refused(tmp_path / "broken", *other)
    assert not (tmp_path / "other.yaml").exists()


def test_it_loads_no_torch(tmp_path: Path) -> None:
    images(tmp_path / "set" / "a", 1)
    images(tmp_path / "set" / "b", 1)
    code = f"""
import sys
from slimsweep.cli import main
assert main(["new", {str(tmp_path / "set")!r}, "--output", {str(tmp_path / "sweep.yaml")!r}]) == 0
print(*(name for name in ("torch", "timm", "ray", "pandas") if name in sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == ""


def test_the_images_left_to_train_on_are_those_of_the_sweep(tmp_path: Path) -> None:
    """Also where shares of the images are no whole numbers: 0.7 * 180 is a little less than 126 in floating point."""
    for number in range(3):
        images(tmp_path / "drawn" / f"class {number}", 20)
        for split, count in (("train", 11), ("val", 2)):
            images(tmp_path / "divided" / split / f"class {number}", count)
    for root in (tmp_path / "drawn", tmp_path / "divided", images(tmp_path / "unlabelled", 17)):
        config, text = written(root, tmp_path)
        (tmp_path / "sweep.yaml").unlink()
        train = len(load_data(config, (3, 28, 28)).train)
        assert f"out of {train} training images" in text


def test_classes_that_the_sweep_will_refuse_are_named(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for name, count in (("cat", 12), ("dog", 2), ("eel", 9)):
        images(tmp_path / "pets" / name, count)
    (tmp_path / "pets" / "notes.txt").write_bytes(b"x")
    written(tmp_path / "pets", tmp_path)
    said = capsys.readouterr().out
    assert "fewer than 3 images: dog. A sweep refuses these classes" in said
    assert "fewer than 10 images: eel." in said
    assert "pets: 1 file skipped" in said  # and not "train", which is no folder of theirs


def test_the_next_commands_run_as_they_are_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "my venv" / "bin"
    place.mkdir(parents=True)
    for name in ("slimsweep", "python"):
        (place / name).write_text("#!/bin/sh\n")
        (place / name).chmod(0o755)
    monkeypatch.setattr(sys, "argv", [str(place / "slimsweep")])
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    for name in ("a", "b"):
        images(tmp_path / "set" / name, 3)

    def commands() -> list[list[str]]:
        written(tmp_path / "set", tmp_path)
        (tmp_path / "sweep.yaml").unlink()
        return [shlex.split(line) for line in capsys.readouterr().out.splitlines()[-2:]]

    assert [words[0] for words in commands()] == [str(place / "slimsweep"), str(place / "python")]
    monkeypatch.setenv("PATH", f"{place}:/usr/bin:/bin")
    assert [words[0] for words in commands()] == ["slimsweep", "python"]
