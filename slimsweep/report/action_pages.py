"""The pages of the service on which a person acts: sweeps to start and stop, and the files of a model to take away."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from slimsweep.report.page_parts import markup, script_page

STYLES = ("report.css", "screens.css", "acting.css")


def build_sweeps_page(presets: Sequence[Mapping[str, Any]], fields: Sequence[Mapping[str, Any]]) -> str:
    """The page that starts sweeps, as HTML.

    Args:
        presets: what a sweep may start from: name, YAML text and the fields' values as text each.
        fields: of the form: name, help, whether it is a list, and its choices each.
    """
    return _page("sweeps.html.j2", "sweeps.js", {"presets": list(presets), "fields": list(fields)})


def build_downloads_page(run: str, point: str, about: str) -> str:
    """The page of a model's files, as HTML. Its script asks the service for them, with the query of its own address.

    Args:
        about: what the model costs and how good it is, in words.
    """
    return _page("downloads.html.j2", "downloads.js", {"run": run, "point": point, "about": about})


def _page(template: str, entry: str, data: dict[str, Any]) -> str:
    # In a script element, where only < could end it.
    return script_page(template, entry, STYLES, **data, data=markup(json.dumps(data).replace("<", "\\u003c")))
