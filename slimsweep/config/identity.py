"""What makes two results comparable: the values that count, under names that do not change with a new version of slimsweep.

Points are named after these values, so a name must stay the same when slimsweep gains a setting. `identity_v1.yaml` lists the
fields that counted when the names were fixed: those always count. A field that a later version adds counts only where it is not
at its default, which therefore must mean "as before"; where it does not, AS_BEFORE holds the value that does, with which runs
of earlier versions go on. A renamed field keeps its first name here (RENAMED).
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from functools import cache, lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from slimsweep.config.fields import listed_section, section_of
from slimsweep.config.messages import ConfigError

Stage = Literal["dense", "search", "retrain"]
STAGES: tuple[Stage, ...] = ("dense", "search", "retrain")

FIRST_STAGE: dict[str, Stage | None] = {
    # Places and schedules, which change no result.
    **dict.fromkeys(("name", "output", "resources", "probe", "trackers", "tracking"), None),
    "latency": None,  # the name of a point whose budget is in ms tells the setting (ledger/latencies.py)
    **dict.fromkeys(("data.workers", "data.root", "data.eval_batch_size", "data.max_damaged"), None),
    # What points there are: each point's own name tells its budget, shares, method and seed.
    **dict.fromkeys(
        (
            "budgets",
            "shares",
            "baselines",
            "baseline_terms",
            "retrain.seeds",
            "retrain.workers_per_trial",
            "retrain.compare_rates",
            "retrain.stopping",
            "retrain.grace_epochs",
            "retrain.reduction_factor",
        ),
        None,
    ),
    "search": "search",
    "retrain": "retrain",
    "teacher": "search",  # or "retrain", where the search does not learn from it
    # How gates become a structure, once the search is done.
    **dict.fromkeys(("search.depth", "search.floors", "search.paces", "search.recovery", "search.round_to"), "retrain"),
}  # the first stage whose result a field changes, None for no stage; what is not named here changes the dense model already

CUT = "cut"  # where the fields of the search that only change the cut stand in an identity

RENAMED: dict[
    str, str
] = {}  # a field's dotted name now -> its name in identity_v1.yaml; a section's name renames what is in it


AS_BEFORE: dict[str, Any] = {
    "search.axes": False,
    "retrain.repair": False,
    "retrain.repair_target": "branch",
}  # fields that came later and are on by default -> the value that means what earlier versions did, which counts for nothing
EARLIER_DEFAULTS: dict[str, Any] = {
    **AS_BEFORE,
    "search.epochs": 50,
}  # and those that always counted, whose default has changed -> the default that runs of earlier versions began with


def identity(
    config: BaseModel, stage: Stage, checkpoint: str | None = None, teachers: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """All that changes the result of a stage, and nothing else, as nested dicts of JSON values.

    Args:
        config: the whole configuration (`Config`).
        checkpoint: what stands for the file of model.checkpoint, where there is one; its path where not given.
        teachers: by path, what stands for the files of teacher.checkpoint; their paths where not given.
    """
    values = _values(type(config), config.model_dump(mode="json"))
    if checkpoint is not None and values["model.checkpoint"] is not None:
        values["model.checkpoint"] = checkpoint
    members = values.get("teacher") or []
    for entry, key in [(values, "teacher.checkpoint"), *((one, "checkpoint") for one in members if isinstance(members, list))]:
        if entry.get(key) is not None:
            entry[key] = (teachers or {}).get(entry[key], entry[key])
    counted: dict[str, Any] = {}
    for name, value in values.items():
        first = next((FIRST_STAGE[above] for above in _ancestry(name) if above in FIRST_STAGE), "dense")
        if name.partition(".")[0] == "teacher" and not values["search.distill.alpha"] and values["data.num_classes"] != 0:
            first = "retrain"  # a backbone's search learns from it always
        if first is not None and STAGES.index(first) <= STAGES.index(stage):
            only_cut = first == "retrain" and name.startswith("search.")
            counted[name.replace("search", CUT, 1) if only_cut else name] = value
    return _nested(counted)


def with_current_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration's values, of which an earlier version or an older file calls some by their first names (RENAMED)."""
    found = dict(values)
    for now, first in RENAMED.items():
        *above, key = first.split(".")
        section: Any = found
        for name in above:  # copies, on the way: what was given stays as it is
            if not isinstance(section.get(name), Mapping):
                break
            section[name] = dict(section[name])
            section = section[name]
        else:
            if key in section:
                value = section.pop(key)
                *above, key = now.split(".")
                section = found
                for name in above:
                    section = section.setdefault(name, {})
                section.setdefault(key, value)
    return found


