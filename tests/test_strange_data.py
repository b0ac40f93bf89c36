"""Data as it really comes: layouts of public sets, names of any bytes, data sets that show classes and labels in other ways."""

import os
import unicodedata
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, Dataset, Subset

from slimsweep.config import Config, load_config
from slimsweep.data import Data, load_data
from slimsweep.errors import SlimsweepError

SIZE = (3, 8, 8)
CLASSES = ["cat", "dog"]


def config_of(**more: Any) -> Config:
    return load_config([])[0].changed(**{f"data.{key}": value for key, value in ({"batch_size": 2} | more).items()})


def loaded(place: Path | None = None, size: tuple[int, int, int] = SIZE, **more: Any) -> Data:
    return load_data(config_of(**({"name": "folder", "root": str(place)} if place else {}), **more), size)


def refusal(place: Path | None = None, **more: Any) -> str:
    with pytest.raises(SlimsweepError) as caught:
        loaded(place, **more)
    text = str(caught.value)
    assert "\n" not in text
    assert text.encode()  # it can be printed
    return text


def noise(number: int, below: int = 256) -> np.ndarray:
    return np.random.default_rng(number).integers(0, below, (8, 8, 3), dtype=np.uint16)


def put(root: Path, names: Iterable[str], image: Callable[[int], Image.Image] | None = None) -> Path:
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        (image(number) if image else Image.fromarray(noise(number).astype(np.uint8))).save(path)
    return root


def names(*splits: str, classes: Iterable[str] = ("cat", "dog"), count: int = 4) -> list[str]:
    return [f"{split}/{name}/{number}.png" for split in splits for name in classes for number in range(count)]


# Folders.


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        (names("Training", "Testing"), "set data.train_split to Training"),
        (names("pets/train", "pets/validation"), "/pets"),
        ([f"{name}/{number}.png" for name in CLASSES for number in range(2)], "at least 3"),  # of more, splits are drawn
        (["Abyssinian_1.jpg", "Bengal_2.jpg"], "put a folder per class into train/ and validation/"),
        (names("train"), "put some images of each class into validation/"),
        (names("train", "Val", "Test"), "set data.test_split to Test"),
    ],
)
def test_where_a_split_has_no_folder_the_next_step_is_named(tmp_path: Path, files: list[str], wanted: str) -> None:
    assert wanted in refusal(put(tmp_path, files))


@pytest.mark.parametrize("archive", ["train.zip", "train.tar.gz", "Train.7z"])
def test_an_archive_that_must_be_unpacked_is_named(tmp_path: Path, archive: str) -> None:
    root = put(tmp_path, names("validation"))
    (root / archive).write_bytes(b"")
    assert f"unpack {archive}" in refusal(root)


def test_a_test_folder_of_another_spelling_that_is_not_used_is_said(tmp_path: Path) -> None:
    root = put(tmp_path, names("train", "validation", "Test"))
    assert "validation: the folder Test is not used: to test on it, set data.test_split to Test" in loaded(root).notes
    assert not any("not used" in note for note in loaded(root, test_split="Test").notes)


def test_validation_images_whose_labels_lie_in_a_file_are_refused_with_the_classes_of_train(tmp_path: Path) -> None:
    wnids = ["n01443537", "n01629819"]
    files = [f"train/{name}/images/{name}_{number}.JPEG" for name in wnids for number in range(4)]
    root = put(tmp_path, [*files, *(f"val/images/val_{number}.JPEG" for number in range(4))])
    (root / "val/val_annotations.txt").write_text("val_0.JPEG\tn01443537")
    said = refusal(root)
    assert "n01443537, n01629819" in said
    assert "labels, move the images into class folders" in said


def test_a_name_in_another_form_of_unicode_is_the_same_class(tmp_path: Path) -> None:
    whole, apart = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    root = put(tmp_path, [*names("train", classes=(whole, "tea")), *names("validation", classes=(apart, "tea"))])
    data = loaded(root)
    assert data.class_names == [whole, "tea"]
    assert data.test.batch(range(8))[1].tolist() == [0] * 4 + [1] * 4


def test_two_classes_that_differ_in_the_form_of_unicode_alone_are_said(tmp_path: Path) -> None:
    both = [unicodedata.normalize(form, "café") for form in ("NFC", "NFD")]
    data = loaded(put(tmp_path, names("train", "validation", classes=both)))
    assert data.num_classes == 2
    assert any("two classes of the name café" in note for note in data.notes)
    assert sorted(data.test.batch(range(8))[1].tolist()) == [0] * 4 + [1] * 4


def test_a_class_whose_name_is_no_text_is_refused_before_it_is_written(tmp_path: Path) -> None:
    root = put(tmp_path, names("train", "validation", classes=(os.fsdecode(b"caf\xe9"), "tea")))
    assert "is not UTF-8" in refusal(root)


def test_a_damaged_image_whose_name_is_no_text_can_be_named(tmp_path: Path) -> None:
    root = put(tmp_path, names("train", "validation"))
    (root / "train/cat" / os.fsdecode(b"caf\xe9.png")).write_bytes(b"")
    data = loaded(root, max_damaged=1)
    named = {**data.train.read(range(len(data.train)))[2], **data.val.read(range(len(data.val)))[2]}
    (name,) = named
    assert name.encode().endswith(rb"\udce9.png")


