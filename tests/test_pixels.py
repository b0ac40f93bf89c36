"""What a stored pixel means reaches the network, whatever its mode or type; what cannot be known is refused by name."""

import io
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from slimsweep.config import Config, ConfigError, changed_keys, load_config
from slimsweep.data import Data, TooManyDamaged, eval_loader, load_data, train_loader
from slimsweep.data.pixels import in_mode
from slimsweep.data.readers import DataSetError

SIDE = 8
RAMP = np.arange(SIDE * SIDE).reshape(SIDE, SIDE) / (SIDE * SIDE - 1)  # from black to white
returned: dict[str, Any] = {}  # what the function `mine` returns, by its split


class Images:
    """A data set of a function: images by index, or what makes them; labels in turn."""

    def __init__(self, images: list[Any]) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image = self.images[index]
        return (image() if callable(image) else image), index % 2


def mine(config: Config) -> Any:
    return returned["train"], returned["val"], returned["test"]


def config_of(**changes: Any) -> Config:
    plain = {"augment.affine": None, "augment.scale": None, "augment.hflip": 0.0, "batch_size": 2, "num_classes": 2}
    said = {"name": f"{__name__}:mine", "root": None, **plain, **changes}
    return load_config([])[0].changed(**{f"data.{key}": value for key, value in said.items()})


def loaded(images: list[Any], channels: int = 1, **changes: Any) -> Data:
    returned.update(train=Images(images), val=Images(images), test=Images(images))
    return load_data(config_of(**changes), (channels, SIDE, SIDE))


def refusal(images: list[Any], channels: int = 1, **changes: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        loaded(images, channels, **changes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def stored(pixels: torch.Tensor) -> np.ndarray:
    """From 0 to 1, as before mean and std (0.5)."""
    return (pixels.numpy() + 1) / 2


def grey_16(mode: str) -> Image.Image:
    values = np.round(RAMP * 65535)
    kind = ">u2" if mode == "I;16B" else "<u2"
    return Image.frombytes(mode, (SIDE, SIDE), values.astype(kind).tobytes())


def encoded(image: Image.Image, form: str, **how: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **how)
    return file.getvalue()


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


# Pillow's modes.


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I;16L"])
def test_grey_of_16_bits_goes_from_black_to_white(mode, channels):
    image = grey_16(mode)
    for one in (image, opened(encoded(grey_16("I;16"), "PNG")), opened(encoded(image, "TIFF"))):
        pixels = np.asarray(in_mode(one, "L" if channels == 1 else "RGB"))
        wanted = np.round(RAMP * 255)
        assert np.abs(pixels - (wanted if channels == 1 else wanted[..., None])).max() <= 1
    if channels == 1:
        assert np.abs(stored(loaded([image] * 4).train[0][0])[0] - RAMP).max() < 1 / 255


def test_a_16_bit_pgm_is_one_too():
    body = np.round(RAMP * 4095).astype(">u2").tobytes()
    image = opened(b"P5 8 8 4095\n" + body)  # its own white
    assert np.abs(np.asarray(in_mode(image, "L")) - RAMP * 255).max() <= 1


def test_a_tiff_that_counts_from_white_is_turned_around():
    image = opened(encoded(grey_16("I;16"), "TIFF", tiffinfo={262: 0}))
    assert image.tag_v2[262] == 0
    assert np.abs(np.asarray(in_mode(image, "L")) - (1 - RAMP) * 255).max() <= 1


@pytest.mark.parametrize("form", ["folder", "hub"])
def test_a_threshold_separates_16_bit_images_from_files(form, tmp_path):
    dark, light = (Image.fromarray(np.full((SIDE, SIDE), value, np.uint16)) for value in (9_000, 50_000))
    for split in ("train", "validation"):
        for name, image in (("dark", dark), ("light", light)):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for i in range(4):
                image.save(folder / f"{i}.png")
    said = {"name": "folder", "root": str(tmp_path)} if form == "folder" else {"name": f"hfds/{tmp_path}"}
    data = load_data(config_of(**said), (3, SIDE, SIDE))
    for image, label in data.test:
        assert abs(stored(image).mean() - (9_000, 50_000)[label] / 65535) < 1 / 255


@pytest.mark.parametrize("mode", ["I", "F"])
def test_modes_that_do_not_say_what_is_white_are_refused_by_name(mode, tmp_path):
    image = Image.fromarray((RAMP * 65535).astype(np.int32 if mode == "I" else np.float32))
    assert image.mode == mode
    text = refusal([image] * 4)
    for part in ("image 0 of", f"mode {mode}", "mode L or I;16", "float tensors from 0 to 1"):
        assert part in text
    for split in ("train", "validation"):
        for name in "ab":
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(4):
                image.save(tmp_path / split / name / f"{i}.tiff")
    with pytest.raises(ConfigError, match=rf"\.tiff.* has pixels of Pillow's mode {mode}"):
        load_data(config_of(name=f"hfds/{tmp_path}"), (3, SIDE, SIDE))


COLOURS = np.stack([RAMP, RAMP.T, 1 - RAMP], -1)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "RGBX", "P", "PA", "CMYK", "YCbCr", "HSV"])
def test_colours_stay_what_they_are_in_every_mode(mode):
    plain = Image.fromarray((COLOURS * 255).astype(np.uint8))
    image = plain.quantize(64).convert("PA") if mode == "PA" else plain.quantize(64) if mode == "P" else plain.convert(mode)
    assert image.mode == mode
    assert np.abs(stored(loaded([image] * 4, 3).train[0][0]).transpose(1, 2, 0) - COLOURS).mean() < 0.04


