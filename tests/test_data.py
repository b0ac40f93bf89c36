"""What the network sees: splits that do not overlap, batches that a resumed run sees again, and clear refusals."""

import random
import shutil
import struct
import sys
import time
from dataclasses import replace
from importlib.metadata import PackageNotFoundError

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import Dataset
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import affine as torchvision_affine

from slimsweep.config import Affine, ConfigError, load_config
from slimsweep.data import (
    ImageSet,
    affine_warp,
    check_data,
    data_name,
    eval_loader,
    load_data,
    mixup_fn,
    split_off,
    train_loader,
    uniforms,
)
from slimsweep.data.sources import _stored_digits

GREY = (1, 8, 8)
EVERYTHING = {
    "data.augment.scale": [0.5, 1.0],
    "data.augment.hflip": 0.5,
    "data.augment.vflip": 0.1,
    "data.augment.auto_augment": "rand-m9-mstd0.5-inc1",
    "data.augment.reprob": 0.5,
}


@pytest.fixture(scope="module")
def config():
    return load_config([])[0]


@pytest.fixture(scope="module")
def digits(config):
    return load_data(config, GREY)


def refusal(config, size=GREY, **changes) -> str:
    with pytest.raises(ConfigError) as caught:
        load_data(config.changed(**changes), size)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def epoch_of(data, config, epoch, **where):
    loader = train_loader(data.train, config.data, **where)
    loader.set_epoch(epoch)
    return list(loader)


def same(one, other):
    return len(one) == len(other) and all(
        torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(one, other, strict=True)
    )


# Splits.


def test_digits_has_three_splits_without_overlap(digits):
    parts = [{digits.train.source.dataset.images[i].tobytes() for i in digits.train.indices}]
    parts += [{s.source.dataset.images[i].tobytes() for i in s.indices} for s in (digits.val, digits.test)]
    assert [len(s) for s in (digits.train, digits.val, digits.test)] == [1077, 360, 360]
    assert not parts[0] & parts[1]
    assert not parts[0] & parts[2]
    assert not parts[1] & parts[2]
    assert digits.num_classes == 10
    assert digits.class_names == list("0123456789")


def test_digits_splits_hold_every_class_alike_and_do_not_depend_on_the_seed(config, digits):
    other = load_data(config.changed(seed=5), GREY)
    for split in ("train", "val", "test"):
        labels = [label for _, label in getattr(digits, split)]
        assert labels == [label for _, label in getattr(other, split)]
        assert np.ptp(np.bincount(labels) / len(labels)) < 0.015


@given(labels=st.lists(st.integers(0, 4), min_size=2, max_size=200), share=st.floats(0.01, 0.99))
def test_a_split_takes_as_many_as_asked_and_keeps_the_shares_of_classes(labels, share):
    labels = np.array(labels)
    count = max(1, int(share * len(labels)))
    rest, taken = split_off(labels, len(labels), count)
    assert len(taken) == count
    assert sorted([*rest, *taken]) == list(range(len(labels)))
    for c in np.unique(labels):
        assert abs((labels[taken] == c).sum() - count * (labels == c).mean()) <= 3


def test_digits_are_scikit_learns_with_and_without_its_list_of_files(monkeypatch):
    quick = _stored_digits()
    monkeypatch.setattr("importlib.metadata.files", lambda package: None)
    for found, wanted in zip(quick, _stored_digits(), strict=True):
        assert found.dtype == wanted.dtype
        assert np.array_equal(found, wanted)

    def missing(package):
        raise PackageNotFoundError(package)

    monkeypatch.setattr("importlib.metadata.files", missing)
    with pytest.raises(ConfigError, match="pip install scikit-learn"):
        _stored_digits()


def test_a_limit_takes_the_same_few_of_every_class(config):
    small = load_data(config.changed(**{"data.limit": 100}), GREY)
    assert [len(s) for s in (small.train, small.val, small.test)] == [100, 100, 100]
    assert set(small.train.indices) == set(load_data(config.changed(**{"data.limit": 100, "seed": 3}), GREY).train.indices)
    assert np.bincount([label for _, label in small.train]).min() >= 8


# Loaders.


