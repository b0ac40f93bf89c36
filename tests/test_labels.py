"""Labels: what counts as the number of a class, and that a wrong one is refused before anything trains."""

from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_drawn_once import config_of, mine, png, refusal
from test_sources import config_of as of_sources
from test_sources import hub, shards
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

from slimsweep.checks import check
from slimsweep.cluster import worker
from slimsweep.config import Config, ConfigError
from slimsweep.data import load_data
from slimsweep.data.labels import class_number, class_numbers, verified_labels
from slimsweep.earlier_start import start_or_continue
from slimsweep.ledger.run import Run

GREY = (1, 8, 8)
given: Any = ()


def returned(config: Config) -> Any:
    return given


class Plain(Dataset):
    """Pictures whose labels are known only by reading them."""

    def __init__(self, given: list[Any], **shown: Any) -> None:
        self.given = given
        for name, value in shown.items():
            setattr(self, name, value)

    def __len__(self) -> int:
        return len(self.given)

    def __getitem__(self, index: int) -> Any:
        return Image.new("L", (8, 8), index % 256), self.given[index]


def shown(labels: Any, items: list[Any] | None = None, **more: Any) -> Plain:
    """Pictures with `targets`."""
    return Plain(list(labels) if items is None else items, targets=labels, **more)


THREE = [0, 1, 2] * 10


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The sentence with which a run on some splits is refused at its start, before anything trains."""

    def text(train: Any, val: Any, test: Any, **more: Any) -> str:
        monkeypatch.setattr(f"{__name__}.given", (train, val, test))
        worker.prepared.clear()
        return refusal(check, config_of(f"{__name__}:returned", **more))

    return text


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The labels of the splits, as they are trained on and tested."""

    def labels(train: Any, test: Any, **more: Any) -> list[list[int]]:
        monkeypatch.setattr(f"{__name__}.given", (train, Plain(THREE), test))
        data = load_data(config_of(f"{__name__}:returned", **more), GREY)
        return [[label for _, label in split] for split in (data.train, data.test)]

    return labels


Pair = namedtuple("Pair", "image label")


@pytest.mark.parametrize(
    ("stored", "number"),
    [
        (3, 3),
        (np.int64(3), 3),
        (np.uint8(3), 3),
        (torch.tensor(3), 3),
        (torch.tensor([3]), 3),
        (np.array([3], dtype=np.int32), 3),
        (np.array(3.0), 3),
        (3.0, 3),
        (np.float32(3), 3),
        (True, 1),
        (np.bool_(False), 0),
        ("3", 3),
        (b"3\n", 3),
        ("bee", 1),
    ],
)
def test_whole_numbers_of_any_type_and_names_of_classes_are_labels(stored: Any, number: int) -> None:
    assert class_number(stored, "image 7", ["ant", "bee"]) == number
    assert class_numbers([stored, stored], ["ant", "bee"]).tolist() == [number, number]


def test_a_name_counts_before_a_number() -> None:
    assert class_number("10", "image 7", ["1", "10", "2"]) == 1


@pytest.mark.parametrize(
    ("stored", "wanted"),
    [
        ("dog", "the label 'dog', which is no number"),
        (None, "no label (None)"),
        (0.7, "the label 0.7, which is no whole number"),
        (float("nan"), "the label nan, which is no whole number"),
        (float("inf"), "the label inf, which is no whole number"),
        (np.float32(0.5), "the label 0.5, which is no whole number"),
        (torch.tensor(float("nan")), "the label nan, which is no whole number"),
        ([0, 1, 0], "a label of 3 parts, which is no single number"),
        (torch.eye(3)[1], "a label of shape (3,), which is no single number"),
        (np.eye(3)[1], "argmax of a one-hot vector"),
        ({"label": 3}, "which is no whole number"),
    ],
)
@pytest.mark.parametrize("how", [Plain, shown], ids=["unknown", "known"])
def test_a_label_that_is_no_number_is_refused_with_split_and_index(refused: Any, stored: Any, wanted: str, how: Any) -> None:
    """Also in the middle of the test split of a data set that does not show its labels."""
    said = refused(Plain(THREE), Plain(THREE), how([*THREE[:17], stored, *THREE]))
    assert said.startswith(f"image 17 of the test split of {__name__}:returned has ")
    assert wanted in said


@pytest.mark.parametrize(
    ("item", "wanted"),
    [
        (("image", 1, {}), "a tuple of 3 parts"),
        ({"image": 0, "label": 1}, "a dict with the keys image, label"),
        (torch.zeros(2, 8, 8), "one Tensor"),
        (None, "one NoneType"),
    ],
)
def test_what_is_not_image_and_label_is_refused(refused: Any, item: Any, wanted: str) -> None:
    said = refused([item] * 20, None, Plain(THREE))
    assert f"image 0 of the train split of {__name__}:returned is given as {wanted}" in said
    assert "(image, label)" in said


