"""Rows of a head by the names of their classes: the order in which the data needs them."""

from collections.abc import Callable, Sequence
from functools import cache

from timm.data import ImageNetInfo, infer_imagenet_subset


def rows_by_name(wanted: Sequence[str], known: Sequence[Sequence[str]]) -> list[int] | None:
    """For each wanted class the row that is its own; None where the names are not those of all rows.

    Names count as equal as they are written, or else without case, spaces and punctuation ("Golden_retriever" and "golden
    retriever"), where that is enough to tell the rows apart.

    Args:
        wanted: the names of the data's classes, in the order of its labels.
        known: per row the names that it goes by.
    """
    if len(wanted) != len(known):
        return None
    for spelled in (str, _letters):
        order = [row for row in _rows(wanted, known, spelled) if row is not None]
        if len(order) == len(set(order)) == len(wanted):
            return order
    return rows_by_number(wanted)


def places_by_name(wanted: Sequence[str], known: Sequence[Sequence[str]]) -> tuple[int, int]:
    """How many classes have a row that is theirs alone by name, and how many of them are in the place of that row."""
    found = [(place, row) for place, row in enumerate(_rows(wanted, known, _letters)) if row is not None]
    return len(found), sum(place == row for place, row in found)


def _rows(wanted: Sequence[str], known: Sequence[Sequence[str]], spelled: Callable[[str], str]) -> list[int | None]:
    """For each wanted name the one row that goes by it; None where there is none, or several."""
    rows: dict[str, set[int]] = {}
    for row, names in enumerate(known):
        for name in names:
            rows.setdefault(spelled(name), set()).add(row)
    found = [rows.get(spelled(name), set()) for name in wanted]
    return [next(iter(one)) if len(one) == 1 else None for one in found]


def rows_by_number(wanted: Sequence[str]) -> list[int] | None:
    """The rows where the data's classes are named by their numbers, 0 to the last; None where they are not."""
    numbers = [int(name) for name in wanted if name.isdecimal() and str(int(name)) == name]
    return numbers if sorted(numbers) == list(range(len(wanted))) else None


def are_numbers(names: Sequence[str]) -> bool:
    """Whether names say no more than the order does."""
    return rows_by_number(names) is not None


@cache
def imagenet_names(num_classes: int) -> tuple[tuple[str, ...], ...] | None:
    """Per row of timm's pretrained heads of this size the synset ("n01440764") and its descriptions ("tench, Tinca tinca").

    None for a size that is no ImageNet's.
    """
    subset = infer_imagenet_subset({"num_classes": num_classes})
    if subset is None:
        return None
    info = ImageNetInfo(subset)
    described = info.label_descriptions()
    return tuple((synset, text, text.split(",")[0]) for synset, text in zip(info.label_names(), described, strict=True))


def also_called(names: Sequence[str]) -> list[Sequence[str]]:
    """Per name all that its class goes by: a synset of ImageNet by its descriptions too."""
    synsets = {one[0]: one for one in imagenet_names(len(names)) or ()}
    return [synsets.get(name, (name,)) for name in names]


def _letters(name: str) -> str:
    """Letters and digits alone, in lower case; the name itself where it has none, as "+" and "-"."""
    return "".join(letter for letter in name.casefold() if letter.isalnum()) or name
