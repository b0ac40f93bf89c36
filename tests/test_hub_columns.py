"""Hugging Face data sets and WebDataset shards whose images and labels have other names than the usual ones."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image

from slimsweep.config import Config, ConfigError, load_config
from slimsweep.data import Data, eval_loader, load_data

FINE, COARSE = ["bee", "rose", "tulip"], ["animal", "flower"]
SPLITS = {"train": 9, "validation": 6, "test": 3}


def picture(value: int, kind: str = "png") -> bytes:
    file = io.BytesIO()
    Image.new("L", (8, 8), value).save(file, kind)
    return file.getvalue()


@pytest.fixture(scope="module")
def flowers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the Hub has it, with CIFAR-100's columns; the shade of an image is its fine label."""
    root = tmp_path_factory.mktemp("flowers")
    features = datasets.Features(
        {
            "img": datasets.Image(),
            "fine_label": datasets.ClassLabel(names=FINE),
            "coarse_label": datasets.ClassLabel(names=COARSE),
            "boxes": datasets.List(datasets.Value("int64")),
        }
    )
    datasets.disable_progress_bars()
    (root / "data").mkdir()
    (root / "cache").mkdir()
    for split, count in SPLITS.items():
        fine = [number % 3 for number in range(count)]
        rows = {
            "img": [{"bytes": picture(10 * label), "path": f"{number}.png"} for number, label in enumerate(fine)],
            "fine_label": fine,
            "coarse_label": [int(label > 0) for label in fine],
            "boxes": [[1, 2]] * count,
        }
        datasets.Dataset.from_dict(rows, features=features).to_parquet(root / "data" / f"{split}-00000-of-00001.parquet")

    def names(column: str, classes: list[str]) -> str:
        listed = "".join(f"          '{number}': {name}\n" for number, name in enumerate(classes))
        return f"  - name: {column}\n    dtype:\n      class_label:\n        names:\n{listed}"

    sizes = "".join(f"  - name: {split}\n    num_bytes: 1\n    num_examples: {count}\n" for split, count in SPLITS.items())
    columns = f"  - name: img\n    dtype: image\n{names('fine_label', FINE)}{names('coarse_label', COARSE)}"
    boxes = "  - name: boxes\n    list: int64\n"
    (root / "README.md").write_text(f"---\ndataset_info:\n  features:\n{columns}{boxes}  splits:\n{sizes}---\n")
    return root


def config_of(**more: Any) -> Config:
    plain = {"batch_size": 3, "val_split": "validation", "test_split": "test", "augment.affine": None} | more
    return load_config([])[0].changed(**{f"data.{key}": value for key, value in plain.items()})


def of_hub(flowers: Path, kind: str, **more: Any) -> Config:
    return config_of(name=f"{kind}/{flowers}", root=str(flowers / "cache"), **more)


def pairs(data: Data) -> set[tuple[int, int]]:
    """The (shade, label) that the test split holds."""
    return {
        (round(float((image.mean() + 1) / 2 * 255)), int(label))
        for images, labels in eval_loader(data.test, data.settings)
        for image, label in zip(images, labels, strict=True)
    }


def refusal(config: Config) -> str:
    with pytest.raises(ConfigError) as caught:
        pairs(load_data(config, (1, 8, 8)))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("kind", ["hfds", "hfids"])
def test_columns_are_chosen_by_name(flowers, kind):
    data = load_data(of_hub(flowers, kind, image_key="img", label_key="fine_label"), (1, 8, 8))
    assert data.class_names == FINE
    assert pairs(data) == {(0, 0), (10, 1), (20, 2)}
    data = load_data(of_hub(flowers, kind, image_key="img", label_key="coarse_label"), (1, 8, 8))
    assert data.class_names == COARSE
    assert pairs(data) == {(0, 0), (10, 1), (20, 1)}


@pytest.mark.parametrize("kind", ["hfds", "hfids"])
def test_a_column_that_is_missing_or_of_another_kind_is_refused_with_those_there_are(flowers, kind):
    text = refusal(of_hub(flowers, kind))
    assert "no column 'image' for the images" in text
    assert "img, fine_label, coarse_label, boxes: set data.image_key" in text
    text = refusal(of_hub(flowers, kind, image_key="img"))
    assert "no column 'label' for the labels" in text
    assert "set data.label_key" in text
    assert "'fine_label' holds no images" in refusal(of_hub(flowers, kind, image_key="fine_label", label_key="coarse_label"))
    assert "'boxes' holds more than one number per image" in refusal(of_hub(flowers, kind, image_key="img", label_key="boxes"))


