"""The splits are the same in every process and at every start, or the run is refused: never trained on what is tested."""

import io
import json
import os
import random
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_sources import config_of as of_sources
from test_sources import hub, hub_streamed, shards, tar_files, tars_of_classes
from torch.utils.data import Dataset, Subset, TensorDataset, random_split

from slimsweep.cluster import worker
from slimsweep.cluster.worker import data_for, data_of
from slimsweep.config import Config, ConfigError, load_config
from slimsweep.data import Data, difference, eval_loader, load_data
from slimsweep.earlier_start import start_or_continue
from slimsweep.ledger.run import Run

GREY = (1, 8, 8)


class Pictures(Dataset):
    """90 grey pictures of noise; their labels, which repeat, say nothing about them."""

    classes = ("a", "b", "c")

    def __init__(self, flip: bool = False) -> None:
        self.images = np.random.default_rng(0).integers(256, size=(90, 8, 8), dtype=np.uint8)
        self.flip = flip

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        image = self.images[index]
        return Image.fromarray(image[:, ::-1].copy() if self.flip and random.random() < 0.5 else image), index % 3


def by_torch(config: Config) -> Any:
    return random_split(Pictures(), [0.6, 0.2, 0.2])


def by_numpy(config: Config) -> Any:
    order = np.random.permutation(90)  # noqa: NPY002
    return tuple(Subset(Pictures(), part) for part in np.split(order, [50, 70]))


def by_python(config: Config) -> Any:
    order = list(range(90))
    random.shuffle(order)
    pictures = [Pictures()[index] for index in order]
    return pictures[:50], pictures[50:70], pictures[70:]


def by_itself(config: Config) -> Any:
    """Draws from the system's entropy, which no seed reaches."""
    draw = np.random.default_rng()
    order = draw.permutation(90).tolist()
    pictures = [Pictures()[index] for index in order]
    return pictures[:50], pictures[50:70], pictures[70:]


def by_itself_in_order_of_classes(config: Config) -> Any:
    order = sorted(np.random.default_rng().permutation(90).tolist(), key=lambda index: index % 3)
    pictures = [Pictures()[index] for index in order]
    return pictures[::2], None, pictures[1::2]


going_on = np.random.default_rng(0)


def from_call_to_call(config: Config) -> Any:
    """Its generator is the module's, so that another call gives another order."""
    pictures = [Pictures()[index] for index in going_on.permutation(90).tolist()]
    return pictures[:50], pictures[50:70], pictures[70:]


def augmented(config: Config) -> Any:
    pictures = Pictures(flip=True)
    return Subset(pictures, range(50)), Subset(pictures, range(50, 70)), Subset(pictures, range(70, 90))


def config_of(name: str, **more: Any) -> Config:
    said = {"data.name": name, "data.batch_size": 8, "data.augment.affine": None, "data.num_classes": 3}
    return load_config([])[0].changed(**{**said, **more})


def mine(function: Any, **more: Any) -> Config:
    return config_of(f"{__name__}:{function.__name__}", **more)


def in_another_process(config: Config) -> Data:
    """What another process, whose random numbers are elsewhere, loads."""
    worker.prepared.clear()
    random.seed()
    np.random.seed()  # noqa: NPY002
    torch.seed()
    return data_for(config)


def pixels(data: Data) -> list[torch.Tensor]:
    return [torch.stack([image for image, _ in split]) for split in (data.train, data.val, data.test)]


def trained(run: Run) -> Run:
    """The run, whose dense model is there."""
    run.dense.write_json("config.json", {"architecture": "vit", "metrics": {}, "label_names": None})
    return Run(run.folder, run.config)


