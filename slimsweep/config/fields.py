"""What every section of the configuration shares: how text becomes values, and what an annotation admits."""

import ast
import inspect
import itertools
import json
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, ValidationInfo, field_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError, core_schema

from slimsweep.config.yaml_text import in_one_line, read_yaml

T = TypeVar("T")


class Section(BaseModel):
    """Some fields of the configuration: keyword-only, frozen, no unknown fields."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _from_text(cls, value: Any, info: ValidationInfo) -> Any:
        """Environment and command line give text: null is None; mappings and lists are in brackets, lists also with commas."""
        annotation = cls.model_fields[str(info.field_name)].annotation
        types_ = kinds(annotation)
        if value is False and "off" in choices(annotation):
            return "off"  # YAML reads an unquoted off as false
        if isinstance(value, bool) and bool not in types_ and Any not in types_:
            raise ValueError(f"must not be {str(value).lower()}")  # pydantic would read true as 1
        if not isinstance(value, str):
            return value
        if type(None) in types_ and value.lower() in ("null", "none", ""):
            return None
        if types_ & {list, tuple, dict} or section_of(annotation):
            if value.lstrip().startswith(("[", "{")):
                try:
                    return in_brackets(value)
                except yaml.YAMLError as problem:
                    raise ValueError(f"must be YAML or JSON, which this is not ({in_one_line(problem)})") from problem
            if types_ & {list, tuple}:
                return [part.strip() for part in value.split(",") if part.strip()]
        return value


@dataclass(frozen=True)
class OneOf:
    """An annotation for text that is one of some words, which are asked for at each check: tables may grow at run time."""

    words: Callable[[], Sequence[str]]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def _check(self, value: str) -> str:
        if value not in self.words():
            raise PydanticCustomError("literal_error", "must be one of a table's words")  # as pydantic names a Literal's
        return value


# Annotations.


def branches(annotation: Any) -> tuple[Any, ...]:
    """The branches of a union; of anything else itself."""
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def kinds(annotation: Any) -> set[Any]:
    """The plain types that an annotation admits: tuple[float, float] | None -> {tuple, NoneType}."""
    return {get_origin(branch) or branch for branch in branches(annotation)}


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The section that an annotation admits, also an optional one; None where it admits none."""
    return next((kind for kind in kinds(annotation) if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


def listed_section(annotation: Any) -> type[BaseModel] | None:
    """The section whose list an annotation admits: list[Pace] -> Pace."""
    lists = (branch for branch in branches(annotation) if get_origin(branch) is list)
    return next((found for branch in lists if (found := section_of(get_args(branch)[0]))), None)


def choices(annotation: Any) -> tuple[Any, ...]:
    """The values of the Literal or OneOf somewhere in an annotation."""
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    if isinstance(annotation, OneOf):
        return tuple(annotation.words())
    return next((found for part in get_args(annotation) if (found := choices(part))), ())


def all_fields(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """(dotted name, field) of every field, sections themselves before what is in them."""
    for name, field in section.model_fields.items():
        yield f"{prefix}{name}", field
        if inner := section_of(field.annotation):
            yield from all_fields(inner, f"{prefix}{name}.")


def descriptions(section: type[BaseModel], prefix: str = "") -> dict[str, str]:
    """What the source says of every field, by its dotted name: its own description, or the text that follows it.

    That is read when it is asked for, since most processes show no help, and pydantic would read it in each.
    """
    found: dict[str, str] = {}
    sections = [kind for kind in section.__mro__ if issubclass(kind, BaseModel) and kind is not BaseModel]
    for name, field in section.model_fields.items():
        texts = (_texts_after_fields(kind.__module__).get(kind.__qualname__, {}).get(name) for kind in sections)
        found[f"{prefix}{name}"] = field.description or next(filter(None, texts), "")
        if inner := section_of(field.annotation):
            found |= descriptions(inner, f"{prefix}{name}.")
    return found


@cache
def _texts_after_fields(module: str) -> dict[str, dict[str, str]]:
    """By class of a module and field, the text that follows the field."""
    found: dict[str, dict[str, str]] = {}
    try:
        statements = ast.parse(inspect.getsource(sys.modules[module])).body
    except OSError:  # it was installed without its source: help names the fields alone
        return found
    for kind in (one for one in statements if isinstance(one, ast.ClassDef)):
        for field, after in itertools.pairwise(kind.body):
            match field, after:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    found.setdefault(kind.name, {})[name] = inspect.cleandoc(text)
    return found


# Values.


def in_brackets(text: str) -> Any:
    """What a text in brackets says: JSON, or YAML as in a file, such as {name: vit_small_patch16_224}.

    Raises:
        yaml.YAMLError: it is neither.
    """
    try:
        return json.loads(text)  # first: 1e-3 is a number there, and text in YAML
    except (ValueError, RecursionError):
        return read_yaml(text)


def from_brackets(value: Any) -> Any:
    """A mapping or list given as text in brackets; anything else as it is, for the field's own check to refuse."""
    if isinstance(value, str) and value.lstrip().startswith(("{", "[")):
        try:
            return in_brackets(value)
        except yaml.YAMLError:
            return value
    return value


def once(values: list[T], key: Callable[[T], Any] = lambda value: value) -> list[T]:
    """The values themselves.

    Args:
        key: values of the same key count as the same.

    Raises:
        ValueError: one is there twice.
    """
    seen = []
    for value in values:
        if key(value) in seen:
            raise ValueError(f"must not hold {value!r} twice: leave one out")
        seen.append(key(value))
    return values


def rising(value: tuple[float, float] | None) -> tuple[float, float] | None:
    """A range of positive numbers, itself.

    Raises:
        ValueError: its end is below its start, or it is not above 0.
    """
    if value is not None and not 0 < value[0] <= value[1]:
        raise ValueError("must be two numbers above 0, the smaller one first")
    return value
