"""From a command line to a configuration: file < environment < command line, and --help.

SLIMSWEEP_SEARCH__EPOCHS=30 python -m slimsweep.run --config sweep.yaml --budgets 0.3,0.5,2.3G --search.lr 1e-3
"""

import argparse
import itertools
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsConfigDict

from slimsweep.config.fields import all_fields, branches, choices, descriptions, from_brackets, kinds, section_of
from slimsweep.config.fitting import FITTING
from slimsweep.config.messages import ConfigError, did_you_mean, sentence
from slimsweep.config.paths import with_absolute_paths
from slimsweep.config.schema import Config, put
from slimsweep.config.sections import ModelConfig
from slimsweep.config.yaml_text import in_one_line, read_yaml
from slimsweep.storage import joined

ENV_PREFIX = "SLIMSWEEP_"
FLAGS = ("smoke", "quick", "verbose")  # words of the command line without a value
MOST_MODELS = 100  # of one sweep


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the command line says beside the configuration."""

    smoke: bool = False  # the configuration that load_config returns is shrunk already
    quick: bool = False  # the configuration trains no point and searches nothing already
    verbose: bool = False
    # Fields that nobody set and that may follow the data (`fitting_defaults`). Empty under a preset, which speaks for all
    # fields, and with --smoke, which has values of its own.
    unset: frozenset[str] = frozenset()


def load_config(argv: Sequence[str], *, prog: str = "python -m slimsweep.run") -> tuple[Config, Options]:
    """`load_configs` where one model is wanted.

    Raises:
        ConfigError: anything in it that cannot work, and a list of models; the text is one sentence.
    """
    configs, options = load_configs(argv, prog=prog)
    if len(configs) > 1:
        raise ConfigError(f"model is a list of {len(configs)}, but {prog} takes one: keep one of them in a file of its own")
    return configs[0], options


def load_configs(argv: Sequence[str], *, prog: str = "python -m slimsweep.run") -> tuple[list[Config], Options]:
    """The configuration that a command line asks for: file or preset < environment < command line.

    Where `model` is a list, there is a configuration for each of its models, all else alike: the run of each is named after
    its model, in the folder that is the run's otherwise. Relative paths are made absolute, against the current folder.

    Args:
        argv: arguments after the program's name: `--config PATH_OR_PRESET` (default: digits), `--smoke`, `--quick`,
            `--verbose`, and `--FIELD VALUE` for every field. `--help` prints all of them and exits.
        prog: the program's name in the help.

    Raises:
        ConfigError: anything in it that cannot work; the text is one sentence.
    """
    if {"-h", "--help"} & set(argv):
        print(_help(prog))
        raise SystemExit(0)
    said, flags, source = _command_line(argv)
    layers = {**_read(source), "environment": _environment(), "command line": said}
    merged: dict[str, Any] = {}
    for name, layer in layers.items():
        merged = _merge(merged, layer, Config, text=name in ("environment", "command line"))
    try:
        configs = [with_absolute_paths(Config(**values)) for values in _bases(merged, "-smoke" if "smoke" in flags else "")]
    except ConfigError as refused:  # say it again, with the place where it was said
        cause = refused.__cause__
        raise (ConfigError(sentence(cause, Config, layers)) if isinstance(cause, ValidationError) else refused) from None
    spoken_for = "smoke" in flags or any(name in presets() for name in layers)
    unset = frozenset() if spoken_for else frozenset(name for name in FITTING if not _is_set(merged, name))
    options = Options(smoke="smoke" in flags, quick="quick" in flags, verbose="verbose" in flags, unset=unset)
    configs = [config.smoke() for config in configs] if options.smoke else configs
    return ([config.quick() for config in configs] if options.quick else configs), options


def _bases(merged: dict[str, Any], ending: str) -> list[dict[str, Any]]:
    """A configuration's values for each of its models, whose runs lie in a folder of the run's name and this ending."""
    models = merged.get("model")
    if not isinstance(models, list):
        return [merged]
    if not models or not all(isinstance(model, Mapping) for model in models):
        raise ConfigError("model is a list, of which each entry must be a model, such as [{name: deit_small_patch16_224}]")
    if len(models) > MOST_MODELS:
        raise ConfigError(f"model is a list of {len(models):,} models: give at most {MOST_MODELS}, the others to another run")
    group = Config(**{key: merged[key] for key in ("name", "output") if key in merged})
    names: list[str] = []
    for model in models:
        name = re.sub(r"[^A-Za-z0-9._-]", "-", str(model.get("name", ModelConfig().name)))
        numbered = (f"{name}-{number}" for number in itertools.count(2))
        names.append(name if name not in names else next(other for other in numbered if other not in names))
    output = joined(group.output, f"{group.name}{ending}")
    return [{**merged, "model": model, "output": output, "name": name} for model, name in zip(models, names, strict=True)]


def _is_set(merged: Mapping[str, Any], name: str) -> bool:
    """Whether the merged layers have a value for a field, also null; sections given as text are mappings there."""
    section: Any = merged
    for key in name.split("."):
        if not isinstance(section, Mapping) or key not in section:
            return False
        section = section[key]
    return True


# Not files("slimsweep.config.presets"): that imports the folder as a module, which takes the place of `presets` in the room.
PRESETS = files("slimsweep.config") / "presets"


def presets() -> list[str]:
    """Names of the presets: the configurations that come with slimsweep."""
    return sorted(f.name.removesuffix(".yaml") for f in PRESETS.iterdir() if f.name.endswith(".yaml"))


def preset_text(name: str) -> str:
    """The YAML text of a preset."""
    return PRESETS.joinpath(f"{name}.yaml").read_text()


def preset_config(name: str) -> Config:
    """The configuration of a preset alone, whatever the environment says."""
    merged: dict[str, Any] = {}
    for layer in _read(name).values():
        merged = _merge(merged, layer, Config)
    return Config(**merged)


# Layers.


def _read(source: str) -> dict[str, dict[str, Any]]:
    """A configuration's layers by name: what its `extends` names, where it has one, and itself."""
    content = _read_file(source)
    if "extends" not in content:
        return {source: content}
    base = content.pop("extends")
    if base not in presets():
        near = did_you_mean(str(base), presets(), f"name one of them: {', '.join(presets())}")
        raise ConfigError(f"extends is {base!r} (in {source}), which is no preset; {near}")
    below = _read_file(base)
    if "extends" in below:
        raise ConfigError(f"extends is {base!r} (in {source}), which extends {below['extends']!r} itself; extend that one")
    return {base: below, source: content}


