"""Data sets by their names: where their images are stored, and under which names their splits are found.

`digits` comes with scikit-learn, folders and tar files are listed by folders.py, data sets of the Hugging Face Hub come through
the package datasets, and all others through timm's create_dataset or the user's own function.
"""

import importlib
import importlib.metadata
import importlib.util
import inspect
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import timm.data
from PIL import Image

from slimsweep.config import Config, ConfigError, did_you_mean
from slimsweep.data.damaged import reason_of
from slimsweep.data.folders import Split, few, holds_tars, is_hidden, list_images, list_unlabelled, natural_order, plain_order
from slimsweep.data.hub_readers import HubImages, HubRows, HubShards
from slimsweep.data.listed_files import is_list
from slimsweep.data.readers import (
    DataSetError,
    FolderImages,
    IndexedImages,
    TarImages,
    WebDatasetShards,
    said_with_line,
)
from slimsweep.data.split_names import FOLDER_NAMES, TEST_NAMES, TRAIN_NAMES, VAL_NAMES
from slimsweep.data.transforms import random_state_kept, seed_all
from slimsweep.data.undivided_sources import check_one_file, check_split_used, is_undivided, undivided_source
from slimsweep.errors import SlimsweepError

SPLIT_SEED = 20_210  # not the run's seed: all runs on a data set share its splits, so that they can be compared
TORCH_TWO_SPLITS = ("cifar10", "cifar100", "mnist", "kmnist", "fashion_mnist", "qmnist")
TORCH_NAMES = (*TORCH_TWO_SPLITS, "imagenet", "places365", "inaturalist", "inat")
STREAMS = ("wds", "hfids")
PACKAGES = {"hfds": "datasets", "hfids": "datasets", "wds": "webdataset"}


def check_data(config: Config) -> None:
    """Refuse, without reading images, a data set that does not exist here.

    Raises:
        ConfigError: an unknown name, or a root that is not there.
    """
    name, root = config.data.name, config.data.root
    prefix, slash, rest = name.partition("/")
    prefix = prefix.lower()
    function = ":" in name and not slash
    if config.data.normalized and not function:
        raise ConfigError(
            f"data.normalized is true, but {title(config)} gives images, and only tensors of a function of your own can be "
            "normalised already: leave it out"
        )
    for field in ("image_key", "label_key"):
        listed = name in FOLDER_NAMES and root is not None and is_list(Path(root))
        if getattr(config.data, field) is not None and prefix not in PACKAGES and not function and not listed:
            raise ConfigError(
                f"data.{field} is {getattr(config.data, field)!r}, but {title(config)} has no columns to choose from: leave it "
                "out, as it is for hfds/NAME, hfids/NAME, wds/NAME and lists of files"
            )
    if name == "digits" or function:
        check_split_used(config)
        return
    if prefix == "tfds":  # its reader repeats images in evaluation, so that each worker has as many
        raise ConfigError(
            f"data.name is {name!r}, but tfds is not read: write it as webdataset or hfds, and give wds/ or hfds/"
        )
    if name not in FOLDER_NAMES and not (slash and (prefix in PACKAGES or (prefix == "torch" and rest.lower() in TORCH_NAMES))):
        known = ["digits", "folder", *(f"torch/{n}" for n in TORCH_NAMES)]
        other = "it may be digits, folder, torch/NAME, hfds/NAME, wds/NAME or package.module:function"
        if Path(name).expanduser().is_dir():
            other = f"for images in that folder, set data.name to folder and data.root to {name}"
        raise ConfigError(f"data.name is {name!r}, which is not a known data set; {did_you_mean(name.lower(), known, other)}")
    if root is None and prefix not in ("hfds", "hfids"):
        raise ConfigError(f"data.root is not set, but {title(config)} is read from a folder: set data.root to it")
    if root is not None and name in FOLDER_NAMES and Path(root).expanduser().is_file():
        check_one_file(Path(root).expanduser())
        check_split_used(config)
        return
    if root is not None and prefix not in STREAMS and not Path(root).expanduser().is_dir():
        way_out = "fix the path" if "$" not in root else "write the path out, as variables in it are not replaced"
        raise ConfigError(f"data.root is {root!r}, which is no folder here: {way_out}, or put {title(config)} there")
    check_split_used(config)


