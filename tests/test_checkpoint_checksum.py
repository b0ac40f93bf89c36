"""A checkpoint whose bits were changed on a disk counts as damaged, wherever they are."""

import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import save as save_tensors

from slimsweep.ledger.checkpoints import Checkpoints
from slimsweep.ledger.run import Run


def state(epoch: int) -> dict:
    optimizer = {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    return {"model": {"a": torch.arange(9.0) + epoch, "b": torch.ones(2, 2, dtype=torch.bfloat16)}, "optimizer": optimizer}


def test_a_changed_bit_is_found_wherever_it_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoints = Checkpoints(Run(tmp_path), "dense")
    for epoch in (1, 2):
        checkpoints.save(epoch, state(epoch))
    newest = tmp_path / "checkpoints" / "dense" / "epoch-00002.safetensors"
    whole = newest.read_bytes()
    found = checkpoints.load()
    assert found is not None
    assert found[0] == 2
    assert torch.equal(found[1]["model"]["a"], torch.arange(9.0) + 2)
    caplog.set_level(logging.CRITICAL)
    own = whole.index(b'"crc32"')  # that name changed: as of an earlier version
    for byte in set(range(len(whole))) - set(range(own, own + len(b'"crc32"'))):
        changed = bytearray(whole)
        changed[byte] ^= 1 << byte % 8
        newest.write_bytes(changed)
        found = checkpoints.load()
        assert found is not None
        assert found[0] == 1, f"byte {byte} of {len(whole)}"


def test_a_checkpoint_of_an_earlier_version_has_no_checksum_and_is_read(tmp_path: Path) -> None:
    run = Run(tmp_path)
    tensors = {"/a": torch.ones(2)}
    old = save_tensors(tensors, {"state": '{"dict": [["a", {"tensor": "/a"}], ["n", 5]]}'})
    run.checkpoints("dense").write_bytes("epoch-00007.safetensors", old)
    found = Checkpoints(run, "dense").load()
    assert found is not None
    assert (found[0], found[1]["n"]) == (7, 5)
