"""Messages for refused settings: they name the field, its value, where it was given, and the way out."""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from slimsweep.config.fields import all_fields, branches, choices, listed_section, section_of
from slimsweep.errors import RefusedInput


class ConfigError(RefusedInput):
    """Something the person said cannot work; the text is one sentence that names it and says what to do."""


class SeveralRefused(ConfigError):
    """Several refusals in one, as numbered lines.

    Args:
        problems: a sentence each.
    """

    has_lines = True

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__(all_at_once(problems))
        self.problems = list(problems)


class Refusals:
    """Collects what checks refuse, so that all of it is said at once."""

    def __init__(self) -> None:
        self.found: dict[str, RefusedInput] = {}  # by its text: two checks may refuse the same thing

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Keep what is refused inside the block, and go on after it."""
        try:
            yield
        except SeveralRefused as several:
            self.found.update({text: ConfigError(text) for text in several.problems if text not in self.found})
        except RefusedInput as problem:
            self.found.setdefault(str(problem), problem)

    def raise_all(self) -> None:
        """Raise what was refused; nothing where nothing was.

        Raises:
            RefusedInput: the only refusal, as it is.
            SeveralRefused: more than one.
        """
        if len(self.found) == 1:
            raise next(iter(self.found.values()))
        if self.found:
            raise SeveralRefused(list(self.found))


def all_at_once(problems: Sequence[str]) -> str:
    """Several refusals as numbered lines, so that all can be fixed before the next try; a single one as it is."""
    if len(problems) == 1:
        return problems[0]
    numbered = "\n".join(f"{number}. {problem}" for number, problem in enumerate(problems, 1))
    return f"{len(problems)} settings cannot work:\n{numbered}"


def did_you_mean(word: str, known: Sequence[str], otherwise: str = "") -> str:
    """'did you mean X?' with the nearest known words, or `otherwise` where none is near."""
    near = difflib.get_close_matches(word, known, n=3, cutoff=0.6)
    return f"did you mean {' or '.join(near)}?" if near else otherwise


TYPES = {
    "int": "must be a whole number",
    "float": "must be a number",
    "bool": "must be true or false",
    "string": "must be text (in quotes where it looks like a number)",
    "finite": "must be a finite number",
    "list": "must be a list",
    "tuple": "must be a list of numbers",
    "dict": 'must be a mapping, such as {"img_size": 160}',
    "model": "must be a mapping of its fields",
}  # by the first word of pydantic's name of an error
MOST_SAID = 100  # refusals in one message
LIMITS = {
    "greater_than": ("gt", "must be more than"),
    "greater_than_equal": ("ge", "must be at least"),
    "less_than": ("lt", "must be less than"),
    "less_than_equal": ("le", "must be at most"),
}


def sentence(problem: ValidationError, root: type[BaseModel], layers: Mapping[str, Mapping[str, Any]]) -> str:
    """One sentence for what is wrong; of several things a numbered line each.

    Args:
        root: the section that was checked, of which all names are told.
        layers: where values came from, the last ones over the first: the name of each source, and what it says, nested.
    """
    found: dict[str, str] = {}  # one sentence per field
    errors = problem.errors(include_url=False)
    # Of a field that takes a section or a list of them, pydantic says what is wrong with the value as either.
    told = [one for one in errors if not (one["type"] == "model_type" and isinstance(one["input"], list))]
    told = told or errors[:1]
    for error in told[:MOST_SAID]:
        name, said = _sentence_of(error, root, layers)
        first = str(error["loc"][0]) if error["loc"] else ""
        either = first in root.model_fields and listed_section(root.model_fields[first].annotation) is not None
        found.setdefault(first if either else name, said)
    lines = list(dict.fromkeys(line for said in found.values() for line in said.split("\n")))
    if len(told) > MOST_SAID:
        lines.append(f"{len(told) - MOST_SAID:,} more are wrong, which are said once these are right")
    return all_at_once(lines)


def _sentence_of(error: Any, root: type[BaseModel], layers: Mapping[str, Mapping[str, Any]]) -> tuple[str, str]:
    """(the dotted name of the field that an error is about, the sentence)."""
    outer = section = root
    path: list[str] = []
    annotation: Any = root
    unlabelled = False
    for part in error["loc"]:
        if not isinstance(part, str):
            break  # an element of a list
        if unlabelled:  # pydantic's label of the branch: the section, or the list
            unlabelled = False
            if part.startswith("list["):
                section = outer
                break
            continue
        path.append(part)
        if part not in section.model_fields:
            break
        annotation = section.model_fields[part].annotation
        if (inner := section_of(annotation)) is None:
            break  # what follows are pydantic's labels of a union's branches
        outer, section = section, inner
        unlabelled = listed_section(annotation) is not None
    name, origin = ".".join(path), _origin(path, layers)
    if error["type"] == "extra_forbidden" and path[-1] not in section.model_fields:
        above = ".".join(path[:-1])
        known = [n for n, _ in all_fields(root)]
        near = did_you_mean(path[-1], list(section.model_fields))
        near = near.replace("mean ", f"mean {above}.", 1) if near and above else near
        takes = f"{above or 'the configuration'} takes {', '.join(section.model_fields)}"
        return name, f"unknown field {name}{origin}; {near or did_you_mean(path[-1], known, takes)}"
    if error["type"] == "value_error" and section_of(annotation) and isinstance(error["input"], (Mapping, BaseModel)):
        return name, error["msg"].removeprefix("Value error, ")  # about several fields: a sentence of its own
    if error["type"] == "missing" and isinstance(error["input"], Mapping):  # a field without a default
        return name, f"{'.'.join(path[:-1])} has no {path[-1]}: set {name}"
    value = without_password(repr(_value(path, layers, error["input"])))
    return name, f"{name} is {value}{origin}: {_complaint(error, annotation)}"


def without_password(text: str) -> str:
    """A text without users and passwords in addresses, such as http://user:password@host."""
    return re.sub(r"(?<=://)[^/@\s'\"]+@", "***@", text)


