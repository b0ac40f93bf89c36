"""Image folders and tar files: classes, one order everywhere, and a word on whatever is not used."""

import io
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from timm.data.readers.reader_image_folder import find_images_and_targets
from torchvision.datasets import ImageFolder

from slimsweep.config import Config, ConfigError, load_config
from slimsweep.data import Data, eval_loader, load_data
from slimsweep.data.folders import ImageFiles, Split, list_images
from slimsweep.run import main

SIZE = (3, 8, 8)
Files = Mapping[str, bytes]


def picture(value: int = 0, kind: str = "png", mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Image.new(mode, (8, 8), value).save(file, kind)
    return file.getvalue()


def pictures(*names: str) -> dict[str, bytes]:
    return dict.fromkeys(names, picture())


def split_of(*classes: str, images: int = 4) -> dict[str, bytes]:
    return pictures(*(f"{name}/{number}.png" for name in classes for number in range(images)))


def as_folder(place: Path, files: Files) -> None:
    for name, content in files.items():
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def as_tar(place: Path, files: Files) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(place.with_name(f"{place.name}.tar"), "w") as tar:
        for name, content in files.items():
            add(tar, name, content)


def as_tar_of_tars(place: Path, files: Files) -> None:
    """A tar file that holds a tar file per class, as ImageNet's training images come."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(place.with_name(f"{place.name}.tar"), "w") as outer:
        for name, inside in by_class(files):
            file = io.BytesIO()
            with tarfile.open(fileobj=file, mode="w") as tar:
                for path, content in inside.items():
                    add(tar, path, content)
            add(outer, f"{name}.tar", file.getvalue())


def as_tars(place: Path, files: Files) -> None:
    """A folder with a tar file per class."""
    for name, inside in by_class(files):
        as_tar(place / name, inside)


def by_class(files: Files) -> Iterable[tuple[str, dict[str, bytes]]]:
    for name in dict.fromkeys(path.partition("/")[0] for path in files):
        yield name, {path.partition("/")[2]: content for path, content in files.items() if path.startswith(f"{name}/")}


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))


FORMS = [as_folder, as_tar, as_tar_of_tars, as_tars]
Form = Callable[[Path, Files], None]


@pytest.fixture(params=FORMS, ids=lambda form: form.__name__)
def form(request: pytest.FixtureRequest) -> Form:
    return request.param


def written(root: Path, form: Form = as_folder, **splits: Files) -> Path:
    for split, files in splits.items():
        form(root / split, files)
    return root


def config_of(root: Path, **more: Any) -> Config:
    plain = {"name": "folder", "root": str(root), "batch_size": 4} | more
    return load_config([])[0].changed(**{f"data.{key}": value for key, value in plain.items()})


def loaded(root: Path, **more: Any) -> Data:
    return load_data(config_of(root, **more), SIZE)


def refusal(root: Path, **more: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        loaded(root, **more)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def listed(place: Path, **more: Any) -> ImageFiles:
    found = place if place.exists() else place.with_name(f"{place.name}.tar")
    return list_images(Split(place=found, name=place.name, called=f"the split {place.name}"), **more)


def classes_of(found: ImageFiles) -> dict[str, int]:
    """How many images each class has."""
    return {name: int((found.labels == number).sum()) for number, name in enumerate(found.class_names)}


# One order.

TYING = [name for letter in "abcdef" for name in (letter, letter.upper())] + ["1", "01", "001", "2", "10"]


def order_of(place: Path) -> list[Any]:
    found = listed(place)
    return [found.class_names, [str(file) for file in found.files], found.labels.tolist()]


@pytest.mark.parametrize("form", [as_folder, as_tar, as_tars], ids=lambda form: form.__name__)
def test_names_that_differ_in_capitals_or_zeros_alone_have_one_order_in_every_process(form, tmp_path, monkeypatch):
    files = pictures(*(f"{name}/{file}.png" for name in TYING for file in ("x", "X", "7", "07")))
    form(tmp_path / "here" / "train", files)
    form(tmp_path / "there" / "train", dict(reversed(files.items())))
    expected = order_of(tmp_path / "here" / "train")
    assert expected[0] == ["001", "01", "1", "2", "10", *(name for letter in "abcdef" for name in (letter.upper(), letter))]
    scan, listing = os.scandir, Path.iterdir
    with monkeypatch.context() as patched:  # another file system lists in another order
        patched.setattr("os.scandir", lambda path: Reversed(scan(path)))
        patched.setattr(Path, "iterdir", lambda path: iter(sorted(listing(path), reverse=True)))
        assert order_of(tmp_path / "here" / "train") == expected
    assert order_of(tmp_path / "there" / "train")[::2] == expected[::2]
    assert len(set(expected[1])) == len(files)


class Reversed:
    """What os.scandir gives, in the opposite order."""

    def __init__(self, entries: Any) -> None:
        with entries:
            self.entries = sorted(entries, key=lambda entry: entry.name, reverse=True)

    def __enter__(self) -> Any:
        return iter(self.entries)

    def __exit__(self, *problem: object) -> None:
        return None


@pytest.mark.slow
def test_the_order_does_not_depend_on_how_python_hashes_names(tmp_path):
    as_folder(tmp_path / "train", pictures(*(f"{name}/{file}.png" for name in TYING for file in ("x", "X"))))
    as_tar(tmp_path / "tar" / "train", pictures(*(f"{name}/{file}.png" for name in TYING for file in ("x", "X"))))
    places = [tmp_path / "train", tmp_path / "tar" / "train"]
    program = (
        f"import tests.test_image_folders as t, pathlib; print([t.order_of(pathlib.Path(p)) for p in {list(map(str, places))}])"
    )
    seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    root = Path(__file__).parents[1]
    environment = os.environ | {
        "PYTHONHASHSEED": seed,
        "PYTHONPATH": os.pathsep.join([str(root)] + [path for path in sys.path if path]),
    }
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)
    assert found.stdout.strip() == str([order_of(place) for place in places])


def test_names_that_do_not_tie_keep_the_order_that_runs_were_begun_with(tmp_path):
    names = ["class1", "class10", "class2", "Bee", "ant", "n01440764", "n0144", "a b", "a-b", "a_b", "a.b", "zebra 3"]
    as_folder(tmp_path / "train", pictures(*(f"{name}/{file}.png" for name in names for file in ("IMG_2", "img_10", "z", "3"))))
    found = listed(tmp_path / "train")
    images, numbers = find_images_and_targets(str(tmp_path / "train"))
    assert found.class_names == sorted(numbers, key=numbers.__getitem__)
    assert [(f"{tmp_path}/train/{file}", label) for file, label in zip(found.files, found.labels, strict=True)] == images


def test_torchvisions_image_folder_numbers_classes_as_torchvision_does(tmp_path):
    root = written(tmp_path, train=split_of("class1", "class2", "class10", "Z", "a"), validation=split_of("class10", "a"))
    theirs = ImageFolder(root / "train")
    data = loaded(root, name="torch/image_folder")
    assert data.class_names == theirs.classes == ["Z", "a", "class1", "class10", "class2"]
    source = data.train.source
    assert {Path(source.name(i)): int(source.labels[i]) for i in range(len(source))} == {Path(p): y for p, y in theirs.samples}
    assert sorted(set(data.test.source.labels.tolist())) == [1, 3]  # a, class10
    assert loaded(root).class_names == ["a", "class1", "class2", "class10", "Z"]


def test_images_of_inaturalist_have_one_order_wherever_they_lie(tmp_path, monkeypatch):
    kinds = ["00000_Plantae_a_b_c_d_e_f", "00001_Animalia_a_b_c_d_e_f"]
    files = pictures(*(f"{kind}/{name}.jpg" for kind in kinds for name in ("x", "X", "10", "2")))
    written(tmp_path, **{"2021_train": files, "2021_valid": files})

    def names() -> list[Any]:
        data = loaded(tmp_path, name="torch/inaturalist", num_classes=2)
        return data.train.source.dataset.index

    listing = os.listdir
    first = names()
    monkeypatch.setattr("os.listdir", lambda path: sorted(listing(path), reverse=True))
    assert names() == first
    assert len(first) == 8


# Classes.


def test_the_class_is_the_first_folder_and_images_lie_at_any_depth_in_it(form, tmp_path):
    files = pictures("cat/session1/1.png", "cat/session2/1.png", "dog/session1/1.png", "dog/2.png", "dog/session1/night/3.png")
    form(tmp_path / "train", files)
    assert classes_of(listed(tmp_path / "train")) == {"cat": 2, "dog": 3}


def test_folders_of_equal_names_in_different_classes_do_not_merge(form, tmp_path):
    names = ("airport/outdoor", "airport/indoor", "market/outdoor", "market/indoor")
    root = written(tmp_path, form, train=split_of(*names), test=split_of(*names))
    data = loaded(root)
    assert data.class_names == ["airport", "market"]
    assert len(data.train) + len(data.val) == 16
    (note,) = data.notes
    assert "the classes are its 2 first folders (airport, market)" in note
    images, labels = zip(*eval_loader(data.test, data.settings), strict=True)
    assert sum(len(some) for some in images) == 16
    assert np.bincount(np.concatenate([some.numpy() for some in labels])).tolist() == [8, 8]


@pytest.mark.parametrize("form", [as_folder, as_tar], ids=lambda form: form.__name__)
def test_a_folder_around_all_classes_is_no_class(form, tmp_path):
    root = written(tmp_path, form, train=split_of("set/train/cat", "set/train/dog"), test=split_of("test/dog", "test/cat"))
    data = loaded(root)
    assert data.class_names == ["cat", "dog"]
    assert np.bincount(data.test.source.labels).tolist() == [4, 4]
    assert any("set/train" in note for note in data.notes)


@pytest.mark.parametrize("form", [as_folder, as_tar, as_tars], ids=lambda form: form.__name__)
def test_a_class_that_alone_has_test_images_stays_one_class(form, tmp_path):
    root = written(tmp_path, form, train=split_of("cat", "dog"), test=split_of("dog/monday", "dog/tuesday"))
    data = loaded(root)
    assert data.test.source.labels.tolist() == [1] * 8
    assert [note for note in data.notes if note.startswith("test: no images of 1 of the 2 classes (cat)")]


def test_tar_files_that_are_parts_of_one_set_hold_the_classes_inside(tmp_path):
    for part in range(3):
        as_tar(tmp_path / "train" / f"part-{part}", split_of("cat", "dog"))
    as_tar(tmp_path / "test" / "images", split_of("cat", "dog"))
    data = loaded(tmp_path)
    assert data.class_names == ["cat", "dog"]
    assert len(data.train) + len(data.val) == 24
    assert len(data.test) == 8
    assert any("3 tar files are parts of one set" in note for note in data.notes)


def test_a_tar_file_per_class_may_hold_a_folder_of_its_name(tmp_path):
    for name in ("n01440764", "n01443537"):
        as_tar(tmp_path / "train" / name, split_of(name))
    assert classes_of(listed(tmp_path / "train")) == {"n01440764": 4, "n01443537": 4}


def test_an_image_beside_the_class_folders_is_refused_by_name(form, tmp_path):
    form(tmp_path / "train", split_of("cat", "dog"))
    form(tmp_path / "test", split_of("cat", "dog"))
    if form in (as_folder, as_tars):
        (tmp_path / "train" / "stray.png").write_bytes(picture())
    else:
        with tarfile.open(tmp_path / "train.tar", "a") as tar:
            add(tar, "stray.png", picture())
    text = refusal(tmp_path)
    assert "stray.png" in text
    assert "cat, dog" in text
    assert "move it" in text


def test_a_split_without_class_folders_is_refused(tmp_path):
    root = written(tmp_path, train=pictures("1.png", "2.png"), test=split_of("cat"))
    text = refusal(root)
    assert "train has no class folders" in text
    assert "1.png" in text


@pytest.mark.parametrize("form", [as_folder, as_tar], ids=lambda form: form.__name__)
@pytest.mark.parametrize("flat", [("1.png", "2.png"), ("unknown/1.png", "unknown/2.png")], ids=["flat", "one folder"])
def test_a_test_split_without_labels_is_refused_with_what_to_set(form, flat, tmp_path):
    root = written(tmp_path, form, train=split_of("cat", "dog"), validation=split_of("cat", "dog"), test=pictures(*flat))
    assert "set data.test_split to a split that has, such as validation" in refusal(root)
    data = loaded(root, test_split="validation")
    assert len(data.test) == 8
    assert len(data.train) + len(data.val) == 8


def test_what_systems_and_programs_leave_behind_is_no_class_and_no_image(form, tmp_path):
    left = ("__MACOSX/cat/._1.png", ".ipynb_checkpoints/1-checkpoint.png", "cat/.git/1.png", "cat/._1.png", "cat/.DS_Store")
    left = tuple(name for name in left if name.startswith("cat/") or form in (as_folder, as_tar))
    root = written(tmp_path, form, train=split_of("cat", "dog") | pictures(*left), test=split_of("cat", "dog"))
    if form is as_folder:
        (root / "train" / ".hidden.png").write_bytes(picture())
    data = loaded(root)
    assert data.class_names == ["cat", "dog"]
    assert len(data.train) + len(data.val) == 8
    assert not any("hidden" in note or "skipped" in note for note in data.notes)


def test_a_class_without_validation_images_is_evaluated_on_what_there_is_and_said_once(form, tmp_path):
    every = split_of("cat", "dog", "owl")
    root = written(tmp_path, form, train=every, validation=split_of("dog"), test=every)
    data = loaded(root)
    assert data.class_names == ["cat", "dog", "owl"]
    assert np.concatenate([labels.numpy() for _, labels in eval_loader(data.val, data.settings)]).tolist() == [1] * 4
    assert [note for note in data.notes if "cat, owl" in note] == [
        "val: no images of 2 of the 3 classes (cat, owl): it is evaluated on the others"
    ]


def test_a_class_that_only_the_test_split_has_is_refused_by_name(form, tmp_path):
    root = written(tmp_path, form, train=split_of("cat", "dog"), test=split_of("cat", "wasp"))
    text = refusal(root)
    assert "classes of the test split" in text
    assert "wasp" in text


def test_linked_folders_and_files_are_followed_and_a_circle_ends(tmp_path):
    root = written(tmp_path, train=split_of("cat"), elsewhere=split_of("dogs"), test=split_of("cat", "dog"))
    (root / "train" / "dog").symlink_to(root / "elsewhere" / "dogs")
    (root / "train" / "cat" / "again.png").symlink_to(root / "elsewhere" / "dogs" / "0.png")
    (root / "train" / "cat" / "circle").symlink_to(root / "train")
    found = listed(root / "train")
    assert classes_of(found) == {"cat": 5, "dog": 4}
    assert found.skipped == {"links to a folder around them": 1}


def test_links_in_a_tar_file_are_images_too(tmp_path):
    with tarfile.open(tmp_path / "train.tar", "w") as tar:
        add(tar, "cat/1.png", picture(7))
        add(tar, "dog/1.png", picture(9))
        for name, kind, target in (
            ("cat/hard.png", tarfile.LNKTYPE, "dog/1.png"),
            ("dog/soft.png", tarfile.SYMTYPE, "../cat/1.png"),
            ("dog/nowhere.png", tarfile.SYMTYPE, "none.png"),
        ):
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = kind, target
            tar.addfile(entry)
    as_tar(tmp_path / "test", split_of("cat", "dog"))
    data = loaded(tmp_path, val_share=0.5, batch_size=1)
    source = data.train.source
    red = {source.name(i).removeprefix(f"{tmp_path}/train.tar/"): source.image(i)[0].getpixel((0, 0))[0] for i in range(4)}
    assert red == {"cat/1.png": 7, "cat/hard.png": 9, "dog/1.png": 9, "dog/soft.png": 7}
    assert any("links to no file 1" in note for note in data.notes)


def test_of_two_files_of_one_name_in_a_tar_file_the_later_counts(tmp_path):
    with tarfile.open(tmp_path / "train.tar", "w") as tar:
        for value in (3, 5):
            add(tar, "./cat/1.png", picture(value))
        add(tar, "dog/1.png", picture())
    as_tar(tmp_path / "test", split_of("cat", "dog"))
    data = loaded(tmp_path, val_share=0.5, batch_size=1)
    assert len(data.train.source) == 2
    assert data.train.source.image(0)[0].getpixel((0, 0))[0] == 5
    assert any("replaced by a later one 1" in note for note in data.notes)


# What is not used.


def test_all_that_pillow_reads_is_read_whatever_its_capitals(form, tmp_path):
    kinds = {
        "png": "png",
        "JPG": "jpeg",
        "jpeg": "jpeg",
        "webp": "webp",
        "bmp": "bmp",
        "tif": "tiff",
        "TIFF": "tiff",
        "gif": "gif",
    }
    kinds |= {"ppm": "ppm", "jp2": "jpeg2000", "ico": "ico", "Jfif": "jpeg"}
    files = {f"{name}/x.{ending}": picture(9, kind) for name in ("cat", "dog") for ending, kind in kinds.items()}
    root = written(tmp_path, form, train=files, test=files)
    data = loaded(root)
    assert len(data.test) == len(files)
    assert sum(len(images) for images, _ in eval_loader(data.test, data.settings)) == len(files)
    assert data.notes == []


def test_what_is_skipped_is_counted_by_split_and_type(form, tmp_path):
    more = {f"cat/{i}.txt": b"" for i in range(10)} | {
        "dog/a.NPY": b"",
        "dog/b.npy": b"",
        "dog/README": b"",
        "dog/film.mpg": b"",
    }
    root = written(tmp_path, form, train=split_of("cat", "dog") | more, test=split_of("cat", "dog") | {"cat/x.pdf": b""})
    assert loaded(root, val_share=0.5).notes == [
        "train: 14 files skipped: .txt 10, .npy 2, .mpg 1, no ending 1",
        "test: 1 file skipped: .pdf 1",
    ]


def test_a_class_that_lost_all_its_images_is_refused_and_so_is_an_empty_one(form, tmp_path):
    lost = {"owl/1.npy": b"", "owl/night/2.npy": b"", "owl/3.txt": b""}
    root = written(tmp_path, form, train=split_of("cat", "dog") | lost, test=split_of("cat", "dog"))
    text = refusal(root)
    assert "class folder owl" in text
    assert ".npy 2, .txt 1" in text


def test_an_empty_class_folder_is_refused_in_training_and_a_missing_class_in_evaluation(tmp_path):
    root = written(tmp_path, train=split_of("cat", "dog"), test=split_of("cat"))
    (root / "test" / "dog").mkdir()
    assert loaded(root, val_share=0.5).notes == ["test: no images of 1 of the 2 classes (dog): it is evaluated on the others"]
    (root / "train" / "owl").mkdir()
    assert "class folder owl of the image folder train holds no images" in refusal(root)


def test_a_split_of_nothing_that_is_read_is_refused_with_what_it_holds(form, tmp_path):
    root = written(tmp_path, form, train={"cat/1.npy": b"", "dog/1.npy": b""}, test=split_of("cat"))
    assert ".npy 2" in refusal(root)


@pytest.mark.parametrize("end", ["in a header", "in an image", "where an image ends"])
def test_a_tar_file_that_was_cut_short_is_refused(tmp_path, end):
    root = written(tmp_path, as_tar, train=split_of("cat", "dog"), test=split_of("cat", "dog"))
    whole = (root / "train.tar").read_bytes()
    size = {"in a header": 2048 + 100, "in an image": 2048 - 100, "where an image ends": 2048}[end]
    (root / "train.tar").write_bytes(whole[:size])
    text = refusal(root)
    assert "train.tar" in text
    assert "write it again" in text


def test_a_folder_that_may_not_be_read_is_refused_and_does_not_vanish(tmp_path, monkeypatch):
    root = written(tmp_path, train=split_of("cat", "dog"), test=split_of("cat", "dog"))
    scan = os.scandir

    def guarded(path: Any) -> Any:
        if Path(path).name == "dog":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr("os.scandir", guarded)
    assert "Permission denied" in refusal(root)


def test_a_run_says_once_what_is_not_used_and_keeps_it(tmp_path, monkeypatch, capsys):
    every = split_of("cat", "dog", images=8)
    root = written(tmp_path / "pets", train=every | {"cat/notes.txt": b""}, validation=every, test=every)
    monkeypatch.setattr("slimsweep.run.sweep", lambda *given: 0)  # what it finds is said before anything is trained
    model = ["--model.name", "vit_tiny_patch16_224", "--model.kwargs", '{"img_size": 32, "patch_size": 8, "depth": 2}']
    words = ["--name", "pets", "--output", str(tmp_path / "runs"), "--data.name", "folder", "--data.root", str(root), *model]
    words += ["--data.batch_size", "4", "--budgets", "0.5"]
    assert main(words) == 0
    assert capsys.readouterr().out.count("train: 1 file skipped: .txt 1") == 1
    log = tmp_path / "runs" / "pets" / "notes.log"
    assert log.read_text() == "train: 1 file skipped: .txt 1\n"
    (root / "train" / "cat" / "notes.txt").unlink()
    from slimsweep.cluster import worker

    worker.prepared.clear()  # a new process has read nothing yet
    assert main(words) == 0
    assert not log.exists()
