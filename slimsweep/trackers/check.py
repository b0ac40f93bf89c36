"""Which modules the trackers of a configuration are, and what is refused before a run."""

import importlib
import importlib.util
from types import ModuleType

from slimsweep.config import Config, ConfigError, Refusals


def module_of(name: str) -> ModuleType:
    """The module of a tracker, which loads its package only when it connects."""
    return importlib.import_module(f"slimsweep.trackers.{name}")


def check_trackers(config: Config) -> None:
    """Refuse trackers whose package is missing, or that cannot work with these settings. No server is asked: one that does
    not answer must not stop a run.

    Raises:
        ConfigError: says what to install or to set.
    """
    refusals = Refusals()
    for name in config.trackers:
        with refusals.kept():
            module = module_of(name)
            if importlib.util.find_spec(module.PACKAGE) is None:
                raise ConfigError(
                    f"trackers names {name}, but the package {module.PACKAGE} is not installed: pip install {module.PACKAGE} "
                    f"(slimsweep's extra [{name}] has it), or leave {name} out"
                )
            module.check(config)
    refusals.raise_all()
