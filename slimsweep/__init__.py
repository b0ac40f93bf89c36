"""Search a vision transformer once, cut it to every FLOPs budget, and see the accuracy each budget costs.

The names below are the library; importing them also registers cut models with timm, so that
`timm.create_model("local-dir:PATH", pretrained=True)` loads what `save` wrote.
"""

__version__ = "0.1.0"

from slimsweep.budget import BudgetError, solve
from slimsweep.gates import add_gates
from slimsweep.structure import Structure, macs, params
from slimsweep.surgery import load, save, slim

__all__ = ["BudgetError", "Structure", "add_gates", "load", "macs", "params", "save", "slim", "solve"]
