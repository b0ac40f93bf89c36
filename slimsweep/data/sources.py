"""Where images lie: data sets by their names, each as a source with random access or as shards that are streamed.

`digits` is embedded, all else comes through timm's create_dataset or the user's own function.
"""

import importlib
import importlib.util
import inspect
import io
import json
import os
import struct
import sys
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
import timm.data
from PIL import Image, UnidentifiedImageError
from timm.data.readers.reader_image_in_tar import ReaderImageInTar
from torch import Tensor

from slimsweep.config import Config, ConfigError, did_you_mean
from slimsweep.errors import SlimsweepError

SPLIT_SEED = 20_210  # not the run's seed: all runs on a data set share its splits, so that they can be compared
TRAIN_NAMES = ("train", "training")
VAL_NAMES = ("val", "valid", "validation", "eval", "evaluation")
FOLDER_NAMES = ("", "folder", "imagefolder", "image_folder", "torch/folder", "torch/image_folder")
TORCH_TWO_SPLITS = ("cifar10", "cifar100", "mnist", "kmnist", "fashion_mnist", "qmnist")
TORCH_NAMES = (*TORCH_TWO_SPLITS, "imagenet", "places365", "inaturalist", "inat")
STREAMS = ("wds", "hfids")
PACKAGES = {"hfds": "datasets", "hfids": "datasets", "wds": "webdataset"}
# What Pillow and tarfile raise for files that are not what they should be.
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, tarfile.TarError, Image.DecompressionBombError)


class DamagedImage(SlimsweepError):
    """An image that is there and cannot be read: its name, and why."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)
        self.name, self.reason = name, reason


class Source(Protocol):
    """A split as it is stored: random access to images, without a transform."""

    class_names: list[str] | None
    labels: np.ndarray | None  # of all images, where they are known without decoding

    def __len__(self) -> int: ...

    def image(self, index: int) -> tuple[Image.Image | Tensor, int]:
        """One image and its label.

        Raises:
            DamagedImage: it cannot be read.
        """
        ...


class Shards(Protocol):
    """A split as it is streamed: some shards, each read from its beginning."""

    class_names: list[str] | None
    images: int  # in all shards together
    shards: int

    def read(self, shard: int) -> Iterator[tuple[str, Any, int]]:
        """Name, image as `open` takes it, and label of all images of a shard, in their order.

        Raises:
            ConfigError: the shard cannot be read to its end, or something in it is no labelled image.
        """
        ...

    def open(self, stored: Any) -> BinaryIO:
        """An image's file; raises OSError where it is not there."""
        ...


def check_data(config: Config) -> None:
    """Refuse, without reading images, a data set that does not exist here.

    Raises:
        ConfigError: an unknown name, or a root that is not there.
    """
    name, root = config.data.name, config.data.root
    prefix, slash, rest = name.partition("/")
    prefix = prefix.lower()
    if name == "digits" or (":" in name and not slash):
        return
    if prefix == "tfds":  # its reader repeats images in evaluation, so that each worker has as many
        raise ConfigError(
            f"data.name is {name!r}, but tfds is not read: write it as webdataset or hfds, and give wds/ or hfds/"
        )
    if name not in FOLDER_NAMES and not (slash and (prefix in PACKAGES or (prefix == "torch" and rest.lower() in TORCH_NAMES))):
        known = ["digits", "folder", *(f"torch/{n}" for n in TORCH_NAMES)]
        other = "it may be digits, folder, torch/NAME, hfds/NAME, wds/NAME or package.module:function"
        raise ConfigError(f"data.name is {name!r}, which is no known data set; {did_you_mean(name.lower(), known, other)}")
    if root is None and prefix not in ("hfds", "hfids"):
        raise ConfigError(f"data.root is not set, but {title(config)} is read from a folder: set data.root to it")
    if root is not None and name in FOLDER_NAMES and Path(root).expanduser().is_file():
        mend = "put a tar file a split, such as train.tar and validation.tar, into a folder, and set data.root to that"
        raise ConfigError(f"data.root is {root!r}, which is one file for all splits: {mend}")
    if root is not None and prefix not in STREAMS and not Path(root).expanduser().is_dir():
        raise ConfigError(f"data.root is {root!r}, which is no folder here: mend the path, or put {title(config)} there")