def sources_of(config: Config, mode: str) -> dict[str, Any]:
    """train, test, and val where the data set has one: each a `Source` or `Shards`, as they are stored.

    Of a folder of images without labels (`data.num_classes` 0), and of images that are not divided, there is train alone.

    Args:
        mode: Pillow's mode of the images, L or RGB.
    """
    if config.data.name == "digits":
        return _digits(config)
    if ":" in config.data.name and "/" not in config.data.name:
        return _from_function(config)
    if config.data.name in FOLDER_NAMES and Path(config.data.root or "").expanduser().is_file():
        return {"train": undivided_source(config, mode)}
    if config.data.name in FOLDER_NAMES and config.data.num_classes == 0:
        return _unlabelled_folders(config, mode)
    if is_undivided(config):
        return {"train": undivided_source(config, mode)}
    return _from_timm(config, mode)


def _digits(config: Config) -> dict[str, IndexedImages]:
    for field, value, only in (("train_split", config.data.train_split, "train"), ("val_split", config.data.val_split, "val")):
        if value not in (None, only):
            raise ConfigError(f"data.{field} is {value!r}, but digits has the splits train, val and test: leave it out")
    if config.data.test_split not in (None, "test"):
        raise ConfigError(f"data.test_split is {config.data.test_split!r}, but digits has train, val and test: leave it out")
    images, labels = _stored_digits()
    rest, test = split_off(labels, len(labels), 360)
    train, val = split_off(labels[rest], len(rest), 360)
    parts = {"train": rest[train], "val": rest[val], "test": test}
    classes = config.data.num_classes
    return {
        split: IndexedImages(_Digits(images[part], labels[part]), f"digits {split}", classes) for split, part in parts.items()
    }


def _stored_digits() -> tuple[np.ndarray, np.ndarray]:
    """(images (1797, 8, 8) from 0 to 255, labels (1797,))."""
    # load_digits() gives the same, but importing scikit-learn takes seconds in every worker process (and importlib.resources
    # imports it too). importlib.metadata lists the files of the installed package without importing it; this one is read in
    # milliseconds.
    try:
        installed = importlib.metadata.files("scikit-learn") or []
    except importlib.metadata.PackageNotFoundError as problem:
        raise ConfigError("digits needs the package scikit-learn: pip install scikit-learn") from problem
    file = next((Path(str(path.locate())) for path in installed if path.name == "digits.csv.gz"), None)
    if file is not None and file.is_file():
        pixels, labels = np.split(np.loadtxt(file, delimiter=",", dtype=np.uint8), [64], axis=1)
    else:  # an installation without such a list, or of a version that stores the images elsewhere
        from sklearn.datasets import load_digits

        pixels, labels = load_digits(return_X_y=True)
    return np.round(pixels.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8), labels.reshape(-1).astype(np.int64)


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


def _from_function(config: Config) -> dict[str, IndexedImages]:
    name = config.data.name
    module_name, _, function_name = name.partition(":")
    if os.getcwd() not in sys.path:  # `python -m` puts it there, the command slimsweep does not
        sys.path.append(os.getcwd())
    try:
        with seeded(config.seed), _in_users_code(f"importing {module_name}", (ImportError, AttributeError, ValueError)):
            function = getattr(importlib.import_module(module_name), function_name)  # it may divide its images in that
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
    with seeded(config.seed), _in_users_code(f"calling {name}", ()):
        returned = function(config)
    if not isinstance(returned, tuple | list) or len(returned) != 3:  # random_split gives a list
        raise ConfigError(f"{name} must return (train, val or None, test), not {type(returned).__name__}: fix what it returns")
    found = {split: dataset for split, dataset in zip(("train", "val", "test"), returned, strict=True) if dataset is not None}
    for split in ("train", "test"):
        if split not in found:
            raise ConfigError(f"{name} returned None for {split}: only the validation set may be None")
    for split, dataset in found.items():
        if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")) or len(dataset) == 0:
            raise ConfigError(f"{name} must return data sets with a length above 0 and images by index; its {split} is not one")
    sources = {}
    for split, given in found.items():
        called, dataset = f"the {split} split of {name}", given
        if type(given).__module__.startswith("datasets.") and hasattr(given, "features"):  # of Hugging Face, with rows as dicts
            dataset = HubRows(given, *_columns(config), called)
        sources[split] = IndexedImages(dataset, called, config.data.num_classes)
    return sources


