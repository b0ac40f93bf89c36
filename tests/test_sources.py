"""Every way in which images may be stored gives the same images, each once, and says which of them are damaged."""

import io
import json
import logging
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image
from processes import in_processes
from torch import Tensor, multiprocessing, nn

from slimsweep.config import Config, ConfigError, load_config
from slimsweep.data import Data, eval_loader, images_seen, load_data, train_loader, training_images
from slimsweep.ledger.recorder import RunRecorder
from slimsweep.ledger.run import Run
from slimsweep.training import MemoryRecorder, Metrics, build_dense, evaluate_split, train

GREY = (1, 8, 8)
CPU = torch.device("cpu")
CLASSES = ["0", "1", "2", "3"]
SIZES = {"train": 50, "validation": 17, "test": 13}
Sets = dict[str, list[tuple[bytes, int]]]  # encoded images and labels of each split


@pytest.fixture(scope="session")
def digits() -> dict[str, list[tuple[np.ndarray, int]]]:
    """Handwritten digits of four classes; the first pixel is the number of the image in its split."""
    from sklearn.datasets import load_digits  # slow to import, and not needed in other processes

    images, labels = load_digits(n_class=len(CLASSES), return_X_y=True)
    images = (images.reshape(-1, 8, 8) * 15).astype(np.uint8)
    found, start = {}, 0
    for split, size in SIZES.items():
        images[start : start + size, 0, 0] = np.arange(size)
        found[split] = [(images[i], int(labels[i])) for i in range(start, start + size)]
        start += size
    return found


@pytest.fixture(scope="session")
def encoded(digits: dict[str, list[tuple[np.ndarray, int]]]) -> Sets:
    def png(image: np.ndarray) -> bytes:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "png")
        return file.getvalue()

    return {split: [(png(image), label) for image, label in images] for split, images in digits.items()}


# How data sets are written. Each returns what the configuration says about it.


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))


def folder(root: Path, sets: Sets) -> dict[str, Any]:
    for split, images in sets.items():
        for number, (image, label) in enumerate(images):
            path = root / split / CLASSES[label] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(image)
    return {"data.name": "", "data.root": str(root)}


def tar_files(root: Path, sets: Sets) -> dict[str, Any]:
    """A tar file per split, with a folder per class."""
    for split, images in sets.items():
        with tarfile.open(root / f"{split}.tar", "w") as tar:
            for number, (image, label) in enumerate(images):
                add(tar, f"{CLASSES[label]}/{number}.png", image)
    return {"data.name": "folder", "data.root": str(root)}


def tars_of_classes(root: Path, sets: Sets) -> dict[str, Any]:
    """A folder per split, with a tar file per class."""
    for split, images in sets.items():
        (root / split).mkdir()
        for index, name in enumerate(CLASSES):
            with tarfile.open(root / split / f"{name}.tar", "w") as tar:
                for number, (image, label) in enumerate(images):
                    if label == index:
                        add(tar, f"{number}.png", image)
    return {"data.name": "folder", "data.root": str(root)}


def shards(root: Path, sets: Sets, size: int = 7) -> dict[str, Any]:
    """WebDataset."""
    info: dict[str, Any] = {"splits": {}}
    for split, images in sets.items():
        parts = [list(enumerate(images))[start : start + size] for start in range(0, len(images), size)]
        names = [f"{split}-{i:04}.tar" for i in range(len(parts))]
        for name, part in zip(names, parts, strict=True):
            with tarfile.open(root / name, "w") as tar:
                for number, (image, label) in part:
                    add(tar, f"{number:05}.png", image)
                    add(tar, f"{number:05}.cls", str(label).encode())
        lengths = [len(part) for part in parts]
        info["splits"][split] = {"name": split, "num_samples": len(images), "filenames": names, "shard_lengths": lengths}
    (root / "_info.json").write_text(json.dumps(info))
    return {"data.name": "wds/digits", "data.root": str(root), "data.val_split": "validation", "data.num_classes": len(CLASSES)}