def test_a_class_folder_that_is_a_link_to_nothing_does_not_vanish(tmp_path: Path) -> None:
    root = put(tmp_path, names("train", "validation"))
    (root / "train/bird").symlink_to(tmp_path / "not mounted")
    said = refusal(root)
    assert "class folder bird" in said
    assert "links to nothing" in said


def test_variables_in_a_path_are_said_not_to_be_replaced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DATA", str(tmp_path))
    assert "variables in it are not replaced" in refusal(name="folder", root="$DATA/pets")


@pytest.mark.parametrize(("below", "said"), [(4096, True), (256, True), (65536, False)])
def test_16_bits_of_which_only_the_lowest_are_used_are_said(tmp_path: Path, below: int, said: bool) -> None:
    def grey(number: int) -> Image.Image:
        return Image.fromarray(noise(number, below)[..., 0])

    data = loaded(put(tmp_path, names("train", "validation"), grey), (1, 8, 8))
    assert any("almost black" in note for note in data.notes) is said


# Functions.


class Images(Dataset):
    def __init__(self, count: int, label: Callable[[int], Any] = lambda index: index % 2, **attributes: Any) -> None:
        self.count = count
        self.label = label
        vars(self).update(attributes)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Image.Image, Any]:
        return Image.fromarray(noise(index).astype(np.uint8)), self.label(index)


def two(**attributes: Any) -> tuple[Any, None, Any]:
    return Images(20, **attributes), None, Images(8, **attributes)


def of(monkeypatch: pytest.MonkeyPatch, returned: Any, **more: Any) -> dict[str, Any]:
    monkeypatch.setattr(f"{__name__}.returned", lambda config: returned, raising=False)
    return {"name": f"{__name__}:returned", **more}


@pytest.mark.parametrize(
    "shown",
    [
        {"classes": np.array(CLASSES)},
        {"classes": {"dog": 1, "cat": 0}},
        {"classes": {1: "dog", 0: "cat"}},
        {"class_to_idx": {"dog": 1, "cat": 0}},
        {"classes": 2, "class_to_idx": {"cat": 0, "dog": 1}},
    ],
)
def test_names_go_with_their_numbers_however_they_are_shown(monkeypatch: pytest.MonkeyPatch, shown: dict[str, Any]) -> None:
    assert loaded(**of(monkeypatch, two(**shown))).class_names == CLASSES


