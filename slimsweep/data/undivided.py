"""Images that lie in class folders, a tar file or a list of files without a division into splits: which are for what.

The draw depends on the names of classes and files alone: it is the same on every machine, for every seed of a run, and for a
folder and a tar file of it.
"""

import hashlib
import math
import unicodedata
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from slimsweep.config import ConfigError
from slimsweep.data.folders import few

SPLITS = ("train", "val", "test")


def drawn_parts(
    files: Sequence[str], labels: np.ndarray, class_names: Sequence[str], shares: Sequence[float], called: str
) -> dict[str, np.ndarray]:
    """A division into train, val and test in which each class keeps its share.

    In each class, images are ranked by a hash of their names. How many of them each split takes is rounded so that both the
    class and all classes before it together keep to the shares within one image.

    Args:
        files: the name of each image below the class folders' folder, with "/" between folders.
        labels: (images,), numbers of classes.
        class_names: by number.
        shares: of train, val and test; they sum to 1.
        called: what messages call the data set.

    Returns:
        Of each split the indices of its images, sorted.

    Raises:
        ConfigError: a class has too few images for all three splits; names the class.
    """
    members = [np.flatnonzero(labels == number) for number in range(len(class_names))]
    small = [number for number, found in enumerate(members) if len(found) < len(SPLITS)]
    if small:
        name, count = class_names[small[0]], len(members[small[0]])
        others = f" ({len(small) - 1} more have as few: {few([class_names[n] for n in small[1:]])})" if len(small) > 1 else ""
        raise ConfigError(
            f"the class {name} of {called} has {count} image{'s' * (count != 1)}, but training, validation and test need one "
            f"each, so at least 3{others}: add images, or take the class out"
        )
    chosen: dict[str, list[int]] = {split: [] for split in SPLITS}
    for found, (for_val, for_test) in zip(members, class_counts([len(found) for found in members], shares), strict=True):
        ranked = sorted(found.tolist(), key=lambda index: (_drawn_number(files[index]), index))
        chosen["test"] += ranked[:for_test]
        chosen["val"] += ranked[for_test : for_test + for_val]
        chosen["train"] += ranked[for_test + for_val :]
    return {split: np.sort(np.array(indices, dtype=np.int64)) for split, indices in chosen.items()}


def class_counts(sizes: Sequence[int], shares: Sequence[float]) -> list[tuple[int, int]]:
    """How many images of each class are for (validation, test): at least one each, and one stays for training.

    Args:
        sizes: images per class, at least 3 each.
        shares: of train, val and test.
    """
    _, *held_out = (Fraction(str(share)) for share in shares)  # 0.15 itself, not the nearest binary number
    counts: list[tuple[int, int]] = []
    seen, taken = 0, [0, 0]
    for size in sizes:
        seen += size
        found = []
        for place, share in enumerate(held_out):
            wanted = math.floor(seen * share + Fraction(1, 2)) - taken[place]
            found.append(max(1, math.floor(size * share), min(wanted, math.ceil(size * share))))
        while sum(found) >= size:
            found[found.index(max(found))] -= 1
        taken = [before + now for before, now in zip(taken, found, strict=True)]
        counts.append((found[0], found[1]))
    return counts


def how_divided(place: str, parts: dict[str, np.ndarray], classes: int, shares: Sequence[float]) -> str:
    """One sentence that tells the division and its counts.

    Args:
        place: what is divided, as the configuration calls it.
    """
    count = {split: len(indices) for split, indices in parts.items()}
    total = sum(count.values())
    said = ", ".join(f"{share:g}" for share in shares)
    return (
        f"{place} has no splits: its {total:,} images of {classes} class{'es' * (classes != 1)} are divided by data.split "
        f"({said}) into {count['train']:,} for training, {count['val']:,} for validation and {count['test']:,} for test, "
        "the same ones in every run"
    )


def record_of_draw(shares: Sequence[float]) -> dict[str, Any]:
    """How the splits were drawn, for splits.json."""
    return {"shares": list(shares), "by": "rank of sha256 of the file's name, per class"}


def _drawn_number(name: str) -> bytes:
    """A random number that belongs to a file's name, however the system writes its accents."""
    plain = unicodedata.normalize("NFC", name)
    return hashlib.sha256(plain.encode(errors="surrogateescape")).digest()