@pytest.mark.parametrize("augment", [{}, EVERYTHING], ids=["affine", "everything"])
def test_a_resumed_run_sees_the_batches_of_an_uninterrupted_one(config, augment):
    config = config.changed(**augment)
    data = load_data(config, GREY)
    loader = train_loader(data.train, config.data)
    for epoch in range(3):
        loader.set_epoch(epoch)
        through = list(loader)
    random.seed(1)
    torch.manual_seed(1)
    fresh = load_data(config, GREY)
    assert same(through, epoch_of(fresh, config, 2))
    assert not same(through, epoch_of(fresh, config, 1))
    assert not same(through, epoch_of(fresh, config, 2, seed=1))


def test_batches_do_not_depend_on_loading_processes(config):
    config = config.changed(**EVERYTHING, **{"data.limit": 128})
    here = epoch_of(load_data(config, GREY), config, 1)
    apart = config.changed(**{"data.workers": 2})
    assert same(here, epoch_of(load_data(apart, GREY), apart, 1))


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("augment", [{}, EVERYTHING], ids=["affine", "everything"])
def test_workers_share_the_batches_of_one(config, augment, world):
    config = config.changed(**augment, **{"data.limit": 256})
    data = load_data(config, GREY)
    alone = epoch_of(data, config, 1)
    shares = [epoch_of(data, config, 1, rank=rank, world=world) for rank in range(world)]
    for step, (images, labels) in enumerate(alone):
        for rank in range(world):
            assert torch.equal(shares[rank][step][0], images[rank::world])
            assert torch.equal(shares[rank][step][1], labels[rank::world])


def test_an_epoch_takes_each_training_image_at_most_once_and_drops_less_than_a_batch(config, digits):
    loader = train_loader(digits.train, config.data)
    items = [item for batch in loader.sampler for item, _ in batch]
    assert len(items) == len(set(items)) == 1024
    assert len(loader) == 16


def test_repeated_augmentation_shows_an_image_several_times_in_a_batch_and_never_alike(config):
    config = config.changed(**{"data.augment.repeated": 3, "data.batch_size": 48})
    data = load_data(config, GREY)
    loader = train_loader(data.train, config.data)
    batch = next(iter(loader.sampler))
    assert len({item for item, _ in batch}) == 16
    images, _ = next(iter(loader))
    assert not torch.equal(images[0], images[1])
    ranks = [next(iter(train_loader(data.train, config.data, rank=r, world=3).sampler)) for r in range(3)]
    assert {item for item, _ in ranks[0]} == {item for item, _ in ranks[1]}, "each worker sees the image once"
    assert len(loader) == len(train_loader(load_data(config, GREY).train, config.changed(**{"data.augment.repeated": 1}).data))


def test_augmentation_leaves_the_random_numbers_of_training_alone(config):
    config = config.changed(**EVERYTHING, **{"data.limit": 64})
    data = load_data(config, GREY)
    for generator in (random.random, np.random.random, lambda: torch.rand(1).item()):
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002
        torch.manual_seed(0)
        untouched = generator()
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002
        torch.manual_seed(0)
        next(iter(train_loader(data.train, config.data)))
        assert generator() == untouched


@settings(deadline=None, max_examples=40)
@given(size=st.integers(1, 60), world=st.integers(1, 7), batch=st.integers(1, 20))
def test_evaluation_gives_each_image_exactly_once_over_all_workers(config, digits, size, world, batch):
    asked = config.changed(**{"data.eval_batch_size": batch})
    few = ImageSet(digits.val.source, digits.val.indices[:size], digits.val.view, 10, cache=True)
    seen = []
    for rank in range(world):
        for images, labels in eval_loader(few, asked.data, rank, world):
            assert len(images) == len(labels) <= batch
            seen += list(zip(images.flatten(1).sum(1).tolist(), labels.tolist(), strict=True))
    assert sorted(seen) == sorted((image.sum().item(), label) for image, label in few)


def test_evaluation_changes_nothing_in_an_image(config, digits):
    (images, labels), *_ = eval_loader(digits.test, config.data)
    stored = digits.test.source.dataset
    raw = torch.from_numpy(stored.images[digits.test.indices[: len(images)]])[:, None] / 255
    assert torch.allclose(images, raw * 2 - 1, atol=1e-6)
    assert torch.equal(labels, torch.from_numpy(stored.targets[digits.test.indices[: len(images)]]))


