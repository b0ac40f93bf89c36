"""How fast JPEG images become training batches of 224 pixels on CPU cores; writes the tables of README.md.

    python reports/loading/measure.py cores      # images per second of one core and of more, beside timm and torchvision
    python reports/loading/measure.py waiting    # how long training steps of DeiT-S wait for images

Nothing else may run on the machine: where something does, the table says so. The images are 500 x 375 parts of the two
photographs that scikit-learn ships, which is the usual size in ImageNet; they are read from the system's file cache.
"""

import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import timm
import timm.data
import torch
import torchvision
from PIL import Image
from sklearn.datasets import load_sample_images
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms import v2

from slimsweep.cluster.worker import data_for
from slimsweep.config import Config
from slimsweep.data import train_loader

sys.path.append(str(Path(__file__).parents[1]))  # reports/, for the module that they share
from measured_parts import measure_parts

IMAGES, CLASSES, SIZE = 384, 4, (500, 375)
BATCH, ROUNDS = 32, 5
STEPS = 4  # of a training, for each number of loading processes


def make_images(folder: Path) -> Path:
    """JPEG images in class folders, cut at places that a seed draws."""
    photographs = [Image.fromarray(one) for one in load_sample_images().images]
    drawn = np.random.default_rng(0)
    for number in range(IMAGES):
        photograph = photographs[number % len(photographs)]
        left, top = (int(drawn.integers(whole - part + 1)) for whole, part in zip(photograph.size, SIZE, strict=True))
        file = folder / f"class-{number % CLASSES}" / f"{number:04}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        photograph.crop((left, top, left + SIZE[0], top + SIZE[1])).save(file, quality=95)
    return folder


def in_slimsweep(folder: Path, workers: int) -> Iterable[Any]:
    """Batches as a sweep of DeiT-S loads them: random crop and flip."""
    augment = {"scale": (0.08, 1.0), "hflip": 0.5}
    settings = {"name": "folder", "root": str(folder), "batch_size": BATCH, "workers": workers, "augment": augment}
    data = data_for(Config(model={"name": "deit_small_patch16_224"}, data=settings))
    return train_loader(data.train, data.settings)


def in_timm(folder: Path, workers: int) -> Iterable[Any]:
    """timm's own loader of training images, with the same crop and flip; it leaves normalizing to the training device."""
    loader: Iterable[Any] = timm.data.create_loader(
        timm.data.create_dataset("", root=str(folder)),
        input_size=(3, 224, 224),
        batch_size=BATCH,
        is_training=True,
        scale=(0.08, 1.0),
        hflip=0.5,
        color_jitter=None,
        num_workers=workers,
        persistent_workers=workers > 0,
        use_prefetcher=False,
    )
    return loader


def in_torchvision(folder: Path, workers: int) -> Iterable[Any]:
    """torchvision's decoder and transforms on tensors."""
    steps = [
        v2.RandomResizedCrop(224, scale=(0.08, 1.0), interpolation=v2.InterpolationMode.BICUBIC, antialias=True),
        v2.RandomHorizontalFlip(0.5),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(timm.data.IMAGENET_DEFAULT_MEAN, timm.data.IMAGENET_DEFAULT_STD),
    ]
    images = torchvision.datasets.ImageFolder(str(folder), transform=v2.Compose(steps), loader=by_torchvision)
    return torch.utils.data.DataLoader(
        images, BATCH, shuffle=True, num_workers=workers, drop_last=True, persistent_workers=workers > 0
    )


def by_torchvision(file: str) -> torch.Tensor:
    return decode_jpeg(torchvision.io.read_file(file), mode=ImageReadMode.RGB)


def by_pillow(file: str) -> Image.Image:
    return Image.open(file).convert("RGB")


LOADERS: dict[str, Callable[[Path, int], Iterable[Any]]] = {
    "slimsweep": in_slimsweep,
    "timm's loader": in_timm,
    "torchvision, on tensors": in_torchvision,
}


def images_per_second(batches: Iterable[Any]) -> float:
    """Images of one epoch by its seconds, without the time until its first batch."""
    loaded = iter(batches)
    next(loaded)
    began = time.perf_counter()
    count = sum(len(images) for images, _ in loaded)
    return count / (time.perf_counter() - began)


def cores(folder: Path) -> str:
    """Markdown: medians over interleaved rounds."""
    torch.set_num_threads(1)
    most = os.cpu_count() or 1
    files = sorted(str(file) for file in folder.rglob("*.jpg"))
    rates: dict[tuple[str, int], list[float]] = {}
    loaders = {(name, workers): make(folder, workers) for name, make in LOADERS.items() for workers in (0, 1, most)}
    for _ in range(ROUNDS):
        for name, decode in {"decoding alone, Pillow": by_pillow, "decoding alone, torchvision": by_torchvision}.items():
            began = time.perf_counter()
            for file in files:
                decode(file)
            rates.setdefault((name, 0), []).append(len(files) / (time.perf_counter() - began))
        for key, loader in loaders.items():
            rates.setdefault(key, []).append(images_per_second(loader))
    lines = [f"| images per second | in the training process | 1 loading process | {most} loading processes |"]
    lines.append("| --- | ---: | ---: | ---: |")
    for name in dict.fromkeys(name for name, _ in rates):
        cells = [f"{statistics.median(rates[name, n]):.0f}" if (name, n) in rates else "" for n in (0, 1, most)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    size = statistics.mean(Path(file).stat().st_size for file in files) / 1024
    return "\n".join([*lines, "", f"{len(files)} images of {size:.0f} KiB on average; medians of {ROUNDS} interleaved rounds."])


def waiting(folder: Path) -> str:
    """Markdown: seconds that a training step takes, and that it waits for its images."""
    torch.set_num_threads(os.cpu_count() or 1)
    model = timm.create_model("deit_small_patch16_224", num_classes=CLASSES)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    lines = ["| data.workers | step, s | of it waiting for images, s | share |", "| ---: | ---: | ---: | ---: |"]
    for workers in (0, 1, 2):
        loader = iter(in_slimsweep(folder, workers))
        next(loader)
        took, waited = [], []
        for _ in range(STEPS):
            began = time.perf_counter()
            images, labels = next(loader)
            loaded = time.perf_counter()
            torch.nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
            waited.append(loaded - began)
            took.append(time.perf_counter() - began)
        step, wait = statistics.median(took), statistics.median(waited)
        lines.append(f"| {workers} | {step:.2f} | {wait:.3f} | {100 * wait / step:.1f} % |")
    return "\n".join(
        [*lines, "", f"DeiT-S, {BATCH} images per step, float32, {torch.get_num_threads()} threads; medians of {STEPS} steps."]
    )


PARTS: dict[str, Callable[[Path], str]] = {
    "cores": lambda folder: cores(make_images(folder)),
    "waiting": lambda folder: waiting(make_images(folder)),
}

if __name__ == "__main__":
    versions = (
        f"torch {torch.__version__}, torchvision {torchvision.__version__}, timm {timm.__version__}, Pillow {PIL.__version__}"
    )
    sys.exit(measure_parts(PARTS, sys.argv[1:], Path(__file__).parent / "README.md", versions))
