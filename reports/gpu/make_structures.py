"""Structures of DeiT-S that are timed on a GPU beside those of reports/speed: `python reports/gpu/make_structures.py`.

From the gates of reports/speed, with sizes in other multiples; and what Torch-Pruning keeps at the same budgets, so that the
machine with the GPU needs no Torch-Pruning. Its "bottleneck" mode (head dims and MLP units) leaves a structure. Its "uniform"
mode narrows the embed dim too, which no structure can say, so the sizes of its layers are kept (`uniform.json`). `--check` only
compares what is written with what would be.
"""

import argparse
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import timm
import torch

from slimsweep import Structure, add_gates, macs
from slimsweep.methods.torch_pruning import prune, pruned_structure

REPORTS = Path(__file__).parents[1]
MULTIPLES = (8, 32, 64)
KINDS = ("all", "no-token-lost")
ROUND_TO = 16  # of Torch-Pruning's sizes
UNIFORM = "uniform.json"


def speed() -> Any:
    """reports/speed/make_structures.py, which has the name of this file."""
    spec = importlib.util.spec_from_file_location("speed_structures", REPORTS / "speed" / "make_structures.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def bottleneck(budgets: tuple[float, ...], floors: dict[str, float]) -> dict[str, Structure]:
    """What Torch-Pruning keeps in its bottleneck mode, by file name. Its ranking is that of untrained weights."""
    torch.manual_seed(0)
    dense = timm.create_model("deit_small_patch16_224")
    shape = add_gates(dense, families=("attention", "mlp")).shape
    return {
        f"torch-pruning-bottleneck-multiples-of-{ROUND_TO}-{budget}.json": pruned_structure(
            dense, shape, int(budget * macs(dense)), floors=floors, round_to=ROUND_TO, importance="magnitude"
        )
        for budget in budgets
    }


def uniform(budgets: tuple[float, ...]) -> dict[str, Any]:
    """The sizes that Torch-Pruning's uniform mode leaves, by budget."""
    torch.manual_seed(0)
    dense = timm.create_model("deit_small_patch16_224")
    found = {}
    for budget in budgets:
        pruned: Any = prune(dense, int(budget * macs(dense)), importance="magnitude", embed_dim=True, round_to=ROUND_TO)
        found[str(budget)] = {
            "macs": macs(pruned),
            "embed_dim": pruned.patch_embed.proj.out_channels,
            "layers": [
                {"heads": block.attn.num_heads, "head_dim": block.attn.head_dim, "units": block.mlp.fc1.out_features}
                for block in pruned.blocks
            ],
        }
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a file is not what would be written")
    check = parser.parse_args().check
    folder, of_speed = Path(__file__).parent, speed()
    found = of_speed.structures([(kind, multiple, False) for kind in KINDS for multiple in MULTIPLES])
    found |= bottleneck(of_speed.BUDGETS, of_speed.FLOORS)
    text = json.dumps(uniform(of_speed.BUDGETS), indent=1) + "\n"
    if check and (folder / UNIFORM).read_text() != text:
        print(f"{UNIFORM} is not what this program writes")
        return 1
    if not check:
        (folder / UNIFORM).write_text(text)
    return of_speed.write_or_compare(folder, found, check)


if __name__ == "__main__":
    sys.exit(main())
