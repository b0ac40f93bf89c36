"""YAML as configurations are written in: values that one can hold, and one kind of error for all others."""

from typing import Any

import yaml

WHOLE_NUMBERS = range(-(2**63), 2**63)  # that tables of results can hold


def read_yaml(text: str) -> Any:
    """What a YAML text says.

    Raises:
        yaml.YAMLError: it is not YAML, or a value is none of the kind that it looks like, such as the day 2026-99-99.
    """
    try:
        return yaml.load(text, Loader=_Loader)  # a SafeLoader
    except RecursionError as problem:
        raise yaml.YAMLError("it is nested too deeply") from problem
    except ValueError as problem:  # of what stands before the values, such as the number of a version
        raise yaml.YAMLError(" ".join(str(problem).split())) from problem


def in_one_line(problem: yaml.YAMLError) -> str:
    """What is wrong with a short text, and where."""
    said = " ".join(str(getattr(problem, "problem", None) or problem).split())
    mark = getattr(problem, "problem_mark", None)
    if mark is None:
        return said
    return f"{said} at {f'line {mark.line + 1}, ' if mark.line else ''}column {mark.column + 1}"


class _Loader(yaml.SafeLoader):
    """Names the place of a value that cannot be made, where PyYAML lets Python's own errors out."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            value = super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError, TypeError) as problem:
            kind = str(node.tag).rpartition(":")[2]
            raise yaml.constructor.ConstructorError(None, None, f"this is no {kind}", node.start_mark) from problem
        if isinstance(value, int) and value not in WHOLE_NUMBERS:
            said = "a whole number has more than 64 bits"
            raise yaml.constructor.ConstructorError(None, None, said, node.start_mark)
        return value

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        for key, value in node.value:
            # {img_size:70} is a key without a value, which would be taken for the default.
            if ":" in str(key.value) and isinstance(value, yaml.ScalarNode) and not value.value and value.style is None:
                said = f"{key.value!r} has no value: put a space after the colon"
                raise yaml.constructor.ConstructorError(None, None, said, key.start_mark)
        return super().construct_mapping(node, deep)
