"""A sweep as a page or program asks for it, and what is wrong with it: the same check and sentences as the command line's."""

import json
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field

from slimsweep.config import Config, ConfigError, load_configs, preset_config, preset_text, presets
from slimsweep.config.fields import all_fields, descriptions, kinds
from slimsweep.config.messages import SeveralRefused

CONFIG_FILE = "sweep.yaml"  # what the command calls the text
LARGEST = 64 * 1024  # characters of a configuration
DEEPEST = 32  # levels of nesting
NAMES = frozenset(name for name, _ in all_fields(Config))
OUTPUT = "output"  # always the folder that the service shows

Text = Annotated[str, Field(max_length=4096)]


class AskedSweep(BaseModel):
    """What a sweep is started with: a preset or a text, and single fields over it, as `--FIELD VALUE` would set them."""

    model_config = ConfigDict(extra="forbid")

    preset: Text = "digits"
    text: Annotated[str, Field(max_length=4 * LARGEST)] = ""  # YAML; where it is not empty, it takes the preset's place
    fields: Annotated[dict[Text, Text], Field(max_length=200)] = {}
    smoke: bool = False
    quick: bool = False

    @property
    def files(self) -> dict[str, str]:
        """The files that the command reads, by name."""
        return {CONFIG_FILE: self.text} if self.text.strip() else {}

    def words(self, output: str) -> list[str]:
        """The arguments of `python -m slimsweep.run`."""
        config = CONFIG_FILE if self.text.strip() else self.preset
        flags = [f"--{flag}" for flag in ("smoke", "quick") if getattr(self, flag)]
        return [
            "--config",
            config,
            *(f"--{name}={value}" for name, value in self.fields.items()),
            *flags,
            f"--{OUTPUT}={output}",
        ]


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing that cannot work."""

    sentence: str
    field: str = ""  # its dotted name; empty where it is about no single field
    line: int | None = None  # in the text, from 1


@dataclass(frozen=True, kw_only=True)
class Looked:
    """What became of a look at a sweep."""

    problems: list[Problem]
    run: str = ""  # the run's name in the output folder; of several models that of their folder
    configs: Sequence[Config] = ()


def look(asked: AskedSweep, output: str) -> Looked:
    """Read a sweep as `python -m slimsweep.run` would, without starting anything. Models and images are not looked at.

    Args:
        output: the folder that run folders go to.
    """
    if problems := _refused_words(asked) or refused_text(asked.text):
        return Looked(problems=problems)
    with tempfile.TemporaryDirectory(prefix="slimsweep-") as folder:
        path = Path(folder, CONFIG_FILE)
        path.write_text(asked.text, encoding="utf-8")
        words = [str(path) if word == CONFIG_FILE else word for word in asked.words(output)]
        try:
            configs, _ = load_configs(words)
        except ConfigError as refused:
            sentences = [said.replace(str(path), CONFIG_FILE) for said in sentences_of(refused)]
            return Looked(problems=problems_of(sentences, asked.text))
    grouped = len(configs) > 1 or configs[0].output != Config(output=output).output
    name = configs[0].output.rstrip("/").rpartition("/")[2] if grouped else configs[0].name
    return Looked(problems=[], run=name, configs=configs)


def sentences_of(refused: Exception | str) -> list[str]:
    """The single sentences of a refusal, which may number several."""
    if isinstance(refused, SeveralRefused):
        return refused.problems
    first, *rest = str(refused).split("\n")
    if rest and re.fullmatch(r"\d+ settings cannot work:", first):
        return [re.sub(r"^\d+\. ", "", line) for line in rest]
    return [" ".join(str(refused).split())]


def refused_text(text: str, name: str = CONFIG_FILE) -> list[Problem]:
    """What cannot be read of a YAML text, or is not read from strangers: one that is large, deep, or refers to itself.

    Args:
        name: what sentences call it.
    """
    if len(text) > LARGEST:
        return [Problem(sentence=f"the configuration has {len(text):,} characters: give at most {LARGEST:,}")]
    depth = 0
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                said = f"{name} refers to *{event.anchor}, and references are not read here: write the values out"
                return [Problem(sentence=said, line=_line_of(event))]
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEPEST:
                said = f"{name} is nested more than {DEEPEST} levels deep: no field is"
                return [Problem(sentence=said, line=_line_of(event))]
    except (yaml.YAMLError, ValueError):
        return []  # said with its place by who reads the configuration
    return []


def _line_of(event: yaml.Event) -> int | None:
    return None if event.start_mark is None else event.start_mark.line + 1


def _refused_words(asked: AskedSweep) -> list[Problem]:
    problems = []
    if not asked.text.strip() and asked.preset not in presets():
        problems.append(Problem(sentence=f"{asked.preset!r} is no preset: name one of {', '.join(presets())}", field="preset"))
    for name, value in asked.fields.items():
        if name == OUTPUT:
            said = "output cannot be set here: runs go to the folder that this service shows"
            problems.append(Problem(sentence=said, field=OUTPUT))
        elif name not in NAMES and not name.startswith("model.kwargs."):
            problems.append(Problem(sentence=f"unknown field {name}", field=name))
        elif name not in NAMES:  # its text is read as YAML
            problems += [Problem(sentence=one.sentence, field=name) for one in refused_text(value, name)]
    return problems


def problems_of(sentences: Iterable[str], text: str) -> list[Problem]:
    """Each sentence with the field that it begins with, and the field's line in a YAML text."""
    tree = _tree(text)
    return [_problem(sentence, tree) for sentence in sentences]


