"""Search a vision transformer once, cut it to every compute budget, and see the accuracy each budget costs.

The names below are the library; each is imported when it is first used. Importing slimsweep also lets timm know cut models,
so that `timm.create_model("local-dir:PATH", pretrained=True)` loads what `save` wrote.
"""

import importlib
from typing import TYPE_CHECKING, Any

from slimsweep.slimming.timm_entry import register_with_timm

if TYPE_CHECKING:
    from slimsweep.saved_models import load
    from slimsweep.slimming.axes import principal_axes
    from slimsweep.slimming.budget import BudgetError
    from slimsweep.slimming.cut import slim
    from slimsweep.slimming.gates import add_gates
    from slimsweep.slimming.hub import save
    from slimsweep.slimming.reconstruction import repair
    from slimsweep.slimming.removal_path import solve
    from slimsweep.slimming.scores_from_images import activation_scores
    from slimsweep.slimming.structure import Structure, macs, params

__version__ = "0.1.0"

__all__ = [
    "BudgetError",
    "Structure",
    "activation_scores",
    "add_gates",
    "load",
    "macs",
    "params",
    "principal_axes",
    "repair",
    "save",
    "slim",
    "solve",
]

_HOME = {
    "BudgetError": "slimming.budget",
    "Structure": "slimming.structure",
    "activation_scores": "slimming.scores_from_images",
    "add_gates": "slimming.gates",
    "load": "saved_models",
    "macs": "slimming.structure",
    "params": "slimming.structure",
    "principal_axes": "slimming.axes",
    "repair": "slimming.reconstruction",
    "save": "slimming.hub",
    "slim": "slimming.cut",
    "solve": "slimming.removal_path",
}  # the module of each name: they load torch and timm, which `--help` should not wait for


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


register_with_timm()
