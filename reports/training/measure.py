"""Measures what gates add to a training step, and slimsweep's loop against a bare loop; writes the tables of README.md.

    python reports/training/measure.py steps     # a gated and a dense step of DeiT-S: time and peak memory
    python reports/training/measure.py compiled  # the same with torch.compile, and a cut model, without graph breaks
    python reports/training/measure.py attention # a dense step in fp32 and in bf16, attention fused or by plain products
    python reports/training/measure.py loop      # images per second of train() and of a bare loop on the same loader
    python reports/training/measure.py workers   # images per second of one and of two data-parallel workers

Each variant runs in a process of its own. Variants are timed in interleaved rounds; nothing else may run on the machine.
"""

import copy
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import numpy as np
import timm
import torch
import torch.distributed as dist
from torch import Tensor, multiprocessing, nn
from torch.distributed._tools.mem_tracker import MemTracker
from torch.utils.data import TensorDataset

from slimsweep import add_gates, slim, solve
from slimsweep.cluster import set_ray_defaults
from slimsweep.cluster.worker import data_for
from slimsweep.config import Config, Recipe, Search
from slimsweep.data import images_seen
from slimsweep.latency.device import hardware, keep_memory
from slimsweep.slimming.structure import image_size
from slimsweep.training.dense_model import build_dense

sys.path.append(str(Path(__file__).parents[1]))  # reports/, for the modules that they share
from markdown_tables import with_table
from training_steps import bare_loop, our_loop, stepper

FOLDER = Path(__file__).parent
BATCH, CLASSES = 8, 1000
GATED = {"attention and MLP gates": ("attention", "mlp"), "all gates": ("attention", "mlp", "token")}
EPOCHS = 2  # of a turn of the loop; its last one counts
ROUNDS = 12
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
Turn = Callable[[], float]  # runs once and returns seconds


# Steps.


def peak_memory(model: nn.Module, recipe: Recipe, images: Tensor, labels: Tensor) -> int:
    """Peak memory of a second step in bytes: weights, gradients, optimizer state and activations."""
    step, state = stepper(model, recipe, images, labels)
    if DEVICE.type == "cuda":
        step()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated()
    tracker = MemTracker()
    tracker.track_external(model, state.optimizer, images, labels)
    with tracker:
        for _ in range(2):  # the optimizer's moments are made in the first step
            step()
            tracker.reset_mod_stats()
    return int(tracker.get_tracker_snapshot("peak")[DEVICE]["Total"])


def model_and_recipe(name: str) -> tuple[nn.Module, Recipe]:
    """DeiT-S for dense training, for the search, or cut for retraining, and the recipe."""
    torch.manual_seed(0)
    dense = timm.create_model("deit_small_patch16_224", num_classes=CLASSES)
    if name == "dense":
        return dense, Recipe(epochs=1)
    if name == "cut to half":
        return slim(dense, solve(add_gates(dense), 0.5, round_to=16)), Recipe(epochs=1)
    return add_gates(dense, families=GATED[name]), Search(epochs=1)


def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(BATCH, 3, 224, 224, device=DEVICE), torch.randint(CLASSES, (BATCH,), device=DEVICE)


def step_turn(name: str, compiled: bool) -> Turn:
    model, recipe = model_and_recipe(name)
    return timed(stepper(model, recipe, *batch(), compiled)[0])


def steps() -> str:
    memory = {name: peak_memory(*model_and_recipe(name), *batch()) for name in ("dense", *GATED)}
    seconds = in_turn({name: (step_turn, name, False) for name in memory})
    lines = ["| DeiT-S, batch 8 | ms per step | x dense | peak MiB | x dense |", "| --- | ---: | ---: | ---: | ---: |"]
    for name, took in seconds.items():
        lines.append(
            f"| {name} | {1e3 * statistics.median(took):.0f} | {ratio(took, seconds['dense'])} "
            f"| {memory[name] / 2**20:.0f} | {memory[name] / memory['dense']:.3f} |"
        )
    return "\n".join(lines)


