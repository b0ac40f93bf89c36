"""A budget, parsed once: an amount, what it counts, and whether it is relative to the dense model.

One grammar for the library, the configuration and the commands. Light to import (no torch).
"""

import math
import numbers
import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from slimsweep.errors import RefusedInput
from slimsweep.slimming.cost import COSTS

Unit = str  # a key of COSTS
EXPONENTS = {"": 0, "%": -2, "K": 3, "M": 6, "G": 9, "T": 12}  # of ten, by the suffix of a number
GRAMMAR = re.compile(
    r"(?P<digits>[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:e(?P<exponent>[+-]?[0-9]{1,3}))?\s*(?P<suffix>[KMGT%]?)\s*"
    rf"(?P<unit>{'|'.join(COSTS)})?",
    re.IGNORECASE | re.ASCII,
)
BUDGET_TOLERANCE = 0.01  # a model uses its budget well when it is below it by at most this share of the dense cost
FORMS = "a fraction between 0 and 1 of the dense model (0.5, '50%', '60% params') or an amount ('2.3G', '350M', '11.5M params')"


class BudgetError(RefusedInput):
    """A budget that means nothing, or that no structure of this model can meet."""


@dataclass(frozen=True)
class Budget:
    """The most that a cut model may cost: `0.5` (of the dense MACs), `2.3G` (MACs), `60% params`, `11.5M params`.

    Attributes:
        amount: a fraction in (0, 1] of the dense model's cost where relative, else MACs or parameters, at least 1.
        unit: what is counted, a key of COSTS.
        relative: whether the amount is a fraction.

    Raises:
        BudgetError: an amount outside those bounds, or an unknown unit.
    """

    amount: float
    unit: Unit = "macs"
    relative: bool = True

    def __post_init__(self) -> None:
        if self.unit not in COSTS:
            raise BudgetError(f"a budget cannot count {self.unit!r}; it can count {' or '.join(map(repr, COSTS))}")
        in_bounds = 0 < self.amount <= 1 if self.relative else 1 <= self.amount < math.inf
        if not in_bounds:
            what = (
                "a fraction above 0 and at most 1" if self.relative else f"an amount of at least 1 of {COSTS[self.unit].label}"
            )
            raise BudgetError(f"budget {self.amount!r} is not {what}")

    @classmethod
    def parse(cls, value: Any, unit: Unit = "macs") -> "Budget":
        """A budget from what a person writes: a number, text, or a budget, which is returned as it is.

        A number without a suffix is a fraction of the dense model's cost, and so is a percentage; a suffix K, M, G or T makes
        an absolute amount. The unit, macs or params, follows. Letters may be of either case.

        Args:
            unit: what is counted where the value does not say.

        Raises:
            BudgetError: the value has none of these forms, a fraction is outside (0, 1], or an amount is below 1.
        """
        if isinstance(value, Budget):
            return value
        if isinstance(value, numbers.Real) and not isinstance(value, bool):
            digits, exponent, suffix = repr(float(value)), 0, ""
        elif isinstance(value, str) and (match := GRAMMAR.fullmatch(value.strip())):
            digits, exponent = match["digits"], int(match["exponent"] or 0)
            suffix, unit = match["suffix"].upper(), (match["unit"] or unit).lower()
        else:
            raise BudgetError(f"budget {value!r} is neither {FORMS.replace(' or an', ' nor an')}")
        # The decimal point is moved in the text, so that 12.3% is 0.123 and not its neighbour.
        amount = float(digits) if not exponent and not EXPONENTS[suffix] else float(f"{digits}e{exponent + EXPONENTS[suffix]}")
        relative = suffix in ("", "%")
        if relative and not 0 < amount <= 1:
            ways = "write absolute budgets with a suffix, as in '2.3G'" if suffix == "" else "100% is the dense model"
            raise BudgetError(f"budget {value!r} is not a fraction between 0 and 1 of the dense model; {ways}")
        if not relative and not 1 <= amount < math.inf:
            raise BudgetError(f"budget {value!r} is no amount that a model can have, nor a fraction; write it as {FORMS}")
        return cls(amount, unit, relative)

    def limit(self, dense: int) -> int:
        """The most that it allows, in its unit.

        Args:
            dense: what the dense model costs in that unit.
        """
        return int(self.amount * dense) if self.relative else round(self.amount)

    def __str__(self) -> str:
        """Text that `parse` reads as this budget: 0.5, 2.3G, "0.6 params", "11.5M params"."""
        number, suffix = repr(self.amount), ""
        if not self.relative:
            suffix = next((s for s in "TGMK" if self.amount >= 10.0 ** EXPONENTS[s]), "K")
            number = f"{Decimal(number).scaleb(-EXPONENTS[suffix]).normalize():f}"
        return f"{number}{suffix}" + (f" {self.unit}" if self.unit != "macs" else "")

    @property
    def label(self) -> str:
        """A few words for tables and figures, rounded: "50 % of MACs", "60 % of params", "2.3 GMACs", "11.5 M params"."""
        if self.relative:
            return f"{100 * self.amount:.4g} % of {COSTS[self.unit].label}"
        suffix = next((s for s in "TGMK" if self.amount >= 10.0 ** EXPONENTS[s]), "")
        return COSTS[self.unit].quantity(f"{self.amount / 10.0 ** EXPONENTS[suffix]:.4g}", suffix)


BudgetLike = Budget | float | str  # what `Budget.parse` reads