def test_digits_are_cheap_to_load(config, digits):
    epoch_of(digits, config, 0)
    start = time.perf_counter()
    epoch_of(digits, config, 1)
    assert (time.perf_counter() - start) / 1024 < 150e-6


def test_a_batch_that_does_not_divide_by_the_workers_is_refused(config, digits):
    with pytest.raises(ConfigError, match="64, which does not divide by 3"):
        train_loader(digits.train, config.data, rank=0, world=3)


# Transforms.


@given(st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=50, unique=True))
def test_hashed_numbers_are_in_range_and_belong_to_their_seed(seeds):
    drawn = uniforms(np.array(seeds, dtype=np.uint64), 5)
    assert ((drawn >= 0) & (drawn < 1)).all()
    assert np.array_equal(drawn[-1:], uniforms(np.array(seeds[-1:], dtype=np.uint64), 5))


def test_hashed_numbers_are_uniform_and_independent():
    drawn = uniforms(np.arange(20_000, dtype=np.uint64), 5)
    assert np.abs(drawn.mean(0) - 0.5).max() < 0.01
    assert np.abs(drawn.std(0) - 12**-0.5).max() < 0.01
    assert np.abs(np.corrcoef(drawn.T) - np.eye(5)).max() < 0.03


@pytest.mark.parametrize(
    ("angle", "shift", "zoom"), [(20.0, (0, 0), 1.0), (0.0, (3, -2), 1.0), (0.0, (0, 0), 1.25), (-15.0, (2, 1), 0.8)]
)
def test_the_affine_warp_is_torchvisions(angle, shift, zoom):
    torch.manual_seed(0)
    smooth = torch.nn.functional.interpolate(torch.rand(1, 3, 5, 6), size=(20, 24), mode="bicubic")
    options = Affine(degrees=90, translate=0.5, scale=(0.5, 1.5))
    uniform = np.array([[angle / 180 + 0.5, shift[0] / 24 + 0.5, shift[1] / 20 + 0.5, zoom - 0.5, 0.5]])
    wanted = torchvision_affine(smooth, angle, list(shift), zoom, [0.0, 0.0], InterpolationMode.BILINEAR)
    assert torch.allclose(affine_warp(smooth, options, uniform), wanted, atol=1e-4)


def test_the_middle_of_every_range_leaves_images_alone_and_outside_is_black(config):
    images = torch.rand(2, 1, 8, 8)
    options = Affine(degrees=30, translate=0.5, scale=(0.5, 1.5), shear=20)
    assert torch.allclose(affine_warp(images, options, np.full((2, 5), 0.5)), images, atol=1e-5)
    view = replace(load_data(config, GREY).train.view, affine=options)
    moved = view.warp(torch.ones(1, 1, 8, 8), np.array([[0.5, 1.0, 0.5, 0.5, 0.5]]))
    assert torch.allclose(moved[0, 0, :, 0], -torch.ones(8)), "black after normalization, not grey"


@pytest.mark.parametrize("name", [*EVERYTHING, "data.augment.color_jitter", "augmix", "3a", "original"])
def test_every_augmentation_works_on_grey_images_as_on_coloured_ones(config, name, monkeypatch):
    policies = {"augmix": "augmix-m5-w4", "3a": "3a", "original": "original"}
    changes = {"data.augment.auto_augment": policies[name]} if name in policies else {name: EVERYTHING.get(name, 0.4)}
    asked = config.changed(**changes, **{"data.name": f"{__name__}:mine", "data.batch_size": 8, "data.num_classes": 4})
    for mode, channels in (("L", 1), ("RGB", 3)):
        monkeypatch.setattr(f"{__name__}.returned", (Pictures(mode), Pictures(mode), Pictures(mode)))
        data = load_data(asked, (channels, 12, 12))
        images, _ = epoch_of(data, asked, 0)[0]
        assert images.shape == (8, channels, 12, 12)
        assert images.isfinite().all()
        assert not torch.equal(images, epoch_of(data, asked, 1)[0][0])