@pytest.mark.parametrize("mode", ["1", "L", "LA"])
def test_grey_stays_what_it_is_in_every_mode(mode):
    values = np.where(RAMP > 0.5, 255, 0).astype(np.uint8)
    image = Image.fromarray(values).convert(mode)
    assert np.array_equal(stored(loaded([image] * 4).train[0][0])[0].round() * 255, values)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_a_shape_that_is_all_in_the_transparency_is_seen(mode):
    shape = np.where(RAMP > 0.5, 255, 0).astype(np.uint8)
    black, white = (Image.merge("LA", [Image.new("L", (SIDE, SIDE), of), Image.fromarray(shape)]) for of in (0, 255))
    if mode == "P":
        one = Image.fromarray((shape > 0).astype(np.uint8)).convert("P")
        one.putpalette([0, 0, 0, 0, 0, 0])
        one.info["transparency"] = 0
        assert np.asarray(in_mode(one, "L")).tolist() == (255 - shape).tolist()
        return
    assert np.asarray(in_mode(black.convert(mode), "L")).tolist() == (255 - shape).tolist()
    assert np.asarray(in_mode(white.convert(mode), "L")).tolist() == shape.tolist()


def test_other_transparency_is_dropped_as_timm_drops_it():
    image = Image.fromarray((np.concatenate([COLOURS, RAMP[..., None]], -1) * 255).astype(np.uint8), "RGBA")
    assert np.array_equal(np.asarray(in_mode(image, "RGB")), np.asarray(image.convert("RGB")))


# Tensors.


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64, torch.uint8, torch.uint16, torch.bool])
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5])
def test_tensors_of_every_kind_and_number_of_channels_mean_the_same(channels, kind):
    values = torch.from_numpy(np.stack([np.roll(RAMP, c, 1) for c in range(channels)]))
    wanted = values.round() if kind == torch.bool else values
    top = {torch.uint8: 255, torch.uint16: 65535}.get(kind)
    given = wanted.to(kind) if top is None else (wanted * top).round().to(kind)
    data = loaded([given] * 4, channels)
    image, _ = next(iter(train_loader(data.train, data.settings)))
    assert image.dtype == torch.float32
    assert np.abs(stored(image[0]) - wanted.numpy()).max() < 0.005


@pytest.mark.parametrize(
    ("image", "parts"),
    [
        (torch.rand(1, SIDE, SIDE) * 255, ["divide them by 255", "data.normalized to true"]),
        (torch.rand(1, SIDE, SIDE) * 4 - 2, ["floats from -", "0 is black and 1 is white", "data.normalized to true"]),
        (torch.randint(0, 255, (1, SIDE, SIDE)), ["int64", "give uint8 from 0 to 255"]),
        (torch.rand(SIDE, SIDE, 1), ["(8, 8, 1): give (C, H, W), such as image.permute(2, 0, 1)"]),
        (torch.rand(SIDE, SIDE), ["(8, 8): give (C, H, W)"]),
        (np.zeros((SIDE, SIDE, 3), np.uint8), ["ndarray", "give PIL images or tensors (C, H, W)"]),
    ],
    ids=["bytes", "normalised", "int64", "HWC", "HW", "numpy"],
)
def test_tensors_whose_range_or_shape_is_another_are_refused_with_the_way_out(image, parts):
    text = refusal([image] * 4)
    for part in parts:
        assert part in text


def test_one_image_of_another_range_is_named_when_it_is_read():
    """Also where it is none of those that are looked at first, and in a loading process."""
    images = [torch.rand(1, SIDE, SIDE) for _ in range(100)]
    images[50] *= 200
    for workers in (0, 1):
        data = loaded(images, workers=workers)
        with pytest.raises(
            ConfigError, match=rf"^the image 50 of the test split of {__name__}:mine is a tensor of floats from [^\n]*$"
        ):
            list(eval_loader(data.test, data.settings))