def parquet(root: Path, sets: Sets, size: int = 7) -> None:
    """A folder as the Hugging Face Hub has it."""
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=CLASSES)})
    (root / "data").mkdir()
    for split, images in sets.items():
        parts = [list(enumerate(images))[start : start + size] for start in range(0, len(images), size)]
        for i, part in enumerate(parts):
            rows = {
                "image": [{"bytes": image, "path": f"{split}-{number}.png"} for number, (image, _) in part],
                "label": [label for _, (_, label) in part],
            }
            name = f"{split}-{i:05}-of-{len(parts):05}.parquet"
            datasets.disable_progress_bars()
            datasets.Dataset.from_dict(rows, features=features).to_parquet(root / "data" / name)
    card = (
        "---\ndataset_info:\n  features:\n  - name: image\n    dtype: image\n  - name: label\n    dtype:\n      class_label:\n"
    )
    card += "        names:\n" + "".join(f"          '{i}': '{name}'\n" for i, name in enumerate(CLASSES)) + "  splits:\n"
    card += "".join(f"  - name: {split}\n    num_bytes: 1\n    num_examples: {len(images)}\n" for split, images in sets.items())
    (root / "README.md").write_text(card + "---\n")


def hub(root: Path, sets: Sets) -> dict[str, Any]:
    parquet(root, sets)
    (root / "cache").mkdir()
    return {"data.name": f"hfds/{root}", "data.root": str(root / "cache")}


def hub_streamed(root: Path, sets: Sets) -> dict[str, Any]:
    return {**hub(root, sets), "data.name": f"hfids/{root}", "data.val_split": "validation"}


MAPPED = [folder, tar_files, tars_of_classes, hub]
STREAMED = [shards, hub_streamed]
Form = Callable[[Path, Sets], dict[str, Any]]


def broken(sets: Sets, **which: list[int]) -> Sets:
    """The same, with the ends of some images cut off."""
    return {
        split: [(image[:-30] if i in which.get(split, []) else image, label) for i, (image, label) in enumerate(images)]
        for split, images in sets.items()
    }


@pytest.fixture(scope="session")
def written(encoded: Sets, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, Any]]:
    """Writes the digits in a form, once, with the ends of some images of some splits cut off."""
    known: dict[str, dict[str, Any]] = {}

    def write(form: Form, **damaged: list[int]) -> dict[str, Any]:
        key = f"{form.__name__} {damaged}"
        if key not in known:
            known[key] = form(tmp_path_factory.mktemp(form.__name__), broken(encoded, **damaged))
        return known[key]

    return write


def config_of(said: dict[str, Any], **more: Any) -> Config:
    plain = {"data.batch_size": 8, "data.val_split": "validation", "data.test_split": "test", "data.augment.affine": None}
    return load_config([])[0].changed(**{**plain, **said, **{f"data.{key}": value for key, value in more.items()}})


def pixels(image: Tensor) -> np.ndarray:
    """The stored image, before normalization."""
    return ((image[0] + 1) / 2 * 255).round().to(torch.uint8).numpy()


def numbers(images: Tensor) -> list[int]:
    """What the images are called in their split."""
    return [int(pixels(image)[0, 0]) for image in images]


def given(loader: Any) -> list[int]:
    return [number for images, _ in loader for number in numbers(images)]


@pytest.fixture(params=[*MAPPED, *STREAMED], ids=lambda form: form.__name__)
def form(request: pytest.FixtureRequest) -> Form:
    return request.param


@pytest.fixture(params=STREAMED, ids=lambda form: form.__name__)
def streamed(request: pytest.FixtureRequest) -> Form:
    return request.param


# What is read.