def with_earlier_ways(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a configuration that a run stored: what its version did not know yet is as it was then (AS_BEFORE)."""
    found = dict(values)
    for name, value in AS_BEFORE.items():
        section, key = name.split(".")
        if isinstance(inner := found.get(section), Mapping):
            found[section] = {key: value, **inner}
    return found


def fingerprint(
    config: BaseModel, stage: Stage, checkpoint: str | None = None, teachers: Mapping[str, str] | None = None
) -> str:
    """A hash of an identity: ten hex digits, the same on every machine and in every version."""
    text = json.dumps(identity(config, stage, checkpoint, teachers), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def changed_keys(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Dotted names of the fields in which two identities differ, as the configuration calls them now."""
    now = {first: name for name, first in RENAMED.items()}
    names = []
    for difference in _differences(a, b):
        name = difference.replace(CUT, "search", 1) if difference.startswith(f"{CUT}.") else difference
        first = next((first for first in _ancestry(name) if first in now), None)
        names.append(name if first is None else now[first] + name.removeprefix(first))
    return names


def checkpoint_token(path: str | os.PathLike[str], field: str = "model.checkpoint") -> str:
    """The token of a checkpoint in an identity: `sha256:` and 16 hex digits of the file's content, wherever the file lies.

    Of a folder in timm's hub format it is that of its weights. A file is read once for as long as its size and time of change
    stay as they are.

    Args:
        field: what names the path, for messages.

    Raises:
        ConfigError: the file cannot be read.
    """
    local = Path(path).expanduser()
    if local.is_dir():
        local = next((local / name for name in ("model.safetensors", "pytorch_model.bin") if (local / name).is_file()), local)
    try:
        known = local.stat()
        return _content_token(str(local.resolve()), known.st_mtime_ns, known.st_size)
    except OSError as problem:
        raise ConfigError(f"{field} is {str(path)!r}, which cannot be read ({problem.strerror}): fix the path") from problem


@lru_cache(maxsize=64)
def _content_token(path: str, changed: int, size: int) -> str:
    with open(path, "rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()[:16]}"


@cache
def frozen() -> dict[str, Any]:
    """The fields that always count: dotted name -> default. Entries of a list of sections go by the list's name."""
    text = files("slimsweep.config").joinpath("identity_v1.yaml").read_text()
    table: dict[str, Any] = yaml.safe_load(text)
    return table


@cache
def _frozen_sections() -> frozenset[str]:
    return frozenset(above for name in frozen() for above in _ancestry(name) if above not in frozen())


def _ancestry(name: str) -> list[str]:
    """A dotted name and those of the sections around it, the innermost first: a.b.c, a.b, a."""
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(len(parts), 0, -1)]


def _first_name(name: str) -> str:
    """The name that a field counts under: what it was called when the names were fixed, or since it is there."""
    renamed = next((now for now in _ancestry(name) if now in RENAMED), None)
    return name if renamed is None else RENAMED[renamed] + name.removeprefix(renamed)


def _values(section: type[BaseModel], values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """What counts of a section: dotted first name -> value; {} beside the names in it says that a section is there.

    Args:
        values: the section's, as JSON values.
        prefix: its dotted name with a point at its end, "" for the whole configuration.
    """
    found = dict(_counted(section, values, prefix))
    under = f"{_first_name(prefix[:-1])}." if prefix else ""
    for name, default in frozen().items():  # a field that is gone counts as if it were at its default
        optional = next((above for above in _ancestry(name)[1:] if above in frozen() and above.startswith(under)), None)
        if name.startswith(under) and (optional is None or isinstance(found[optional], Mapping)):
            found.setdefault(name, default)
    return found


def _counted(section: type[BaseModel], values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, field in section.model_fields.items():
        name, value = f"{prefix}{key}", values[key]
        first = _first_name(name)
        usual = None if field.is_required() else field.get_default(call_default_factory=True)
        default = AS_BEFORE.get(name, to_jsonable_python(usual))
        if first not in frozen() and first not in _frozen_sections() and value == default:
            continue
        inner, entry = section_of(field.annotation), listed_section(field.annotation)
        if inner is not None and isinstance(value, Mapping):
            yield first, {}
            yield from _counted(inner, value, f"{name}.")
        elif entry is not None and isinstance(value, list):
            entries = (_values(entry, one, f"{name}.") for one in value)
            yield first, [_nested({n.removeprefix(f"{first}."): v for n, v in one.items()}) for one in entries]
        else:
            yield first, value


def _nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """{"a.b": 1, "a.c": 2} as {"a": {"b": 1, "c": 2}}."""
    tree: dict[str, Any] = {}
    for name, value in values.items():
        *above, key = name.split(".")
        node = tree
        for part in above:
            node = node.setdefault(part, {})
        node[key] = {**value, **node.get(key, {})} if isinstance(value, Mapping) else value
    return tree


def _differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[str]:
    """Dotted names of what differs between two nested dicts."""
    for key in [*a, *(key for key in b if key not in a)]:
        # A section that came later is missing where all of it is at its defaults.
        one, other = a.get(key, {}), b.get(key, {})
        if isinstance(one, Mapping) and isinstance(other, Mapping) and (one or other):
            yield from (f"{key}.{name}" for name in _differences(one, other))
        elif key not in a or key not in b or one != other:
            yield key