def test_the_strongest_randaugment_runs(config):
    """At full strength timm's Posterize keeps 0 bits, which Pillow refuses."""
    asked = config.changed(**{"data.augment.auto_augment": "rand-m10-n4-inc1"})
    data = load_data(asked, GREY)
    assert len(epoch_of(data, asked, 0)) == 16


def test_the_models_own_mean_and_crop_are_taken_where_they_fit(config):
    standard = {
        "mean": (0.1, 0.2, 0.3),
        "std": (0.4, 0.5, 0.6),
        "input_size": (3, 20, 20),
        "crop_pct": 0.8,
        "interpolation": "bilinear",
    }
    asked = config.changed(**{"data.name": f"{__name__}:coloured", "data.batch_size": 8})
    own = load_data(asked, (3, 20, 20), standard).preprocessing
    assert (own["mean"], own["std"], own["crop_pct"], own["interpolation"]) == (
        [0.1, 0.2, 0.3],
        [0.4, 0.5, 0.6],
        0.8,
        "bilinear",
    )
    assert load_data(asked, (3, 12, 12), standard).preprocessing["crop_pct"] == 1.0
    said = load_data(asked.changed(**{"data.mean": [0.5], "data.crop_pct": 0.5}), (3, 20, 20), standard).preprocessing
    assert (said["mean"], said["crop_pct"]) == ([0.5, 0.5, 0.5], 0.5)
    assert load_data(config, GREY, standard).preprocessing["mean"] == [0.5]


def test_mixup_gives_soft_labels_that_sum_to_one(config, digits):
    assert mixup_fn(config.data.augment, 10) is None
    mix = mixup_fn(
        config.changed(**{"data.augment.mixup": 0.8, "data.augment.cutmix": 1.0}).data.augment, 10, label_smoothing=0.1
    )
    images, labels = epoch_of(digits, config, 0)[0]
    mixed, soft = mix(images.clone(), labels)
    assert soft.shape == (64, 10)
    assert torch.allclose(soft.sum(1), torch.ones(64), atol=1e-5)
    assert mixed.shape == images.shape


# Data sets of one's own.


class Pictures(Dataset):
    """Random pictures in 4 classes; `colour` of the picture says its class."""

    def __init__(self, mode="RGB", size=(20, 16), count=40, labels=None):
        self.mode, self.size, self.count = mode, size, count
        self.labels = [i % 4 for i in range(count)] if labels is None else labels

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        draw = np.random.default_rng(index)
        shape = (*self.size, 3) if self.mode == "RGB" else self.size
        return Image.fromarray(draw.integers(255, size=shape, dtype=np.uint8)), self.labels[index]


returned: tuple = ()


def mine(config):
    return returned


def coloured(config):
    sets = [Pictures(), None, Pictures()]
    for s in sets:
        if s is not None:
            s.classes = ["a", "b", "c", "d"]
    return tuple(sets)


def tensors(config):
    return tuple([(torch.rand(2, 8, 8), i % 4) for i in range(40)] for _ in range(3))


def test_a_function_gives_the_data_sets_and_validation_is_split_off(config):
    asked = config.changed(**{"data.name": f"{__name__}:coloured", "data.batch_size": 8, "data.val_share": 0.25})
    data = load_data(asked, (3, 12, 12))
    assert [len(s) for s in (data.train, data.val, data.test)] == [30, 10, 40]
    assert not set(data.train.indices) & set(data.val.indices)
    assert (data.num_classes, data.class_names) == (4, ["a", "b", "c", "d"])
    assert data.train[0][0].shape == (3, 12, 12)