def compiled() -> str:
    names = ("dense", "all gates", "cut to half")
    seconds = in_turn({(name, how): (step_turn, name, how) for name in names for how in (False, True)})
    lines = ["| DeiT-S, batch 8 | ms per step | compiled | compiled / eager | compiled, x dense |"]
    lines.append("| --- | ---: | ---: | ---: | ---: |")
    for name in names:
        eager, fused = seconds[name, False], seconds[name, True]
        lines.append(
            f"| {name} | {1e3 * statistics.median(eager):.0f} | {1e3 * statistics.median(fused):.0f} "
            f"| {ratio(fused, eager)} | {ratio(fused, seconds['dense', True])} |"
        )
    return "\n".join(lines)


# Attention.


ATTENTION: dict[str, tuple[str, dict[str, Any], int]] = {  # title: timm name, its arguments, batch size
    "ViT 64 wide, 4 deep, 28 px, batch 128": (
        "vit_tiny_patch16_224",
        {"img_size": 28, "patch_size": 4, "in_chans": 1, "embed_dim": 64, "depth": 4, "num_heads": 4},
        128,
    ),
    "DINOv2-S, 70 px, batch 16": ("vit_small_patch14_dinov2", {"img_size": 70}, 16),
    "DeiT-S, 224 px, batch 8": ("deit_small_patch16_224", {}, 8),
}
PRECISIONS: tuple[Literal["off", "bf16"], ...] = ("off", "bf16")


def attention_turn(title: str, fused: bool, amp: Literal["off", "bf16"]) -> Turn:
    name, arguments, size = ATTENTION[title]
    timm.layers.set_fused_attn(fused)
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10, **arguments)
    images, labels = torch.randn(size, *image_size(model), device=DEVICE), torch.randint(10, (size,), device=DEVICE)
    return timed(stepper(model, Recipe(epochs=1, amp=amp), images, labels)[0])


def attention() -> str:
    lines = ["| ms per step | fp32, fused | fp32, plain | bf16, fused | bf16, plain | bf16, fused / plain |"]
    lines.append("| --- | ---: | ---: | ---: | ---: | ---: |")
    for title in ATTENTION:
        seconds = in_turn({(amp, fused): (attention_turn, title, fused, amp) for amp in PRECISIONS for fused in (True, False)})
        cells = " | ".join(f"{1e3 * statistics.median(took):.0f}" for took in seconds.values())
        lines.append(f"| {title} | {cells} | {ratio(seconds['bf16', True], seconds['bf16', False])} |")
    return "\n".join(lines)


# The loop.


def images(config: Config) -> tuple[TensorDataset, TensorDataset, TensorDataset]:
    """Random images of the model's size: loading them takes as long as loading decoded images."""
    generator = torch.Generator().manual_seed(0)
    sets = [
        TensorDataset(torch.rand(count, 3, 224, 224, generator=generator), torch.arange(count) % 10) for count in (48, 8, 8)
    ]
    return sets[0], sets[1], sets[2]


LOOPS: dict[str, dict[str, Any]] = {
    "digits model, 3.5 MMACs, batch 64": {
        "data": {"name": "digits", "batch_size": 64, "augment": {"scale": None, "hflip": 0.0}},
        "model": {
            "name": "vit_tiny_patch16_224",
            "kwargs": {"img_size": 8, "patch_size": 2, "in_chans": 1, "embed_dim": 64, "depth": 4, "num_heads": 4},
        },
    },
    "DeiT-Ti, 1.3 GMACs, batch 8": {
        "data": {"name": "measure:images", "num_classes": 10, "batch_size": 8, "augment": {"scale": None, "hflip": 0.0}},
        "model": {"name": "deit_tiny_patch16_224"},
    },
}


def loop_turn(name: str, ours: bool) -> Turn:
    config = Config(**LOOPS[name], dense={"epochs": EPOCHS, "lr": 1e-3})
    data = data_for(config)
    torch.manual_seed(0)
    start = build_dense(config, data.num_classes)
    if ours:
        return lambda: our_loop(copy.deepcopy(start), data, config, DEVICE)[-1]
    return lambda: bare_loop(copy.deepcopy(start), data, EPOCHS, DEVICE)


