"""Search a vision transformer once, cut it to every FLOPs budget, and see the accuracy each budget costs."""

__version__ = "0.1.0"