def test_a_function_of_other_arguments_is_refused_and_one_beside_the_command_found(config, tmp_path, monkeypatch):
    (tmp_path / "beside.py").write_text("def plain():\n    return 3\n\n\ndef mine(config):\n    return [config.name]\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    assert "let it take that one argument" in refusal(config, **{"data.name": "beside:plain"})
    assert "must return (train, val or None, test), not list" in refusal(config, **{"data.name": "beside:mine"})


def test_tensors_of_any_number_of_channels_work(config):
    asked = config.changed(**{"data.name": f"{__name__}:tensors", "data.batch_size": 8, "data.num_classes": 4})
    assert load_data(asked, (2, 8, 8)).train[0][0].shape == (2, 8, 8)
    assert "2 channels, but the model takes 1" in refusal(asked)


@pytest.mark.parametrize(
    ("sets", "wanted"),
    [
        ([], ["(train, val or None, test)", "list"]),
        ((Pictures(), None, None), ["None for test"]),
        ((Pictures(count=0), None, Pictures()), ["train"]),
        ((iter(()), None, Pictures()), ["train", "by index"]),
        ((Pictures(), None, Pictures()), ["num_classes is not set"]),
    ],
)
def test_what_a_function_must_not_return_is_refused(config, monkeypatch, sets, wanted):
    monkeypatch.setattr(f"{__name__}.returned", sets)
    text = refusal(config, (3, 12, 12), **{"data.name": f"{__name__}:mine", "data.batch_size": 8})
    for part in wanted:
        assert part in text


def test_a_label_beyond_the_classes_is_refused(config):
    asked = config.changed(**{"data.name": f"{__name__}:tensors", "data.batch_size": 8, "data.num_classes": 3})
    with pytest.raises(ConfigError, match="label 3"):
        list(eval_loader(load_data(asked, (2, 8, 8)).test, asked.data))


# timm's data sets.


@pytest.fixture
def fashion(tmp_path):
    """Fashion-MNIST's raw files, with 200 and 40 images."""
    folder = tmp_path / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    draw = np.random.default_rng(0)
    for part, count in (("train", 200), ("t10k", 40)):
        images = draw.integers(256, size=(count, 28, 28), dtype=np.uint8)
        labels = np.arange(count, dtype=np.uint8) % 10
        (folder / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 2051, count, 28, 28) + images.tobytes())
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, count) + labels.tobytes())
    return tmp_path