def test_each_form_gives_the_images_and_labels_that_were_written(form, digits, written):
    config = config_of(written(form))
    data = load_data(config, GREY)
    assert data.num_classes == len(CLASSES)
    assert data.class_names == (None if form is shards else CLASSES)
    for split, images in (("train", data.train), ("validation", data.val), ("test", data.test)):
        assert len(images) == SIZES[split]
        found = {}
        for some, labels in eval_loader(images, config.data):
            found |= {int(pixels(x)[0, 0]): (pixels(x), int(y)) for x, y in zip(some, labels, strict=True)}
        assert len(found) == SIZES[split]
        for number, (image, label) in enumerate(digits[split]):
            assert np.array_equal(found[number][0], image)
            assert found[number][1] == label


@pytest.fixture
def _one_thread():
    """On busy machines, threads that wait for each other take most of the time of a small model."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_one_thread")
def test_a_model_is_trained_and_evaluated_on_each_form(form, written):
    config = config_of(written(form), workers=1).changed(**{"dense.epochs": 2, "dense.warmup_epochs": 0})
    data = load_data(config, GREY)
    recorder = MemoryRecorder("dense")
    model = train(build_dense(config, data.num_classes), data, config.dense, recorder, device=CPU)
    seen = [row for row in recorder.curve if row["loss"] is not None]
    assert [row["epoch"] for row in seen] == [1, 2]
    right = Counter()
    with torch.no_grad():
        for images, labels in eval_loader(data.test, config.data):
            right.update((model.eval()(images).argmax(1) == labels).tolist())
    assert evaluate_split(model, data, "test", CPU).top1 == pytest.approx(100 * right[True] / SIZES["test"])


@pytest.mark.usefixtures("_one_thread")
def test_a_run_keeps_the_names_of_what_it_skipped(encoded, written, tmp_path):
    config = config_of(written(folder, train=[3], validation=[0, 13]), max_damaged=2)
    config = config.changed(**{"dense.epochs": 2, "dense.warmup_epochs": 0})
    data, run = load_data(config, GREY), Run(tmp_path)
    assert run.logs.damaged_images() == {}
    recorder = RunRecorder(run, "dense")
    train(build_dense(config, data.num_classes), data, config.dense, recorder, device=CPU)
    assert len(run.folder.read_lines("damaged.log")) == 3  # each once, in two epochs
    for name, reason in run.logs.damaged_images().items():
        assert Path(name).is_file()
        assert reason
    evaluate_split(Witness(), data, "test", CPU)
    recorder.damaged(data.train.damaged, data.test.damaged)
    assert len(run.folder.read_lines("damaged.log")) == 3


def test_files_of_one_name_in_several_tars_come_in_the_same_order_wherever_they_lie(encoded, tmp_path, monkeypatch):
    said = tars_of_classes(
        tmp_path, {split: [(images[0][0], label) for label in range(4)] for split, images in encoded.items()}
    )
    for tars in tmp_path.glob("*/*.tar"):
        with tarfile.open(tars, "w") as tar:
            add(tar, "same.png", encoded["test"][int(tars.stem)][0])
    config = config_of(said, batch_size=2)
    first = given(eval_loader(load_data(config, GREY).test, config.data))
    listed = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda folder: sorted(listed(folder), reverse=True))
    assert given(eval_loader(load_data(config, GREY).test, config.data)) == first == [0, 1, 2, 3]


def test_labels_that_are_known_keep_their_shares_in_a_validation_split(written):
    config = config_of(written(hub), val_split=None, val_share=0.5)
    data = load_data(config, GREY)
    train, val = (np.bincount([label for _, label in part], minlength=4) for part in (data.train, data.val))
    assert (np.abs(train - val) <= 1).all()


@pytest.mark.parametrize("prefix", ["hfds", "hfids"])
def test_hugging_face_reads_a_folder_of_images_too(encoded, written, tmp_path, prefix):
    said = hub(tmp_path, {}) | folder(tmp_path, broken(encoded, validation=[9]))
    (tmp_path / "README.md").write_bytes((Path(written(hub)["data.root"]).parent / "README.md").read_bytes())
    said |= {"data.name": f"{prefix}/{tmp_path}", "data.root": str(tmp_path / "cache")}
    config = config_of(said, max_damaged=1, workers=2)
    data = load_data(config, GREY)
    assert data.class_names == CLASSES
    assert sorted(given(eval_loader(data.val, config.data))) == sorted(set(range(SIZES["validation"])) - {9})
    (name,) = data.val.damaged.reasons
    assert f"validation/{CLASSES[encoded['validation'][9][1]]}/9.png" in name


# Each image once.


@pytest.mark.parametrize(("world", "workers"), [(2, 0), (20, 0), (1, 5), (2, 2)])
def test_evaluation_gives_each_image_once_over_all_ranks_and_loading_processes(form, written, world, workers):
    config = config_of(written(form), workers=workers, eval_batch_size=4)
    data = load_data(config, GREY)
    ranks = [given(eval_loader(data.val, config.data, rank, world)) for rank in range(world)]
    assert sorted(number for rank in ranks for number in rank) == list(range(SIZES["validation"]))
    assert max(len(rank) for rank in ranks) < SIZES["validation"] or world == 1


@pytest.mark.parametrize(("world", "workers"), [(1, 0), (2, 2)])
def test_a_limit_takes_the_same_images_of_a_stream_for_any_number_of_workers(streamed, written, world, workers):
    config = config_of(written(streamed), workers=workers, limit=10)
    data = load_data(config, GREY)
    taken = sorted(number for rank in range(world) for number in given(eval_loader(data.val, config.data, rank, world)))
    assert taken == [0, 1, 2, 3, 7, 8, 9, 14, 15, 16]
    assert len(data.val) == 10


class Witness(nn.Module):
    """A model that remembers which images it was shown; what it answers depends on nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen += numbers(images)
        generator = torch.Generator().manual_seed(0)
        return torch.randn(256, len(CLASSES), generator=generator)[numbers(images)]


