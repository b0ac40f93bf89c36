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
from slimsweep.slimming.cost import LATENCY, NANOSECONDS, unit_named, units

Unit = str  # one of cost.units()
EXPONENTS = {"": 0, "%": -2, "K": 3, "M": 6, "G": 9, "T": 12}  # of ten, by the suffix of a number
GRAMMAR = re.compile(
    r"(?P<digits>[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:e(?P<exponent>[+-]?[0-9]{1,3}))?\s*(?P<suffix>[KMGT%]?)\s*"
    rf"(?P<unit>{'|'.join(units())})?",
    re.IGNORECASE | re.ASCII,
)
BUDGET_TOLERANCE = 0.01  # a model uses its budget well when it is below it by at most this share of the dense cost
FORMS = (
    "a fraction between 0 and 1 of the dense model (0.5, '50%', '60% params', '40% ms') or an amount ('2.3G', '350M', "
    "'11.5M params', '12ms')"
)


class BudgetError(RefusedInput):
    """A budget that means nothing, or that no structure of this model can meet."""


@dataclass(frozen=True)
class Budget:
    """The most that a cut model may cost: `0.5` (of the dense MACs), `2.3G` (MACs), `60% params`, `12ms`, `40% ms`.

    Attributes:
        amount: a fraction in (0, 1] of the dense model's cost where relative, else MACs or parameters, at least 1, or
            milliseconds, at least one nanosecond.
        unit: what is counted: macs, params or ms.
        relative: whether the amount is a fraction.

    Raises:
        BudgetError: an amount outside those bounds, or an unknown unit.
    """

    amount: float
    unit: Unit = "macs"
    relative: bool = True

    def __post_init__(self) -> None:
        if self.unit not in units():
            raise BudgetError(f"a budget cannot count {self.unit!r}; it can count {' or '.join(map(repr, units()))}")
        least = least_amount(self.unit)
        in_bounds = 0 < self.amount <= 1 if self.relative else least <= self.amount < math.inf
        if not in_bounds:
            what = (
                "a fraction above 0 and at most 1"
                if self.relative
                else f"an amount of at least {least:g} of {unit_named(self.unit).label}"
            )
            raise BudgetError(f"budget {self.amount!r} is not {what}")

    @classmethod
    def parse(cls, value: Any, unit: Unit = "macs") -> "Budget":
        """A budget from what a person writes: a number, text, or a budget, which is returned as it is.

        A number without a suffix is a fraction of the dense model's cost, and so is a percentage; a suffix K, M, G or T makes
        an absolute amount. The unit, macs, params or ms, follows. Letters may be of either case. A number of ms without a
        percent sign is that many milliseconds: "0.4ms" is 0.4 ms, and "40% ms" a fraction.

        Args:
            unit: what is counted where the value does not say. Where that is ms, a plain number is of milliseconds.

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
        of_ms = unit == LATENCY.name
        if of_ms and suffix not in ("", "%"):
            raise BudgetError(f"budget {value!r} counts milliseconds, which take no suffix: write it as '12ms' or '40% ms'")
        relative = suffix == "%" or (suffix == "" and not of_ms)
        if relative and not 0 < amount <= 1:
            ways = "write absolute budgets with a suffix, as in '2.3G'" if suffix == "" else "100% is the dense model"
            raise BudgetError(f"budget {value!r} is not a fraction between 0 and 1 of the dense model; {ways}")
        if not relative and not least_amount(unit) <= amount < math.inf:
            raise BudgetError(f"budget {value!r} is no amount that a model can have, nor a fraction; write it as {FORMS}")
        return cls(amount, unit, relative)

    def limit(self, dense: int) -> int:
        """The most that it allows, in its unit; of ms in nanoseconds.

        Args:
            dense: what the dense model costs in that unit.
        """
        return int(self.amount * dense) if self.relative else round(self.amount * (NANOSECONDS if self.is_latency else 1))

    @property
    def is_latency(self) -> bool:
        """Whether it counts milliseconds, which are measured."""
        return self.unit == LATENCY.name

    def __str__(self) -> str:
        """Text that `parse` reads as this budget: 0.5, 2.3G, "0.6 params", "11.5M params", "12ms", "40% ms"."""
        number, suffix = repr(float(self.amount)) if self.is_latency else repr(self.amount), ""
        if self.is_latency:
            return f"{Decimal(number).scaleb(2).normalize():f}% ms" if self.relative else f"{Decimal(number).normalize():f}ms"
        if not self.relative:
            suffix = next((s for s in "TGMK" if self.amount >= 10.0 ** EXPONENTS[s]), "K")
            number = f"{Decimal(number).scaleb(-EXPONENTS[suffix]).normalize():f}"
        return f"{number}{suffix}" + (f" {self.unit}" if self.unit != "macs" else "")

    @property
    def label(self) -> str:
        """A few words for tables and figures, rounded: "50 % of MACs", "60 % of params", "2.3 GMACs", "8 ms"."""
        unit = unit_named(self.unit)
        if self.relative:
            return f"{100 * self.amount:.4g} % of {unit.label}"
        if self.is_latency:
            return unit.quantity(f"{self.amount:.4g}")
        suffix = next((s for s in "TGMK" if self.amount >= 10.0 ** EXPONENTS[s]), "")
        return unit.quantity(f"{self.amount / 10.0 ** EXPONENTS[suffix]:.4g}", suffix)


def least_amount(unit: Unit) -> float:
    """The smallest absolute amount of a unit: one, or of milliseconds a nanosecond."""
    return 1 / NANOSECONDS if unit == LATENCY.name else 1


BudgetLike = Budget | float | str  # what `Budget.parse` reads
