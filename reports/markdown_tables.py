"""Tables that a program writes between two marks of a README."""

from pathlib import Path


def with_table(text: str, table: str, start: str, end: str) -> str:
    """A README's text with a table in place of all that stands between two marks.

    Args:
        table: Markdown.
        start: the line before the table; it is in the text once.
        end: the line after it.

    Raises:
        ValueError: a mark is missing, or `start` is there several times.
    """
    if text.count(start) != 1 or end not in text.partition(start)[2]:
        raise ValueError(f"the text needs the mark {start} once, and {end} after it")
    before, _, rest = text.partition(start)
    return f"{before}{start}\n{table}\n{end}{rest.partition(end)[2]}"


def write_or_check(page: Path, text: str, check: bool) -> int:
    """Write a README, or only compare it with what would be written; returns the exit code, 1 where it differs."""
    if not check:
        page.write_text(text)
    elif page.read_text() != text:
        print(f"the tables in {page} are not what this program writes: run it without --check")
        return 1
    return 0
