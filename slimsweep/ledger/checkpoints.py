"""Checkpoints: one safetensors file per epoch with tensors and JSON, never a pickle; the last two are kept.

A file appears whole or not at all, so the newest file is a whole checkpoint. If it is damaged later, the one before it is used.
"""

import json
import logging
import re
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from slimsweep.ledger.run import Run

log = logging.getLogger(__name__)

NAME = re.compile(r"epoch-\d+\.safetensors")
KEEP = 2  # checkpoints per stage or point


class Checkpoints:
    """The checkpoints of one stage or point of a run."""

    def __init__(self, run: Run, name: str) -> None:
        self.folder = run.checkpoints(name)

    def save(self, epoch: int, state: dict[str, Any]) -> None:
        """Write the state after `epoch` epochs: nested dicts and lists of tensors and of values that JSON can hold."""
        tensors: dict[str, Tensor] = {}
        rest = _split(state, "", tensors, {})
        metadata = {"state": json.dumps(rest)}
        self.folder.write_bytes(_name(epoch), save_tensors(tensors, metadata))
        # Files of later epochs must be damaged, or training would have resumed from them.
        names = self._names()
        here = names.index(_name(epoch))
        for name in [*names[: max(0, here + 1 - KEEP)], *names[here + 1 :]]:
            self.folder.delete(name)

    def load(self) -> tuple[int, dict[str, Any]] | None:
        """(epochs finished, state) of the newest readable checkpoint; None where there is none."""
        for name in reversed(self._names()):
            try:
                data = self.folder.read_bytes(name)
                tensors = load_tensors(data)
                state = _join(json.loads(_metadata(data)["state"]), tensors)
            except (SafetensorError, OSError, KeyError, ValueError, TypeError) as problem:
                log.warning(
                    "checkpoint %s/%s cannot be read (%s); going on from the one before", self.folder.uri, name, problem
                )
                continue
            return int(name[len("epoch-") : -len(".safetensors")]), state
        return None

    def clear(self) -> None:
        """Delete all checkpoints of this stage or point."""
        self.folder.delete("")

    def _names(self) -> list[str]:
        return [name for name in self.folder.list() if NAME.fullmatch(name)]


def _name(epoch: int) -> str:
    return f"epoch-{epoch:05d}.safetensors"


def _metadata(data: bytes) -> dict[str, str]:
    """The metadata in the header of safetensors bytes; safetensors' own `load` does not return it."""
    size = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + size])["__metadata__"]


def _split(value: Any, path: str, tensors: dict[str, Tensor], names: dict[Any, str]) -> Any:
    """`value` as JSON data, with its tensors moved to `tensors` under their paths; a shared tensor is stored once."""
    if isinstance(value, Tensor):
        value = value.detach().cpu().contiguous()
        where = (value.data_ptr(), value.shape) if value.numel() else path
        if where not in names:
            names[where] = path
            tensors[path] = value
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