def test_a_set_of_names_is_refused_as_it_has_no_order(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "`classes`" in refusal(**of(monkeypatch, two(classes=set(CLASSES)), num_classes=2))


@pytest.mark.parametrize("classes", [2, "cat,dog", lambda: CLASSES, ["cat", "dog"] * 10])
def test_what_is_no_list_of_names_is_not_taken_for_one(monkeypatch: pytest.MonkeyPatch, classes: Any) -> None:
    assert "data.num_classes is not set" in refusal(**of(monkeypatch, (Images(20, classes=classes), None, Images(8))))
    data = loaded(**of(monkeypatch, (Images(20, classes=classes), None, Images(8)), num_classes=2))
    assert (data.num_classes, data.class_names) == (2, None)


def test_subsets_and_parts_have_the_names_of_what_they_are_made_from(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Images(40, classes=CLASSES)
    inner = Subset(whole, range(32))
    splits = (Subset(inner, np.arange(20)), Subset(inner, torch.arange(20, 32)), Subset(whole, range(32, 40)))
    assert loaded(**of(monkeypatch, splits)).class_names == CLASSES
    joined = ConcatDataset([Images(10, classes=CLASSES), Images(11, classes=CLASSES)])
    assert loaded(**of(monkeypatch, (joined, None, Images(8)))).class_names == CLASSES
    fewer = Images(40, classes=[*CLASSES, "emu"])  # a Subset that leaves a class out, whose labels were numbered again
    splits = (Subset(fewer, range(20)), None, Subset(fewer, range(20, 40)))
    assert loaded(**of(monkeypatch, splits, num_classes=2)).class_names is None


def test_parts_that_number_their_classes_differently_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    targets = [index % 2 for index in range(10)]
    parts = [Images(10, classes=names, targets=targets) for names in (CLASSES, CLASSES[::-1])]
    said = refusal(**of(monkeypatch, (ConcatDataset(parts), None, Images(8)), num_classes=2))
    assert "0 is 'cat' in one and 'dog' in another" in said


def test_images_that_parts_and_subsets_have_in_common_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = Images(10), Images(11)
    joined = ConcatDataset([one, other])
    for test, common in ((other, 11), (Subset(joined, range(8, 12)), 4), (Subset(one, range(-3, 0)), 3)):
        assert f"have {common} images in common" in refusal(**of(monkeypatch, (joined, None, test), num_classes=2))
    apart = (Subset(joined, range(12)), None, Subset(joined, range(12, 21)))
    assert len(loaded(**of(monkeypatch, apart, num_classes=2)).test) == 9


def test_a_text_is_no_number_where_names_are_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    said = refusal(**of(monkeypatch, two(classes=["01", "02", "10"], label=lambda index: "1", targets=None)))
    assert "the label '1', which is none of the classes 01, 02, 10" in said
    data = loaded(**of(monkeypatch, two(classes=["00", "01", "02"], label=lambda index: "1")))
    assert data.test.batch(range(8))[1].tolist() == [1] * 8


@pytest.mark.parametrize(
    ("code", "wanted"),
    [
        ("def splits(config):\n    open('/nowhere/labels.csv')", "FileNotFoundError"),
        ("def splits(config):\n    raise RuntimeError('Dataset not found')", "RuntimeError: Dataset not found"),
        ("def splits(config):\n    {}['a']", "KeyError: 'a'"),
        ("\nx = undefined", "NameError"),
        ("\ndef splits(config:: x", "SyntaxError"),
        ("\nopen('/nowhere/labels.csv')", "FileNotFoundError"),
    ],
)
def test_an_error_in_the_function_or_its_module_is_named_with_its_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: str, wanted: str
) -> None:
    module = f"strange_splits_{abs(hash(code))}"
    (tmp_path / f"{module}.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    said = refusal(name=f"{module}:splits")
    assert wanted in said
    assert f"{module}.py, line 2" in said


class Food(Images):
    """As torchvision's Food101 and others keep their files and labels."""

    def __init__(self, place: str, count: int) -> None:
        super().__init__(count, classes=CLASSES)
        self._image_files = [Path(f"/food/{place}/{number}.jpg") for number in range(count)]
        self._labels = [index % 2 for index in range(count)]


def test_files_and_labels_that_torchvision_keeps_to_itself_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "have 20 images in common" in refusal(**of(monkeypatch, (Food("train", 20), None, Food("train", 20))))
    train, test = Food("train", 20), Food("test", 8)
    assert len(loaded(**of(monkeypatch, (train, None, test))).test) == 8
    test._labels[7], test.label = 5, lambda index: 5 if index == 7 else index % 2
    assert "image 7 of the test split" in refusal(**of(monkeypatch, (train, None, test)))


# Hugging Face.


def hub_set(labels: list[Any], kind: Any) -> Any:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    images = [Image.fromarray(noise(number).astype(np.uint8)) for number in range(len(labels))]
    features = datasets.Features(image=datasets.Image(), kind=kind)
    return datasets.Dataset.from_dict({"image": images, "kind": labels}, features=features)


def test_a_function_may_return_hugging_face_data_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    splits = [hub_set([number % 2 for number in range(size)], datasets.ClassLabel(names=CLASSES)) for size in (12, 6)]
    returned = (splits[0], None, splits[1])
    assert "'label'" in refusal(**of(monkeypatch, returned))
    data = loaded(**of(monkeypatch, returned, label_key="kind"))
    assert data.class_names == CLASSES
    assert data.test.batch(range(6))[1].tolist() == [0, 1] * 3

    def grey(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        return {"image": [image.convert("L").convert("RGB") for image in rows["image"]], "kind": rows["kind"]}

    data = loaded(**of(monkeypatch, (splits[0], None, splits[1].with_transform(grey)), label_key="kind"))
    images = data.test.batch(range(6))[0]
    assert torch.equal(images[:, 0], images[:, 1])


def hub_folder(root: Path, train: list[Any], test: list[Any], kind: Any) -> dict[str, Any]:
    (root / "data").mkdir(parents=True)
    (root / "cache").mkdir()
    for split, labels in (("train", train), ("test", test)):
        hub_set(labels, kind).to_parquet(root / "data" / f"{split}-00000-of-00001.parquet")
    return {"name": f"hfds/{root}", "root": str(root / "cache"), "test_split": "test", "label_key": "kind"}


def test_a_column_of_texts_holds_the_names_of_classes(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    kind = datasets.Value("string")
    data = loaded(**hub_folder(tmp_path / "one", ["dog", "cat", "emu"] * 4, ["emu", "cat", "cat", "emu"], kind))
    assert data.class_names == ["cat", "dog", "emu"]  # in one order in every process, and those of train in each split
    assert data.test.batch(range(4))[1].tolist() == [2, 0, 0, 2]
    assert "'fox'" in refusal(**hub_folder(tmp_path / "two", ["dog", "cat"] * 4, ["fox", "cat"], kind))


def test_all_numbers_of_a_column_are_checked_before_a_run(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    found = hub_folder(tmp_path / "one", [number % 2 for number in range(8)], [0, 1, 2], datasets.Value("int64"))
    assert "image 2 of the test split" in refusal(**found, num_classes=2)
    found = hub_folder(tmp_path / "two", [0, 1, None, 1], [0, 1], datasets.ClassLabel(names=CLASSES))
    assert "image 2 of the train split" in refusal(**found)


def test_one_class_is_said(tmp_path: Path) -> None:
    assert any("one class (cat)" in note for note in loaded(put(tmp_path, names("train", "validation", classes=["cat"]))).notes)
