"""Structures of DeiT-S to time, fixed before anything is measured: `python reports/speed/make_structures.py`.

Gates are drawn from a seed, shaped as searches leave them: heads and layers of uneven worth, MLPs that matter most in the
middle, tokens that matter less towards the border and the end. The solver then does what it does for a searched model.
`--check` only compares what is written with what would be.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import timm
import torch
from torch import Tensor

from slimsweep import Structure, add_gates, macs, solve

SEED = 4301
BUDGETS = (0.5, 0.3)
ROUND_TO = (1, 16)
# All three families as a search gives them up, with most tokens kept, and with all of them: what tokens cost is the difference.
TOKEN_FLOORS = {"all": 0.05, "few-tokens-lost": 0.7, "very-few-tokens-lost": 0.85, "no-token-lost": None}
# And where attention loses whole heads instead of dims: what narrow heads cost is the difference.
WHOLE_HEADS = ("few-tokens-lost", "no-token-lost")
FLOORS = {"attention": 0.05, "mlp": 0.05}


def draw_gates(shapes: dict[str, tuple[tuple[int, ...], ...]], grid: tuple[int, int]) -> dict[str, list[Tensor]]:
    """Gates in [0, 1], in the shapes given."""
    generator = torch.Generator().manual_seed(SEED)
    depth = len(shapes["attention"])
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, grid[0]), torch.linspace(-1, 1, grid[1]), indexing="ij")
    border = torch.maximum(rows.abs(), columns.abs()).flatten()
    gates: dict[str, list[Tensor]] = {"attention": [], "mlp": [], "token": []}
    tokens = torch.rand(grid[0] * grid[1], generator=generator)  # what a position is worth, much the same in all layers
    for layer in range(depth):
        at = layer / (depth - 1)
        heads, dims = shapes["attention"][layer]
        worth = 0.5 + 0.5 * torch.rand(heads, 1, generator=generator)
        gates["attention"].append(worth * (0.8 + 0.4 * at) * torch.rand(heads, dims, generator=generator).sqrt() / 1.2)
        middle = 1.2 - 1.6 * (at - 0.5) ** 2
        gates["mlp"].append(middle * torch.rand(shapes["mlp"][layer], generator=generator).sqrt() / 1.2)
        noise = torch.rand(shapes["token"][layer], generator=generator)
        gates["token"].append(((0.6 * tokens + 0.4 * noise) * (1 - 0.4 * border) * (1 - 0.5 * at)).clamp(0, 1))
    return gates


def structures(
    kinds: Sequence[tuple[str, int, bool]] = (
        *((kind, round_to, False) for kind in TOKEN_FLOORS for round_to in ROUND_TO),
        *((kind, 16, True) for kind in WHOLE_HEADS),
    ),
) -> dict[str, Structure]:
    """By file name.

    Args:
        kinds: as (kind of token floor, multiple of sizes, whether attention loses whole heads).
    """
    dense = timm.create_model("deit_small_patch16_224")
    gated, by_head = add_gates(dense), add_gates(dense, "head")
    scores = draw_gates(gated.shape.gate_shapes, gated.shape.grid)
    head_scores = {**scores, "attention": [dims.mean(1, keepdim=True) for dims in scores["attention"]]}
    found = {}
    for kind, round_to, heads in kinds:
        model, given = (by_head, head_scores) if heads else (gated, scores)
        floor = TOKEN_FLOORS[kind]
        ranked = given if floor is not None else {f: given[f] for f in ("attention", "mlp")}
        solved = solve(model, BUDGETS, scores=ranked, floors={**FLOORS, "token": floor or 0.0}, round_to=round_to)
        whole = "whole-heads-" if heads else ""
        for budget, structure in zip(BUDGETS, solved, strict=True):
            found[f"deit-s-{whole}{kind}-multiples-of-{round_to}-{budget}.json"] = structure
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a file is not what would be written")
    return write_or_compare(Path(__file__).parent, structures(), parser.parse_args().check)


def write_or_compare(folder: Path, found: dict[str, Structure], check: bool) -> int:
    """Write structures by file name, or only compare; returns the exit code, 1 where a file differs."""
    for name, structure in found.items():
        text = structure.to_json() + "\n"
        if check and (folder / name).read_text() != text:
            print(f"{name} is not what this program writes")
            return 1
        if not check:
            (folder / name).write_text(text)
        print(f"{name}: {macs(structure) / 1e9:.3f} GMACs; {structure!r}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