@pytest.mark.parametrize("how", [Plain, shown, lambda labels: list(zip([Image.new("L", (8, 8))] * 99, labels, strict=False))])
def test_labels_that_are_no_class_are_refused_in_each_split(refused: Any, how: Any) -> None:
    good = Plain(THREE)
    said = refused(good, good_copy(), how([*THREE[:17], 3, *THREE]))
    assert "image 17 of the test split" in said
    assert "has the label 3" in said
    assert "image 5 of the val split" in refused(good, how([*THREE[:5], -1, *THREE]), good_copy())
    assert "image 4 of the train split" in refused(how([*THREE[:4], 8, *THREE]), good, good_copy())


def good_copy() -> Plain:
    return Plain(list(THREE))


def test_a_test_split_without_labels_is_named(refused: Any) -> None:
    said = refused(shown(THREE), None, shown([-1] * 30))
    assert "image 0 of the test split" in said
    assert "29 more are wrong" in said
    assert "no image of the test split has a label" in said


def test_labels_from_1_are_refused_with_the_way_out(refused: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    from_one = [label + 1 for label in THREE]
    said = refused(shown(from_one), None, shown(from_one))
    assert "go from 1 to 3, but classes are numbered from 0: subtract 1" in said
    monkeypatch.setattr(f"{__name__}.given", (shown(from_one), None, shown(from_one)))
    run = Run(tmp_path, mine(returned, **{"data.name": f"{__name__}:returned", "data.num_classes": None}))
    assert "no image has the label 0" in refusal(start_or_continue, run)
    assert not run.is_begun
    start_or_continue(Run(tmp_path, run.config.changed(**{"data.num_classes": 4})))  # said on purpose


def test_labels_are_known_without_reading_wherever_they_are_shown() -> None:
    numbers, tensors = list(THREE), TensorDataset(torch.rand(30, 1, 8, 8), torch.tensor(THREE))
    listed = [(Image.new("L", (8, 8)), label) for label in THREE]
    samples = Plain(numbers, samples=[(f"{place}.png", label) for place, label in enumerate(THREE)])
    whole = [shown(THREE), Plain(numbers, labels=np.array(THREE)[:, None]), samples, tensors, listed]
    for dataset in whole:
        found = verified_labels(dataset, "it")
        assert found is not None
        assert found.tolist() == THREE
        part = verified_labels(Subset(Subset(dataset, range(5, 25)), [3, 0]), "it")  # type: ignore[arg-type]
        assert part is not None
        assert part.tolist() == [THREE[8], THREE[5]]
    both = verified_labels(ConcatDataset([samples, tensors]), "it")
    assert both is not None
    assert both.tolist() == THREE * 2
    assert verified_labels(Plain(numbers), "it") is None


def test_what_the_items_give_counts_where_other_labels_are_shown_beside_them(loaded: Any) -> None:
    names = [("ant", "bee", "wasp")[label] for label in THREE]
    for other in (
        Plain(THREE, labels=names),  # names, which the items turn into numbers
        shown(names, THREE),
        shown([label + 1 for label in THREE], THREE),
        shown(THREE[:10], THREE),  # of the data set around which this one is put
        Plain(THREE, labels=["ant", "bee", "wasp"]),  # the classes
        Plain(THREE, labels="all", paths=5, samples=np.zeros((30, 2)), files=np.array([f"{place}.png" for place in range(30)])),
        shown([label + 1 for label in THREE], THREE, target_transform=lambda label: label - 1),
        shown(names, names, classes=["ant", "bee", "wasp"]),
        shown(torch.tensor(THREE, dtype=torch.float64)),
        Plain([torch.tensor(label) for label in THREE]),
        Plain([np.array([label]) for label in THREE]),
    ):
        assert loaded(other, Plain(THREE)) == [THREE, THREE]
    pairs = [Pair(Image.new("L", (8, 8)), label) for label in THREE]
    assert loaded(pairs, [list(pair) for pair in pairs]) == [THREE, THREE]


def test_true_and_false_are_two_classes(loaded: Any) -> None:
    answers = [place % 2 == 0 for place in range(30)]
    numbers = [int(answer) for answer in answers]
    assert loaded(shown(answers), Plain(answers)) == [numbers, numbers]


def test_labels_of_other_data_sets_are_refused_at_the_start(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    sets = {split: [(png(draw), place % 4) for place in range(8)] for split in ("train", "validation", "test")}
    (tmp_path / "hub").mkdir()
    hidden = hub(tmp_path / "hub", {**sets, "test": [(image, -1) for image, _ in sets["test"]]})
    assert "no image of the test split has a label" in refusal(load_data, of_sources(hidden), GREY)
    (tmp_path / "shards").mkdir()
    streamed = of_sources(shards(tmp_path / "shards", {**sets, "test": [*sets["test"][:5], (png(draw), 7), *sets["test"]]}))
    worker.prepared.clear()
    said = refusal(check, streamed)
    assert "00005.png of the test split has the label 7, but there are 4 classes" in said


def test_streams_have_whole_numbers_for_labels_too() -> None:
    from slimsweep.data.readers import label_number

    assert label_number(None, "it") == -1
    assert label_number(b"3", "it") == 3
    with pytest.raises(ConfigError, match=r"the label 0\.7, which is no whole number"):
        label_number(0.7, "it")
