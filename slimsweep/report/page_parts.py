"""What all pages are made of: the sources in `web/`, and a policy that lets a page run its own script only."""

import base64
import hashlib
import zlib
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any

import jinja2
import markupsafe

import slimsweep
from slimsweep.report.bundle import bundle


def web() -> Traversable:
    """The folder of the pages' sources."""
    return files("slimsweep.report").joinpath("web")


@cache
def environment() -> jinja2.Environment:
    """For the templates of `web/`: all that they are given is escaped, unless it is `markup`."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader("slimsweep.report", "web"), autoescape=True, undefined=jinja2.StrictUndefined
    )


@cache
def joined_script(entry: str) -> str:
    """A page's own script: the modules of `web/` that one of them needs, joined into one."""
    modules = {file.name: file.read_text(encoding="utf-8") for file in web().iterdir() if file.name.endswith(".js")}
    return bundle(modules, entry)


def joined_styles(names: Sequence[str]) -> str:
    """Style sheets as one text; later rules come over earlier ones."""
    return "".join(web().joinpath(name).read_text(encoding="utf-8") for name in names)


def packed(data: bytes, level: int) -> str:
    """Bytes deflated, in base64, as `web/unpack.js` reads them."""
    return base64.b64encode(zlib.compress(data, level)).decode()


def source_of(script: str) -> str:
    """The hash of a script for a Content-Security-Policy: only a script with exactly this text may run."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def policy(*scripts: str, connect: bool = False) -> str:
    """The Content-Security-Policy of a page.

    Args:
        scripts: `source_of` each script that may run.
        connect: whether its scripts may ask the page's own server for data; nobody else in any case.
    """
    asks = "connect-src 'self'; " if connect else ""
    return (
        f"default-src 'none'; script-src {' '.join(scripts)}; style-src 'unsafe-inline'; "
        f"{asks}img-src data: blob:; base-uri 'none'; form-action 'none'"
    )


def script_page(template: str, entry: str, styles: Sequence[str], **given: Any) -> str:
    """A page of the service, as HTML: a template with its own script, which may ask the service for data.

    Args:
        template, entry: of `web/`: the page, and the module that its script begins with.
        given: what the template shows.
    """
    script = joined_script(entry)
    return (
        environment()
        .get_template(template)
        .render(
            **given,
            policy=policy(source_of(script), connect=True),
            version=slimsweep.__version__,
            style=markup(joined_styles(styles)),
            script=markup(script),
        )
    )


def markup(text: str) -> markupsafe.Markup:
    """A text that a template does not escape: it comes from `web/` or is base64, and contains no text of a run."""
    return markupsafe.Markup(text)
