"""Colours and markers of methods in the page and the picture: from the table of methods, with defaults for unknown methods."""

from collections.abc import Sequence
from dataclasses import dataclass

from slimsweep.methods import METHODS, Style
from slimsweep.report.pareto import EQUAL_COMPUTE, UNTRAINED

# Of methods in a run's rows that this version does not know.
UNKNOWN = (
    Style(light="#3d6b35", dark="#9bd18f", symbol="hexagon"),
    Style(light="#7a3b1d", dark="#d99a78", symbol="hourglass"),
)


@dataclass(frozen=True, kw_only=True)
class Look:
    """How one method is drawn."""

    light: str  # colour on a light background
    dark: str  # colour on a dark background
    symbol: str  # plotly's marker symbol
    hollow: bool  # on equal compute, or not trained: an outlined marker and a line with gaps in the method's colour


def looks(methods: Sequence[str]) -> dict[str, Look]:
    """The look of each method, by its name.

    Args:
        methods: names, which may end with ", equal compute" or ", before retraining".
    """
    bases = [name.removesuffix(EQUAL_COMPUTE).removesuffix(UNTRAINED) for name in methods]
    unknown = list(dict.fromkeys(base for base in bases if base not in METHODS))
    found = {}
    for name, base in zip(methods, bases, strict=True):
        style = METHODS[base].style if base in METHODS else UNKNOWN[unknown.index(base) % len(UNKNOWN)]
        hollow = name != base
        symbol = f"{style.symbol}-open" if hollow else style.symbol
        found[name] = Look(light=style.light, dark=style.dark, symbol=symbol, hollow=hollow)
    return found


def run_colours() -> list[dict[str, str]]:
    """Colours for runs in a page of several: those of the methods, with black and grey last."""
    names = sorted(METHODS, key=lambda name: name in ("dense", "random"))  # stable: the others keep their order
    return [{"light": METHODS[name].style.light, "dark": METHODS[name].style.dark} for name in names]
