"""The configuration of a sweep: typed sections, read from a YAML file, the environment and the command line.

Light to import (no torch).
"""

from slimsweep.config.fitting import FITTING, Fitted, fitting_defaults
from slimsweep.config.identity import Stage, changed_keys, checkpoint_token, with_earlier_ways
from slimsweep.config.latency import Latency
from slimsweep.config.load import Options, load_config, load_configs, preset_config, preset_text, presets
from slimsweep.config.messages import ConfigError, Refusals, did_you_mean
from slimsweep.config.paths import check_places, refuse_rays_copy, refused_places
from slimsweep.config.schema import Config, Terms
from slimsweep.config.sections import (
    L1,
    Affine,
    Augment,
    DataConfig,
    Dense,
    Distill,
    Family,
    Floors,
    ModelConfig,
    Pace,
    Probe,
    Recipe,
    Resources,
    Retrain,
    Search,
    TeacherModel,
)
from slimsweep.config.tracking import Tracking

__all__ = [
    "FITTING",
    "L1",
    "Affine",
    "Augment",
    "Config",
    "ConfigError",
    "DataConfig",
    "Dense",
    "Distill",
    "Family",
    "Fitted",
    "Floors",
    "Latency",
    "ModelConfig",
    "Options",
    "Pace",
    "Probe",
    "Recipe",
    "Refusals",
    "Resources",
    "Retrain",
    "Search",
    "Stage",
    "TeacherModel",
    "Terms",
    "Tracking",
    "changed_keys",
    "check_places",
    "checkpoint_token",
    "did_you_mean",
    "fitting_defaults",
    "load_config",
    "load_configs",
    "preset_config",
    "preset_text",
    "presets",
    "refuse_rays_copy",
    "refused_places",
    "with_earlier_ways",
]
