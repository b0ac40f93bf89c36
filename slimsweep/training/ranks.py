"""What the ranks of a process group tell each other; each function also works without a group, as for one rank alone."""

from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from slimsweep.data.damaged import Damaged


def ranks() -> tuple[int, int]:
    """(rank, world size) of the process group; (0, 1) where there is none."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def mean_over_ranks(value: Tensor) -> Tensor:
    """The mean of a scalar over all ranks."""
    world = ranks()[1]
    if world > 1:
        dist.all_reduce(value)
        value = value / world
    return value


def on_any_rank(condition: bool, device: torch.device) -> bool:
    """Whether a condition holds on at least one rank: all ranks then decide alike."""
    return float(mean_over_ranks(torch.tensor(float(condition), device=device))) > 0


def gathered(value: Any, device: torch.device) -> list[Any]:
    """What each rank gives, in the order of ranks; the value alone without a group. It must be picklable."""
    if ranks()[1] == 1:
        return [value]
    found: list[Any] = [None] * ranks()[1]
    # NCCL sends objects through the current GPU, which must be this rank's own.
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        dist.all_gather_object(found, value)
    return found


def share_damaged(damaged: Damaged, device: torch.device) -> None:
    """Count the damaged images of a split over all ranks, so that all ranks stop where there are too many.

    Raises:
        TooManyDamaged: they are more than data.max_damaged.
    """
    world = ranks()[1]
    everyone = [damaged.reasons]
    if world > 1 and on_any_rank(bool(damaged.reasons), device):
        everyone = gathered(damaged.reasons, device)
    for reasons in everyone:
        damaged.add(reasons)
