"""Top-1, top-5 and loss of a model on a data set, over all ranks."""

from contextlib import suppress
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from slimsweep.config import ConfigError, Recipe
from slimsweep.data import Data, Loader, TooManyDamaged, eval_loader
from slimsweep.training.ranks import ranks, share_damaged


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


def evaluate_split(
    model: nn.Module, data: Data, split: Literal["train", "val", "test"], device: torch.device, recipe: Recipe | None = None
) -> Metrics:
    """`evaluate` on one split of `data`, each rank its share; the model is moved to `device`."""
    rank, world = ranks()
    return evaluate(model.to(device), eval_loader(getattr(data, split), data.settings, rank, world), device, recipe)


def autocast(recipe: Recipe | None, device: torch.device) -> Any:
    """Mixed precision where the recipe asks for it."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=recipe is not None and recipe.amp == "bf16")