def _read_file(source: str) -> dict[str, Any]:
    path = Path(source).expanduser()
    if source in presets():
        text = preset_text(source)
    else:
        try:
            text = path.read_text()
        except (OSError, UnicodeDecodeError) as problem:
            fix = did_you_mean(source, presets(), f"give a YAML file, or one of the presets: {', '.join(presets())}")
            reason = "is not there" if isinstance(problem, FileNotFoundError) else f"cannot be read ({problem})"
            raise ConfigError(f"the configuration {source!r} {reason}; {fix}") from None
    try:
        content = read_yaml(text)
    except yaml.YAMLError as problem:
        mark = getattr(problem, "problem_mark", None)
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        what = getattr(problem, "problem", None) or str(problem).splitlines()[0]
        raise ConfigError(f"{source} is not valid YAML{where}: {what}; fix that line") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{source} must hold fields and values such as 'budgets: [0.5]', not a {type(content).__name__}")
    return {str(key): value for key, value in content.items()}


def _environment() -> dict[str, Any]:
    """SLIMSWEEP_SEARCH__EPOCHS=50 and the like; values stay text."""

    class Environment(Config, BaseSettings):
        model_config = SettingsConfigDict(
            env_prefix=ENV_PREFIX, env_nested_delimiter="__", enable_decoding=False, protected_namespaces=()
        )

    known = list(Config.model_fields)
    for variable in os.environ:
        if variable.upper().startswith(ENV_PREFIX):
            first, *rest = variable[len(ENV_PREFIX) :].lower().split("__")
            fix = did_you_mean(first, known)
            if first not in known and (rest or fix):  # other variables of this prefix may be someone else's
                fix = fix or f"the fields are {', '.join(known)}"
                raise ConfigError(f"the environment variable {variable} names no field; {fix}")
    return EnvSettingsSource(Environment)()


def _command_line(argv: Sequence[str]) -> tuple[dict[str, Any], set[str], str]:
    """(what it sets, nested; flags; the configuration's source)."""
    fields = {name: field for name, field in all_fields(Config)}
    said: dict[str, Any] = {}
    flags: set[str] = set()
    source = "digits"
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.removeprefix("--").partition("=")
        free = next((f for f in fields if name.startswith(f"{f}.") and dict in kinds(fields[f].annotation)), None)
        if not word.startswith("--") or not (name in ("config", *FLAGS) or name in fields or free):
            fix = did_you_mean(name, [*fields, "config", *FLAGS], "--help lists all")
            raise ConfigError(f"unknown argument {word!r}; {fix}")
        if name in FLAGS:
            if equals:
                raise ConfigError(f"--{name} takes no value, got {value!r}; leave it out")
            flags.add(name)
            continue
        if not equals:
            is_flag = name in fields and bool in kinds(fields[name].annotation)
            if rest and not rest[0].startswith("--"):
                value = rest.pop(0)
            elif is_flag:
                value = "true"
            else:
                raise ConfigError(f"--{name} needs a value; write --{name} VALUE")
        if name == "config":
            source = value
        else:
            put(said, name.split("."), value)
    return said, flags, source


