"""What `import slimsweep` gives, and that it waits for nothing."""

import subprocess
import sys

import pytest

import slimsweep


def test_every_public_name_is_there_and_listed() -> None:
    for name in slimsweep.__all__:
        assert getattr(slimsweep, name).__name__ == name
    assert set(slimsweep.__all__) <= set(dir(slimsweep))
    assert set(slimsweep.__all__) == set(slimsweep._HOME)
    with pytest.raises(AttributeError, match="has no attribute 'slimm'"):
        slimsweep.slimm  # noqa: B018


@pytest.mark.parametrize("module", ["slimsweep", "slimsweep.config", "slimsweep.errors", "slimsweep.methods", "slimsweep.run"])
def test_light_modules_load_neither_torch_nor_timm_nor_ray_nor_pandas(module: str) -> None:
    code = f"import sys, {module}; print(*(m for m in ('torch', 'timm', 'ray', 'pandas') if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


def test_a_star_import_gives_the_public_names() -> None:
    code = "from slimsweep import *; print(solve.__module__, Structure.__module__, 'slimmed_vit' in globals())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.split() == ["slimsweep.slimming.removal_path", "slimsweep.slimming.structure", "False"], done.stderr


def test_timm_is_loaded_without_what_takes_long_for_nothing() -> None:
    """A search for garbage, and W&B: what stays is left alone by later searches, and these go on as before."""
    code = """
import gc, sys
from slimsweep.imports import load_timm

def searches():
    return sum(generation["collections"] for generation in gc.get_stats())

before = searches()
load_timm()
meanwhile, frozen = searches() - before, gc.get_freeze_count()
load_timm()
print("timm" in sys.modules, gc.isenabled(), meanwhile, frozen > 100_000, gc.get_freeze_count() <= frozen)
gc.disable()
load_timm()
print(gc.isenabled(), "wandb" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.split() == ["True", "True", "0", "True", "True", "False", "False"], done.stderr
    assert not done.stderr
