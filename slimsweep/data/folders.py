"""Image folders and tar files: the images of a split in one order, their classes, and what is not used.

The class is the first folder below the split, as in torchvision's ImageFolder; images may lie at any depth in it.
"""

import os
import re
import tarfile
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

import numpy as np
from PIL import Image, ImageFile

from slimsweep.config import ConfigError
from slimsweep.data.damaged import printable, reason_of

# Pillow opens these, but PostScript needs another program, and of a film only the header is read.
NO_PICTURES = ("EPS", "MPEG")
# Folders that systems and programs leave beside images; names that begin with a dot are hidden too.
LEFT_BEHIND = ("__MACOSX", "__pycache__", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found")
HIDDEN = "hidden"  # why such files are skipped; everyone has some, so no note counts them


class TarMember(NamedTuple):
    """Where an image lies in a tar file."""

    tar: str  # its tar file, in a folder of them; "" where the split is one tar file
    inner: str  # the tar file inside that one, or ""
    name: str
    offset: int  # bytes, in the outer tar file
    size: int  # bytes


@dataclass(frozen=True)
class ImageFiles:
    """The images of a split, in the order that gives them their numbers.

    Attributes:
        files: their paths below the split, with "/" between folders; in tar files a TarMember of each.
        labels: (images,), numbers of classes; 0 where there are no labels.
        class_names: in the order of their numbers; empty where there are no labels.
        skipped: how many files are not used, by the reason: the ending of a type that is not read, "hidden" and others.
        notes: sentences that whoever starts a run should read.
    """

    files: Sequence[str] | Sequence[TarMember]
    labels: np.ndarray
    class_names: list[str]
    skipped: Mapping[str, int]
    notes: list[str]


@dataclass(frozen=True, kw_only=True)
class Split:
    """The split that is listed, for messages.

    Args:
        place: its folder or tar file.
        name: as the configuration or the folder calls it.
        called: with the data set's name.
        advice: what else may be done where its images have no labels, with "; " before it; or empty.
    """

    place: Path
    name: str
    called: str
    advice: str = ""


def natural_order(name: str) -> tuple[list[str | int], str]:
    """A key that sorts by the value of the numbers in a name and not by capitals: 2 before 10, "a" before "B".

    Names that differ in capitals or leading zeros alone are told apart by the name itself: the order is total, and does not
    depend on the order in which names are found.
    """
    return [int(part) if number % 2 else part for number, part in enumerate(re.split(r"(\d+)", name.lower()))], name


def plain_order(name: str) -> str:
    """A key that sorts classes as torchvision's ImageFolder does: by their letters' codes."""
    return name


def list_images(split: Split, classes: list[str] | None = None, order: Callable[[str], object] = natural_order) -> ImageFiles:
    """The images of a folder with class folders, of such a tar file, or of a folder of tar files.

    Args:
        split: where they are.
        classes: those of the training split, in their order; None for the training split itself.
        order: a key by which classes are sorted.

    Raises:
        ConfigError: images without a class, a class without images, or none at all.
        OSError: a folder or file cannot be read.
    """
    found = _Found()
    if holds_tars(split.place):
        _list_tars(split.place, found, classes)
    else:
        _list_folder(split.place, found)
    return _classify(found, split, classes, order)


def list_unlabelled(split: Split) -> ImageFiles:
    """All images of a folder at any depth, of a tar file, or of a folder of tar files; folders are no classes.

    Raises:
        ConfigError: there are none.
        OSError: a folder or file cannot be read.
    """
    found = _Found()
    if holds_tars(split.place):
        _list_tars(split.place, found, None, labelled=False)
    else:
        _list_folder(split.place, found)
    skipped = Counter(reason for _, reason in found.skipped)
    if not found.images:
        also = f" that can be used ({counted(skipped)} skipped)" if skipped else ""
        raise ConfigError(f"{split.called} ({split.place}) holds no images{also}: put images into it, or fix data.root")
    notes = [printable(f"{split.name}: {note}") for note in _skipped_said(skipped)]
    labels = np.zeros(len(found.images), dtype=np.int64)
    if found.members:
        return ImageFiles(sorted(found.members), labels, [], skipped, notes)
    return ImageFiles(sorted(found.images, key=natural_order), labels, [], skipped, notes)


def holds_tars(place: Path) -> bool:
    """Whether a split is a tar file, or a folder of tar files without folders beside them."""
    if place.is_file():
        return True
    seen = [path for path in place.iterdir() if not is_hidden(path.name)]
    return any(is_tar(path.name) for path in seen) and not any(path.is_dir() for path in seen)


def is_tar(name: str) -> bool:
    return name.lower().endswith(".tar")


def is_hidden(name: str) -> bool:
    """Whether a file or folder belongs to a system or program, such as .DS_Store, ._x.jpg, .ipynb_checkpoints or __MACOSX."""
    return name.startswith(".") or name in LEFT_BEHIND


@cache
def image_endings() -> frozenset[str]:
    """The endings of files that Pillow reads as pictures, in small letters, with the dot."""
    Image.init()

    def reads(kind: str) -> bool:
        factory = Image.OPEN[kind][0] if kind in Image.OPEN else None
        stub = isinstance(factory, type) and issubclass(factory, ImageFile.StubImageFile)  # its pixels need another program
        return (factory is not None or kind == "MPO") and not stub and kind not in NO_PICTURES  # MPO is opened as JPEG

    return frozenset(ending.lower() for ending, kind in Image.registered_extensions().items() if reads(kind))


def ending_of(name: str) -> str:
    """The ending of a file's name in small letters, as reports of skipped files name it."""
    return os.path.splitext(name)[1].lower() or "no ending"


def few(names: Collection[str], most: int = 5) -> str:
    """Some names for a message, and how many more there are."""
    shown = ", ".join(list(names)[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown


def counted(reasons: Mapping[str, int], most: int = 8) -> str:
    """Counts by reason for a message, the largest first."""
    ranked = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    shown = ", ".join(f"{reason} {number}" for reason, number in ranked[:most])
    return f"{shown}, others {sum(number for _, number in ranked[most:])}" if len(ranked) > most else shown


def _skipped_said(skipped: Mapping[str, int]) -> list[str]:
    """A sentence on the files that are not used, by their types; none where only hidden ones are not."""
    told = {reason: number for reason, number in skipped.items() if reason != HIDDEN}
    total = sum(told.values())
    return [f"{total} file{'s' * (total > 1)} skipped: {counted(told)}"] if told else []


# What lies in a split.


@dataclass
class _Found:
    """Paths below the split, with "/" between folders."""

    images: list[str] = field(default_factory=list)
    members: list[TarMember] = field(default_factory=list)  # of tar files: where each image lies
    folders: set[str] = field(default_factory=set)
    skipped: list[tuple[str, str]] = field(default_factory=list)  # path and reason
    notes: list[str] = field(default_factory=list)


def _list_folder(place: Path, found: _Found) -> None:
    endings = image_endings()

    def visit(below: str, real: str, above: tuple[str, ...]) -> None:
        """
        Args:
            below: the folder's path below the split, with "/" at its end; "" for the split.
            real: its path without links.
            above: the real paths of the folders that it is in.
        """
        with os.scandir(os.path.join(place, below)) as entries:
            for entry in entries:
                path = below + entry.name
                if entry.is_dir():  # or a link to one
                    if is_hidden(entry.name):
                        continue
                    inside = os.path.realpath(entry.path) if entry.is_symlink() else os.path.join(real, entry.name)
                    if inside == real or inside in above:  # it would be listed for ever
                        found.skipped.append((path, "links to a folder around them"))
                        continue
                    found.folders.add(path)
                    visit(f"{path}/", inside, (*above, real))
                elif is_hidden(entry.name):
                    found.skipped.append((path, HIDDEN))
                elif ending_of(entry.name) in endings:
                    found.images.append(path)
                elif entry.is_symlink() and not os.path.exists(entry.path):
                    lost = not below and ending_of(entry.name) == "no ending"  # as a class folder elsewhere is linked
                    found.skipped.append((f"{path}/" if lost else path, "links to nothing"))
                else:
                    found.skipped.append((path, ending_of(entry.name)))

    visit("", os.path.realpath(place), ())


def _list_tars(place: Path, found: _Found, classes: list[str] | None, labelled: bool = True) -> None:
    if place.is_file():
        with open(place, "rb") as file:
            _add_tars(_tree_of(file, "", str(place)), found, classes)
        return
    trees = []
    for path in sorted(place.iterdir()):
        if is_hidden(path.name):
            found.skipped.append((path.name, HIDDEN))
        elif is_tar(path.name):
            with open(path, "rb") as file:
                trees.append((path.name[: -len(".tar")], _tree_of(file, path.name, str(path))))
        elif ending_of(path.name) in image_endings() and labelled:
            found.images.append(path.name)  # refused by name, as it has no class
            found.members.append(TarMember(path.name, "", "", 0, 0))
        else:
            found.skipped.append((path.name, ending_of(path.name)))
    _add_tars(_Tree(inner=trees), found, classes)


@dataclass
class _Tree:
    """What one tar file holds."""

    images: list[tuple[str, TarMember]] = field(default_factory=list)  # path in the tar file, and where it lies
    folders: set[str] = field(default_factory=set)
    skipped: list[tuple[str, str]] = field(default_factory=list)  # path and reason
    inner: list[tuple[str, "_Tree"]] = field(default_factory=list)  # tar files in it, by their path without .tar


def _tree_of(file: BinaryIO, tar: str, where: str, inner: str = "", start: int = 0) -> _Tree:
    """List a tar file, and the tar files in it.

    Args:
        file: the tar file.
        tar: its name as TarMember has it.
        where: its path, for messages.
        inner: the name in its outer tar file, or "".
        start: where it begins in its outer tar file, in bytes.
    """
    tree = _Tree()
    files: dict[str, tuple[int, int]] = {}  # offset and size of every file, for links to it
    links: dict[str, str] = {}
    found: dict[str, TarMember] = {}
    endings = image_endings()
    try:
        with tarfile.open(fileobj=file, mode="r:") as opened:
            for member in opened:
                path = _tidy(member.name)
                parts = path.split("/")
                if member.isdir():
                    if path and not any(is_hidden(part) for part in parts):
                        tree.folders.add(path)
                    continue
                offset, size = start + member.offset_data, member.size
                if member.isreg() and member.sparse is None:
                    files[path] = offset, size
                if any(is_hidden(part) for part in parts[:-1]):
                    continue
                if is_hidden(parts[-1]):
                    tree.skipped.append((path, HIDDEN))
                elif is_tar(path) and member.isreg() and not inner:
                    content = opened.extractfile(member)
                    within = _tree_of(cast(BinaryIO, content), tar, f"{where}/{member.name}", member.name, offset)
                    tree.inner.append((path[: -len(".tar")], within))
                elif ending_of(path) not in endings:
                    tree.skipped.append((path, ending_of(path)))
                elif member.sparse is not None:
                    tree.skipped.append((path, "stored with holes"))
                elif member.isreg() or member.islnk() or member.issym():
                    if path in found:  # as in unpacking, the last one counts
                        tree.skipped.append((path, "replaced by a later one"))
                    if not member.isreg():
                        above = [] if member.islnk() else parts[:-1]
                        links[path] = _tidy("/".join([*above, member.linkname]))
                    else:
                        links.pop(path, None)
                    found[path] = TarMember(tar, inner, member.name, offset, size)
            file.seek(opened.offset)
            end = file.read(tarfile.BLOCKSIZE)
    except tarfile.TarError as problem:
        raise ConfigError(f"the tar file {where} cannot be read ({reason_of(problem)}): write it again") from problem
    if len(end) < tarfile.BLOCKSIZE or any(end):
        raise ConfigError(f"the tar file {where} has no proper end: it was cut short or is damaged: write it again")
    for path, first in links.items():
        target, seen = first, {path}
        while target in links and target not in seen:
            seen.add(target)
            target = links[target]
        if target in files:
            found[path] = found[path]._replace(offset=files[target][0], size=files[target][1])
        else:
            del found[path]
            tree.skipped.append((path, "links to no file"))
    tree.images = list(found.items())
    return tree


def _tidy(name: str) -> str:
    """A name in a tar file without "./" and "//"; ".." is followed, as links use it."""
    parts: list[str] = []
    for part in name.split("/"):
        if part == ".." and parts:
            parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    return "/".join(parts)


def _add_tars(tree: _Tree, found: _Found, classes: list[str] | None) -> None:
    """Put what a tar file holds into `found`; a tar file in it stands for a folder of its name, or for a part."""
    parts = _are_parts(tree.inner, classes)
    if parts and len(tree.inner) > 1:
        found.notes.append(f"its {len(tree.inner)} tar files are parts of one set: the classes are the folders inside them")
    for path, member in tree.images:
        found.images.append(path)
        found.members.append(member)
    found.folders |= tree.folders
    found.skipped += tree.skipped
    for stem, inner in tree.inner:
        above = "" if parts else f"{stem}/"
        if not parts:
            found.folders.add(stem)
        found.images += [above + path for path, _ in inner.images]
        found.members += [member for _, member in inner.images]
        found.folders |= {above + folder for folder in inner.folders}
        found.skipped += [(above + path, reason) for path, reason in inner.skipped]


def _are_parts(trees: list[tuple[str, _Tree]], classes: list[str] | None) -> bool:
    """Whether tar files are parts of one set (part-0.tar, part-1.tar), and not one per class.

    They are where all their images lie in folders, and their names are the same but for numbers. So are those of another split
    than train where no tar file has the name of a class.
    """
    inside = [{path.partition("/")[0] for path, _ in tree.images} for _, tree in trees]
    in_folders = all("/" in path for _, tree in trees for path, _ in tree.images)
    if not trees or not in_folders or len(set().union(*inside)) < (2 if classes is None else 1):
        return False
    if classes is not None:
        return not any(stem in classes for stem, _ in trees)
    each_its_own = all(folders == {stem} for (stem, _), folders in zip(trees, inside, strict=True))
    return not each_its_own and len({re.sub(r"\d+", "0", stem) for stem, _ in trees}) == 1


# Which class each image belongs to.


def _classify(found: _Found, split: Split, classes: list[str] | None, order: Callable[[str], object]) -> ImageFiles:
    skipped = Counter(reason for _, reason in found.skipped)
    also = f" that can be used ({counted(skipped)} skipped)" if skipped else ""
    if not found.images:
        way_out = "put images into a folder per class" if found.folders else "give it a folder of images per class"
        raise ConfigError(f"{split.called} ({split.place}) holds no images{also}: {way_out}{split.advice}")
    # Tar files need not list their folders.
    named = {path.rpartition("/")[0] for path in [*found.images, *(path for path, _ in found.skipped)]}
    folders = {folder for folder in found.folders | named if folder}
    above = _common_folder(found.images, folders, classes)
    start = len(above)
    tops = [path[start:].partition("/") for path in found.images]
    inside = _first_folders(folders, above)
    _refuse_unlabelled([path for path, (_, slash, _) in zip(found.images, tops, strict=True) if not slash], split, inside)
    names = sorted(inside, key=order)  # type: ignore[arg-type]
    _refuse_no_text(names, split)
    twice = [name for name, times in Counter(unicodedata.normalize("NFC", name) for name in names).items() if times > 1]
    filled = {top for top, _, _ in tops}
    _refuse_lost(found, above, [name for name in names if name not in filled], split, classes)
    notes = list(found.notes)
    if classes is None:
        notes += _what_classes(found, above, tops, names)
        if twice:
            notes.append(
                f"there are two classes of the name {few(twice)}, in two forms of Unicode: rename one if they are the same"
            )
        classes = names
    numbers = {name: number for number, name in enumerate(classes)}
    numbers = {name: numbers[name] for name in names if name in numbers} | _other_forms(names, classes)
    if more := [name for name in names if name in filled and name not in numbers]:
        alone = "; where a file beside them holds the labels, move the images into class folders" if names == more[:1] else ""
        raise ConfigError(
            f"the classes of the {split.name} split differ from those of train ({few(classes)}), which has none called "
            f"{few(more)}: give both the same class folders{alone}{split.advice}"
        )
    labels = np.array([numbers[top] for top, _, _ in tops], dtype=np.int64)
    notes += _skipped_said(skipped)
    notes = [printable(f"{split.name}: {note}") for note in notes]
    # The order of images decides which of them a share for validation takes, so it stays as it is, for torch/image_folder too.
    if found.members:
        at = sorted(range(len(labels)), key=lambda index: found.members[index])
        return ImageFiles([found.members[index] for index in at], labels[at], classes, skipped, notes)
    keys = [natural_order(path) for path in found.images]
    at = sorted(range(len(labels)), key=keys.__getitem__)
    return ImageFiles([found.images[index] for index in at], labels[at], classes, skipped, notes)


def _common_folder(images: Sequence[str], folders: set[str], classes: list[str] | None) -> str:
    """The folders around all class folders, as in a tar file that holds train/cat/1.png; with "/" at the end, or "".

    A folder that is alone is no class: a training split of one class would teach nothing.
    """
    above = ""
    while True:
        inside = _first_folders(folders, above)
        if classes is not None and inside & set(classes):
            return above
        flat = any("/" not in path[len(above) :] for path in images)
        if flat or not inside:
            return ""
        if len(inside) > 1:
            return above if classes is None else ""
        above += f"{inside.pop()}/"


def _first_folders(folders: set[str], above: str) -> set[str]:
    """The names of the folders that lie directly in the folder `above`, which ends with "/", or is ""."""
    return {path[len(above) :].partition("/")[0] for path in folders if path.startswith(above)}


def _refuse_unlabelled(flat: list[str], split: Split, folders: set[str]) -> None:
    if not flat:
        return
    first, others = min(flat, key=natural_order), len(flat) - 1
    name = f"{split.place}/{first}" + (f" (and {others} more)" if others else "")
    if folders:
        raise ConfigError(
            f"the image {name} lies beside the class folders of {split.called} ({few(sorted(folders))}), so it has no class: "
            f"move it into one of them, or out of {split.name}{split.advice}"
        )
    raise ConfigError(
        f"{split.called} has no class folders, so its images have no labels, such as {name}: put them into a folder per class"
        f"{split.advice}"
    )


def _refuse_no_text(names: Sequence[str], split: Split) -> None:
    """Refuse class folders whose names are no UTF-8, such as those of an old zip file: no table or page can hold them."""
    for name in names:
        if printable(name) != name:
            raise ConfigError(
                f"the class folder {printable(name)} of {split.called} has a name that is not UTF-8: rename it, "
                "such as with convmv"
            )


def _other_forms(names: Sequence[str], classes: Sequence[str]) -> dict[str, int]:
    """The numbers of classes whose names are written in another form of Unicode: macOS takes é apart, other systems do not."""
    forms: dict[str, list[int]] = {}
    for number, name in enumerate(classes):
        forms.setdefault(unicodedata.normalize("NFC", name), []).append(number)
    alike = {name: forms.get(unicodedata.normalize("NFC", name), []) for name in names if name not in set(classes)}
    return {name: numbers[0] for name, numbers in alike.items() if len(numbers) == 1}


def _refuse_lost(found: _Found, above: str, empty: list[str], split: Split, classes: list[str] | None) -> None:
    """Refuse class folders without images: those whose files are all skipped, and in the training split empty ones."""
    for name in empty:
        inside = f"{above}{name}/"
        lost = Counter(reason for path, reason in found.skipped if path.startswith(inside))
        if lost:
            raise ConfigError(
                f"the class folder {name} of {split.called} holds no image that can be read ({counted(lost)}): write its "
                f"images as one of Pillow's types, such as .png, or move the folder out of {split.name}"
            )
        if classes is None:
            raise ConfigError(
                f"the class folder {name} of {split.called} holds no images: put them there, or remove it from {split.name}"
            )


def _what_classes(found: _Found, above: str, tops: Sequence[tuple[str, str, str]], names: Sequence[str]) -> list[str]:
    """What to say where folders lie around or below the class folders, so that others might be taken for the classes."""
    if above:
        return [f"all lies in the folder {above[:-1]}: the classes are the folders in it ({few(names)})"]
    deeper = {f"{top}/{rest.rpartition('/')[0]}" for top, _, rest in tops if "/" in rest}
    if deeper and not found.notes:
        return [f"the classes are its {len(names)} first folders ({few(names)}); folders in them make no classes of their own"]
    return []
