"""Damaged images: the guard where images are read, the error for one, and the count of those that a split may skip."""

import logging
import struct
import tarfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from PIL import Image

from slimsweep.config import ConfigError
from slimsweep.errors import SlimsweepError

log = logging.getLogger(__name__)

# What Pillow and tarfile raise for files that are not what they should be.
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, tarfile.TarError, Image.DecompressionBombError)


class WrongPixels(Exception):
    """Pixels whose meaning is not known; the text goes on after the image's name: 'has pixels of ...: do this'."""


class DamagedImage(SlimsweepError):
    """An image that is there but cannot be read: its name, and why."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(printable(name), reason)
        self.name, self.reason = printable(name), reason


@contextmanager
def named(name: Callable[[], str]) -> Iterator[None]:
    """The guard around all that opens, decodes or looks at the pixels of one image.

    Args:
        name: what the image is called in a message; asked for only where it is needed.

    Raises:
        DamagedImage: it cannot be read.
        ConfigError: it can be read, but what its pixels mean is not known.
    """
    try:
        yield
    except SlimsweepError:
        raise  # among them are ValueErrors, which are sentences already
    except WrongPixels as problem:
        raise ConfigError(f"the image {name()} {problem}") from problem
    except UNREADABLE as problem:
        raise DamagedImage(name(), reason_of(problem)) from problem


class TooManyDamaged(ConfigError):
    """More images of a split are damaged than data.max_damaged."""


class Damaged:
    """The images of a split that could not be read so far; each counts once, over all epochs and loading processes.

    Args:
        split: train, val or test.
        limit: how many may be skipped (data.max_damaged).
    """

    def __init__(self, split: str, limit: int) -> None:
        self.split = split
        self.limit = limit
        self.reasons: dict[str, str] = {}

    def skip(self, found: Mapping[str, str]) -> None:
        """Count damaged images and warn of those that are new.

        Args:
            found: why each cannot be read, by its name.

        Raises:
            TooManyDamaged: with them there are more than the limit.
        """
        for name, reason in found.items():
            if name not in self.reasons:
                self.add({name: reason})
                log.warning("the image %s cannot be read (%s): it is skipped in %s", name, reason, self.split)

    def add(self, found: Mapping[str, str]) -> None:
        """`skip` without a warning: for images that another worker has warned of."""
        self.reasons.update(found)
        if len(self.reasons) > self.limit:
            raise self.refusal(*list(self.reasons.items())[-1])

    def refusal(self, name: str, reason: str) -> TooManyDamaged:
        """The error for an image that is one too many."""
        if not self.limit:
            way_out = "replace or remove it, or set data.max_damaged to how many each split may skip"
            return TooManyDamaged(f"the image {name} cannot be read ({reason}): {way_out}")
        count = f"{self.limit} other{'s' * (self.limit > 1)} of {self.split} are damaged too"
        way_out = f"replace or remove them, or raise data.max_damaged, which is {self.limit}"
        return TooManyDamaged(f"the image {name} cannot be read ({reason}), and {count}: {way_out}")


def printable(text: str) -> str:
    """A text that can be printed and written, though file names in it may be of any bytes."""
    return text.encode(errors="backslashreplace").decode()


def reason_of(problem: Exception) -> str:
    """The first line of what an exception says."""
    return str(problem).splitlines()[0].strip(" .") if str(problem).strip() else type(problem).__name__
