"""Labels: what a data set gives as one, the class's number that is meant, and where labels are known without reading images."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset, TensorDataset

from slimsweep.config import ConfigError
from slimsweep.data.damaged import UNREADABLE
from slimsweep.data.transforms import random_state_kept

NO_CLASS = np.iinfo(np.int64).min  # in an array of class numbers: what stands there is no number
VERIFIED = 8  # images per split that are read to see whether known labels are what the data set gives


def image_and_label(item: Any, name: str) -> tuple[Any, Any]:
    """The two parts of what a data set gives by index.

    Args:
        item: a tuple or list (image, label).
        name: the image's, for the message.

    Raises:
        ConfigError: it is anything else.
    """
    if isinstance(item, tuple | list) and len(item) == 2:
        return item[0], item[1]
    if isinstance(item, tuple | list):
        given = f"a {type(item).__name__} of {len(item)} parts"
    elif isinstance(item, dict):
        given = f"a dict with the keys {', '.join(map(str, item))}"
    else:
        given = f"one {type(item).__name__}"
    raise ConfigError(f"{name} is given as {given}: let the data set give (image, label) by index, as a tuple")


def class_number(stored: Any, name: str, class_names: Sequence[str] | None = None) -> int:
    """The number of the class that a label means.

    Whole numbers of any type count: Python's, NumPy's, tensors and arrays of one element, True and False as 1 and 0, 3.0, and
    text such as "3". Text that is the name of a class counts as that class.

    Args:
        stored: the label as the data set gives it.
        name: the image's, for the message.
        class_names: the names of the classes by number, where they are known.

    Raises:
        ConfigError: it is no whole number: another text, a fraction, NaN, None, several numbers.
    """
    if type(stored) is int:
        return stored
    number = _whole(stored, class_names)
    if number is None:
        raise ConfigError(f"{name} has {_wrong(stored, class_names)}")
    return number


def _whole(stored: Any, class_names: Sequence[str] | None = None) -> int | None:
    """The whole number that a label is, or None."""
    if isinstance(stored, Tensor | np.ndarray):
        if math.prod(stored.shape) != 1:
            return None
        stored = stored.item()
    elif isinstance(stored, np.generic):
        stored = stored.item()
    if isinstance(stored, bytes):
        stored = stored.decode(errors="replace")
    if isinstance(stored, str):
        if class_names is not None and stored in class_names:
            return class_names.index(stored)
        number = _number_in(stored)
        name = class_names[number] if number is not None and class_names and 0 <= number < len(class_names) else ""
        return None if name.strip().isdecimal() and int(name) != number else number  # of the classes 01 and 02, "1" is not 02
    try:
        number = int(stored)
        return number if number == stored else None
    except (TypeError, ValueError, OverflowError):  # None, a list, NaN, infinity
        return None


def is_number(text: str) -> bool:
    """Whether a text says a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def _number_in(text: str) -> int | None:
    """The whole number that a text says, such as "3" or "3.0"."""
    try:
        return int(text)
    except ValueError:
        try:
            return int(float(text)) if float(text).is_integer() else None
        except ValueError:
            return None


def _wrong(stored: Any, class_names: Sequence[str] | None) -> str:
    """What is wrong with a label, and the way out."""
    if stored is None:
        return "no label (None): give the number of its class, or leave images without a label out"
    if isinstance(stored, str | bytes):
        if class_names:
            return f"the label {stored!r}, which is none of the classes {_few(class_names)}: fix the label"
        way_out = "write the class as a number, from 0; a data set of your own may name its classes in its attribute `classes`"
        return f"the label {stored!r}, which is no number: {way_out}"
    shape = getattr(stored, "shape", None)
    if shape and math.prod(shape) != 1:
        what = f"a label of shape {tuple(shape)}"
    elif isinstance(stored, Sequence):
        what = f"a label of {len(stored)} parts"
    else:
        shown = stored.item() if isinstance(stored, Tensor | np.ndarray | np.generic) else stored
        return f"the label {shown!r}, which is no whole number: write the class as a number, from 0"
    return f"{what}, which is no single number: give the number of the image's class, such as the argmax of a one-hot vector"


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def class_numbers(labels: Any, class_names: Sequence[str] | None = None) -> np.ndarray:
    """Class numbers (images,) of labels as a data set stores them; NO_CLASS where one is no whole number.

    Args:
        labels: an array, a tensor, a pandas Series or a sequence, one label per image.
        class_names: the names of the classes by number, where they are known.
    """
    if isinstance(labels, Tensor):
        labels = labels.detach().cpu().numpy()
    array = labels if isinstance(labels, np.ndarray) else None
    if array is None and not (isinstance(labels, Sequence) and labels and isinstance(labels[0], Tensor)):
        try:
            array = np.asarray(labels)
        except ValueError:  # parts of different lengths
            array = None
    if array is not None and array.ndim == 2 and array.shape[1] == 1:  # as medical data sets store them
        array = array[:, 0]
    if array is not None and array.ndim == 1 and array.dtype.kind in "iub":
        return array.astype(np.int64)
    if array is not None and array.ndim == 1 and array.dtype.kind == "f":
        whole = np.isfinite(array) & (array == np.floor(array)) & (np.abs(array) < 2**53)
        return np.where(whole, np.where(whole, array, 0).astype(np.int64), NO_CLASS)
    numbers = (_whole(label, class_names) for label in labels)
    return np.array([NO_CLASS if n is None or not NO_CLASS < n < -NO_CLASS else n for n in numbers], dtype=np.int64)


