"""The pages of the service that are no reports: all runs, signing in, and a sentence that says what is wrong."""

from functools import cache

import slimsweep
from slimsweep.report.page_parts import environment, joined_styles, markup, policy, script_page

STYLES = ("report.css", "screens.css", "shelf.css")


@cache
def build_shelf_page() -> str:
    """The page of all runs, as HTML. It contains no run: its script asks the service for them."""
    return script_page("shelf.html.j2", "shelf.js", STYLES)


@cache
def build_sign_in_page() -> str:
    """The page on which a person gives the token, as HTML."""
    return script_page("sign_in.html.j2", "sign_in.js", STYLES)


def build_message_page(title: str, sentence: str, shelf_at: str) -> str:
    """A page that says what is wrong, as HTML.

    Args:
        shelf_at: the relative address of the page of all runs.
    """
    return (
        environment()
        .get_template("message.html.j2")
        .render(
            policy=policy("'none'"),
            title=title,
            sentence=sentence,
            shelf_at=shelf_at,
            version=slimsweep.__version__,
            style=markup(joined_styles(STYLES)),
        )
    )
