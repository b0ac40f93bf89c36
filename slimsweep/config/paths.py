"""Local paths in a configuration: absolute, so that they mean the same to the driver, its workers and a later start.

Workers of Ray run in folders of their own, where a relative path names something else.
"""

import itertools
import os
from pathlib import Path

from slimsweep.config.messages import ConfigError, Refusals
from slimsweep.config.schema import Config

LOCAL_MODEL = "local-dir:"  # timm's prefix of a model's name that is a folder
RAYS_FOLDER, RAYS_COPIES = "runtime_resources", ("working_dir_files", "py_modules_files")  # in the folder of Ray's session


def with_absolute_paths(config: Config) -> Config:
    """The configuration with every local path absolute: output, data.root, those of probe, model, teacher, latency and
    tracking."""
    data, model = config.data, config.model
    of_data = {"root": _absolute(data.root), "name": _name_of_data(data.name)}
    probe = config.probe
    if probe is not None:
        probe = probe.model_copy(update={"root": _absolute(probe.root), "name": _name_of_data(probe.name)})
    of_model = {"checkpoint": _absolute(model.checkpoint), "name": _name_of_model(model.name)}
    teachers = [
        one.model_copy(update={"checkpoint": _absolute(one.checkpoint), "name": one.name and _name_of_model(one.name)})
        for one in config.teachers
    ]
    return config.model_copy(
        update={
            "output": _absolute(config.output),
            "data": data.model_copy(update=of_data),
            "probe": probe,
            "model": model.model_copy(update=of_model),
            "teacher": teachers[0] if len(teachers) == 1 else teachers or None,
            "latency": config.latency and config.latency.model_copy(update={"table": _absolute(config.latency.table)}),
            "tracking": config.tracking.model_copy(update={"tensorboard": _absolute(config.tracking.tensorboard)}),
        }
    )


def _name_of_model(name: str) -> str:
    """timm's name of a model, of which local-dir: names a folder."""
    return f"{LOCAL_MODEL}{_absolute(name.removeprefix(LOCAL_MODEL))}" if name.startswith(LOCAL_MODEL) else name


def _absolute(path: str | None) -> str | None:
    """A local path against the current folder, with ~ expanded; URLs and commands (pipe:) as they are."""
    if path is None or "://" in path or path.startswith(("pipe:", "file:")):
        return path
    there = os.path.join(os.getcwd(), os.path.expanduser(path))
    plain = os.path.abspath(there)
    # Behind a symbolic link, .. is another folder than the text says.
    return plain if os.path.realpath(plain) == os.path.realpath(there) else there


def _name_of_data(name: str) -> str:
    """The name of a data set, of which that of Hugging Face may be a local folder."""
    prefix, slash, rest = name.partition("/")
    if slash and prefix.lower() in ("hfds", "hfids") and Path(rest).expanduser().is_dir():
        return f"{prefix}/{_absolute(rest)}"
    return name


def in_rays_copy(path: str) -> bool:
    """Whether a local path lies in a copy that Ray made of a job's working directory, which Ray deletes."""
    parts = Path(os.path.realpath(os.path.expanduser(path))).parts
    return any(one == RAYS_FOLDER and two in RAYS_COPIES for one, two in itertools.pairwise(parts))


def refuse_rays_copy(field: str, path: str, gives: str = "--output s3://bucket/sweeps") -> None:
    """Refuse to write results where Ray keeps copies of working directories.

    Args:
        field: what names the path.
        path: a local path, or a URL.
        gives: what to say instead.

    Raises:
        ConfigError: the path lies in such a copy.
    """
    local = path.removeprefix("file://")
    if "://" not in local and in_rays_copy(local):
        raise ConfigError(
            f"{field} is {path}, in Ray's own copy of the working directory, which Ray deletes after the job, and a job with "
            f"one changed file has another copy: give a folder that all nodes share, or an object store, such as {gives}"
        )


def check_places(config: Config) -> None:
    """Refuse a job whose results would be lost with Ray's copy of its working directory, or whose files did not come along.

    Raises:
        ConfigError: names the fields, and what to give.
    """
    refusals = Refusals()
    for _, problem in refused_places(config):
        with refusals.kept():
            raise problem
    refusals.raise_all()


def refused_places(config: Config) -> list[tuple[str, ConfigError]]:
    """What `check_places` refuses: each field whose path it is, and why."""
    found: list[tuple[str, ConfigError]] = []
    try:
        refuse_rays_copy("output", config.output)
    except ConfigError as problem:
        found.append(("output", problem))
    others = [("teacher.checkpoint", one.checkpoint) for one in config.teachers]
    others += [] if config.probe is None else [("probe.root", config.probe.root)]
    for field, path in (("data.root", config.data.root), ("model.checkpoint", config.model.checkpoint), *others):
        if path is not None and "://" not in path and in_rays_copy(path) and not os.path.exists(path):
            said = (
                f"{field} is {path}, which did not come along with the job's working directory (at most 100 MiB, without what "
                ".gitignore and .rayignore name): give the absolute path of a place that all nodes see"
            )
            found.append((field, ConfigError(said)))
    return found