def test_normalised_tensors_are_left_alone_where_that_is_said():
    image = torch.randn(3, SIDE, SIDE) * 3
    data = loaded([image] * 4, 3, normalized=True)
    assert torch.allclose(data.train[0][0], image)
    assert (data.preprocessing["mean"], data.preprocessing["std"]) == ([0.0] * 3, [1.0] * 3)  # what a saved model says
    assert "PIL image, but data.normalized is true" in refusal([grey_16("I;16")] * 4, normalized=True)
    assert "uint8, but data.normalized is true" in refusal([torch.zeros(1, 8, 8, dtype=torch.uint8)] * 4, normalized=True)
    with pytest.raises(ConfigError, match=r"data\.normalized is true, but digits gives images"):
        load_data(config_of(name="digits", normalized=True), (1, SIDE, SIDE))
    for field, value in (("mean", [0.5]), ("std", [0.5]), ("augment.color_jitter", 0.4), ("augment.auto_augment", "3a")):
        with pytest.raises(ConfigError, match=rf"data\.normalized is true, but data\.{field} needs values from 0 to 1"):
            config_of(normalized=True, **{field: value})


def test_that_tensors_are_normalised_counts_only_where_it_is_said():
    plain, said = config_of(), config_of(normalized=True)
    assert "normalized" not in plain.identity("dense")["data"]
    assert changed_keys(plain.identity("dense"), said.identity("dense")) == ["data.normalized"]


def test_an_augmentation_that_tensors_cannot_go_through_is_refused_at_the_start():
    images = [torch.rand(4, SIDE, SIDE)] * 4
    assert "data.augment.color_jitter is 0.4" in refusal(images, 4, **{"augment.color_jitter": 0.4})
    assert "data.augment.auto_augment is '3a'" in refusal(images, 4, **{"augment.auto_augment": "3a"})
    floats = [torch.rand(3, SIDE, SIDE)] * 4
    assert "data.augment.auto_augment is '3a'" in refusal(floats, 3, **{"augment.auto_augment": "3a"})
    data = loaded(floats, 3, **{"augment.color_jitter": 0.4})
    assert list(train_loader(data.train, data.settings))
    data = loaded([torch.zeros(3, SIDE, SIDE, dtype=torch.uint8)] * 4, 3, **{"augment.auto_augment": "3a"})
    assert list(train_loader(data.train, data.settings))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_tensors_with_nan_or_infinity_are_damaged_images(value):
    images = [torch.rand(1, SIDE, SIDE) for _ in range(80)]
    images[34][0, 0, 0] = value  # none of those that are looked at first
    data = loaded(images)
    with pytest.raises(
        TooManyDamaged, match=r"the image 34 of the test split of .*:mine cannot be read \(it holds NaN or infinite"
    ):
        list(eval_loader(data.test, data.settings))
    data = loaded(images, max_damaged=1)
    assert sum(len(labels) for _, labels in eval_loader(data.test, data.settings)) == 79


# Channels.


def test_grey_images_among_coloured_ones_do_not_make_a_grey_set():
    grey, coloured = Image.new("L", (SIDE, SIDE), 90), Image.new("RGB", (SIDE, SIDE), (200, 10, 10))
    for first in (1, 20):
        images = [grey] * first + [coloured] * 20
        data = loaded(images, 3)
        assert data.train[0][0].shape == (3, SIDE, SIDE)
        assert "have 3 channels, but the model takes 1: set model.kwargs.in_chans to 3" in refusal(images, 1)
    assert "set model.kwargs.in_chans to 1, or give RGB images" in refusal([grey] * 20, 3)


def test_a_palette_of_greys_is_grey():
    grey = Image.fromarray((RAMP * 255).astype(np.uint8), "P")
    grey.putpalette([shade for shade in range(256) for _ in range(3)])
    assert np.abs(stored(loaded([grey] * 4, 1).train[0][0])[0] - RAMP).max() < 0.01
    grey.putpalette([255, 0, 0] * 256)
    assert "have 3 channels" in refusal([grey] * 4, 1)


def test_tensors_of_several_numbers_of_channels_are_refused_with_two_of_them():
    images = [torch.rand(1, SIDE, SIDE)] * 5 + [torch.rand(3, SIDE, SIDE)] * 5
    assert "1 (image 0) and 3 (image 5) channels" in refusal(images, 3)


def test_a_model_of_other_channels_than_its_weights_says_which_mean_is_near(caplog):
    usual = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.2, 0.2)}
    config = load_config([])[0].changed(**{"model.pretrained": True})
    data = load_data(config, (1, SIDE, SIDE), usual)
    assert data.preprocessing["mean"] == [0.5]
    assert "data.mean 0.500 and data.std 0.200 are nearer" in caplog.text
    caplog.clear()
    load_data(config.changed(**{"data.mean": [0.5], "data.std": [0.2]}), (1, SIDE, SIDE), usual)
    load_data(config, (1, SIDE, SIDE), {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)})  # what is taken anyway
    assert not caplog.text


