"""The table of methods. Each way to choose what a budget keeps is one entry here and, where it has code, one file.

Importing this loads no torch: the configuration, the results and the page read names, flags and styles from here. A method's
functions are given as "module:name" and imported when they are first called.

Your own method is one more entry:

    from slimsweep.methods import Method, register

    register(Method(name="mine", choose="mypackage.mine:choose"))
"""

import importlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from slimsweep.methods.choice import Choice, Settings
    from slimsweep.slimming.budget import BudgetLike
    from slimsweep.slimming.structure import Structure

Function = str | Callable[..., Any]  # a function, or "module:name" of one that is imported when it is first called


@dataclass(frozen=True, kw_only=True)
class Style:
    """How the page and the picture draw a method: colours on a light and on a dark background, and plotly's marker symbol."""

    light: str
    dark: str
    symbol: str


NEUTRAL_STYLE = Style(light="#4a6572", dark="#b0c4ce", symbol="hexagon")  # of methods without one


@dataclass(frozen=True, kw_only=True)
class Method:
    """One way to choose what each budget keeps.

    An entry holds plain values and functions, so it can be pickled: "module:name" and functions of a module travel as
    names, and the reader imports them.

    Attributes:
        name: lower-case letters, digits and hyphens; names of points and files begin with it.
        needs_search: it keeps what the search's gates keep; so it gets none of the search's compute on top.
        from_searched: retraining starts from the searched model and its gates, not from the dense model.
        fresh: `start` draws fresh weights by the point's seed.
        draws: `choose` draws by the point's seed, so each seed has a structure of its own.
        repaired: its points are cut on principal axes (search.axes) and repaired (retrain.repair).
        chained: its points may start from the next larger one's trained model (retrain.start: larger).
        always: part of every sweep; the others are compared with it where the configuration names them.
        choose: `choose(choice: Choice) -> list[Structure | ValueError]`, an entry per budget of `choice`: the structure, or
            the error that says why the method cannot meet the budget. None where the search's removal path tells.
        start: `start(source, structure, seed) -> nn.Module`, the model that retraining starts from. `source` is the dense
            model (the searched one where `from_searched`) and is left as it is. None cuts `source` to `structure`.
        check: `check(model, settings: Settings, budgets: Sequence[BudgetLike]) -> None`, raises RefusedInput where
            the method cannot work with a model, its settings or a budget: in one sentence that names method and model,
            says why and what to do. It runs before any training, on a model whose weights may be on the meta device.

    Raises:
        ValueError: the name has other characters; or the method has neither `choose` nor `needs_search`, or both; or it is
            `fresh` without `start`.
    """

    name: str
    style: Style = NEUTRAL_STYLE
    needs_search: bool = False
    from_searched: bool = False
    fresh: bool = False
    draws: bool = False
    repaired: bool = False
    chained: bool = False
    always: bool = False
    choose: Function | None = None
    start: Function | None = None
    check: Function | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", self.name):
            raise ValueError(
                f"a method is named {self.name!r}: use lower-case letters, digits and single hyphens, as in 'torch-pruning'"
            )
        if self.choose is None and not self.needs_search and not self.always:
            raise ValueError(
                f"method {self.name!r} chooses nothing: give it choose, or needs_search=True for what the search keeps"
            )
        if self.choose is not None and self.needs_search:
            raise ValueError(f"method {self.name!r} has both choose and needs_search: leave one of them out")
        if self.fresh and self.start is None:
            raise ValueError(f"method {self.name!r} is fresh: give it start, which draws its weights")

    @property
    def chooses(self) -> bool:
        """Whether it finds structures of its own."""
        return self.choose is not None


METHODS: dict[str, Method] = {}


def register(*methods: Method) -> None:
    """Add methods to the table; a method replaces an earlier one of the same name."""
    METHODS.update({method.name: method for method in methods})


