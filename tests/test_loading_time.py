"""How `slimsweep plan` times the loading of images, and counts axes and repair: by a clock that the images themselves move."""

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from torch import Tensor

from slimsweep.config import Config, DataConfig, load_config
from slimsweep.data import ImageSet, View, calibration_count
from slimsweep.slimming.reconstruction import COMPARED_IMAGES
from slimsweep.slimming.structure import macs
from slimsweep.tools.estimate import Images
from slimsweep.tools.loading_time import LoadingTime, time_loading
from slimsweep.tools.plan import plan
from slimsweep.training.dense_model import build_dense

OPENING, READING = 5.0, 0.001  # seconds: of the first call alone, and of each image


@dataclass
class SlowImages:
    """A source whose images take seconds of a clock of its own; its first one also opens a file."""

    size: int
    now: float = 0.0
    reads: int = 0
    slow: dict[int, float] = field(default_factory=dict)  # further seconds by number of the read, from 0
    class_names: list[str] | None = None
    draws: bool = False

    @property
    def labels(self) -> np.ndarray:
        return np.zeros(self.size, dtype=np.int64)

    @property
    def known_labels(self) -> np.ndarray:
        return self.labels

    def __len__(self) -> int:
        return self.size

    def image(self, index: int) -> tuple[Tensor, int]:
        self.now += READING + (0 if self.reads else OPENING) + self.slow.get(self.reads, 0.0)
        self.reads += 1
        return torch.zeros(1, 4, 4), 0

    def name(self, index: int) -> str:
        return f"image {index}"


def images_of(source: SlowImages, monkeypatch: pytest.MonkeyPatch, *, kept: bool) -> ImageSet:
    monkeypatch.setattr("slimsweep.tools.loading_time.clock", lambda: source.now)
    view = View(transform=lambda image: image, random=False, affine=None, channels=1, black=torch.zeros(1, 1, 1))
    return ImageSet(source, np.arange(source.size), view, 10, cache=kept)


@pytest.mark.parametrize("size", [32, 64, 1000])  # one batch, smaller ones, and more than are timed together
@pytest.mark.parametrize("kept", [True, False])
def test_the_first_call_and_images_in_memory_do_not_count_as_reading(
    size: int, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = SlowImages(size)
    images = images_of(source, monkeypatch, kept=kept)
    found = time_loading(images, DataConfig(batch_size=32), seed=0, seconds=1e9)
    assert found.first == pytest.approx(READING, rel=0.05)  # of one batch alone, one image is in memory already
    assert found.later == pytest.approx(0.0 if kept else READING, rel=0.05)
    assert ("once the image is in memory" in found.in_words()) == kept


def test_a_batch_that_something_else_held_up_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    images = images_of(SlowImages(640, slow={300: 60.0}), monkeypatch, kept=False)
    assert time_loading(images, DataConfig(batch_size=64), seed=0, seconds=1e9).first == pytest.approx(READING)


def test_a_plan_says_both_times(monkeypatch: pytest.MonkeyPatch) -> None:
    images = images_of(SlowImages(128), monkeypatch, kept=True)
    found = time_loading(images, DataConfig(batch_size=32), seed=0, seconds=1e9)
    assert LoadingTime(first=found.first, later=1e-5).in_words() == "1 ms per image, and 0.01 ms once the image is in memory"
    assert LoadingTime(first=0.0123, later=0.0123).in_words() == "12.3 ms per image"


def test_it_stops_when_its_time_is_over_and_takes_no_large_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    source = SlowImages(5000)
    images = images_of(source, monkeypatch, kept=True)
    assert time_loading(images, DataConfig(batch_size=2500), seed=0, seconds=0.2).first == pytest.approx(READING)
    assert 200 < source.reads < 300


def test_what_was_in_memory_before_is_read_again_to_be_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    images = images_of(SlowImages(128), monkeypatch, kept=True)
    images.batch(range(128))
    assert time_loading(images, DataConfig(batch_size=32), seed=0, seconds=1e9).first == pytest.approx(READING, rel=0.05)


def test_each_process_reads_an_image_once_and_takes_it_from_memory_afterwards() -> None:
    found = LoadingTime(first=1.0, later=0.0)
    assert found.average(1, 4) == 1
    assert found.average(10, 1) == pytest.approx(0.1)
    # By chance an image comes to a process for the first time: played with 4 processes that share out 1,000 images.
    draw = np.random.default_rng(0)
    comes_to = draw.integers(4, size=(10, 1000))
    reads = sum(len(np.unique(comes_to[:, image])) for image in range(1000))
    assert found.average(10, 4) == pytest.approx(reads / comes_to.size, rel=0.03)
    assert LoadingTime(first=1.0, later=1.0).average(10, 4) == 1


@pytest.fixture
def digits() -> Config:
    config, _ = load_config(["--config", "digits", "--budgets", "0.5", "--search.paces", "[{}]"])
    return config


def test_axes_and_repair_are_counted_where_they_are_asked_for(digits: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Times are computed (two operations per MAC, at a given speed), so that they are the same in every run."""
    monkeypatch.setattr("slimsweep.tools.plan.import_seconds", lambda: 0.0)
    sizes, speed = Images(train=5000, val=10, test=10), 1e-3

    def seconds(config: Config, images: Images = sizes) -> dict[str, float]:
        return {t.name: t.seconds for t in plan(config, images=images, tflops=speed).trainings}

    without = {"retrain.repair": False, "search.axes": False}
    both, neither = seconds(digits), seconds(digits.changed(**without))
    model = build_dense(digits, 10)
    forward = 2 * calibration_count(model) / (speed * 1e12)  # seconds per MAC, of one pass over all images
    dense = macs(model)
    assert both["search"] - neither["search"] == pytest.approx(1.25 * forward * dense)  # axes
    compared = COMPARED_IMAGES / calibration_count(model)
    assert 0 < compared < 1
    repair = forward * ((1 + compared) * dense + (3.5 + 2 * compared) * 0.5 * dense)
    wanted = repair + 1.25 * forward * dense  # axes once more, as the search has trained
    assert both["searched 0.5000"] - neither["searched 0.5000"] == pytest.approx(wanted, rel=0.02)
    assert both["dense 1.0000"] == neither["dense 1.0000"]  # it is not cut
    assert both["dense"] == neither["dense"]
    untrained = {"search.epochs": 0}  # the axes are those that gates were put on
    both, neither = seconds(digits.changed(**untrained)), seconds(digits.changed(**untrained, **without))
    assert both["searched 0.5000"] - neither["searched 0.5000"] == pytest.approx(repair, rel=0.02)
    few = Images(train=200, val=10, test=10)  # all of them are compared
    both, neither = seconds(digits.changed(**untrained), few), seconds(digits.changed(**untrained, **without), few)
    wanted = 200 * forward / calibration_count(model) * (2 * dense + 5.5 * 0.5 * dense)
    assert both["searched 0.5000"] - neither["searched 0.5000"] == pytest.approx(wanted, rel=0.02)
    # A cut of a larger point's model is one of trained weights.
    larger = {"retrain.start": "larger", "budgets": [0.7, 0.5]}
    chained = seconds(digits.changed(**untrained, **larger))["searched 0.5000"]
    alone = seconds(digits.changed(**untrained, budgets=[0.7, 0.5]))["searched 0.5000"]
    assert chained - alone == pytest.approx(1.25 * forward * dense, rel=0.02)