def test_images_that_data_limit_leaves_out_are_not_looked_at():
    def damaged() -> Image.Image:
        raise OSError("gone")

    images = [Image.new("L", (SIDE, SIDE))] * 40
    used = set(loaded(images, limit=4).test.indices.tolist())
    rest = [image if i in used else damaged for i, image in enumerate(images)]
    with pytest.raises(TooManyDamaged):
        loaded(rest)
    data = loaded(images, limit=4)
    returned["test"] = Images(rest)
    assert len(load_data(config_of(limit=4), (1, SIDE, SIDE)).test) == len(data.test)


# The guard.


def picture(folder: Path, index: int, good: bool = True) -> Path:
    path = folder / f"{index}.png"
    data = encoded(Image.fromarray(np.random.default_rng(index).integers(0, 255, (SIDE, SIDE), np.uint8)), "PNG")
    path.write_bytes(data if good else data[:-40])
    return path


@pytest.mark.parametrize("workers", [0, 1])
def test_a_picture_that_a_function_only_opens_is_counted_and_named(tmp_path, workers):
    paths = [picture(tmp_path, i, i != 50) for i in range(100)]
    images = [lambda path=path: Image.open(path) for path in paths]
    data = loaded(images, workers=workers)
    with pytest.raises(TooManyDamaged, match=r"the image 50 of the test split of .*:mine cannot be read .*data\.max_damaged"):
        list(eval_loader(data.test, data.settings))
    data = loaded(images, max_damaged=1)
    assert sum(len(labels) for _, labels in eval_loader(data.test, data.settings)) == 99
    assert list(data.test.damaged.reasons) == [f"50 of the test split of {__name__}:mine"]
    full, _ = data.train.read(range(50, 52), [1, 2])[:2]
    assert len(full) == 2  # another takes its place in training


@pytest.mark.parametrize("kind", [OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError])
def test_all_that_a_decoder_raises_is_a_damaged_image_of_a_function_too(kind):
    def damaged() -> Image.Image:
        raise kind("no such chunk")

    images = [Image.new("L", (SIDE, SIDE))] * 100
    images[50] = damaged
    data = loaded(images, max_damaged=1)
    assert sum(len(labels) for _, labels in eval_loader(data.test, data.settings)) == 99
    assert "no such chunk" in next(iter(data.test.damaged.reasons.values()))


def test_what_torchvision_cannot_decode_is_damaged(tmp_path):
    from torchvision.io import decode_image

    bad = torch.zeros(100, dtype=torch.uint8)
    images: list[Any] = [torch.zeros(1, SIDE, SIDE)] * 100
    images[50] = lambda: decode_image(bad)
    data = loaded(images, max_damaged=1)
    assert sum(len(labels) for _, labels in eval_loader(data.test, data.settings)) == 99


@pytest.mark.parametrize("kind", [KeyError, TypeError, AttributeError, IndexError, RuntimeError])
def test_a_fault_in_a_data_set_is_no_damaged_image_but_named_with_its_line(kind):
    def faulty() -> Image.Image:
        raise kind("size")

    images = [Image.new("L", (SIDE, SIDE))] * 100
    images[50] = faulty
    for workers in (0, 1):
        data, before = loaded(images, max_damaged=100, workers=workers), active_children()
        with pytest.raises(
            DataSetError, match=rf"^image 50 of the test split of {__name__}:mine .*{kind.__name__}.*test_pixels\.py, line \d+"
        ):
            list(eval_loader(data.test, data.settings))
        assert set(active_children()) <= set(before)


def test_16_bit_photographs_keep_their_brightness(tmp_path):
    """What one threshold separates stays separate."""
    draw = np.random.default_rng(0)
    for split, count in (("train", 32), ("validation", 16)):
        for label, name in enumerate(("dark", "light")):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(count):
                noise = draw.integers(20_000 + 20_000 * label, 30_000 + 20_000 * label, (SIDE, SIDE)).astype(np.uint16)
                Image.fromarray(noise).save(tmp_path / split / name / f"{i}.png")
    data = load_data(config_of(name="folder", root=str(tmp_path)), (1, SIDE, SIDE))
    means = np.array([[stored(image).mean(), label] for image, label in data.test])
    dark, light = (means[means[:, 1] == label, 0] for label in (0, 1))
    assert np.abs(dark - 25_000 / 65535).max() < 0.05
    assert np.abs(light - 45_000 / 65535).max() < 0.05
