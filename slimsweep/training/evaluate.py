"""How good a model is on a data set, over all ranks: top-1, top-5, loss; of a backbone, how near it is to the dense model."""

import math
import platform
from contextlib import suppress
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from slimsweep.config import ConfigError, Recipe
from slimsweep.data import Data, ImageSet, ImageStream, Loader, TooManyDamaged, eval_loader
from slimsweep.training.feature_metrics import Agreement, agreement, knn_top1, linear_probe_top1
from slimsweep.training.ranks import gathered, ranks, share_damaged

Split = Literal["train", "val", "test"]


class Metrics(NamedTuple):
    """What `evaluate` finds."""

    top1: float  # percent
    top5: float  # percent
    loss: float  # cross entropy per image, in nats


@torch.no_grad()
def evaluate(model: nn.Module, loader: Loader, device: torch.device, recipe: Recipe | None = None) -> Metrics:
    """The metrics over all ranks' shares of a data set, each image once; damaged images are not counted.

    Args:
        model: on `device`; its mode (train or eval) is as before afterwards.
        loader: this rank's share.
        recipe: says whether to use mixed precision; None computes in full precision.

    Raises:
        ConfigError: more images are damaged than data.max_damaged (TooManyDamaged), or all are.
    """
    training = model.training
    model.eval()
    sums = torch.zeros(4, dtype=torch.float64, device=device)
    with suppress(TooManyDamaged):  # raised below, on all ranks: none waits for one that has stopped
        for batch, targets in loader:
            images, labels = batch.to(device, non_blocking=True), targets.to(device, non_blocking=True)
            with autocast(recipe, device):
                logits = model(images)
            best = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
            loss = F.cross_entropy(logits.float(), labels, reduction="sum")
            sums += torch.stack([best[:, 0].sum(), best.sum(), loss, torch.tensor(float(len(labels)), device=device)]).double()
    if ranks()[1] > 1:
        dist.all_reduce(sums)
    share_damaged(loader.damaged, device)
    model.train(training)
    top1, top5, loss, count = sums.tolist()
    if not count:
        raise ConfigError(f"not one image of the {loader.damaged.split} split can be read: fix data.root or the split's name")
    return Metrics(100 * top1 / count, 100 * top5 / count, loss / count)


def evaluate_split(model: nn.Module, data: Data, split: Split, device: torch.device, recipe: Recipe | None = None) -> Metrics:
    """`evaluate` on one split of `data`, each rank its share; the model is moved to `device`."""
    rank, world = ranks()
    return evaluate(model.to(device), eval_loader(getattr(data, split), data.settings, rank, world), device, recipe)


# Backbones: models without a head.


class Reference:
    """The dense model's embeddings of some data, with which those of other models are compared.

    Those of a split are computed once, in full precision, and kept: (images, dims) in float32 on the CPU.

    Args:
        dense: moved to the device on which models are compared.
        data: the splits.
    """

    def __init__(self, dense: nn.Module, data: Data) -> None:
        self.dense, self.data = dense, data
        self._known: dict[str, Tensor] = {}

    def agreement(self, model: nn.Module, split: Split, device: torch.device, recipe: Recipe | None = None) -> Agreement:
        """How near a model's embeddings of a split are to the dense model's, over all ranks; the model is moved to `device`.

        Of embeddings that are not finite, all numbers are NaN.

        Raises:
            ConfigError: more images are damaged than data.max_damaged (TooManyDamaged), or all are.
            RefusedInput: the dense model gives all images the same embedding.
        """
        if split not in self._known:
            self._known[split] = embeddings(self.dense, self.data, split, device)[0]
        found = embeddings(model, self.data, split, device, recipe)[0]
        if not bool(found.isfinite().all()):
            return Agreement(math.nan, math.nan, math.nan)
        return agreement(found.to(device), self._known[split].to(device))


@torch.no_grad()
def embeddings(
    model: nn.Module, data: Data, split: Split, device: torch.device, recipe: Recipe | None = None
) -> tuple[Tensor, Tensor]:
    """(embeddings (N, dims), labels (N,)) of a split as evaluation sees it, on the CPU, of all ranks in the same order.

    Args:
        model: gives (B, dims) for images; it is moved to `device`, and its mode is as before afterwards.
        recipe: says whether to use mixed precision; None computes in full precision.

    Raises:
        ConfigError: as `evaluate`.
    """
    training, (rank, world) = model.training, ranks()
    model.to(device).eval()
    loader = eval_loader(as_evaluated(data, split), data.settings, rank, world)
    features: list[Tensor] = []
    labels: list[Tensor] = []
    with suppress(TooManyDamaged):  # raised below, on all ranks: none waits for one that has stopped
        for images, targets in loader:
            with autocast(recipe, device):
                features.append(model(images.to(device, non_blocking=True)).float().cpu())
            labels.append(targets)
    share_damaged(loader.damaged, device)
    model.train(training)
    found = [
        part for part in gathered((torch.cat(features), torch.cat(labels)) if features else None, device) if part is not None
    ]
    if not found:
        raise ConfigError(f"not one image of the {loader.damaged.split} split can be read: fix data.root or the split's name")
    return torch.cat([part[0] for part in found]), torch.cat([part[1] for part in found])


def probed(
    model: nn.Module, probe: Data, device: torch.device, recipe: Recipe | None = None, seed: int = 0
) -> dict[str, float]:
    """Top-1 (percent) of the weighted k-NN and of the linear probe on a backbone's embeddings, by their columns of results.

    Args:
        probe: labelled; neighbours and probe come from its training images as evaluation sees them, and its validation and test
            images are judged.
        seed: of the probe.
    """
    index = embeddings(model, probe, "train", device, recipe)
    found: dict[str, float] = {}
    for split in ("val", "test"):
        asked = embeddings(model, probe, split, device, recipe)
        if not all(bool(part.isfinite().all()) for part in (index[0], asked[0])):
            return {}
        found[f"{split}_knn_top1"] = knn_top1(*index, *asked)
        found[f"{split}_probe_top1"] = linear_probe_top1(*index, *asked, seed=seed)
    return found


def as_evaluated(data: Data, split: Split) -> ImageSet | ImageStream:
    """A split with the transform of evaluation; of training images too."""
    images: ImageSet | ImageStream = getattr(data, split)
    if split != "train":
        return images
    view = data.val.view
    if isinstance(images, ImageSet):
        return ImageSet(images.source, images.indices, view, images.num_classes, cache=False, damaged=images.damaged)
    return ImageStream(images.source, view, images.num_classes, images.limit, images.damaged)


def autocast(recipe: Recipe | None, device: torch.device) -> Any:
    """Mixed precision where the recipe asks for it and the device computes it (`computes_bf16`)."""
    wanted = recipe is not None and recipe.amp == "bf16" and computes_bf16(device)
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=wanted)


def computes_bf16(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 matrices by itself: all but x86 processors without AVX-512.

    There a training step of DINOv2-S takes 40 s in bf16 and 1.7 s in float32 (2 threads, 64 images of 70 pixels).
    """
    if device.type != "cpu" or platform.machine().lower() not in ("x86_64", "amd64"):
        return True
    return torch.backends.cpu.get_cpu_capability().startswith("AVX512")
