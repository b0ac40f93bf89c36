"""Export of a saved model: to ONNX, to a torch.export program, or to a folder for the Hugging Face hub.

Every written file is read back, and kept only if it computes the same as the model.
"""

import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from slimsweep.errors import ExportError, RefusedInput
from slimsweep.latency.onnx_files import (
    EXPORTED_BATCH,
    INPUT,
    OUTPUT,
    example_images,
    exporting,
    refuse_missing,
    session,
    write_onnx,
)
from slimsweep.ledger.files import MODEL_CARD
from slimsweep.ledger.model_card import card_of_folder, origin_of_saved
from slimsweep.ledger.run import Run
from slimsweep.saved_models import load
from slimsweep.slimming.folder_swap import CONFIG, WEIGHTS, replacing
from slimsweep.storage import Folder, parted

Format = Literal["onnx", "pt2", "timm"]

TOLERANCE = 1e-4  # largest difference of an output, relative to the model's largest output where that is above 1
CHECKED_BATCHES = (1, 3)


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What an export has written."""

    path: Path
    difference: float  # largest difference of an output, relative to the model's largest output where that is above 1
    size: int  # bytes, of all files

    @property
    def text(self) -> str:
        """Difference and size, in words."""
        differ = f"outputs differ by at most {self.difference:.1e}"
        same = differ if self.difference else "the outputs are those of the model"
        size = f"{self.size / 2**20:.1f} MiB" if self.size >= 2**20 else f"{self.size / 2**10:.0f} KiB"
        return f"{same} (checked with batches of {' and '.join(map(str, CHECKED_BATCHES))}); {size}"


def export_model(model_dir: str | os.PathLike[str], format: Format, output: str | os.PathLike[str] | None = None) -> Path:
    """As `export_checked`; returns the path alone."""
    return export_checked(model_dir, format, output).path


def export_checked(model_dir: str | os.PathLike[str], format: Format, output: str | os.PathLike[str] | None = None) -> Exported:
    """Write a saved model in another format, and check that the result computes the same.

    Args:
        model_dir: a folder that `slimsweep.save` wrote: a local path, or a URI of an object store.
        format: "onnx", "pt2" (torch.export, read by torch.export.load) or "timm" (a folder for the Hugging Face hub). The batch
            is dynamic; input "images" (batch, channels, height, width), output "logits" (batch, classes), float32.
        output: the file, or a folder that is there to write it into; for timm the folder itself. Default, of a model in a
            run's folder: NAME.onnx, NAME.pt2 or NAME-timm in RUN/exports; of a model elsewhere model.onnx or model.pt2 in
            `model_dir`, or `model_dir`-timm; of a model on an object store NAME.onnx, NAME.pt2 or NAME-timm in the current
            folder.

    Raises:
        RefusedInput: a ValueError: `model_dir` is not a saved model, the format is unknown, packages are missing, or the output
            is a file of another kind.
        ExportError: the model cannot be exported, or the result differs from it by more than 1e-4 (says by how much).
    """
    writers: dict[str, Callable[[nn.Module, Path, Path], Exported]] = {"onnx": _onnx, "pt2": _pt2, "timm": _timm}
    if format not in writers:
        raise RefusedInput(f"cannot export to {format!r}; the formats are {', '.join(writers)}")
    if format == "onnx":
        refuse_missing("ONNX export")
    if "://" in str(model_dir):
        _, name = parted(str(model_dir))
        here = output or (f"{name}-timm" if format == "timm" else f"{name}.{format}")
        with Folder(str(model_dir)).local() as fetched:
            return export_checked(fetched, format, here)
    source = Path(model_dir)
    model = load(source)
    exports = Run.exports_beside(source) if output is None else None
    if exports is not None:
        name = source.resolve().name
        target = exports / (f"{name}-timm" if format == "timm" else f"{name}.{format}")
    elif output is None:
        target = source.resolve().with_name(source.resolve().name + "-timm") if format == "timm" else source / f"model.{format}"
    else:
        target = Path(output)
        if format != "timm" and target.is_dir():
            target /= f"model.{format}"
    if format == "timm" and target.resolve() == source.resolve():
        raise RefusedInput(f"{target} is the model's own folder; give another output")
    if format != "timm" and target.exists() and target.suffix != f".{format}":
        raise RefusedInput(
            f"{target} exists and is no .{format} file, so that an export does not replace it: give another output, such as "
            f"{target.with_name(f'{target.stem}.{format}')}"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    return writers[format](model, source, target)


def _onnx(model: nn.Module, source: Path, target: Path) -> Exported:
    with written_whole(target) as temporary:
        write_onnx(model, temporary, {"config.json": _description(source)})
        opened = session(temporary)
        difference = check_same(model, "ONNX", lambda x: torch.from_numpy(opened.run([OUTPUT], {INPUT: x.numpy()})[0]))
        size = _size(temporary.parent)
    return Exported(path=target, difference=difference, size=size)


def _pt2(model: nn.Module, source: Path, target: Path) -> Exported:
    with written_whole(target) as temporary:
        write_pt2(model, temporary, {"config.json": _description(source)})
        reread = torch.export.load(temporary).module()
        difference = check_same(model, "torch.export", reread)
        size = _size(temporary.parent)
    return Exported(path=target, difference=difference, size=size)


def write_pt2(model: nn.Module, path: Path, metadata: dict[str, str] | None = None, *, batch_size: int | None = None) -> None:
    """Write a model in evaluation mode as a program of torch.export.

    Args:
        metadata: texts by name, the file's `extra_files`.
        batch_size: the only number of images that it takes; any number where not given.

    Raises:
        ExportError: torch cannot export this model.
    """
    with exporting("torch.export"):
        example = (example_images(model, batch_size or EXPORTED_BATCH),)
        shapes = None if batch_size else ({0: torch.export.Dim("batch")},)
        program = torch.export.export(model, example, dynamic_shapes=shapes, strict=False)
        torch.export.save(program, path, extra_files=metadata or {})


def _timm(model: nn.Module, source: Path, target: Path) -> Exported:
    there = {file.name for file in target.iterdir()} if target.exists() else set()
    if there and there != {WEIGHTS, CONFIG, MODEL_CARD}:
        raise RefusedInput(f"{target} holds something else than an earlier export: give an empty folder, or a new one")
    with replacing(target) as folder:
        for name in (WEIGHTS, CONFIG):
            shutil.copyfile(source / name, folder / name)
        of_run = origin_of_saved(str(source.resolve()))
        card = card_of_folder(model, source, name=target.resolve().name, source="local-dir:PATH", of_run=of_run)
        (folder / MODEL_CARD).write_text(card, encoding="utf-8")
        difference = check_same(model, "timm", load(folder))
        size = _size(folder)
    return Exported(path=target, difference=difference, size=size)


def _size(folder: Path) -> int:
    """Bytes of a folder's files."""
    return sum(file.stat().st_size for file in folder.iterdir())