def _problem(sentence: str, tree: yaml.Node | None) -> Problem:
    if found := re.search(r" is not valid YAML at line (\d+)", sentence):
        return Problem(sentence=sentence, line=int(found[1]))
    found = re.match(r"(unknown field )?([A-Za-z_][\w.-]*)", sentence)
    if found is None or not (found[1] or found[2] in NAMES):
        return Problem(sentence=sentence)
    return Problem(sentence=sentence, field=found[2], line=line_of(tree, found[2]))


def _tree(text: str) -> yaml.Node | None:
    """A YAML text with the places of its keys; None where it cannot be read."""
    try:
        found: yaml.Node | None = yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, ValueError):
        return None
    return found


def line_of(node: yaml.Node | None, name: str) -> int | None:
    """The line of a field in a YAML text, or of the section around it; None where the text has neither."""
    line = None
    for key in name.split("."):
        if not isinstance(node, yaml.MappingNode):
            break
        inner = next(((k, v) for k, v in node.value if getattr(k, "value", None) == key), None)
        if inner is None:
            break
        line, node = inner[0].start_mark.line + 1, inner[1]
    return line


def form_fields() -> list[Mapping[str, Any]]:
    """The fields of the form: name, help, whether it holds a list, and the only values that it takes, where there are few."""
    found, said = dict(all_fields(Config)), descriptions(Config)
    return [
        {
            "name": name,
            "help": " ".join(said[name].split()),
            "list": list in kinds(found[name].annotation),
            "choices": ["true", "false"] if kinds(found[name].annotation) == {bool} else [],
        }
        for name in USUAL
    ]


@cache
def form_presets() -> Sequence[Mapping[str, Any]]:
    """What a sweep may start from: name, YAML text, and what it says in the form's fields, as text."""
    found = []
    for name in presets():
        config = preset_config(name)
        values = {field: _as_text(attrgetter(field)(config)) for field in USUAL}
        found.append({"name": name, "text": preset_text(name), "values": values})
    return found


def _as_text(value: Any) -> str:
    """A value as a command line would give it."""
    if isinstance(value, list | tuple):
        if value and all(isinstance(one, int) for one in value):
            return json.dumps(value)  # 3 alone is a number of seeds
        return ", ".join(map(_as_text, value))
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


USUAL = (  # the fields that most sweeps set
    "name",
    "budgets",
    "model.name",
    "model.pretrained",
    "data.name",
    "data.root",
    "data.batch_size",
    "dense.epochs",
    "search.epochs",
    "retrain.epochs",
    "retrain.lr",
    "retrain.seeds",
    "baselines",
    "resources.search_workers",
    "resources.cpus_per_worker",
    "resources.gpus_per_worker",
    "resources.max_workers",
    "resources.max_hours",
)
