"""What measurements of training share: a step as the loop makes it, slimsweep's loop, and a bare loop. Needs no Ray."""

import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slimsweep.config import Config, Recipe
from slimsweep.data import Data, train_loader
from slimsweep.training.criterion import Criterion
from slimsweep.training.loop import State, backward, train
from slimsweep.training.recorder import MemoryRecorder


def stepper(
    model: nn.Module,
    recipe: Recipe,
    images: Tensor,
    labels: Tensor,
    compiled: bool = False,
    backend: str | Callable[..., Any] = "inductor",
) -> tuple[Callable[[], None], State]:
    """A function that makes one training step as the loop does (forward, backward, optimizers), and the loop's state.

    Args:
        images: on the device on which the model will be.
        compiled: by torch.compile, as one graph.
        backend: torch.compile's.
    """
    device = images.device
    model.train().to(device)
    state = State.start(model, recipe)
    criterion = Criterion(recipe, device, gates=state.gates)
    network = torch.compile(model, fullgraph=True, backend=backend) if compiled else model

    def step() -> None:
        backward(network, criterion, images, labels, recipe, device)
        state.step(recipe, 0)

    return step, state


def bare_loop(model: nn.Module, data: Data, epochs: int, device: torch.device, bf16: bool = False) -> float:
    """A minimal training loop that uses only slimsweep's loader; returns the seconds of its last epoch.

    Args:
        bf16: by autocast.
    """
    loader = train_loader(data.train, data.settings, seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(loader))
    model.to(device).train()
    seconds = 0.0
    for epoch in range(epochs):
        began = time.perf_counter()
        loader.set_epoch(epoch)
        for batch, targets in loader:
            x, y = batch.to(device, non_blocking=True), targets.to(device, non_blocking=True)
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
                loss = F.cross_entropy(model(x), y, label_smoothing=0.1)
            loss.backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
        loss.item()
        seconds = time.perf_counter() - began
    return seconds


def our_loop(model: nn.Module, data: Data, config: Config, device: torch.device) -> list[float]:
    """Seconds of each epoch of train(), from its curve."""
    recorder = MemoryRecorder("dense")
    train(model, data, config.dense, recorder, device=device)
    return [row["seconds"] for row in recorder.curve if row["epoch"]]  # row 0 is before the first epoch
