"""The names of a data set's classes by number, in the ways in which data sets show them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch.utils.data import ConcatDataset, Subset

from slimsweep.config import ConfigError
from slimsweep.data.labels import NO_CLASS, class_numbers, stored_labels


def class_names_of(dataset: Any, called: str) -> list[str] | None:
    """The names of the classes in the order of their numbers; None where a data set does not show them.

    They are a sequence in `classes`, or a dict of numbers by name or of names by number there or in `class_to_idx`.

    Args:
        dataset: gives (image, label) by index.
        called: what messages call it.

    Raises:
        ConfigError: `classes` is a set, which has no order.
    """
    shown = getattr(dataset, "classes", None)
    if isinstance(shown, set | frozenset):
        raise ConfigError(
            f"the attribute `classes` of {called} is a set, whose order changes from process to process, so that names and "
            "numbers do not go together: let it be a list in the order of the numbers, such as sorted(...)"
        )
    if isinstance(shown, Mapping):
        return _by_number(shown)
    if callable(shown) or isinstance(shown, str | bytes) or not hasattr(shown, "__len__"):  # such as how many there are
        found = getattr(dataset, "class_to_idx", None)
        return _by_number(found) if isinstance(found, Mapping) else None
    names = [str(name) for name in shown]  # type: ignore[union-attr]
    if len(set(names)) < len(names) and len(names) == len(dataset):
        return None  # the class of each image
    return names


def names_below(dataset: Any, called: str) -> list[str] | None:
    """The names of the classes of what a Subset or a ConcatDataset is made from; None where they are not known.

    Raises:
        ConfigError: the parts of a ConcatDataset number their classes differently.
    """
    if isinstance(dataset, Subset):
        inner = dataset.dataset
        return class_names_of(inner, called) or names_below(inner, called)
    if not isinstance(dataset, ConcatDataset):
        return None
    parts = [class_names_of(part, called) or names_below(part, called) for part in dataset.datasets]
    for part, names in zip(dataset.datasets[1:], parts[1:], strict=True):
        if parts[0] and names and names != parts[0]:
            _refuse_other_numbers(dataset.datasets[0], parts[0], part, names, called)
    return parts[0] if all(names == parts[0] for names in parts) else None


def _refuse_other_numbers(one: Any, names: Sequence[str], other: Any, others: Sequence[str], called: str) -> None:
    used = [_used(dataset) for dataset in (one, other)]
    for number in sorted(used[0] & used[1]):
        first, second = (of[number] if 0 <= number < len(of) else None for of in (names, others))
        if first is not None and second is not None and first != second:
            raise ConfigError(
                f"{called} is put together from data sets that number their classes differently: {number} is {first!r} in one "
                f"and {second!r} in another: give both the same classes, or change the labels of one (target_transform)"
            )


def _used(dataset: Any) -> set[int]:
    """The numbers of the classes that a data set's images have, as far as it shows them."""
    labels = stored_labels(dataset)
    return set() if labels is None else set(np.unique(class_numbers(labels)).tolist()) - {NO_CLASS}


def _by_number(shown: Mapping[Any, Any]) -> list[str] | None:
    """The names in a dict of numbers by name, or of names by number; None where the numbers are not 0, 1, 2 and so on."""
    for numbers, names in ((list(shown.values()), list(shown)), (list(shown), list(shown.values()))):
        if all(isinstance(number, int | np.integer) for number in numbers) and sorted(numbers) == list(range(len(numbers))):
            return [str(name) for _, name in sorted(zip(numbers, names, strict=True))] or None
    return None