class Indexed:
    """A map-style data set of (image, label), with labels and classes where it has them."""

    def __init__(self, dataset: Any, called: str) -> None:
        self.dataset = dataset
        self.called = called
        names = getattr(dataset, "classes", None)
        self.class_names: list[str] | None = [str(n) for n in names] if names is not None else None
        labels = getattr(dataset, "targets", None)
        self.labels: np.ndarray | None = np.asarray(labels).astype(np.int64) if labels is not None else None

    def __len__(self) -> int:
        return len(self.dataset)

    def image(self, index: int) -> tuple[Image.Image | Tensor, int]:
        try:
            image, label = self.dataset[index]
        except OSError as problem:
            files = getattr(self.dataset, "samples", None)
            name = files[index][0] if files else f"{index} of {self.called}"
            raise DamagedImage(name, said(problem)) from problem
        return image, int(label)


class _Read(Indexed):
    """timm's reader without its ImageDataset, which takes a neighbour's image in place of a damaged one."""

    def __init__(self, reader: Any, called: str, mode: str) -> None:
        self.dataset = reader
        self.called = called
        self.mode = mode
        self.class_names = self._known_classes()
        self.labels = self._known_labels() if self.class_names else None

    def image(self, index: int) -> tuple[Image.Image | Tensor, int]:
        try:
            stored, label = self.dataset[index][:2]
            with stored:
                image = decoded(stored, self.mode)
        except UNREADABLE as problem:
            raise DamagedImage(self.name(index), said(problem)) from problem
        return image, _label(label, self.called)

    def name(self, index: int) -> str:
        """What an image is called in a message."""
        return str(self.dataset.filename(index, absolute=True))

    def _known_classes(self) -> list[str] | None:
        return _by_index(self.dataset.class_to_idx)

    def _known_labels(self) -> np.ndarray:
        return np.array([label for _, label in self.dataset.samples])


class _ReadTar(_Read):
    """Images in a tar file with a folder a class, or in a folder of tar files, each a class or with a folder a class."""

    def __init__(self, root: str, called: str, mode: str) -> None:
        # A tar file that stays open would be shared, and its position with it, by loading processes.
        reader = ReaderImageInTar(root, cache_tarfiles=False)
        # timm leaves files of the same name in several tars in the order in which the folder lists those.
        order = sorted(range(len(reader)), key=lambda index: self._place(*reader.samples[index]))
        reader.samples, reader.targets = reader.samples[order], reader.targets[order]
        super().__init__(reader, called, mode)

    def name(self, index: int) -> str:
        return "/".join([self.dataset.root, *(part for part in self._place(*self.dataset.samples[index]) if part)])

    def _known_classes(self) -> list[str] | None:
        return _by_index(self.dataset.class_name_to_idx)

    def _known_labels(self) -> np.ndarray:
        return self.dataset.targets

    @staticmethod
    def _place(image: tarfile.TarInfo, tar: str | None, inner: tarfile.TarInfo | None) -> tuple[str, ...]:
        """In words: its tar file, the tar file in that, and itself."""
        return tar or "", inner.name if inner else "", image.name


class _ReadHub(_Read):
    """Images of a Hugging Face data set that lies here."""

    def name(self, index: int) -> str:
        return f"{self.dataset.filename(index) or index} (number {index} of {self.called})"

    def _known_labels(self) -> np.ndarray:
        column = self.dataset.dataset.select_columns([self.dataset.label_key]).with_format("numpy")
        return np.asarray(column[:][self.dataset.label_key])


class _WebDataset:
    """The shards of a WebDataset, as timm's reader finds them."""

    class_names = None  # it has none

    def __init__(self, reader: Any, called: str) -> None:
        split = reader.split_info
        self.urls = [os.path.join(reader.root, name) for name in split.filenames]
        self.lengths = split.shard_lengths if len(split.shard_lengths) == len(self.urls) else ()
        self.label_key = split.alt_label  # in the JSON, in place of .cls
        self.images = int(reader.num_samples or 0)
        self.shards = len(self.urls)
        if not self.images:
            mend = "write _info.json beside them, or give their number behind the split's name and a |"
            raise ConfigError(f"{called} does not say how many images its shards hold: {mend}")

    def read(self, shard: int) -> Iterator[tuple[str, bytes, int]]:
        import webdataset

        url, count = self.urls[shard], 0
        try:
            for sample in webdataset.tarfile_to_samples()([{"url": url}]):
                count += 1
                yield from self._labelled(sample, url)
        except ConfigError:
            raise
        except (OSError, EOFError, ValueError, tarfile.TarError) as problem:
            raise ConfigError(f"the shard {url} cannot be read to its end ({said(problem)}): write it again") from problem
        if self.lengths and count != self.lengths[shard]:
            says = f"_info.json says {self.lengths[shard]}"
            raise ConfigError(f"the shard {url} holds {count} images, but {says}: write it again, or mend _info.json")

    def open(self, stored: bytes) -> BinaryIO:
        return io.BytesIO(stored)

    def _labelled(self, sample: Mapping[str, Any], url: str) -> Iterator[tuple[str, bytes, int]]:
        name = f"{url}/{sample['__key__']}"
        kind = next((key for key in ("jpg", "jpeg", "png", "webp") if key in sample), None)
        labels = "json" if self.label_key else "cls"
        if kind is None or labels not in sample:
            there = ", ".join(key for key in sample if not key.startswith("__"))
            raise ConfigError(
                f"the sample {name} holds {there}, but must hold an image (jpg, jpeg, png or webp) and {labels}: write it again"
            )
        label = _label(json.loads(sample["json"]).get(self.label_key) if self.label_key else sample["cls"], name)
        if label >= 0 or not self.label_key:  # in the JSON, -1 is for images that another set of classes leaves out
            yield f"{name}.{kind}", sample[kind], label