@contextmanager
def _in_users_code(doing: str, passed_on: tuple[type[Exception], ...]) -> Iterator[None]:
    """What the user's module or function raises, as a sentence that names its line.

    Args:
        doing: what is done with it.
        passed_on: errors that the caller explains.

    Raises:
        DataSetError: its code failed.
    """
    try:
        yield
    except Exception as problem:
        if isinstance(problem, (*passed_on, SlimsweepError, MemoryError)):
            raise
        raise DataSetError(f"{doing} raised {said_with_line(problem)}: fix that line, or what it reads") from problem


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Random numbers of Python, NumPy and torch start from a seed inside, and go on outside as if nothing had happened.

    What is drawn inside without a generator of its own is the same in every process and at every start.
    """
    with random_state_kept():
        seed_all(seed)
        yield


def _from_timm(config: Config, mode: str) -> dict[str, Any]:
    prefix, _, rest = config.data.name.partition("/")
    prefix, rest = prefix.lower(), rest.lower()
    folder = config.data.name in FOLDER_NAMES
    names = {"train": config.data.train_split, "test": config.data.test_split or _usual_test_split(config, folder)}
    if config.data.val_split is not None:
        names["val"] = config.data.val_split
    elif folder and names["test"] not in VAL_NAMES and _has_split(config, *VAL_NAMES):
        names["val"] = "validation"
    same_as = {
        split: ("train" if name in TRAIN_NAMES else "val" if name in VAL_NAMES else name) for split, name in names.items()
    }
    if prefix == "torch" and rest in TORCH_TWO_SPLITS:  # torchvision gives the test set for every other name
        same_as = {split: name if name == "train" else "test" for split, name in same_as.items()}
    for one, other in (("train", "test"), ("val", "test"), ("val", "train")):
        if one in same_as and same_as[one] == same_as[other]:
            way_out = "leave data.val_split out to take a share of the training images" if one == "val" else "name another"
            raise ConfigError(f"the {one} and {other} splits of {title(config)} are the same one, {names[other]!r}: {way_out}")
    sources: dict[str, Any] = {}
    for split in [split for split in ("train", "val", "test") if split in names]:
        if folder:
            classes = sources["train"].class_names if sources else None
            sources[split] = _one_folder(config, names[split], split, mode, classes)
        else:
            sources[split] = _one_from_timm(config, names[split], split, mode, sources.get("train"))
    return sources


def _unlabelled_folders(config: Config, mode: str) -> dict[str, FolderImages]:
    """The splits of a folder of images without labels: its folders train, validation and test where it has them.

    Where it has none, all of it is train, from which the other splits are drawn.
    """
    assert config.data.root is not None  # check_data refuses it
    root, settings = Path(config.data.root).expanduser(), config.data
    names = {"train": settings.train_split}
    if not _has_split(config, *TRAIN_NAMES, *VAL_NAMES, *TEST_NAMES) and settings.train_split in TRAIN_NAMES:
        for field in ("val_split", "test_split"):
            if getattr(settings, field) is not None and not _has_split(config, getattr(settings, field)):
                raise ConfigError(
                    f"data.{field} is {getattr(settings, field)!r}, but data.root {str(root)!r} has no such folder: set "
                    "it to null, and a share of all images is taken (data.val_share)"
                )
        if settings.val_split is None and settings.test_split is None:
            return {"train": _unlabelled(config, root, "train", mode)}
    has_test, has_val = _has_split(config, "test"), _has_split(config, *VAL_NAMES)
    if settings.test_split is not None or has_test or (has_val and settings.val_split is None):
        names["test"] = settings.test_split or ("test" if has_test else "validation")
    if settings.val_split is not None:
        names["val"] = settings.val_split
    elif has_val and names.get("test") not in VAL_NAMES:
        names["val"] = "validation"
    places = {split: _split_folder(root, name, split) for split, name in names.items()}
    for one, other in (("train", "test"), ("val", "test"), ("val", "train")):
        if one in places and places[one] == places.get(other):
            raise ConfigError(
                f"the {one} and {other} splits of {title(config)} are the same one, {names[other]!r}: name another"
            )
    return {split: _unlabelled(config, place, names[split], mode) for split, place in places.items()}


def _unlabelled(config: Config, place: Path, name: str, mode: str) -> FolderImages:
    """The images of a split, at any depth below its folder or in its tar files.

    Args:
        name: what messages call the split.
    """
    called = f"{title(config)} {name}"
    try:
        found = list_unlabelled(Split(place=place, name=name, called=called))
        return (TarImages if holds_tars(place) else FolderImages)(str(place), found, called, mode)
    except OSError as problem:
        raise ConfigError(
            f"{called} cannot be listed ({reason_of(problem)}): make {place} readable, or fix data.root"
        ) from problem


def _has_split(config: Config, *names: str) -> bool:
    """Whether the image folder has one of these, as a folder or a tar file."""
    root = Path(config.data.root or "").expanduser()
    return any((root / name).is_dir() or (root / f"{name}.tar").is_file() for name in names)


def _usual_test_split(config: Config, folder: bool) -> str:
    """The name of the test split where the configuration names none."""
    prefix, _, rest = config.data.name.lower().partition("/")
    if folder:
        return "test" if _has_split(config, "test") else "validation"
    if prefix == "torch":
        return "test" if rest in TORCH_TWO_SPLITS else "validation"
    return "test" if config.data.val_split in VAL_NAMES else "validation"


def _one_folder(config: Config, name: str, split: str, mode: str, classes: list[str] | None) -> FolderImages:
    """A split of an image folder.

    Args:
        name: of the split, as a folder or a tar file has it.
        split: train, val or test.
        classes: those of train, for the others.
    """
    assert config.data.root is not None  # check_data refuses it
    root = Path(config.data.root).expanduser()
    place = _split_folder(root, name, split)
    called = f"{title(config)} {name}"
    advice = ""
    if split == "test" and name not in VAL_NAMES:
        such_as = ", such as validation" if _has_split(config, *VAL_NAMES) and config.data.val_split is None else ""
        advice = f"; or, if {name} has no labels, set data.test_split to a split that has{such_as}"
    order = plain_order if config.data.name.startswith("torch/") else natural_order  # of torchvision, or of timm
    try:
        found = list_images(Split(place=place, name=name, called=called, advice=advice), classes, order)
        kind = TarImages if holds_tars(place) else FolderImages
    except OSError as problem:
        raise ConfigError(
            f"{called} cannot be listed ({reason_of(problem)}): make {place} readable, or fix data.root"
        ) from problem
    images = kind(str(place), found, called, mode)
    if split == "test" and config.data.test_split is None and name in VAL_NAMES:
        other = next((p.name for p in sorted(root.iterdir()) if p.is_dir() and p.name.lower() in TEST_NAMES), None)
        if other is not None:
            images.notes.append(f"{name}: the folder {other} is not used: to test on it, set data.test_split to {other}")
    return images


def _one_from_timm(config: Config, name: str, split: str, mode: str, train: Any) -> Any:
    prefix = config.data.name.partition("/")[0].lower()
    called = f"{title(config)} {name}"
    root = None if config.data.root is None else os.path.expanduser(config.data.root)  # a stream's may be a URL
    if prefix in STREAMS and config.data.val_split is None:
        raise ConfigError(f"data.val_split is not set, but {title(config)} is a stream, which cannot be divided: name a split")
    package = PACKAGES.get(prefix)
    if package is not None and importlib.util.find_spec(package) is None:  # timm's readers print and raise, each its own way
        raise ConfigError(f"{title(config)} needs the package {package}: pip install {package}")
    streamed: dict[str, Any] = {"is_training": split == "train"} if prefix == "wds" else {}
    try:
        if prefix in ("hfds", "hfids"):
            return _from_hub(config, name, called, root, mode, getattr(train, "class_names", None))
        dataset = timm.data.create_dataset(
            config.data.name,
            root=root,
            split=name,
            search_split=False,
            download=False,
            input_img_mode=mode,
            **streamed,
        )
        if prefix == "wds":
            keys = config.data.image_key, config.data.label_key
            return WebDatasetShards(dataset.reader, called, *keys, labelled=config.data.num_classes != 0)
    except ConfigError:
        raise
    except (ImportError, RuntimeError, AssertionError, OSError, ValueError, KeyError) as problem:
        where = f" under {root!r}" if root else ""
        why = reason_of(problem).replace("You can use download=True to download it", "").strip(" .")
        raise ConfigError(
            f"the {name} split of {title(config)} cannot be opened{where} ({why}): {_way_out(config)}"
        ) from problem
    if hasattr(dataset, "all_categories"):  # torchvision's iNaturalist takes files as the file system lists them
        dataset.index.sort()
    return IndexedImages(dataset, called, 0 if config.data.num_classes == 0 else None)


def _from_hub(
    config: Config, name: str, called: str, root: str | None, mode: str, classes: list[str] | None
) -> HubImages | HubShards:
    """A split of a data set of the Hugging Face Hub, or of a folder like one."""
    import datasets

    prefix, _, place = config.data.name.partition("/")
    keys = _columns(config)
    if prefix.lower() == "hfids":
        return HubShards(datasets.load_dataset_builder(place, cache_dir=root), name, *keys, called)
    return HubImages(datasets.load_dataset(place, split=name, cache_dir=root), *keys, called, mode, classes)


def _columns(config: Config) -> tuple[str, str | None]:
    """The columns of images and labels of a data set of Hugging Face; no labels where they are not used."""
    return config.data.image_key or "image", None if config.data.num_classes == 0 else config.data.label_key or "label"


def _way_out(config: Config) -> str:
    """What to do where a split cannot be opened."""
    rest = config.data.name.partition("/")[2].lower()
    raw = {"mnist": "MNIST", "kmnist": "KMNIST", "fashion_mnist": "FashionMNIST", "qmnist": "QMNIST"}.get(rest)
    if raw:
        return f"nothing is downloaded; put its idx files into {raw}/raw below data.root"
    if config.data.name.lower().startswith(("hfds/", "hfids/")):
        return "fix the name after the slash (of the Hugging Face Hub, or a folder here) or the split's"
    return "nothing is downloaded; fix data.root or the split's name"


def _split_folder(root: Path, name: str, split: str) -> Path:
    """The folder of a split, or its tar file.

    Args:
        root: data.root.
        name: of the split, as a folder or a tar file has it.
        split: train, val or test.

    Raises:
        ConfigError: it has none.
    """
    alike = TRAIN_NAMES if name in TRAIN_NAMES else VAL_NAMES if name in VAL_NAMES else ()
    for candidate in (name, *alike):
        if (root / candidate).is_dir():
            return root / candidate
        if (root / f"{candidate}.tar").is_file():
            return root / f"{candidate}.tar"
    seen = sorted(path for path in root.iterdir() if not is_hidden(path.name))
    places = [path for path in seen if path.is_dir() or path.suffix == ".tar"]
    there = few([path.name for path in places], 8) or "no folders"
    raise ConfigError(
        f"data.root {str(root)!r} has no folder for the split {name!r}, it has {there}: "
        f"{_where_else(seen, places, (name, *alike), split)}"
    )


def _where_else(seen: list[Path], places: list[Path], names: tuple[str, ...], split: str) -> str:
    """What to do where data.root has no folder for a split.

    Args:
        seen: all that is in data.root.
        places: the folders and tar files among it.
        names: the names of the split that were looked for.
        split: train, val or test.
    """
    spelled = [*TEST_NAMES, *names] if split == "test" else [*names]
    capital = next((path.name for name in spelled for path in places if path.name.lower() == name), None)
    if capital is not None:
        return f"set data.{split}_split to {capital}"
    deeper = [path for path in places if path.is_dir() and any((path / name).is_dir() for name in names)]
    if len(deeper) == 1:
        return f"set data.root to {deeper[0]}"
    lists = [path for path in seen if is_list(path)]
    if split == "train" and lists and not places:
        return f"set data.root to {lists[0]}, if it lists the images and their classes"
    for path in seen:
        stem, _, ending = path.name.lower().partition(".")
        if stem in spelled and ending in ("zip", "tar.gz", "tgz", "tar.bz2", "tar.xz", "rar", "7z"):
            return f"unpack {path.name} there, or write it as a plain tar file"
    way_out = f"name the split (data.{split}_split), or fix data.root"
    own = "give a function of your own (data.name: package.module:function)"
    if split == "train" and not places:
        way_out = f"put a folder per class into train/ and validation/ there, or {own}"
    elif split == "train" and not any(path.name.lower() in (*VAL_NAMES, *TEST_NAMES) for path in places):
        way_out += "; where these are the classes, put some images of each into train/ and the others into validation/, "
        way_out += f"or {own}"
    elif split == "test" and len(places) == 1:
        way_out = "put some images of each class into validation/ there, or name the split (data.test_split)"
    return way_out


def title(config: Config) -> str:
    """What a message calls the data set."""
    return "the image folder" if config.data.name in FOLDER_NAMES else config.data.name


def data_name(config: Config) -> str:
    """What tables call the data set: its name, and for an image folder the last part of its path.

    Not the whole path: the same images may be elsewhere on another machine.
    """
    if config.data.name not in FOLDER_NAMES:
        return config.data.name
    return f"folder {Path(config.data.root or '').expanduser().resolve().name}"


def split_off(labels: np.ndarray | None, size: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Split `count` images off `size` ones, with each class's share kept where labels are known.

    The same for the same labels, on every machine and for every seed of a run.

    Returns:
        Indices of the rest, and of those that were split off; both sorted.
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