def numbers_of(labels: Any, called: str) -> np.ndarray:
    """Class numbers (images,) of the labels of a whole split, as they are stored; -1 where an image has none.

    Args:
        labels: as for `class_numbers`.
        called: what messages call the split.

    Raises:
        ConfigError: names the first label that is no whole number.
    """
    numbers = class_numbers(labels)
    for index in np.flatnonzero(numbers == NO_CLASS).tolist():
        if labels[index] is not None:
            class_number(labels[index], f"image {index} of {called}")
        numbers[index] = -1
    return numbers


def stored_labels(dataset: Any) -> Any:
    """The labels of a data set as it stores them, one per image in the order of its indices; None where it does not show them.

    They are found without reading an image: in `targets`, `labels`, `samples` or `imgs` (or such a name with _ before it), in
    the last tensor of a TensorDataset, in a list of (image, label), and in those that a Subset or ConcatDataset is made from.
    """
    if isinstance(dataset, Subset):
        inner = stored_labels(dataset.dataset)
        return None if inner is None else _chosen(inner, dataset.indices)
    if isinstance(dataset, ConcatDataset):
        parts = [stored_labels(part) for part in dataset.datasets]
        return None if any(part is None for part in parts) else [label for part in parts for label in part]
    found: Any = None
    if isinstance(dataset, TensorDataset) and len(dataset.tensors) == 2:
        found = dataset.tensors[1]
    elif isinstance(dataset, tuple | list):
        found = [item[1] if isinstance(item, tuple | list) and len(item) == 2 else None for item in dataset]
    else:
        for attribute in ("targets", "labels", "_labels"):  # the last of torchvision's Food101, DTD and others
            found = per_image(dataset, getattr(dataset, attribute, None))
            if found is not None:
                break
        else:
            shown = (getattr(dataset, attribute, None) for attribute in ("samples", "imgs", "_samples"))
            files = per_image(dataset, next((found for found in shown if found is not None), None))
            if files is not None and all(isinstance(file, tuple) and len(file) == 2 for file in files):
                found = [label for _, label in files]
    change = getattr(dataset, "target_transform", None)
    return _changed(found, change) if found is not None and callable(change) else found


def per_image(dataset: Any, values: Any) -> Any:
    """`values` where they are a sequence with an entry per image, else None."""
    if values is None or callable(values) or isinstance(values, str | dict):
        return None
    try:
        return values if len(values) == len(dataset) else None
    except TypeError:
        return None


def _chosen(labels: Any, indices: Iterable[Any]) -> Any:
    places = np.asarray(indices if isinstance(indices, Sequence) else list(indices), dtype=np.int64)
    if isinstance(labels, Tensor):
        return labels.detach().cpu().numpy()[places]
    if isinstance(labels, np.ndarray):
        return labels[places]
    listed = list(labels)
    return [listed[place] for place in places]


def _changed(labels: Any, change: Callable[[Any], Any]) -> Any:
    """The labels after torchvision's target_transform, which is called once per different label."""
    known: dict[Any, Any] = {}
    try:
        listed = labels.tolist() if isinstance(labels, Tensor | np.ndarray) else list(labels)
        for label in listed:
            if label not in known:
                known[label] = change(label)
    except Exception:  # a function of the user's, which may want another type than the stored one: the items then say it
        return None
    return [known[label] for label in listed]


def verified_labels(
    dataset: Any, called: str, class_names: Sequence[str] | None = None, read: Callable[[int], Any] | None = None
) -> np.ndarray | None:
    """The class numbers (images,) that a data set gives, known without reading all images; None where they are not known.

    The data set's items are what counts: some are read, and where they have other labels than the data set shows beside them
    (such as names, which the items turn into numbers), the labels count as not known.

    Args:
        dataset: gives (image, label) by index.
        called: what messages call it.
        class_names: the names of the classes by number, where they are known.
        read: gives the item at an index; None takes the data set's own way.

    Raises:
        ConfigError: an item that was read is not (image, label), or its label no whole number.
    """
    stored = stored_labels(dataset)
    if stored is None or len(stored) == 0:
        return None
    numbers = class_numbers(stored, class_names)
    wrong = np.flatnonzero(numbers == NO_CLASS)[:1]
    places = {*spread(len(numbers), VERIFIED), *wrong.tolist(), int(numbers.argmin()), int(numbers.argmax())}
    with random_state_kept():
        for place in sorted(places):
            name = f"image {place} of {called}"
            try:
                item = dataset[place] if read is None else read(place)
            except UNREADABLE:  # counted and named where it is used
                continue
            if class_number(image_and_label(item, name)[1], name, class_names) != numbers[place]:
                return None
    return None if len(wrong) else numbers


def label_groups(dataset: Any) -> np.ndarray | None:
    """Which images have the same entry in a data set's `targets`: a number per image; None where it has no such attribute.

    They decide which images are split off for validation, and so must stay the same in each version.
    """
    targets = per_image(dataset, getattr(dataset, "targets", None))
    if targets is None:
        return None
    numbers = class_numbers(targets)
    if (numbers != NO_CLASS).all():
        return numbers
    try:
        return np.unique([str(target) for target in targets], return_inverse=True)[1].astype(np.int64)
    except TypeError:
        return None


def spread(size: int, count: int) -> list[int]:
    """At most `count` different places from 0 to `size` - 1, evenly spread, the first and the last among them."""
    return sorted(set(np.linspace(0, size - 1, min(size, count)).round().astype(int).tolist())) if size else []
