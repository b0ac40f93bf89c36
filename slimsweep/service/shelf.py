"""The runs of a folder as the service shows them: read once, and again only where a file has changed.

Many readers at once cost one look at the folder. A look lists the files of each run and compares the listing with the last one;
only a run whose listing differs is read. While one reader's request looks, the others get what the last look found.
"""

import dataclasses
import gzip
import hashlib
import json
import logging
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from slimsweep.config.messages import without_password
from slimsweep.errors import RefusedInput, reason_of
from slimsweep.ledger.pulse import Pulse
from slimsweep.ledger.run import Listing, Run
from slimsweep.ledger.status import Status, read_status
from slimsweep.report.page import build_page
from slimsweep.report.run_tables import read_run
from slimsweep.report.summary import Summary, run_folders, summary_of
from slimsweep.storage import Folder

log = logging.getLogger(__name__)

PAGES_KEPT = 16  # of some megabytes each
PAUSE = 5  # the time between two looks is at least so many times as long as a look takes


class NoSuchRun(Exception):
    """There is no run of this name."""


@dataclasses.dataclass(frozen=True)
class Document:
    """The body of an answer, as it is and compressed for browsers, and what tells it from any other."""

    body: bytes
    packed: bytes
    etag: str

    @staticmethod
    def of(body: bytes) -> "Document":
        """Compressed once here, for all readers."""
        return Document(body, gzip.compress(body, 6), f'"{hashlib.sha256(body).hexdigest()[:32]}"')


class Entry:
    """One run on the shelf."""

    def __init__(self, name: str, folder: Folder) -> None:
        self.name, self.folder = name, folder
        self.lock = threading.Lock()  # a `Run` is read by one thread at a time
        self.run = Run(folder)
        self.pulse = Pulse()
        self.listing: Listing | None = None
        self.alive = False
        self.status: Status | None = None
        self.summary: Summary | None = None
        self.problem = ""  # why the run cannot be read; empty where it can
        self.version = 0  # changes with what is shown

    def look(self) -> bool:
        """Read the run again if something has changed; returns whether its folder is still that of a run."""
        with self.lock:
            try:
                listing = self.run.listing()
                if not listing.is_run:
                    return False
                alive = self.pulse.alive(self.run, listing.heartbeat)
                if self.listing is None or listing.files != self.listing.files or alive != self.alive:
                    self._read(listing, alive)
            except RefusedInput as problem:  # damaged, or of a later version
                self._cannot_be_read(str(problem))
            except OSError as problem:  # a store that fails, or a right that is missing, perhaps for a moment
                self._cannot_be_read(f"it cannot be read ({reason_of(problem)})", again=True)
            except Exception as problem:  # one run that nobody foresaw must not hide the others
                said = f"it cannot be read ({type(problem).__name__}: {problem})"
                if self._cannot_be_read(said, again=True):
                    log.exception("%s cannot be shown", self.folder.uri)
            return True

    def _read(self, listing: Listing, alive: bool) -> None:
        if self.listing is None or self.problem:
            self.run = Run(self.folder)
        elif not listing.only_more_results(self.listing):
            self.run = self.run.read_again()
        # Set first: what changes while it is read is read again at the next look.
        self.listing, self.alive = listing, alive
        self.version += 1
        self.status = read_status(self.run, alive=alive)
        self.summary = summary_of(self.name, self.run, self.status)
        self.problem = ""

    def _cannot_be_read(self, problem: str, again: bool = False) -> bool:
        """Show why the run cannot be read; returns whether that is new.

        Args:
            again: whether the next look is to read it again, also where no file has changed.
        """
        said = without_password(" ".join(problem.split()))
        is_new = said != self.problem
        self.version += is_new
        self.problem, self.status, self.summary = said, None, None
        if again:
            self.listing = None
        return is_new

    def as_json(self) -> dict[str, Any]:
        """What the shelf's page shows of the run; `web/shelf.js` describes it."""
        if self.summary is None:
            return {"name": self.name, "state": "unreadable", "why": self.problem}
        found = dataclasses.asdict(self.summary)
        found["changed"] = _with_zone(self.summary.changed)
        return {key: _plain(value) for key, value in found.items()}


