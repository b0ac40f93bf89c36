"""The logs in a run's folder: trained epochs, what was said at the start, images that were skipped, and tracebacks."""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from slimsweep.ledger.files import DAMAGED_LOG, EPOCHS_LOG, ERRORS_LOG, NOTES

if TYPE_CHECKING:
    from slimsweep.ledger.run import Run

END_BYTES = 1 << 14  # of a log, that are read for its last line


class Logs:
    """The logs of a run."""

    def __init__(self, run: "Run") -> None:
        self._run = run

    def add_epoch(self, entry: Mapping[str, Any]) -> None:
        """Add a trained epoch to the log of epochs, as one line of JSON, with the generation of the run's holder."""
        generation = {} if self._run.holder is None else {"holder": self._run.holder.generation}
        self._run.folder.append_line(EPOCHS_LOG, json.dumps({**entry, **generation}))

    def write_notes(self, notes: Sequence[str]) -> None:
        """Write what was said at this start: files that are not used, classes that a split lacks, how weights were fitted."""
        if notes:
            self._run.folder.write_bytes(NOTES, "".join(f"{note}\n" for note in notes).encode(errors="backslashreplace"))
        else:
            self._run.folder.delete(NOTES)

    def add_note(self, note: str) -> None:
        """Add what was said in the middle of a start to its notes."""
        self._run.folder.append_line(NOTES, note)

    def damaged_images(self) -> dict[str, str]:
        """The images that were skipped in any stage or point so far, and why each could not be read."""
        found, unread = {}, 0
        for line in self._run.folder.read_lines(DAMAGED_LOG):
            try:
                entry = json.loads(line)
                found[str(entry["image"])] = str(entry["reason"])
            except (ValueError, KeyError, TypeError):  # cut short by a full disk: the image is named again when it is met
                unread += 1
        if unread:
            where = (self._run.folder / DAMAGED_LOG).uri
            self._run.damaged[DAMAGED_LOG] = f"{where}: {unread} of its lines cannot be read and count for nothing"
        return found

    def add_damaged_image(self, split: str, image: str, reason: str) -> None:
        """Add a skipped image to the log of damaged images."""
        self._run.folder.append_line(DAMAGED_LOG, json.dumps({"split": split, "image": image, "reason": reason}))

    def add_error(self, text: str) -> str:
        """Add a traceback to the run's log of errors; returns the log's path or URI."""
        return self._run.unchecked.at_once().append_line(ERRORS_LOG, text)

    def last_error(self) -> str:
        """The last line of the log of errors, which says what the last traceback is about; empty where nothing was logged."""
        end = self._run.folder.read_end(ERRORS_LOG, END_BYTES)
        return next((line.strip() for line in reversed(end.splitlines()) if line.strip()), "")
