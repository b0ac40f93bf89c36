"""Search a vision transformer once, cut it to every FLOPs budget, and see the accuracy each budget costs.

The names below are the library; importing them also registers cut models with timm, so that
`timm.create_model("local-dir:PATH", pretrained=True)` loads what `save` wrote.
"""

__version__ = "0.1.0"

from slimsweep.saved_models import load
from slimsweep.slimming.cut import slim
from slimsweep.slimming.gates import add_gates
from slimsweep.slimming.hub import save
from slimsweep.slimming.removal_path import BudgetError, solve
from slimsweep.slimming.structure import Structure, macs, params

__all__ = ["BudgetError", "Structure", "add_gates", "load", "macs", "params", "save", "slim", "solve"]