def loop() -> str:
    lines = ["| model | images per second, bare loop | train() | train() / bare |", "| --- | ---: | ---: | ---: |"]
    for name, settings in LOOPS.items():
        seconds = in_turn({ours: (loop_turn, name, ours) for ours in (False, True)})
        config = Config(**settings)
        images = images_seen(data_for(config))
        bare, ours = seconds[False], seconds[True]
        speeds = f"{images / statistics.median(bare):.1f} | {images / statistics.median(ours):.1f}"
        lines.append(f"| {name} | {speeds} | {ratio(bare, ours)} |")
    return "\n".join(lines)


# Data-parallel workers.


WORKERS = {**LOOPS["digits model, 3.5 MMACs, batch 64"], "dense": {"epochs": 6, "lr": 1e-3}}
WORKERS["data"] = {**WORKERS["data"], "batch_size": 256}


def one_worker(rank: int, world: int, folder: str) -> None:
    """A worker of one CPU; rank 0 writes the seconds of the fastest epoch to a file."""
    torch.set_num_threads(1)
    keep_memory()
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    config = Config(**WORKERS)
    data = data_for(config)
    torch.manual_seed(0)
    seconds = our_loop(build_dense(config, data.num_classes), data, config, torch.device("cpu"))
    if rank == 0:
        Path(folder, "seconds").write_text(str(min(seconds)))
    if world > 1:
        dist.destroy_process_group()


def workers() -> str:
    seconds: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(5):
        for world, took in seconds.items():
            with tempfile.TemporaryDirectory() as folder:
                multiprocessing.spawn(one_worker, args=(world, folder), nprocs=world)
                took.append(float(Path(folder, "seconds").read_text()))
    config = Config(**WORKERS)
    images = images_seen(data_for(config))
    lines = ["| workers of one CPU | images per second | x one worker |", "| --- | ---: | ---: |"]
    for world, took in seconds.items():
        lines.append(f"| {world} | {images / statistics.median(took):.0f} | {ratio(seconds[1], took)} |")
    return "\n".join(lines)


# Turns.


def timed(step: Callable[[], None]) -> Turn:
    def turn() -> float:
        step()  # weights and code come back into the caches, untimed
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(2):
            step()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - began) / 2

    return turn


def serve(pipe: Connection, make: Callable[..., Turn], *arguments: Any) -> None:
    """The process of a variant: one turn per message."""
    keep_memory()
    turn = make(*arguments)
    turn()
    pipe.send(None)  # warm
    while pipe.recv():
        pipe.send(turn())


def in_turn(variants: dict[Any, tuple[Any, ...]]) -> dict[Any, list[float]]:
    """Seconds of each variant in every round; each round starts with another variant.

    Args:
        variants: per variant the function that makes its turn, and the function's arguments.
    """
    context = multiprocessing.get_context("spawn")
    pipes = {}
    for name, variant in variants.items():
        pipes[name], theirs = context.Pipe()
        context.Process(target=serve, args=(theirs, *variant), daemon=True).start()
        theirs.close()  # so that the end of that process is noticed
        pipes[name].recv()
    names = list(variants)
    seconds: dict[Any, list[float]] = {name: [] for name in names}
    for number in range(ROUNDS):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            pipes[name].send(True)
            seconds[name].append(pipes[name].recv())
    for pipe in pipes.values():
        pipe.send(False)
    return seconds


def ratio(above: list[float], below: list[float]) -> str:
    """The ratio of two variants in each round: median and quartiles over the rounds."""
    ratios = np.array(above) / np.array(below)
    low, middle, high = np.percentile(ratios, (25, 50, 75))
    return f"{middle:.3f} ({low:.3f} to {high:.3f})"


PARTS = {"steps": steps, "compiled": compiled, "attention": attention, "loop": loop, "workers": workers}


def main() -> None:
    set_ray_defaults()  # also how the processes of the variants allocate memory
    readme = FOLDER / "README.md"
    for part in sys.argv[1:] or PARTS:
        table = PARTS[part]()
        about = f"{hardware(DEVICE)}, {torch.get_num_threads()} threads, torch {torch.__version__}, timm {timm.__version__}"
        said = f"{about}, median of interleaved rounds, {time.strftime('%Y-%m-%d')}:"
        marks = f"<!-- {part} -->", f"<!-- end of {part} -->"
        readme.write_text(with_table(readme.read_text(), f"{said}\n\n{table}", *marks))
        print(table, flush=True)


if __name__ == "__main__":
    main()