@pytest.fixture
def offline(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was asked")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)


def test_fashion_mnist_is_read_from_its_raw_files(config, fashion, offline):
    asked = config.changed(**{"data.name": "torch/fashion_mnist", "data.root": str(fashion), "data.batch_size": 32})
    data = load_data(asked, (1, 28, 28))
    assert [len(s) for s in (data.train, data.val, data.test)] == [180, 20, 40]
    assert np.bincount([label for _, label in data.val]).tolist() == [2] * 10
    assert data.class_names[0] == "T-shirt/top"
    assert data.num_classes == 10
    assert epoch_of(data, asked, 0)[0][0].shape == (32, 1, 28, 28)


def test_missing_files_are_said_and_never_downloaded(config, tmp_path, offline):
    text = refusal(config, (1, 28, 28), **{"data.name": "torch/fashion_mnist", "data.root": str(tmp_path)})
    assert "FashionMNIST/raw" in text
    assert str(tmp_path) in text


def test_a_split_that_is_the_test_split_is_not_for_validation(config, fashion):
    changes = {"data.name": "torch/fashion_mnist", "data.root": str(fashion), "data.val_split": "validation"}
    assert "the same one" in refusal(config, (1, 28, 28), **changes)


@pytest.fixture
def folders(tmp_path):
    for split in ("train", "val", "test"):
        for c, colour in (("ant", 40), ("bee", 200)):
            (tmp_path / split / c).mkdir(parents=True)
            for i in range(12):
                Image.new("RGB", (20, 16), (colour, i, 0)).save(tmp_path / split / c / f"{i}.png")
    return tmp_path


def test_an_image_folder_with_its_own_validation_split(config, folders):
    asked = config.changed(
        **{"data.name": "folder", "data.root": str(folders), "data.val_split": "validation", "data.batch_size": 8}
    )
    data = load_data(asked, (3, 12, 12))
    assert [len(s) for s in (data.train, data.val, data.test)] == [24, 24, 24]
    assert data.class_names == ["ant", "bee"]
    (images, labels), *_ = eval_loader(data.test, asked.data)
    assert torch.equal(images[:, 0].mean((1, 2)) > 0, labels == 1)
    grey = load_data(asked, (1, 12, 12))
    assert grey.train[0][0].shape == (1, 12, 12)


def test_an_image_folder_of_three_splits_is_taken_as_it_is_named(config, folders):
    asked = config.changed(**{"data.name": "folder", "data.root": str(folders), "data.batch_size": 8})
    data = load_data(asked, (3, 12, 12))
    assert [len(s) for s in (data.train, data.val, data.test)] == [24, 24, 24]
    assert data_name(asked) == f"folder {folders.name}"
    shutil.rmtree(folders / "test")  # then validation is the test split, and val_share of train for validation
    data = load_data(asked, (3, 12, 12))
    assert [len(s) for s in (data.train, data.val, data.test)] == [22, 2, 24]


def test_a_damaged_image_is_named(config, folders):
    broken = folders / "test" / "bee" / "3.png"
    broken.write_bytes(broken.read_bytes()[:40])
    asked = config.changed(**{"data.name": "folder", "data.root": str(folders), "data.batch_size": 8})
    for workers in (0, 1):
        asked = asked.changed(**{"data.workers": workers})
        with pytest.raises(ConfigError, match=r"bee/3\.png"):
            list(eval_loader(load_data(asked, (3, 12, 12)).test, asked.data))


def test_classes_that_differ_between_splits_are_refused(config, folders):
    (folders / "test" / "bee").rename(folders / "test" / "wasp")
    text = refusal(config, (3, 12, 12), **{"data.name": "folder", "data.root": str(folders), "data.batch_size": 8})
    assert "classes of the test split" in text


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"data.name": "digit"}, ["'digit'", "did you mean digits"]),
        ({"data.name": "torch/fashion_mnst", "data.root": "/tmp"}, ["did you mean torch/fashion_mnist"]),
        ({"data.name": "torch/fashion_mnist"}, ["data.root is not set"]),
        ({"data.name": "torch/fashion_mnist", "data.root": "/no/such/folder"}, ["/no/such/folder", "no folder"]),
        ({"data.name": "folder", "data.root": "/no/such/folder"}, ["/no/such/folder"]),
        ({"data.name": "no_such_module:function"}, ["no_such_module"]),
        ({"data.name": f"{__name__}:no_such_function"}, ["no_such_function"]),
        ({"data.train_split": "training"}, ["data.train_split", "digits"]),
        ({"data.num_classes": 7}, ["data.num_classes is 7", "10"]),
        ({"data.limit": 32}, ["batch_size is 64", "32 training images"]),
        ({"data.mean": [0.1, 0.2]}, ["data.mean", "1 channels"]),
        ({"data.image_size": 16}, ["data.image_size is 16", "8 x 8"]),
    ],
)
def test_data_that_cannot_be_had_is_refused_in_one_sentence(config, changes, wanted):
    text = refusal(config, **changes)
    for part in wanted:
        assert part in text


def test_channels_that_the_model_does_not_take_are_refused(config):
    assert "1 channel, but the model takes 3" in refusal(config, (3, 8, 8))
    asked = {"data.name": f"{__name__}:coloured", "data.batch_size": 8}
    assert "set model.kwargs.in_chans to 3" in refusal(config, (1, 8, 8), **asked)


def test_a_split_without_a_folder_is_refused_with_what_there_is(config, folders):
    text = refusal(config, (3, 12, 12), **{"data.name": "folder", "data.root": str(folders), "data.test_split": "final"})
    assert "'final'" in text
    assert "test, train, val" in text


def test_names_are_checked_without_reading_data(config):
    check_data(config)
    check_data(config.changed(**{"data.name": "hfds/cifar10"}))
    with pytest.raises(ConfigError):
        check_data(config.changed(**{"data.name": "imagenett"}))


@pytest.mark.parametrize(("name", "package"), [("wds/x", "webdataset"), ("hfds/cifar10", "datasets")])
def test_a_package_that_a_data_set_needs_is_named(config, tmp_path, monkeypatch, name, package):
    monkeypatch.setattr("importlib.util.find_spec", lambda wanted: None)
    text = refusal(config, (3, 12, 12), **{"data.name": name, "data.root": str(tmp_path), "data.val_split": "validation"})
    assert f"pip install {package}" in text