def _complaint(error: Any, annotation: Any) -> str:
    kind: str = error["type"]
    if kind == "literal_error":
        words = [str(v) for v in choices(annotation)]
        near = did_you_mean(str(error["input"]), words)
        return f"it must be one of {', '.join(words)}" + (f"; {near}" if near else "")
    if kind == "extra_forbidden":
        entry, key = listed_section(annotation), str(error["loc"][-1])
        takes = list(entry.model_fields) if entry else []
        near = did_you_mean(key, takes, f"they take {', '.join(takes)}")
        return f"its entries have no field {key!r}; {near}"
    if kind in LIMITS:
        limit, words_of_limit = LIMITS[kind]
        return f"it {words_of_limit} {error['ctx'][limit]:g}"
    if kind in ("missing", "too_short", "too_long"):
        return f"it must be {len(get_args(next(a for a in branches(annotation) if get_origin(a) is tuple)))} numbers"
    if kind != "value_error" and (base := kind.split("_", maxsplit=1)[0]) in TYPES:
        return f"it {TYPES[base]}"
    text = error["msg"].removeprefix("Value error, ")
    return f"it {text}" if text.startswith("must") else text


def _look(path: Sequence[str], layer: Any) -> tuple[bool, Any]:
    for key in path:
        if not isinstance(layer, Mapping) or key not in layer:
            return False, None
        layer = layer[key]
    return True, layer


def _origin(path: Sequence[str], layers: Mapping[str, Mapping[str, Any]]) -> str:
    for source, layer in reversed(list(layers.items())):
        if _look(path, layer)[0]:
            return f" (from the {source})" if source in ("environment", "command line") else f" (in {source})"
    return ""


def _value(path: Sequence[str], layers: Mapping[str, Mapping[str, Any]], otherwise: Any) -> Any:
    """The value as the person wrote it, where that is known."""
    for layer in reversed(list(layers.values())):
        found, value = _look(path, layer)
        if found:
            return value
    return otherwise