def _description(source: Path) -> str:
    """The model's config.json as text (preprocessing, labels, metrics), without the structure's masks."""
    config = json.loads((source / "config.json").read_text())
    config.get("model_args", {}).pop("structure", None)
    return json.dumps(config)


@torch.no_grad()
def check_same(
    model: nn.Module, what: str, compute: Callable[[Tensor], Tensor], batches: Sequence[int] = CHECKED_BATCHES
) -> float:
    """The largest difference of an output from the model's, as TOLERANCE counts it.

    Args:
        what: the format, as messages name it.
        compute: what the written file computes of a batch of images.
        batches: numbers of images that are tried.

    Raises:
        ExportError: it is above TOLERANCE, or the outputs have another shape.
    """
    largest = 0.0
    for batch in batches:
        x = example_images(model, batch)
        expected, got = model(x), compute(x)
        if got.shape != expected.shape:
            raise ExportError(f"the {what} model gives {tuple(got.shape)} for a batch of {batch}, not {tuple(expected.shape)}")
        difference = float((got - expected).abs().max() / expected.abs().max().clamp(min=1))
        if not difference <= TOLERANCE:
            raise ExportError(
                f"the {what} model differs from the model by {difference:.2e} at a batch of {batch}, "
                f"more than {TOLERANCE:.0e}; it was not kept"
            )
        largest = max(largest, difference)
    return largest


@contextmanager
def written_whole(target: Path) -> Iterator[Path]:
    """A temporary path that is moved to `target` on success and deleted on failure; so are files written beside it."""
    folder = target.parent / f".{target.name}.{uuid.uuid4().hex[:8]}"
    folder.mkdir()
    try:
        yield folder / target.name
        for file in sorted(folder.iterdir(), key=lambda file: file.name == target.name):  # weights beside it first
            os.replace(file, target.parent / file.name)
    finally:
        shutil.rmtree(folder)
