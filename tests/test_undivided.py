"""Images without a division into splits: class folders, a tar file of them, or a list of paths and labels."""

import io
import os
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from test_image_folders import SIZE, Reversed, config_of, loaded, refusal

from slimsweep.config import ConfigError
from slimsweep.data import Data, difference, load_data
from slimsweep.data.undivided import class_counts

SIZES = {"ant": 20, "bee": 10, "wasp": 7}
PICTURES = [f"{name}/{number}.png" for name, count in SIZES.items() for number in range(count)]


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    draw = np.random.default_rng(0)
    for name in PICTURES:
        place = tmp_path / "pets" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(256, size=(8, 8, 3), dtype=np.uint8)).save(place)
    return tmp_path / "pets"


def as_tar(pets: Path, place: Path, top: str = "") -> Path:
    with tarfile.open(place, "w") as tar:
        for name in reversed(PICTURES):
            tar.add(pets / name, top + name)
    return place


def as_list(place: Path, rows: list[dict[str, Any]], **how: Any) -> Path:
    table = pd.DataFrame(rows)
    if place.suffix == ".parquet":
        table.to_parquet(place)
    else:
        table.to_csv(place, index=False, **how)
    return place


def rows_of(names: list[str] = PICTURES) -> list[dict[str, Any]]:
    return [{"path": f"pets/{name}", "label": name.partition("/")[0]} for name in names]


def members(data: Data) -> dict[str, set[str]]:
    """The images of each split, each by its class and its file's name."""
    splits = {"train": data.train, "val": data.val, "test": data.test}
    return {
        split: {"/".join(found.source.name(int(index)).split("/")[-2:]) for index in found.indices}
        for split, found in splits.items()
    }


# The draw.


def test_class_folders_are_divided_by_a_draw_that_keeps_the_shares_of_classes_and_is_said(pets: Path) -> None:
    data = loaded(pets)
    parts = members(data)
    assert sum(map(len, parts.values())) == len(set().union(*parts.values())) == len(PICTURES)
    for name, count in SIZES.items():
        for split, share in (("train", 0.7), ("val", 0.15), ("test", 0.15)):
            assert abs(sum(one.startswith(f"{name}/") for one in parts[split]) - share * count) < 2
    said = [note for note in data.notes if "data.split" in note]
    assert len(said) == 1
    assert f"37 images of 3 classes are divided by data.split (0.7, 0.15, 0.15) into {len(parts['train'])} for train" in said[0]
    assert data.fingerprint["draw"]["shares"] == [0.7, 0.15, 0.15]
    assert data.class_names == list(SIZES)


def test_the_draw_depends_neither_on_the_order_of_listing_nor_on_the_form_nor_on_the_seed(
    pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = loaded(pets)
    scan = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: Reversed(scan(path)))
    moved = shutil.copytree(pets, tmp_path / "elsewhere" / "of another name")
    again = loaded(moved)
    assert difference(first.fingerprint, again.fingerprint) is None
    other_seed = load_data(config_of(pets).changed(seed=7), SIZE)
    assert difference(first.fingerprint, other_seed.fingerprint) is None
    for place in (as_tar(pets, tmp_path / "pets.tar"), as_tar(pets, tmp_path / "wrapped.tar", top="./pets/")):
        assert members(loaded(place)) == members(first)


def test_other_shares_give_other_splits_that_are_another_data_set(pets: Path) -> None:
    half = loaded(pets, split=[0.5, 0.25, 0.25])
    assert len(half.train) in (18, 19)
    assert difference(loaded(pets).fingerprint, half.fingerprint) is not None
    usual, other = config_of(pets), config_of(pets, split=[0.5, 0.25, 0.25])
    assert usual.fingerprint("dense") != other.fingerprint("dense")
    assert "split" not in usual.identity("dense")["data"]  # so that points of earlier versions keep their names


@pytest.mark.parametrize("sizes", [[3] * 40, [10] * 37, [3, 1000, 4, 7], [20, 20, 20]])
@pytest.mark.parametrize("shares", [(0.7, 0.15, 0.15), (0.01, 0.495, 0.495), (0.98, 0.01, 0.01)])
def test_each_class_has_an_image_in_each_split_and_totals_keep_to_the_shares(sizes: list[int], shares: Any) -> None:
    counts = class_counts(sizes, shares)
    for size, (val, test) in zip(sizes, counts, strict=True):
        assert val >= 1
        assert test >= 1
        assert size - val - test >= 1
    if sizes == [10] * 37 and shares[0] == 0.7:
        assert [abs(sum(column) - 55.5) <= 0.5 for column in zip(*counts, strict=True)] == [True, True]