class Shelf:
    """All runs of a folder.

    Args:
        output: the folder that holds run folders.
        look_every: seconds between two looks, at least.
    """

    def __init__(self, output: str, look_every: float) -> None:
        self.folder = Folder(output).confined()
        self.look_every = look_every
        self._looking = threading.Lock()
        self._next_look = -math.inf  # on the monotonic clock
        self._next_search = -math.inf  # from when on a look is brought forward for a run that is not known
        self._entries: dict[str, Entry] = {}
        self._shown: Document | None = None
        self._pages: OrderedDict[tuple[Any, ...], Document] = OrderedDict()
        self._building: dict[tuple[Any, ...], threading.Lock] = {}
        self._pages_lock = threading.Lock()

    def recent(self) -> Document | None:
        """What the last look found, as JSON, if it is recent enough; None where it is time for another look."""
        return self._shown if time.monotonic() < self._next_look else None

    def look(self) -> Document:
        """What the folder holds, as JSON: looked at now, or by somebody else just now."""
        if (shown := self.recent()) is not None:
            return shown
        # The first look is waited for; while somebody does a later one, others get what the last one found.
        if not self._looking.acquire(blocking=self._shown is None):
            assert self._shown is not None
            return self._shown
        try:
            if (shown := self.recent()) is None:
                began = time.monotonic()
                shown = self._look()
                now = time.monotonic()
                self._next_look = now + max(self.look_every, PAUSE * (now - began))
            return shown
        finally:
            self._looking.release()

    def look_again(self) -> Document:
        """As `look`, however recent the last look is."""
        self._next_look = -math.inf
        return self.look()

    def _look(self) -> Document:
        refused: dict[str, str] = {}
        folders = run_folders(self.folder, refused.__setitem__, self._entries.keys())
        for name, folder in folders:
            self._entries.setdefault(name, Entry(name, folder))
        for name in self._entries.keys() - {name for name, _ in folders}:
            del self._entries[name]
        entries = list(self._entries.values())
        for entry, is_run in zip(entries, self.folder.each(Entry.look, entries), strict=True):
            if not is_run:
                self._entries.pop(entry.name, None)
        runs = [entry.as_json() for _, entry in sorted(self._entries.items())]
        runs += [{"name": name, "state": "unreadable", "why": without_password(why)} for name, why in sorted(refused.items())]
        shown = {"output": without_password(self.folder.uri), "runs": runs}
        body = json.dumps(shown, separators=(",", ":"), allow_nan=False).encode()
        if self._shown is None or self._shown.body != body:
            self._shown = Document.of(body)
        return self._shown

    def run(self, name: str) -> Run:
        """The run of a name: one that a look at the folder has found. No path is made from what a request says.

        Raises:
            NoSuchRun: there is none.
        """
        return self._entry(name).run

    def _entry(self, name: str) -> Entry:
        self.look()
        if name not in self._entries and time.monotonic() >= self._next_search:  # it may have begun since the last look
            self.look_again()
            self._next_search = self._next_look  # names that nobody has cost one look more, and not one each
        found = self._entries.get(name)
        if found is None:
            raise NoSuchRun(name)
        return found

    def recent_page(self, names: Sequence[str], shelf_at: str) -> Document | None:
        """As `page`, if nothing has to be looked at, read or built for it; else None."""
        entries = [self._entries.get(name) for name in names]
        known = [entry for entry in entries if entry is not None and not entry.problem]
        if self.recent() is None or len(known) < len(names):
            return None
        with self._pages_lock:
            return self._kept(_key(known, shelf_at))

    def page(self, names: Sequence[str], shelf_at: str) -> Document:
        """The page of one run, or of several; built again only where one of them has changed.

        Args:
            names: of at least one run.
            shelf_at: the relative address of the shelf.

        Raises:
            NoSuchRun: there is no run of one of the names.
            RefusedInput: one of the runs cannot be read.
        """
        entries = [self._entry(name) for name in names]
        for entry in entries:
            if entry.problem:
                raise RefusedInput(f"{entry.name} cannot be shown: {entry.problem}")
        key = _key(entries, shelf_at)
        with self._pages_lock:
            if (page := self._kept(key)) is not None:
                return page
            building = self._building.setdefault(key, threading.Lock())
        with building:  # who comes second waits for the page of the first
            with self._pages_lock:
                if (page := self._kept(key)) is not None:
                    return page
            try:
                page = _built(entries, shelf_at)
            finally:
                with self._pages_lock:
                    self._building.pop(key, None)
            with self._pages_lock:
                self._pages[key] = page
                while len(self._pages) > PAGES_KEPT:
                    self._pages.popitem(last=False)
        return page

    def _kept(self, key: tuple[Any, ...]) -> Document | None:
        if key in self._pages:
            self._pages.move_to_end(key)
        return self._pages.get(key)


def _key(entries: Sequence[Entry], shelf_at: str) -> tuple[Any, ...]:
    """What a page is made of: another key, another page."""
    return (shelf_at, *((entry.name, id(entry), entry.version) for entry in entries))


def _built(entries: Sequence[Entry], shelf_at: str) -> Document:
    tables = []
    for entry in entries:
        with entry.lock:
            tables.append(read_run(entry.run, entry.status))
    try:
        return Document.of(build_page(tables, shelf_at=shelf_at).encode())
    except RefusedInput:
        raise
    except Exception as problem:  # tables that nobody foresaw, such as of two measures in one run
        names = ", ".join(entry.name for entry in entries)
        log.exception("the page of %s cannot be made", names)
        raise RefusedInput(f"{names} cannot be shown ({type(problem).__name__}: {problem})") from problem


def _with_zone(local: datetime | None) -> str | None:
    """A local time with its zone, so that a reader elsewhere sees the same moment."""
    return None if local is None else local.astimezone().isoformat(timespec="seconds")


def _plain(value: Any) -> Any:
    """A value as JSON takes it: NaN is None."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