register(
    Method(
        name="searched",
        always=True,
        needs_search=True,
        from_searched=True,
        repaired=True,
        chained=True,
        style=Style(light="#0b62b0", dark="#62aef0", symbol="circle"),
    ),
    Method(
        name="dense",
        always=True,
        chained=True,
        style=Style(light="#1d2024", dark="#f1f3f5", symbol="diamond"),
    ),
    Method(
        name="uniform",
        style=Style(light="#e2500c", dark="#cf6f10", symbol="square"),
        choose="slimsweep.methods.uniform:choose",
    ),
    Method(
        name="random",
        draws=True,
        style=Style(light="#7d7f83", dark="#8b949c", symbol="triangle-up"),
        choose="slimsweep.methods.random_order:choose",
    ),
    Method(
        name="taylor",
        style=Style(light="#10a86c", dark="#3fe6a0", symbol="triangle-down"),
        choose="slimsweep.methods.taylor:choose",
    ),
    Method(
        name="taylor-repaired",
        repaired=True,
        style=Style(light="#7d0868", dark="#a347a1", symbol="x"),
        choose="slimsweep.methods.taylor:choose",
    ),
    Method(
        name="scratch",
        needs_search=True,
        fresh=True,
        style=Style(light="#e368d0", dark="#d03a6c", symbol="cross"),
        start="slimsweep.methods.scratch:start",
    ),
    Method(
        name="small",
        fresh=True,
        style=Style(light="#6a1fd0", dark="#6a5cf5", symbol="pentagon"),
        choose="slimsweep.methods.small:choose",
        start="slimsweep.methods.small:start",
        check="slimsweep.methods.small:check",
    ),
    Method(
        name="torch-pruning",
        style=Style(light="#5f3d12", dark="#efd040", symbol="star"),
        choose="slimsweep.methods.torch_pruning:choose",
        check="slimsweep.methods.torch_pruning:check",
    ),
)

BUILT_IN = dict(METHODS)


def baselines() -> list[str]:
    """The names of the methods that a sweep can compare the search with."""
    return [name for name, method in METHODS.items() if not method.always]


def registered_beyond_built_in() -> list[Method]:
    """The methods that were added or replaced in this process: what another process has to `register` to know them too."""
    return [method for name, method in METHODS.items() if BUILT_IN.get(name) != method]


# What callers use, so that none of them asks for a method's name.


def choose(method: str, choice: "Choice") -> "list[Structure | ValueError]":
    """What a method keeps of the dense model at each budget; for a budget that it cannot meet, the error that says so.

    Raises:
        ValueError: the method finds no structures of its own, or returns another number of them than there are budgets.
    """
    entry = _entry(method)
    if entry.choose is None:
        raise ValueError(f"method {method!r} finds no structures of its own")
    found: list[Structure | ValueError] = list(_function(entry.choose)(choice))
    if len(found) != len(choice.budgets):
        raise ValueError(
            f"method {method!r} chose {len(found)} structures for {len(choice.budgets)} budgets: return one for each"
        )
    return found


def starting_model(method: str, source: "nn.Module", structure: "Structure", seed: int) -> "nn.Module":
    """The model that a point's retraining starts from.

    Args:
        source: the searched model with its gates where the method is `from_searched`, else the dense model; left as it is.
        structure: what the point keeps.
        seed: the point's; fresh weights are drawn from it.
    """
    start = _entry(method).start
    model: nn.Module
    if start is not None:
        model = _function(start)(source, structure, seed)
    else:
        from slimsweep.slimming.cut import slim

        model = slim(source, structure)
    return model


def check_method(method: str, model: "nn.Module", settings: "Settings", budgets: "Sequence[BudgetLike]") -> None:
    """Refuse a method that cannot work with a model, settings or budgets; weights are not looked at.

    Raises:
        RefusedInput: names method and model, says why and what to do.
    """
    check = _entry(method).check
    if check is not None:
        _function(check)(model, settings, budgets)


def extra_epochs(search_macs: float, searched_points: int, point_macs: float) -> int:
    """Epochs of retraining that cost as much as a point's share of the search ("on equal compute").

    The search trains the gated model, which costs what the dense one does, on the images that retraining sees too. So the
    number of images per epoch cancels, and so do backward passes, which cost the same multiple of forward passes in both.

    Args:
        search_macs: MACs of the whole search per training image: of the gated model in each of its epochs, of trying paces,
            and a third of the teacher's, which has no backward pass.
        searched_points: points that share the search equally: one per budget, or per point by shares. Seeds repeat them all.
        point_macs: MACs of one image through the point's model, and a third of those through its teacher.
    """
    return max(0, round(search_macs / (searched_points * point_macs)))


def _entry(name: str) -> Method:
    if name not in METHODS:
        raise ValueError(f"there is no method {name!r}; the methods are {', '.join(METHODS)}")
    return METHODS[name]


def _function(function: Function) -> Callable[..., Any]:
    """A function of a method, imported where it is given as "module:name"."""
    if not isinstance(function, str):
        return function
    module, _, name = function.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return found