def test_a_class_of_two_images_is_refused_by_name(pets: Path) -> None:
    for number in range(2, 7):
        (pets / "wasp" / f"{number}.png").unlink()
    said = refusal(pets)
    assert "the class wasp" in said
    assert "has 2 images" in said
    assert "at least 3" in said


def test_shares_that_nothing_uses_or_that_do_not_sum_to_one_are_refused(pets: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.split is .*sum to 1"):
        config_of(pets, split=[0.7, 0.2, 0.2])
    for split in ("train", "validation"):
        shutil.copytree(pets, tmp_path / "divided" / split)
    for number, name in enumerate(PICTURES):  # the same files in both would be the same images
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / "divided" / "validation" / name)
    said = refusal(tmp_path / "divided", split=[0.6, 0.2, 0.2])
    assert "data.split is 0.6,0.2,0.2" in said
    assert "leave data.split out" in said
    assert len(loaded(tmp_path / "divided").test) == len(PICTURES)  # its own splits stay as they are


def test_a_tar_file_that_holds_split_folders_is_no_set_of_two_classes(pets: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "all.tar", "w") as tar:
        for split in ("train", "validation"):
            tar.add(pets, f"all/{split}")
    said = refusal(tmp_path / "all.tar")
    assert "names of splits" in said
    assert "unpack it" in said


# Lists.


@pytest.mark.parametrize("ending", ["csv", "parquet", "tsv"])
def test_a_list_of_paths_and_labels_is_divided_alike_whatever_its_order(pets: Path, tmp_path: Path, ending: str) -> None:
    how = {"sep": "\t"} if ending == "tsv" else {}
    first = loaded(as_list(tmp_path / f"one.{ending}", rows_of(), **how))
    second = loaded(as_list(tmp_path / f"two.{ending}", rows_of(PICTURES[::-1]), **how))
    assert first.class_names == list(SIZES)
    assert difference(first.fingerprint, second.fingerprint) is None
    assert sum(map(len, members(first).values())) == len(PICTURES)
    for item in (0, len(first.test) - 1):
        name = first.test.source.name(int(first.test.indices[item]))
        image = np.asarray(Image.open(io.BytesIO(Path(name).read_bytes())))
        assert np.array_equal(np.asarray(first.test.source.image(int(first.test.indices[item]))[0]), image)
        assert first.class_names[first.test[item][1]] == Path(name).parent.name


def test_a_list_may_name_its_columns_its_splits_and_number_its_classes(pets: Path, tmp_path: Path) -> None:
    words = ["train", "train", "valid", "Test"]
    rows = [
        {"file": str(pets / name), "kind": 2 + 8 * (place % 2), "split": words[place // 2 % 4]}
        for place, name in enumerate(PICTURES)
    ]
    data = loaded(as_list(tmp_path / "list.parquet", rows), image_key="file", label_key="kind")
    assert data.class_names == ["2", "10"]
    there = {words[place // 2 % 4]: set() for place in range(8)}
    for place, name in enumerate(PICTURES):
        there[words[place // 2 % 4]].add(name)
    assert members(data) == {"train": there["train"], "val": there["valid"], "test": there["Test"]}
    assert data.draw is None


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (lambda rows: [{"image": row["path"], "label": row["label"]} for row in rows], ["'path'", "image, label", "image_key"]),
        (lambda rows: [{"path": row["path"], "class": row["label"]} for row in rows], ["'label'", "data.label_key"]),
        (lambda rows: [*rows, rows[0]], ["pets/ant/0.png 2 times"]),
        (lambda rows: [*rows, {"path": "pets/ant/none.png", "label": "ant"}], ["pets/ant/none.png", "not a file"]),
        (lambda rows: [*rows[1:], {**rows[0], "label": ""}], ["row 37", "no label"]),
        (lambda rows: [{**row, "split": "later"} for row in rows], ["'split'", "'later'"]),
        (lambda rows: rows[:22], ["the class bee", "has 2 images"]),
    ],
)
def test_a_list_that_cannot_work_is_refused_with_what_is_wrong(pets: Path, tmp_path: Path, change: Any, wanted: Any) -> None:
    said = refusal(as_list(tmp_path / "list.csv", change(rows_of())))
    assert all(word in said for word in wanted), said
