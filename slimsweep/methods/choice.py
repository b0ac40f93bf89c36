"""What a method chooses from: the dense model, the budgets, and what holds for all methods alike."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from slimsweep.latency.curve import Solved
from slimsweep.slimming.budget import Budget, BudgetLike
from slimsweep.slimming.removal_path import RemovalPath
from slimsweep.slimming.shape import Shape


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What may be cut, for all methods alike."""

    granularity: Literal["dim", "head", "uniform"] = "dim"  # of attention gates: one per head and dim, per head, or per dim
    families: Sequence[str] | None = None  # attention, mlp, token; None for all that the model has
    floors: Mapping[str, float]  # for each family the share of every layer that stays
    depth: bool = False  # what floors keep of a layer's attention or MLP may leave too, all at once
    round_to: int  # sizes that are kept are multiples of this, the dense sizes excepted


@dataclass(frozen=True, kw_only=True)
class Choice(Settings):
    """All that a method may look at when it chooses a structure per budget."""

    dense: nn.Module  # the trained dense model, on the device to compute on; to be left as it is
    shape: Shape  # of its gates at this granularity, of these families
    budgets: Sequence[BudgetLike]  # as the person wrote them: 0.5, "2.3G", "60% params", "8ms"
    seed: int  # of the point, for methods that draw
    images: Tensor  # (n, C, H, W) training images without augmentation, on any device
    labels: Tensor  # (n,) their classes
    depth_in_ms: bool | float = False  # as `depth`, for budgets in ms; a number as for RemovalPath
    # What budgets in ms leave of a removal path, each timed on the device; None where there is no such budget.
    solve_ms: Callable[[RemovalPath, Sequence[Budget]], Sequence[Solved]] | None = None