def refusal(call: Any, *arguments: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Functions.


@pytest.mark.parametrize("function", [by_torch, by_numpy, by_python])
def test_a_function_that_divides_at_random_gives_the_same_splits_in_each_process(function: Any) -> None:
    first, second = in_another_process(mine(function)), in_another_process(mine(function))
    assert all(torch.equal(a, b) for a, b in zip(pixels(first), pixels(second), strict=True))
    assert difference(first.fingerprint, second.fingerprint) is None
    other = in_another_process(mine(function, seed=1))
    assert difference(first.fingerprint, other.fingerprint) is not None


def test_what_a_module_draws_when_it_is_imported_is_the_same_in_each_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "divided_at_import.py").write_text(
        "import random\nfrom test_drawn_once import Pictures\n"
        "pictures = [Pictures()[index] for index in random.sample(range(90), 90)]\n"
        "def splits(config):\n    return pictures[:50], pictures[50:70], pictures[70:]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)

    def load() -> Data:
        sys.modules.pop("divided_at_import", None)
        return in_another_process(config_of("divided_at_import:splits"))

    assert difference(load().fingerprint, load().fingerprint) is None


def test_loading_leaves_random_numbers_as_they_were() -> None:
    worker.prepared.clear()
    random.seed(5), np.random.seed(5), torch.manual_seed(5)  # noqa: NPY002
    wanted = random.random(), np.random.rand(), float(torch.rand(()))  # noqa: NPY002
    random.seed(5), np.random.seed(5), torch.manual_seed(5)  # noqa: NPY002
    data = data_for(mine(by_torch))
    assert data.fingerprint
    assert (random.random(), np.random.rand(), float(torch.rand(()))) == wanted  # noqa: NPY002


@pytest.mark.parametrize("function", [by_itself, by_itself_in_order_of_classes, from_call_to_call])
def test_a_function_that_gives_other_splits_in_a_worker_is_refused_there(tmp_path: Path, function: Any) -> None:
    run = Run(tmp_path / "run", mine(function))
    worker.prepared.clear()
    start_or_continue(run)
    data_of(Run(run.folder, run.config))  # the driver's own
    in_another_process(run.config)
    said = refusal(data_of, Run(run.folder, run.config))
    assert f"{__name__}:{function.__name__}" in said
    assert "split" in said
    assert "generator with a fixed seed" in said


def test_a_data_set_with_its_own_augmentation_keeps_it_in_training() -> None:
    """It is no other data set for that, and what an image looks like depends on its seed alone."""
    first, second = in_another_process(mine(augmented)), in_another_process(mine(augmented))
    assert difference(first.fingerprint, second.fingerprint) is None
    seen = [data.train.batch(range(50), [1000 * epoch + item for item in range(50)])[0]
            for data in (first, second) for epoch in (0, 1)]  # fmt: skip
    assert torch.equal(seen[0], seen[2])
    assert torch.equal(seen[1], seen[3])
    assert 10 < (seen[0] != seen[1]).flatten(1).any(1).sum() < 40
    tested = [torch.cat([images for images, _ in eval_loader(data.test, data.settings)]) for data in (first, second, first)]
    assert torch.equal(tested[0], tested[1])
    assert torch.equal(tested[0], tested[2])


# Other data sets, and later starts.


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    draw = np.random.default_rng(0)
    for split, count in (("train", 20), ("validation", 6), ("test", 6)):
        for name in ("ant", "bee", "wasp"):
            (tmp_path / "pictures" / split / name).mkdir(parents=True)
            for number in range(count):
                image = Image.fromarray(draw.integers(256, size=(8, 8), dtype=np.uint8))
                image.save(tmp_path / "pictures" / split / name / f"{number:02}.png")
    return tmp_path / "pictures"


def again(run: Run, **changes: Any) -> Run:
    """The next start of the command, in a process of its own."""
    worker.prepared.clear()
    later = Run(run.folder, run.config.changed(**changes))
    start_or_continue(later)
    return later


def test_a_folder_may_move_and_may_not_change_once_something_was_made_from_it(folders: Path, tmp_path: Path) -> None:
    run = again(Run(tmp_path / "run", config_of("folder", **{"data.root": str(folders)})))
    (folders / "train" / "ant" / "19.png").unlink()  # nothing was made yet
    run = trained(again(run))
    assert "pictures" not in json.dumps(run.known_data)

    moved = shutil.copytree(folders, tmp_path / "elsewhere" / "of another name")
    run = again(run, **{"data.root": str(moved)})
    data_of(run)

    added = shutil.copy(moved / "train" / "bee" / "00.png", moved / "train" / "bee" / "99.png")
    assert "the train split has 60 images instead of 59" in refusal(again, run)
    os.remove(added)
    (moved / "test" / "bee" / "05.png").rename(moved / "test" / "wasp" / "06.png")
    said = refusal(again, run)
    assert "the test split has other labels" in said
    assert "the image folder" in said
    assert "set the data back, or take another --name" in said
    (moved / "test" / "wasp" / "06.png").rename(moved / "test" / "bee" / "05.png")
    (moved / "validation" / "ant" / "03.png").rename(moved / "validation" / "ant" / "3a.png")
    assert "the val split consists of other images" in refusal(again, run)
    (moved / "validation" / "ant" / "3a.png").rename(moved / "validation" / "ant" / "03.png")
    Image.new("L", (8, 8), 255).save(moved / "test" / "ant" / "00.png")
    assert "image 0 of the test split is another one" in refusal(again, run)
    shutil.copy(folders / "test" / "ant" / "00.png", moved / "test" / "ant" / "00.png")
    again(run)


def test_the_test_split_may_be_corrected_until_it_was_used(folders: Path, tmp_path: Path) -> None:
    run = again(Run(tmp_path / "run", config_of("folder", **{"data.root": str(folders)})))
    row = {"stage": "dense", "point": "", "epoch": 1, "loss": 1.0, "val_top1": 50.0, "seconds": 1.0, "learning_rate": 0.1}
    run.write_curve("dense", [row])
    (folders / "test" / "ant" / "05.png").unlink()
    run = again(run)
    (folders / "validation" / "ant" / "05.png").unlink()
    assert "the val split has 17 images instead of 18" in refusal(again, run)


def test_a_run_of_an_earlier_version_goes_on_with_what_it_finds(folders: Path, tmp_path: Path) -> None:
    run = again(Run(tmp_path / "run", config_of("folder", **{"data.root": str(folders)})))
    run.folder.delete("splits.json")
    run = again(trained(run))
    (folders / "test" / "ant" / "05.png").unlink()
    assert "the test split has 17 images instead of 18" in refusal(again, run)


def test_a_damaged_image_is_no_other_image(folders: Path, tmp_path: Path) -> None:
    config = config_of("folder", **{"data.root": str(folders), "data.max_damaged": 1})
    broken = folders / "test" / "ant" / "00.png"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:-30])
    run = trained(again(Run(tmp_path / "run", config)))
    broken.write_bytes(whole)
    again(run)


