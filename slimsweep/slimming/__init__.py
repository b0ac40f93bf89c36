"""Slimming: gates on a timm vision transformer, what a budget leaves of them, the cut, the saved model. torch and timm alone.

The names below are what other rooms and users need; each is imported when it is first used, so that
`slimsweep.slimming.budget` loads no torch.

| file | what it holds |
| --- | --- |
| `shape.py`, `structure.py`, `kept_masks.py` | a model's sizes; what is kept of it, as tensors and as arrays |
| `cost.py`, `budget.py` | what that costs (MACs, parameters), and how a budget is written |
| `architectures.py`, `eva_attention.py`, `dense_shape.py` | the timm models that can be cut, one entry each, and their sizes |
| `gates.py`, `gate_families.py`, `gate_modules.py`, `gate_optimizer.py` | gates, their families, modules and training |
| `gate_values.py` | gates as they are read |
| `wrapped_models.py`, `plain_layers.py` | what may be around a model, and what its layers must be |
| `weightless.py` | models that are built and counted without weights |
| `removal_order.py`, `removal_path.py` | the order in which gates leave, and the structure that a budget leaves |
| `scores_from_images.py` | a ranking of gates without a search, from images without labels |
| `axes.py` | attention heads turned into their principal axes, before gates are put on |
| `cut.py`, `reconstruction.py` | the smaller model, and what its linear layers can make up for |
| `hub.py`, `read_back.py`, `folder_swap.py` | a model's folder on disk, checked and replaced whole |
| `argument_values.py`, `timm_*.py` | arguments as JSON, what timm does at loading |
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from slimsweep.slimming.axes import principal_axes
    from slimsweep.slimming.budget import Budget, BudgetError
    from slimsweep.slimming.cost import COSTS
    from slimsweep.slimming.cut import slim
    from slimsweep.slimming.gate_optimizer import GateOptimizer, GateTraining
    from slimsweep.slimming.gates import GatedModel, add_gates
    from slimsweep.slimming.hub import load, save
    from slimsweep.slimming.reconstruction import repair
    from slimsweep.slimming.removal_path import RemovalPath, solve
    from slimsweep.slimming.scores_from_images import activation_scores
    from slimsweep.slimming.shape import Shape
    from slimsweep.slimming.structure import Structure, macs, params

__all__ = [
    "COSTS",
    "Budget",
    "BudgetError",
    "GateOptimizer",
    "GateTraining",
    "GatedModel",
    "RemovalPath",
    "Shape",
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

_MODULES = {
    "COSTS": "cost",
    "Budget": "budget",
    "BudgetError": "budget",
    "GateOptimizer": "gate_optimizer",
    "GateTraining": "gate_optimizer",
    "GatedModel": "gates",
    "RemovalPath": "removal_path",
    "Shape": "shape",
    "Structure": "structure",
    "activation_scores": "scores_from_images",
    "add_gates": "gates",
    "load": "hub",
    "macs": "structure",
    "params": "structure",
    "principal_axes": "axes",
    "repair": "reconstruction",
    "save": "hub",
    "slim": "cut",
    "solve": "removal_path",
}  # where each name is


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
