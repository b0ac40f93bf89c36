"""The load of torch and timm, for which a process needs seconds. Light to import."""

import atexit
import gc
import importlib
import sys


def load_timm() -> None:
    """Load torch and timm, unless they are loaded, and look for no garbage meanwhile: that takes a quarter of the time."""
    if "timm" in sys.modules:
        return
    collects = gc.isenabled()
    gc.disable()
    try:
        importlib.import_module("timm")
        gc.freeze()  # later collections leave alone what stays as long as the process
        atexit.register(gc.unfreeze)  # libraries warn of what is left when Python takes its modules apart
    finally:
        if collects:
            gc.enable()