class _HubStream:
    """The shards of a Hugging Face data set that is streamed, as timm's reader finds it."""

    def __init__(self, reader: Any, called: str) -> None:
        import datasets

        self.called = called
        stream = reader.builder.as_streaming_dataset(split=reader.split)
        self.dataset = stream.cast_column(reader.input_key, datasets.Image(decode=False))
        self.columns = reader.input_key, reader.target_key
        self.class_names = _by_index(reader.class_to_idx)
        self.images = int(reader.num_samples)
        self.shards = int(self.dataset.num_shards)

    def read(self, shard: int) -> Iterator[tuple[str, dict[str, Any], int]]:
        count = 0
        try:
            # Plain iteration would deal the shard out once more, over the loading processes.
            for rows in self.dataset.shard(num_shards=self.shards, index=shard).iter(batch_size=16):
                for image, label in zip(*(rows[column] for column in self.columns), strict=True):
                    name = f"{image['path'] or count} (number {count} of shard {shard} of {self.called})"
                    yield name, image, _label(label, name)
                    count += 1
        except ConfigError:
            raise
        except (OSError, ValueError) as problem:
            raise ConfigError(
                f"shard {shard} of {self.called} cannot be read to its end ({said(problem)}): write or fetch it again"
            ) from problem

    def open(self, stored: dict[str, Any]) -> BinaryIO:
        import fsspec

        return io.BytesIO(stored["bytes"]) if stored["bytes"] is not None else fsspec.open(stored["path"], "rb").open()


def _by_index(classes: Mapping[str, int]) -> list[str] | None:
    return sorted(classes, key=classes.__getitem__) or None


def _label(said: Any, name: str) -> int:
    try:
        return int(-1 if said is None else said)
    except (TypeError, ValueError) as problem:
        raise ConfigError(f"{name} has the label {said!r}, which is no number: write numbers of classes from 0") from problem


def decoded(stored: BinaryIO, mode: str) -> Image.Image:
    """An image in one of Pillow's modes; raises one of UNREADABLE."""
    try:
        with Image.open(stored) as image:
            return image.convert(mode)
    except UnidentifiedImageError:  # it would name an object in memory
        raise UnidentifiedImageError("it is no image that Pillow knows") from None


def said(problem: Exception) -> str:
    """The first line of what an exception says."""
    return str(problem).splitlines()[0].strip(" .") if str(problem).strip() else type(problem).__name__


class _Digits:
    """scikit-learn's 1,797 images of handwritten digits, grey, 8 x 8."""

    classes = tuple("0123456789")

    def __init__(self, images: np.ndarray, targets: np.ndarray) -> None:
        self.images = images
        self.targets = targets

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self.images[index]), int(self.targets[index])


def sources_of(config: Config, mode: str) -> dict[str, Any]:
    """train, test, and val where the data set has one; as they are stored."""
    if config.data.name == "digits":
        return _digits(config)
    if ":" in config.data.name and "/" not in config.data.name:
        return _from_function(config)
    return _from_timm(config, mode)


def _digits(config: Config) -> dict[str, Indexed]:
    for field, value, only in (("train_split", config.data.train_split, "train"), ("val_split", config.data.val_split, "val")):
        if value not in (None, only):
            raise ConfigError(f"data.{field} is {value!r}, but digits has the splits train, val and test: leave it out")
    if config.data.test_split not in (None, "test"):
        raise ConfigError(f"data.test_split is {config.data.test_split!r}, but digits has train, val and test: leave it out")
    images, labels = _stored_digits()
    rest, test = split_off(labels, len(labels), 360)
    train, val = split_off(labels[rest], len(rest), 360)
    parts = {"train": rest[train], "val": rest[val], "test": test}
    return {split: Indexed(_Digits(images[part], labels[part]), f"digits {split}") for split, part in parts.items()}


