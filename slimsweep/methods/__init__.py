"""The table of methods: every way to choose what a budget keeps, each one entry here and one file beside it.

Light to import (no torch): the configuration, the results and the page read names, flags and styles from here; the functions
are found when they are called.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Function = str | Callable[..., Any]  # a function, or "module:name" of one that is imported when it is first called


@dataclass(frozen=True, kw_only=True)
class Style:
    """How the page and the picture draw a method: colours on a light and on a dark background, and plotly's marker symbol."""

    light: str
    dark: str
    symbol: str


@dataclass(frozen=True, kw_only=True)
class Method:
    """One way to choose what each budget keeps."""

    name: str
    style: Style
    needs_search: bool = False  # keeps what the search's gates keep, so it gets none of the search's compute
    fresh: bool = False  # starts from fresh weights, drawn by the point's seed
    draws: bool = False  # chooses by drawing: each seed has a structure of its own
    chained: bool = False  # its points may start from the next larger one's model (retrain.start: larger)
    choose: Function | None = None  # the structures at some budgets; None where the removal path of the search gives them
    start: Function | None = None  # the model that retraining starts from; None cuts the dense (or searched) model
    check: Function | None = None  # refuses models and settings that the method cannot work with, before cluster time

    @property
    def chooses(self) -> bool:
        """Whether it finds structures of its own."""
        return self.choose is not None


def call(function: Function, *arguments: Any, **options: Any) -> Any:
    """Call a function of a method, which may be given by name."""
    if isinstance(function, str):
        module, _, name = function.partition(":")
        function = getattr(importlib.import_module(module), name)
    return function(*arguments, **options)


METHODS: dict[str, Method] = {}


def register(*methods: Method) -> None:
    """Add methods to the table; one of the same name takes the other's place."""
    METHODS.update({method.name: method for method in methods})


register(
    Method(
        name="searched",
        needs_search=True,
        chained=True,
        style=Style(light="#0b62b0", dark="#62aef0", symbol="circle"),
    ),
    Method(
        name="dense",
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


def baselines() -> list[str]:
    """The names of the methods that a sweep can compare the search with."""
    return [name for name in METHODS if name not in ("searched", "dense")]
