"""`slimsweep completion`: the script by which a shell completes commands, options and fields."""

import argparse

from slimsweep.config import Config, presets
from slimsweep.config.fields import all_fields, branches, choices, descriptions, section_of
from slimsweep.config.load import FLAGS
from slimsweep.errors import RefusedInput

SHELLS = ("bash", "zsh")
PATHS = ("run", "path", "model", "output", "runs", "folder", "token_file")  # arguments of commands that are files or folders
WITH_FIELDS = ("run", "plan")  # commands that take every field of the configuration


def completion(top: argparse.ArgumentParser, shell: str) -> str:
    """The script for a shell, to be evaluated in it.

    Args:
        top: the parser of all commands; the fields of the configuration are added to it.
        shell: one of SHELLS.

    Raises:
        RefusedInput: the package shtab, which writes the script, is not installed.
    """
    try:
        import shtab
    except ImportError as problem:
        raise RefusedInput("completion needs the package shtab, which is not installed: pip install shtab") from problem
    commands = next(action for action in top._actions if isinstance(action, argparse._SubParsersAction)).choices
    for name in WITH_FIELDS:
        _add_fields(commands[name])
    for command in commands.values():
        for action in command._actions:
            if action.dest in (*PATHS, "config") and action.nargs != 0:
                action.complete = shtab.FILE
    script: str = shtab.complete(top, shell=shell)
    return script


def _add_fields(command: argparse.ArgumentParser) -> None:
    known = {option for action in command._actions for option in action.option_strings}
    words = [("config", f"a YAML file, or a preset: {', '.join(presets())}")]
    words += [(name, "") for name in FLAGS]
    fields = {name: field for name, field in all_fields(Config) if not section_of(field.annotation)}
    said = descriptions(Config)
    words += [(name, " ".join(said[name].split()).replace("%", "%%")) for name in fields]
    for name, text in words:
        if f"--{name}" in known:
            continue
        if name in FLAGS:
            command.add_argument(f"--{name}", action="store_true")
            continue
        # Only where one value is given: lists of words are written with commas.
        single = name in fields and not any(
            getattr(kind, "__origin__", None) is list for kind in branches(fields[name].annotation)
        )
        allowed = choices(fields[name].annotation) if single else ()
        command.add_argument(f"--{name}", help=text, choices=[str(value) for value in allowed] or None)