def _stored_digits() -> tuple[np.ndarray, np.ndarray]:
    """(images (1797, 8, 8) from 0 to 255, labels (1797,))."""
    # scikit-learn takes 3.5 s to import, in every worker anew; its file, 6 ms to read.
    package = importlib.util.find_spec("sklearn")
    if package is None or package.origin is None:
        raise ConfigError("digits needs the package scikit-learn: pip install scikit-learn")
    file = Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
    if file.is_file():
        pixels, labels = np.split(np.loadtxt(file, delimiter=",", dtype=np.uint8), [64], axis=1)
    else:
        from sklearn.datasets import load_digits

        pixels, labels = load_digits(return_X_y=True)
    return np.round(pixels.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8), labels.reshape(-1).astype(np.int64)


def _from_function(config: Config) -> dict[str, Indexed]:
    name = config.data.name
    module_name, _, function_name = name.partition(":")
    if os.getcwd() not in sys.path:  # `python -m` puts it there, the command slimsweep does not
        sys.path.append(os.getcwd())
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError, ValueError) as problem:
        raise ConfigError(
            f"data.name is {name!r}, but that cannot be imported ({problem}): run where {module_name} is on Python's path"
        ) from problem
    try:
        inspect.signature(function).bind(config)
    except TypeError as problem:
        raise ConfigError(
            f"{name} is called with the configuration, and cannot be ({problem}): let it take that one argument"
        ) from problem
    returned = function(config)
    if not isinstance(returned, tuple) or len(returned) != 3:
        raise ConfigError(f"{name} must return (train, val or None, test), not {type(returned).__name__}: mend its return")
    found = {split: dataset for split, dataset in zip(("train", "val", "test"), returned, strict=True) if dataset is not None}
    for split in ("train", "test"):
        if split not in found:
            raise ConfigError(f"{name} returned None for {split}: only the validation set may be None")
    for split, dataset in found.items():
        if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")) or len(dataset) == 0:
            raise ConfigError(f"{name} must return data sets with a length above 0 and images by index; its {split} is not one")
    return {split: Indexed(dataset, f"{name} {split}") for split, dataset in found.items()}


def _from_timm(config: Config, mode: str) -> dict[str, Any]:
    prefix, _, rest = config.data.name.partition("/")
    prefix, rest = prefix.lower(), rest.lower()
    folder = config.data.name in FOLDER_NAMES
    names = {"train": config.data.train_split, "test": config.data.test_split or _usual_test_split(config, folder)}
    if config.data.val_split is not None:
        names["val"] = config.data.val_split
    elif folder and names["test"] not in VAL_NAMES and _has_split(config, *VAL_NAMES):
        names["val"] = "validation"
    kept = {split: ("train" if name in TRAIN_NAMES else "val" if name in VAL_NAMES else name) for split, name in names.items()}
    if prefix == "torch" and rest in TORCH_TWO_SPLITS:  # all that is not train is its test set
        kept = {split: name if name == "train" else "test" for split, name in kept.items()}
    for one, other in (("train", "test"), ("val", "test"), ("val", "train")):
        if one in kept and kept[one] == kept[other]:
            mend = "leave data.val_split out, and a share of the training images is taken" if one == "val" else "name another"
            raise ConfigError(f"the {one} and {other} splits of {title(config)} are the same one, {names[other]!r}: {mend}")
    return {
        split: _one_from_timm(config, names[split], split, mode, folder) for split in ("train", "val", "test") if split in names
    }


def _has_split(config: Config, *names: str) -> bool:
    """Whether the image folder has one of these, as a folder or a tar file."""
    root = Path(config.data.root or "").expanduser()
    return any((root / name).is_dir() or (root / f"{name}.tar").is_file() for name in names)


def _usual_test_split(config: Config, folder: bool) -> str:
    prefix, _, rest = config.data.name.lower().partition("/")
    if folder:
        return "test" if _has_split(config, "test") else "validation"
    if prefix == "torch":
        return "test" if rest in TORCH_TWO_SPLITS else "validation"
    return "test" if config.data.val_split in VAL_NAMES else "validation"