def a_rank_that_measures(rank: int, world: int, place: str, said: list[dict[str, Any]]) -> None:
    """Of a process group: leaves, of each data set, what it was shown and what it measured."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{place}/meet{world}", rank=rank, world_size=world)
    found = []
    for one in said:
        config = config_of(one, eval_batch_size=4)
        witness = Witness()
        try:
            metrics: Any = evaluate_split(witness, load_data(config, GREY), "val", CPU)
        except ConfigError as problem:
            metrics = str(problem)
        found.append((witness.seen, metrics))
    (Path(place) / f"{world}-{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def measured(world: int, place: Path, said: list[dict[str, Any]]) -> list[list[tuple[list[int], Any]]]:
    """For each data set, what each rank was shown and measured."""
    in_processes(a_rank_that_measures, [(rank, world, str(place), said) for rank in range(world)])
    ranks = [json.loads((place / f"{world}-{rank}.json").read_text()) for rank in range(world)]
    return [list(one) for one in zip(*ranks, strict=True)]


@pytest.mark.parametrize("world", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_a_process_group_measures_what_one_process_measures(written, tmp_path, world):
    said = [written(form) for form in (folder, shards, hub_streamed)]
    for form in (folder, shards):  # in one rank's share of the folder, and in those of two ranks of the stream
        damaged = written(form, validation=[0, 13])
        said += [{**damaged, "data.max_damaged": 2}, {**damaged, "data.max_damaged": 1}]
    found = measured(world, tmp_path, said)
    for one, ranks in zip(said, found, strict=True):
        if one.get("data.max_damaged") == 1:
            for _, refused in ranks:
                assert "cannot be read" in refused
                assert "data.max_damaged" in refused
            continue
        gone = {0, 13} if "data.max_damaged" in one else set()
        assert sorted(number for seen, _ in ranks for number in seen) == sorted(set(range(SIZES["validation"])) - gone)
        config = config_of(one)
        alone = evaluate_split(Witness(), load_data(config, GREY), "val", CPU)
        for _, metrics in ranks:
            assert Metrics(*metrics) == pytest.approx(alone)


# Training on a stream.


def epoch_of(data: Data, config: Config, epoch: int = 0, **where: Any) -> list[list[int]]:
    loader = train_loader(data.train, config.data, **where)
    loader.set_epoch(epoch)
    batches = list(loader)
    assert len(batches) == len(loader)
    return [numbers(images) for images, _ in batches]


@pytest.mark.parametrize(("world", "workers", "limit"), [(1, 0, None), (2, 3, None), (4, 0, 30), (1, 9, 30)])
def test_an_epoch_trains_on_as_many_images_as_are_reported(form, written, world, workers, limit):
    config = config_of(written(form), workers=workers, limit=limit)
    data = load_data(config, GREY)
    ranks = [epoch_of(data, config, rank=rank, world=world) for rank in range(world)]
    assert {len(batch) for batches in ranks for batch in batches} == {8 // world}
    assert {len(batches) for batches in ranks} == {(limit or 50) // 8}
    trained = [number for batches in ranks for batch in batches for number in batch]
    assert len(trained) == images_seen(data) == (48 if limit is None else 24)
    if form not in STREAMED or (world, workers) == (1, 0):
        assert len(set(trained)) == len(trained)


def test_shares_of_a_stream_do_not_overlap_in_training(encoded, tmp_path):
    even = {split: images[:16] if split != "train" else images[:48] for split, images in encoded.items()}
    config = config_of(shards(tmp_path, even, size=6), workers=2)
    data = load_data(config, GREY)
    per_image = Counter(n for rank in range(2) for batch in epoch_of(data, config, rank=rank, world=2) for n in batch)
    assert sorted(per_image) == list(range(48))  # four loading processes, with two shards of six images: three batches of four
    assert max(per_image.values()) == 1


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_training_on_a_stream_sees_what_an_uninterrupted_one_sees(streamed, written, workers):
    said = {**written(streamed), "data.augment.hflip": 0.5, "data.augment.auto_augment": "rand-m9-mstd0.5-inc1"}
    config = config_of(said, workers=workers)

    def batches(epochs: range, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
        loader = train_loader(load_data(config, GREY).train, config.data, seed=seed)
        for epoch in epochs:
            loader.set_epoch(epoch)
            found = list(loader)
        return found

    def same(one: list[tuple[Tensor, Tensor]], other: list[tuple[Tensor, Tensor]]) -> bool:
        return all(torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(one, other, strict=True))

    through = batches(range(3))
    torch.manual_seed(5)
    assert same(through, batches(range(2, 3)))
    assert not same(through, batches(range(1, 2)))
    assert not same(through, batches(range(2, 3), seed=1))


def test_images_for_gradients_come_from_a_stream_too_the_same_each_time_and_as_they_are_stored(streamed, written, digits):
    config = config_of({**written(streamed), "data.augment.hflip": 1.0})
    data = load_data(config, GREY)
    (x, y), (again, _) = training_images(data, config.seed), training_images(data, config.seed)
    assert torch.equal(x, again)
    assert len(set(numbers(x))) == len(x) == 48
    for image, label, number in zip(x, y, numbers(x), strict=True):
        assert np.array_equal(pixels(image), digits["train"][number][0])
        assert label == digits["train"][number][1]


# Damaged images.

DAMAGED_NAMES = {
    folder: "validation/{label}/{number}.png",
    tar_files: "validation.tar/{label}/{number}.png",
    tars_of_classes: "validation/{label}.tar/{number}.png",
    shards: "validation-0001.tar/{number:05}.png",
    hub: "validation-{number}.png",
    hub_streamed: "validation-{number}.png",
}


def name_of(form: Form, encoded: Sets, number: int) -> str:
    return DAMAGED_NAMES[form].format(number=number, label=CLASSES[encoded["validation"][number][1]])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_image_stops_the_run_with_its_name(form, encoded, written, workers):
    config = config_of(written(form, validation=[9, 12]), workers=workers)
    data, before = load_data(config, GREY), multiprocessing.active_children()
    with pytest.raises(ConfigError, match="cannot be read") as caught:
        evaluate_split(Witness(), data, "val", CPU)
    assert set(multiprocessing.active_children()) <= set(before)  # its loading processes, although the error is still known
    text = str(caught.value)
    assert name_of(form, encoded, 9) in text or name_of(form, encoded, 12) in text
    assert "data.max_damaged" in text
    assert "\n" not in text


@pytest.mark.parametrize("workers", [0, 2])
def test_damaged_images_are_skipped_up_to_the_limit_and_each_is_named_once(form, encoded, written, workers, caplog):
    config = config_of(written(form, validation=[9, 12]), workers=workers, max_damaged=2, eval_batch_size=2)
    data = load_data(config, GREY)
    readable = sorted(set(range(SIZES["validation"])) - {9, 12})
    with caplog.at_level(logging.WARNING, logger="slimsweep"):
        for _ in range(2):
            assert sorted(given(eval_loader(data.val, config.data))) == readable
    for number in (9, 12):
        assert len([record for record in caplog.records if name_of(form, encoded, number) in record.getMessage()]) == 1
    fewer = config.changed(**{"data.max_damaged": 1})
    with pytest.raises(ConfigError, match=r"1 other of val are damaged too: .* data.max_damaged, which is 1"):
        given(eval_loader(load_data(fewer, GREY).val, fewer.data))


def test_the_same_damaged_images_in_many_epochs_count_once_and_new_ones_add_up(encoded, tmp_path):
    said = folder(tmp_path, broken(encoded, train=[3, 4]))
    config = config_of(said, max_damaged=2)
    data = load_data(config, GREY)
    for epoch in range(4):
        epoch_of(data, config, epoch)
    assert len(data.train.damaged.reasons) == 2
    (tmp_path / "train" / CLASSES[encoded["train"][5][1]] / "5.png").write_bytes(b"")
    fresh = load_data(config, GREY)
    with pytest.raises(ConfigError, match="2 others of train"):
        [epoch_of(fresh, config, epoch) for epoch in range(4)]


@pytest.mark.parametrize("cached", [True, False])
def test_another_image_stands_in_for_a_damaged_one_whatever_the_number_of_workers(written, cached):
    plain = {"data.augment.scale": None, "data.augment.hflip": 0.0} if cached else {"data.augment.hflip": 0.5}
    damaged = {**written(folder, train=[3, 4, 30]), **plain, "data.max_damaged": 3}

    def epoch(world: int, workers: int) -> list[list[Tensor]]:
        config = config_of(damaged, workers=workers)
        data = load_data(config, GREY)
        ranks = []
        for rank in range(world):
            loader = train_loader(data.train, config.data, rank=rank, world=world)
            loader.set_epoch(1)
            ranks.append([images for images, _ in loader])
        return ranks

    (alone,) = epoch(1, 0)
    assert [len(images) for images in alone] == [8] * 6
    shown = [number for images in alone for number in numbers(images)]
    if cached:
        assert not {3, 4, 30} & set(shown)
        assert len(shown) - len(set(shown)) in (1, 2, 3)
    for world, workers in ((1, 2), (2, 0), (2, 2)):
        for rank, batches in enumerate(epoch(world, workers)):
            for step, images in enumerate(batches):
                assert torch.equal(images, alone[step][rank::world])


def test_a_stream_keeps_its_batches_whole_where_images_are_damaged(streamed, written):
    damaged = written(streamed, train=[3, 4, 30])
    for workers in (0, 2):
        config = config_of(damaged, workers=workers, max_damaged=3)
        batches = epoch_of(load_data(config, GREY), config)
        assert [len(batch) for batch in batches] == [8] * 6
        assert not {3, 4, 30} & {number for batch in batches for number in batch}
        fewer = config.changed(**{"data.max_damaged": 2})
        with pytest.raises(ConfigError, match="2 others of train"):
            epoch_of(load_data(fewer, GREY), fewer)


@pytest.mark.parametrize("form", [folder, tar_files], ids=lambda form: form.__name__)
def test_the_first_image_may_be_a_damaged_one(form, encoded, tmp_path):
    first = {split: [min(range(len(images)), key=lambda i: images[i][1])] for split, images in encoded.items()}
    config = config_of(form(tmp_path, broken(encoded, **first)), max_damaged=1)
    assert sorted(given(eval_loader(load_data(config, GREY).test, config.data))) == sorted(
        set(range(SIZES["test"])) - set(first["test"])
    )


@pytest.mark.parametrize("form", [folder, shards], ids=lambda form: form.__name__)
def test_a_split_of_nothing_but_damaged_images_is_refused(form, written):
    config = config_of(written(form, validation=list(range(17))), max_damaged=100)
    with pytest.raises(ConfigError, match="not one"):
        evaluate_split(Witness(), load_data(config, GREY), "val", CPU)


# What cannot be read.


def refusal(said: dict[str, Any], **more: Any) -> str:
    config = config_of(said, **more)
    with pytest.raises(ConfigError) as caught:
        given(eval_loader(load_data(config, GREY).val, config.data))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_shard_that_was_cut_short_is_refused_however_many_images_may_be_damaged(encoded, tmp_path):
    said = shards(tmp_path, encoded)
    whole = (tmp_path / "validation-0001.tar").read_bytes()
    for size in (5000, 7 * 2048 - 1024):  # in the middle of a file, and where one ends
        (tmp_path / "validation-0001.tar").write_bytes(whole[:size])
        text = refusal(said, max_damaged=1000)
        assert "validation-0001.tar" in text
        assert "write it again" in text


def test_what_is_no_labelled_image_in_a_shard_is_named(encoded, tmp_path):
    said = shards(tmp_path, encoded)
    with tarfile.open(tmp_path / "validation-0000.tar", "w") as tar:
        add(tar, "a.xml", b"")
        add(tar, "a.cls", b"0")
    assert "validation-0000.tar/a holds xml, cls" in refusal(said)
    with tarfile.open(tmp_path / "validation-0000.tar", "w") as tar:
        add(tar, "a.png", encoded["test"][0][0])
        add(tar, "a.cls", b"zero")
    assert "validation-0000.tar/a has the label b'zero', which is no number" in refusal(said)


def test_a_stream_says_how_many_images_it_has_or_is_refused(encoded, tmp_path):
    said = shards(tmp_path, encoded)
    assert "how many images" in refusal(
        {**said, "data.val_split": "validation-{0000..0002}.tar"}, train_split="train-0000.tar|7"
    )
    counted = {**said, "data.train_split": "train-{0000..0007}.tar|50", "data.val_split": "validation-{0000..0002}.tar|17"}
    config = config_of(counted)
    assert len(given(eval_loader(load_data(config, GREY).val, config.data))) == 17
    (tmp_path / "hub").mkdir()
    said = hub_streamed(tmp_path / "hub", encoded)
    (tmp_path / "hub" / "README.md").unlink()
    assert "length is unknown" in refusal(said)


@pytest.mark.parametrize("name", ["hfds/nobody/nothing", "hfids/nobody/nothing"])
def test_a_data_set_that_is_only_on_the_hub_is_refused_without_a_network(tmp_path, name, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # without it, retries take half a minute
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    text = refusal({"data.name": name, "data.root": str(tmp_path), "data.num_classes": 4})
    assert "nobody/nothing" in text
    assert "fix the name" in text


def test_one_tar_file_for_all_splits_is_refused(encoded, tmp_path):
    tar_files(tmp_path, encoded)
    text = refusal({"data.name": "folder", "data.root": str(tmp_path / "train.tar")})
    assert "one file for all splits" in text
    (tmp_path / "validation.tar").unlink()
    assert "it has test.tar, train.tar" in refusal({"data.name": "folder", "data.root": str(tmp_path)})


def test_tfds_is_refused(tmp_path):
    assert "tfds is not read" in refusal({"data.name": "tfds/cifar10", "data.root": str(tmp_path)})