def test_folders_that_hugging_face_makes_one_class_of_are_said(tmp_path):
    for split in SPLITS:
        for number, name in enumerate(("cat/indoor", "dog/indoor", "dog/outdoor")):
            (tmp_path / split / name).mkdir(parents=True)
            for image in range(3):
                (tmp_path / split / name / f"{image}.png").write_bytes(picture(10 * number))
    (tmp_path / "cache").mkdir()
    data = load_data(of_hub(tmp_path, "hfds"), (1, 8, 8))
    assert data.class_names == ["indoor", "outdoor"]
    assert [note for note in data.notes if "(indoor): where the first folder is the class, set data.name to folder" in note]


def shards(root: Path, **endings: Any) -> str:
    """WebDataset shards; each sample holds what `endings` says of a label."""
    for split, count in SPLITS.items():
        with tarfile.open(root / f"{split}-0000.tar", "w") as tar:
            for number in range(count):
                for ending, content in endings.items():
                    stored = content(number % 3)
                    entry = tarfile.TarInfo(f"{number:03}.{ending.replace('_', '.')}")
                    entry.size = len(stored)
                    tar.addfile(entry, io.BytesIO(stored))
    return str(root)


def of_shards(root: Path, **more: Any) -> Config:
    names = {
        f"{short}_split": f"{split}-0000.tar|{SPLITS[split]}"
        for short, split in zip(("train", "val", "test"), SPLITS, strict=True)
    }
    return config_of(name="wds/flowers", root=str(root), num_classes=3, **names, **more)


def test_endings_and_fields_of_shards_are_chosen_by_name(tmp_path):
    shards(
        tmp_path,
        left_png=lambda label: picture(200),
        right_png=lambda label: picture(10 * label),
        coarse_cls=lambda label: str(int(label > 0)).encode(),
        json=lambda label: json.dumps({"kind": label}).encode(),
    )
    data = load_data(of_shards(tmp_path, image_key="right.png", label_key="kind"), (1, 8, 8))
    assert pairs(data) == {(0, 0), (10, 1), (20, 2)}
    data = load_data(of_shards(tmp_path, image_key="left.png", label_key="coarse.cls"), (1, 8, 8))
    assert pairs(data) == {(200, 0), (200, 1)}
    text = refusal(of_shards(tmp_path, image_key="left.png", label_key="species"))
    assert "its JSON kind: set data.label_key" in text
    assert "holds left.png, right.png, coarse.cls, json" in refusal(
        of_shards(tmp_path, image_key="middle.png", label_key="kind")
    )


@pytest.mark.parametrize(("ending", "kind"), [("bmp", "bmp"), ("tif", "tiff"), ("gif", "gif"), ("webp", "webp")])
def test_shards_hold_images_of_any_type_that_pillow_reads(tmp_path, ending, kind):
    shards(tmp_path, **{ending: lambda label: picture(50, kind), "cls": lambda label: str(label).encode()})
    data = load_data(of_shards(tmp_path), (1, 8, 8))
    assert {label for _, label in pairs(data)} == {0, 1, 2}


@pytest.mark.parametrize("field", ["image_key", "label_key"])
@pytest.mark.parametrize("name", ["digits", "folder", "torch/cifar100"])
def test_columns_of_data_that_has_none_are_refused(tmp_path, field, name):
    text = refusal(config_of(name=name, root=str(tmp_path), **{field: "img"}))
    assert f"data.{field} is 'img'" in text
    assert "leave it out" in text


def test_columns_count_in_the_names_of_points_only_where_they_are_given():
    plain = config_of(name="hfds/cifar100")
    chosen = config_of(name="hfds/cifar100", image_key="img", label_key="fine_label")
    assert "image_key" not in plain.identity("dense")["data"]
    assert plain.fingerprint("dense") != chosen.fingerprint("dense")