def _one_from_timm(config: Config, name: str, split: str, mode: str, folder: bool) -> Any:
    prefix = config.data.name.partition("/")[0].lower()
    called = f"{title(config)} {name}"
    root = None if config.data.root is None else os.path.expanduser(config.data.root)  # a stream's may be a URL
    if folder:
        assert root is not None
        root = str(_split_folder(Path(root), name))
    streamed: dict[str, Any] = {}
    if prefix in STREAMS:
        if config.data.val_split is None:
            raise ConfigError(
                f"data.val_split is not set, but {title(config)} is a stream, of which no share can be kept: name one"
            )
        streamed = {"is_training": split == "train"}
    package = PACKAGES.get(prefix)
    if package is not None and importlib.util.find_spec(package) is None:  # timm's readers print and raise, each its own way
        raise ConfigError(f"{title(config)} needs the package {package}: pip install {package}")
    try:
        if folder and root is not None and _holds_tars(Path(root)):
            return _ReadTar(root, called, mode)
        dataset = timm.data.create_dataset(
            "" if folder else config.data.name,
            root=root,
            split=name,
            search_split=False,
            download=False,
            input_img_mode=mode,
            **streamed,
        )
        if prefix == "wds":
            return _WebDataset(dataset.reader, called)
        if prefix == "hfids":
            return _HubStream(dataset.reader, called)
    except ConfigError:
        raise
    except (ImportError, RuntimeError, AssertionError, OSError, ValueError, KeyError, tarfile.TarError) as problem:
        where = f" under {root!r}" if root else ""
        why = said(problem).replace("You can use download=True to download it", "").strip(" .")
        raise ConfigError(f"the {name} split of {title(config)} cannot be opened{where} ({why}): {_mend(config)}") from problem
    if prefix == "hfds":
        return _ReadHub(dataset.reader, called, mode)
    return _Read(dataset.reader, called, mode) if hasattr(dataset, "reader") else Indexed(dataset, called)


def _mend(config: Config) -> str:
    rest = config.data.name.partition("/")[2].lower()
    raw = {"mnist": "MNIST", "kmnist": "KMNIST", "fashion_mnist": "FashionMNIST", "qmnist": "QMNIST"}.get(rest)
    if raw:
        return f"nothing is downloaded; put its idx files into {raw}/raw below data.root"
    if config.data.name.lower().startswith(("hfds/", "hfids/")):
        return "mend the name behind the slash (of the Hugging Face Hub, or a folder here) or the split's"
    return "nothing is downloaded; mend data.root or the split's name"


def _split_folder(root: Path, name: str) -> Path:
    """The folder of a split, or its tar file."""
    alike = TRAIN_NAMES if name in TRAIN_NAMES else VAL_NAMES if name in VAL_NAMES else ()
    for candidate in (name, *alike):
        if (root / candidate).is_dir():
            return root / candidate
        if (root / f"{candidate}.tar").is_file():
            return root / f"{candidate}.tar"
    there = ", ".join(sorted(p.name for p in root.iterdir() if p.is_dir() or p.suffix == ".tar")[:8]) or "no folders"
    raise ConfigError(
        f"data.root {str(root)!r} has no folder for the split {name!r}, it has {there}: name the split, or mend data.root"
    )


def _holds_tars(split: Path) -> bool:
    """Whether a split is a tar file, or a folder of nothing else."""
    return split.is_file() or (any(split.glob("*.tar")) and not any(path.is_dir() for path in split.iterdir()))


def title(config: Config) -> str:
    """What a message calls the data set."""
    return "the image folder" if config.data.name in FOLDER_NAMES else config.data.name


def data_name(config: Config) -> str:
    """What tells the data set from others in tables: its name, and of an image folder, which is all called the same, where.

    That is the last part of its path: the same images may lie elsewhere on another machine.
    """
    if config.data.name not in FOLDER_NAMES:
        return config.data.name
    return f"folder {Path(config.data.root or '').expanduser().resolve().name}"


def split_off(labels: np.ndarray | None, size: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(the rest, `count` of them), both sorted indices below `size`; classes keep their shares where labels are known.

    The same for the same labels, on every machine and for every seed of a run.
    """
    order = np.random.default_rng(SPLIT_SEED).permutation(size)
    place = np.empty(size)
    groups = [order] if labels is None else [order[labels[order] == c] for c in np.unique(labels)]
    for members in groups:
        place[members] = (np.arange(len(members)) + 0.5) / len(members)
    rank = np.empty(size, dtype=np.int64)
    rank[order] = np.arange(size)
    by_place = np.lexsort((rank, place))
    return np.sort(by_place[count:]), np.sort(by_place[:count])
