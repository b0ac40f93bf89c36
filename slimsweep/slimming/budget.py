"""A budget, parsed once: an amount, what it counts, and whether it is relative to the dense model.

Light to import (no torch), for the configuration reads budgets too.
"""

import re
from dataclasses import dataclass
from typing import Literal

Unit = Literal["macs", "params"]
SUFFIXES = {"": 1, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
GRAMMAR = re.compile(
    r"\s*(?P<number>\d+(?:\.\d*)?(?:e[+-]?\d+)?|\.\d+(?:e[+-]?\d+)?)\s*(?P<suffix>[KMGT%]?)\s*(?P<unit>macs|params)?\s*",
    re.IGNORECASE,
)


class BudgetError(ValueError):
    """A budget that means nothing, or that no structure of this model can meet."""


@dataclass(frozen=True)
class Budget:
    """The most that a cut model may cost: `0.5` (of the dense MACs), `2.3G` (MACs), `60% params`, `11.5M params`."""

    amount: float  # a fraction in (0, 1] where relative, else MACs or parameters
    unit: Unit = "macs"
    relative: bool = True

    @classmethod
    def parse(cls, value: "Budget | float | str") -> "Budget":
        """A budget from what a person writes.

        Raises:
            BudgetError: the value follows no form of the grammar, or is a fraction outside (0, 1].
        """
        raise NotImplementedError

    def limit(self, dense: int) -> int:
        """The most that it allows, in its unit.

        Args:
            dense: what the dense model costs in that unit.
        """
        return int(self.amount * dense) if self.relative else round(self.amount)
