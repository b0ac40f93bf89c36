"""A folder some of whose files may be damaged: they count as missing where the rest can do without them, and are named."""

from collections.abc import Callable
from typing import Any, TypeVar

from slimsweep.errors import DamagedFile
from slimsweep.storage import Folder

T = TypeVar("T")


class Readable:
    """A folder, and which of the files that were read from it are damaged.

    Args:
        damaged: the damaged files that are known, where they are to be shared with another reader.
    """

    def __init__(self, folder: Folder, damaged: dict[str, str] | None = None) -> None:
        self.folder = folder
        self.damaged = {} if damaged is None else damaged  # per path of a damaged file that was read: a sentence

    def unless_damaged(self, path: str, read: Callable[[], T], otherwise: T, meaning: str) -> T:
        """What `read` returns, or `otherwise` where it raises DamagedFile, which `damaged` then says.

        Args:
            path: of the file that is read.
            meaning: what follows from its damage, and what to do.
        """
        try:
            found = read()
        except DamagedFile as problem:
            self.damaged[path] = f"{problem}: {meaning}"
            return otherwise
        except FileNotFoundError:
            self.damaged.pop(path, None)
            raise
        self.damaged.pop(path, None)
        return found

    def json(self, path: str, *keys: str) -> dict[str, Any]:
        """The content of a JSON file.

        Args:
            keys: that it must have.

        Raises:
            FileNotFoundError: there is no such file.
            DamagedFile: it is not a JSON object with these keys.
        """
        try:
            found = self.folder.read_json(path)
        except ValueError as problem:
            raise DamagedFile(f"{(self.folder / path).uri} is damaged ({problem})") from problem
        lacking = [key for key in keys if not isinstance(found, dict) or key not in found]
        if not isinstance(found, dict) or lacking:
            raise DamagedFile(f"{(self.folder / path).uri} is damaged (it has no {', '.join(lacking) or 'entries'})")
        return found

    def json_or_none(self, path: str, *keys: str) -> dict[str, Any] | None:
        """What was chosen and stands in a JSON file; None before the choice, and where the file is damaged."""
        if not self.folder.exists(path):
            return None
        return self.unless_damaged(path, lambda: self.json(path, *keys), None, "the same command chooses again")