def _merge(below: Mapping[str, Any], above: Mapping[str, Any], section: type[BaseModel], text: bool = False) -> dict[str, Any]:
    """`above` over `below`: sections key by key; any other value replaces what is below it.

    Args:
        text: whether the values above are text, from environment or command line.
    """
    merged = dict(below)
    for key, value in above.items():
        annotation = section.model_fields[key].annotation if key in section.model_fields else None
        inner, old = section_of(annotation), merged.get(key)
        if inner:
            new = from_brackets(value)
            if isinstance(old, list) and isinstance(new, Mapping):
                said = ", ".join(f"{key}.{k}" for k in new)
                raise ConfigError(f"{key} is a list, and {said} does not say of which entry: write it in the list")
            if new is None and type(None) not in kinds(annotation):
                continue  # 'search:' with all its fields commented out
            parts = text and isinstance(value, Mapping)  # each of which is text; what stands in brackets has been read
            merged[key] = (
                _merge(old if isinstance(old, Mapping) else {}, new, inner, parts) if isinstance(new, Mapping) else new
            )
        elif dict in kinds(annotation) and isinstance(value, Mapping) and (isinstance(old, Mapping) or text):
            # Single keys of a free mapping, from environment or command line: as a whole it would be text.
            merged[key] = {
                **(old if isinstance(old, Mapping) else {}),
                **({k: _free_value(f"{key}.{k}", v) for k, v in value.items()} if text else value),
            }
        else:
            merged[key] = value
    return merged


def _free_value(name: str, value: Any) -> Any:
    """The value of a key of a free mapping, which text gives as YAML.

    Raises:
        ConfigError: the text is not YAML.
    """
    if not isinstance(value, str):
        return value
    try:
        return read_yaml(value)
    except yaml.YAMLError as problem:
        raise ConfigError(f"{name} is {value!r}, which is not YAML ({in_one_line(problem)}): put text in quotes") from problem


# Help.


def _type_in_words(annotation: Any) -> str:
    """An annotation in words of the help."""
    lists, parts = [], []
    for kind in branches(annotation):
        if get_origin(kind) is Literal:
            parts += [str(v) for v in get_args(kind)]
        elif get_origin(kind) is list and get_origin(get_args(kind)[0]) is not dict and (words := choices(kind)):
            lists.append(f"LIST of {'|'.join(map(str, words))}")
        elif get_origin(kind) is list:
            parts.append("LIST")
        elif get_origin(kind) is tuple:
            parts.append("X,Y" if len(get_args(kind)) == 2 and Ellipsis not in get_args(kind) else "X,...")
        elif get_origin(kind) is dict or section_of(kind):
            parts.append("MAPPING")
        else:
            names = {int: "N", float: "X", str: "TEXT", bool: "true|false", type(None): "null"}
            parts.append(names.get(kind, "VALUE"))
    return " or ".join([*lists, *(["|".join(parts)] if parts else [])])


def _help(prog: str) -> str:
    parser = argparse.ArgumentParser(
        prog=prog,
        usage=f"{prog} [--config FILE_OR_PRESET] [--smoke] [--quick] [--verbose] [--FIELD VALUE ...]",
        description="Search a vision transformer once, cut and retrain it at every budget. "
        "Command-line options override environment variables (SLIMSWEEP_SEARCH__EPOCHS=50), which override the configuration "
        "file. Without --config they modify the preset digits. A field that none of them sets has the default shown here; "
        "without a preset, batch size, epochs, warm-up, random crop and learning rates follow the data where images are few or "
        "weights pretrained (docs/configuration.md). "
        "Dense is the model before anything is cut; a point is one model of the results: one method, budget and seed. Gates "
        "are the switches that the search learns, in three families: attention, mlp and token.",
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=42, width=120),
    )
    parser.add_argument(
        "--config",
        metavar="FILE_OR_PRESET",
        help=f"YAML file, which may start from a preset (extends: NAME), or a preset: {', '.join(presets())} (default: digits)",
    )
    parser.add_argument("--version", action="store_true", help="print slimsweep's version")
    parser.add_argument("--smoke", action="store_true", help="shrink the run to about a minute")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="all budgets in minutes: gates are ranked without a search, models are cut and repaired, and not retrained "
        "(search.epochs, search.recovery and retrain.epochs are 0; baselines with fresh weights are left out). With --smoke on "
        "few images. Start the same run with --search.epochs 0 to add trained points later",
    )
    parser.add_argument("--verbose", action="store_true", help="show Ray's own log, and whole tracebacks")
    groups: dict[str, Any] = {"": parser.add_argument_group("the run")}
    said = descriptions(Config)
    for name, field in all_fields(Config):
        text = said[name].replace("%", "%%")
        if section_of(field.annotation):
            groups[name] = parser.add_argument_group(name, text)
            if type(None) not in kinds(field.annotation):
                continue
            groups[name].add_argument(
                f"--{name}", metavar="MAPPING|null", help="all of it, as {FIELD: VALUE, ...}; null for off"
            )
            continue
        if not field.is_required():
            default = field.get_default(call_default_factory=True)
            text += f" (default: {json.dumps(default, default=BaseModel.model_dump)})".replace("%", "%%")
        groups[name.rpartition(".")[0]].add_argument(f"--{name}", metavar=_type_in_words(field.annotation), help=text)
    return parser.format_help()
