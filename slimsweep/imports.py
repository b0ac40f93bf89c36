"""The load of torch and timm, for which a process needs seconds. Light to import."""

import atexit
import gc
import importlib
import sys

UNUSED = "wandb"


def load_timm() -> None:
    """Load torch and timm, unless they are loaded, and look for no garbage meanwhile: that takes a quarter of the time.

    Without Weights & Biases: where it is installed, timm would load it for its own training script, and that takes longer than
    timm's own modules. Who needs it imports it later.
    """
    if "timm" in sys.modules:
        return
    collects, hides = gc.isenabled(), UNUSED not in sys.modules
    gc.disable()
    if hides:
        sys.modules[UNUSED] = None  # type: ignore[assignment]  # an import of it raises ImportError, which timm expects
    try:
        importlib.import_module("timm")
        gc.freeze()  # later collections leave alone what stays as long as the process
        atexit.register(gc.unfreeze)  # libraries warn of what is left when Python takes its modules apart
    finally:
        if hides:
            sys.modules.pop(UNUSED, None)
        if collects:
            gc.enable()
