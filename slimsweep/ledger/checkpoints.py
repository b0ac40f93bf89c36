"""Checkpoints: one safetensors file per epoch with tensors and JSON, never a pickle; the last two are kept.

A file appears whole or not at all, so the newest file is a whole checkpoint. If it is damaged later, which a checksum
shows, the one before it is used.

The name of a file holds the epoch and the holder of the run that wrote it. So a driver that lost the run in the middle of a
write overwrites no checkpoint of the driver that took it, and it deletes none: those of a later holder count as newer.
"""

import json
import logging
import re
import zlib
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from slimsweep.ledger.files import CHECKPOINT_NAME
from slimsweep.ledger.run import Run

log = logging.getLogger(__name__)

KEEP = 2  # checkpoints per stage or point
UNSEALED = "00000000"  # what stands for the checksum while it is computed


class Checkpoints:
    """The checkpoints of one stage or point of a run."""

    def __init__(self, run: Run, name: str) -> None:
        self.folder, self.holder = run.checkpoints(name), run.holder

    def save(self, epoch: int, state: dict[str, Any]) -> None:
        """Write the state after `epoch` epochs: nested dicts and lists of tensors and of values that JSON can hold.

        Raises:
            RunLost: another driver has taken the run.
        """
        tensors: dict[str, Tensor] = {}
        rest = _split(state, "", tensors, {})
        metadata = {"state": json.dumps(rest), "crc32": UNSEALED}
        here = f"epoch-{epoch:05d}{'' if self.holder is None else f'-{self.holder.name}'}.safetensors"
        self.folder.write_bytes(here, _sealed(save_tensors(tensors, metadata)))
        mine = self._ours()
        # Other files of this or a later epoch must be damaged, or training would have resumed from them.
        passed_over = [name for name in mine if name != here and _order(name)[1] >= epoch]
        before = [name for name in mine if name != here and name not in passed_over]
        for name in [*before[: max(0, len(before) + 1 - KEEP)], *passed_over]:
            self.folder.delete(name)

    def load(self) -> tuple[int, dict[str, Any]] | None:
        """(epochs finished, state) of the newest readable checkpoint; None where there is none."""
        for name in reversed(self._names()):
            try:
                data = self.folder.read_bytes(name)
                tensors = load_tensors(data)
                metadata = _metadata(data)
                if "crc32" in metadata and metadata["crc32"] != _checksum(data):  # earlier versions wrote none
                    raise ValueError("its checksum is another one")
                state = _join(json.loads(metadata["state"]), tensors)
            except (SafetensorError, OSError, KeyError, ValueError, TypeError) as problem:
                log.warning(
                    "checkpoint %s/%s cannot be read (%s); going on from the one before", self.folder.uri, name, problem
                )
                continue
            return _order(name)[1], state
        return None

    def clear(self) -> None:
        """Delete all checkpoints of this stage or point, but none of a later holder of the run."""
        ours = self._ours()
        if len(ours) == len(self._names()):
            self.folder.delete("")
        else:
            for name in ours:
                self.folder.delete(name)

    def _names(self) -> list[str]:
        """The files, the newest last."""
        return sorted((name for name in self.folder.list() if CHECKPOINT_NAME.fullmatch(name)), key=_order)

    def _ours(self) -> list[str]:
        """Those of this holder of the run and of earlier ones, the newest last."""
        return [name for name in self._names() if self.holder is None or _order(name)[0] <= self.holder.generation]


def _order(name: str) -> tuple[int, int]:
    """(generation, epoch): a checkpoint of a later holder is newer, since that holder goes on from where it chose to."""
    found = CHECKPOINT_NAME.fullmatch(name)
    assert found is not None
    return int(found["generation"] or 0), int(found["epoch"])


def _metadata(data: bytes) -> dict[str, str]:
    """The metadata in the header of safetensors bytes; safetensors' own `load` does not return it."""
    return json.loads(data[8 : _header_end(data)])["__metadata__"]


def _header_end(data: bytes) -> int:
    return 8 + int.from_bytes(data[:8], "little")


def _checksum(data: bytes) -> str:
    """The CRC-32 of a checkpoint's bytes, in which `UNSEALED` stands for what they say of it themselves."""
    end = _header_end(data)
    head = re.sub(rb'"crc32":"[^"]*"', f'"crc32":"{UNSEALED}"'.encode(), data[:end], count=1)
    return f"{zlib.crc32(memoryview(data)[end:], zlib.crc32(head)):08x}"


def _sealed(data: bytes) -> bytes:
    """A checkpoint's bytes with their checksum in place of `UNSEALED`."""
    end, checksum = _header_end(data), _checksum(data)
    return data[:end].replace(f'"crc32":"{UNSEALED}"'.encode(), f'"crc32":"{checksum}"'.encode(), 1) + data[end:]


def _split(value: Any, path: str, tensors: dict[str, Tensor], names: dict[Any, str]) -> Any:
    """`value` as JSON data, with its tensors moved to `tensors` under their paths; a shared tensor is stored once."""
    if isinstance(value, Tensor):
        # By its place on its own device: copies on the CPU lie in places of their own.
        where = (value.device, value.data_ptr(), value.shape, value.stride(), value.dtype) if value.numel() else path
        if where not in names:
            names[where] = path
            tensors[path] = value.detach().cpu().contiguous()
        return {"tensor": names[where]}
    if isinstance(value, dict):
        return {"dict": [[key, _split(item, f"{path}/{key}", tensors, names)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return {"list": [_split(item, f"{path}/{index}", tensors, names) for index, item in enumerate(value)]}
    return value


def _join(value: Any, tensors: dict[str, Tensor]) -> Any:
    """The value that `_split` took apart."""
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: _join(item, tensors) for key, item in content}
    return [_join(item, tensors) for item in content]