@pytest.mark.parametrize("form", [tar_files, tars_of_classes, shards, hub, hub_streamed])
def test_each_kind_of_data_set_is_known_again_elsewhere_and_told_from_others(tmp_path: Path, form: Any) -> None:
    def splits(where: str, sets: dict[str, list[tuple[bytes, int]]]) -> dict[str, Any]:
        (tmp_path / where).mkdir()
        return load_data(of_sources(form(tmp_path / where, sets)), GREY).fingerprint

    draw = np.random.default_rng(0)
    sets = {
        split: [(png(draw), place % 4) for place in range(count)]
        for split, count in (("train", 12), ("validation", 5), ("test", 5))
    }
    first = splits("first", sets)
    assert difference(json.loads(json.dumps(first)), splits("moved", sets)) is None
    assert "the test split has 4 images instead of 5" in str(
        difference(first, splits("fewer", {**sets, "test": sets["test"][1:]}))
    )
    blank = io.BytesIO()
    Image.new("L", (8, 8)).save(blank, "png")
    other = [(blank.getvalue(), label) for _, label in sets["test"]]
    assert "the test split" in str(difference(first, splits("others", {**sets, "test": other})))


def png(draw: np.random.Generator) -> bytes:
    file = io.BytesIO()
    Image.fromarray(draw.integers(256, size=(8, 8), dtype=np.uint8)).save(file, "png")
    return file.getvalue()


def test_tensors_in_memory_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    config = mine(returned)
    images, labels = torch.rand(60, 1, 8, 8), torch.arange(60) % 3

    def sets(images: torch.Tensor, labels: torch.Tensor) -> Data:
        parts = [TensorDataset(images[part], labels[part]) for part in (slice(30), slice(30, 45), slice(45, 60))]
        monkeypatch.setattr(f"{__name__}.given", tuple(parts))
        return load_data(config, GREY)

    first = sets(images, labels).fingerprint
    assert difference(first, sets(images + 1e-7, labels).fingerprint) is None  # another processor rounds otherwise
    assert difference(json.loads(json.dumps(first)), sets(images, labels).fingerprint) is None
    other = labels.clone()
    other[58] = (other[58] + 1) % 3
    assert difference(first, sets(images, other).fingerprint) == "the test split has other labels"
    assert "another one" in str(difference(first, sets(images.flip(0), labels).fingerprint))


# The same images in two splits.

given: Any = ()


def returned(config: Config) -> Any:
    return given


def in_files(folder: Path, names: list[str]) -> Dataset:
    class Files(Pictures):
        def __init__(self) -> None:
            self.samples = [(str(folder / name), place % 3) for place, name in enumerate(names)]

        def __len__(self) -> int:
            return len(self.samples)

        def __getitem__(self, index: int) -> Any:
            return Image.new("L", (8, 8)), self.samples[index][1]

    return Files()


def test_splits_with_images_in_common_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, images, labels = Pictures(), torch.rand(60, 1, 8, 8), torch.arange(60) % 3
    tensors = [TensorDataset(images.clone(), labels) for _ in range(2)]  # with one transform each, as people do it
    names = [f"{number}.png" for number in range(60)]
    for sets, common, splits in (
        ((one, None, one), 90, "train and test"),
        ((Subset(one, range(50)), None, Subset(one, range(48, 90))), 2, "train and test"),
        (
            (Subset(one, range(50)), Subset(one, range(50, 70)), Subset(Subset(one, range(60, 90)), range(10))),
            10,
            "val and test",
        ),
        ((Subset(tensors[0], range(50)), None, Subset(tensors[1], [3, 55])), 1, "train and test"),
        ((in_files(tmp_path, names[:40]), None, in_files(tmp_path, names[35:])), 5, "train and test"),
    ):
        monkeypatch.setattr(f"{__name__}.given", sets)
        said = refusal(load_data, mine(returned), GREY)
        assert f"the {splits} splits of {__name__}:returned have {common} images in common" in said


def test_splits_of_one_data_set_without_images_in_common_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, blank = Pictures(), torch.zeros(60, 1, 8, 8)
    names = [f"{number}.png" for number in range(60)]
    for sets in (
        (Subset(one, range(50)), Subset(one, range(50, 70)), Subset(one, range(70, 90))),
        (in_files(tmp_path, names[:40]), None, in_files(tmp_path / "other", names[:40])),
        (in_files(tmp_path, [*names, *names]), None, in_files(tmp_path, names)),  # several images in a file
        (TensorDataset(blank, torch.arange(60) % 3), None, TensorDataset(blank.clone(), torch.arange(60) % 3)),
    ):
        monkeypatch.setattr(f"{__name__}.given", sets)
        assert len(load_data(mine(returned), GREY).test) > 0
