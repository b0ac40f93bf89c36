"""A run folder of many finished points, made from tests/data/finished-run: real tables, with a structure and a curve per point.

PYTHONPATH=. python tests/many_points.py FOLDER 2000
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from slimsweep.ledger.points import Plan, Point
from slimsweep.ledger.run import Run
from slimsweep.ledger.tables import CURVES, RESULTS, write_table
from slimsweep.storage import Folder

FINISHED = Path(__file__).parent / "data" / "finished-run"
METHODS = ("searched", "uniform", "random", "taylor")
SEEDS = 5
EPOCHS = 10


def run_of_many_points(folder: Path, points: int) -> Run:
    """A finished run of so many points (and the dense one) at `folder`: per budget four methods with five seeds each.

    Only the points' models are missing, which neither the status nor the report reads.

    Args:
        points: a multiple of 20.
    """
    shutil.copytree(FINISHED, folder, ignore=shutil.ignore_patterns("models"))
    rows = {row["method"]: row for file in (FINISHED / "results").iterdir() for row in pq.read_table(file).to_pylist()}
    curve = pq.read_table(next((FINISHED / "curves").glob("searched-0.6000-*"))).to_pylist()
    for name in ("results", "curves"):
        for file in (folder / name).glob("*-s0-*"):
            file.unlink()
    drawn = np.random.default_rng(0)
    budgets = np.linspace(0.9, 0.1, points // (len(METHODS) * SEEDS))
    asked = [("dense", 1.0, 0), *((m, b, s) for b in budgets.tolist() for m in METHODS for s in range(SEEDS))]
    planned, quick = [], _NoWaiting(folder)
    for place, (method, budget, seed) in enumerate(asked):
        found = rows.get(method, rows["uniform"])
        hashed = f"{place:016x}"[::-1]
        point = Point(method=method, budget=budget, seed=seed, structure="", hash=hashed, lr=1e-3, epochs=EPOCHS)
        planned.append(point)
        row = {**found, "point": point.name, "method": method, "budget": budget, "seed": seed, "point_hash": point.hash}
        row |= {"structure": drawn_structure(found["structure"], budget, drawn), "model_path": f"models/{point.name}"}
        row |= {"epochs": EPOCHS, "macs": int(budget * found["macs_dense"]), "params": int(budget * found["params_dense"])}
        row |= {name: 40 + 50 * budget + drawn.normal() for name in ("val_top1", "test_top1")}
        write_table(quick, f"results/{point.name}.parquet", [row], RESULTS)
        epochs = [
            {**curve[-1], "point": point.name, "epoch": epoch, "val_top1": row["val_top1"] * (epoch + 1) / (EPOCHS + 1)}
            for epoch in range(EPOCHS + 1)
        ]
        write_table(quick, f"curves/{point.name}.parquet", epochs, CURVES)
    run = Run(folder)
    run.write_plan(Plan(attempt="start", points=tuple(planned), over=True))
    return run


def drawn_structure(dense: str, budget: float, drawn: np.random.Generator) -> str:
    """A structure of the sizes of `dense` (JSON) that keeps about `budget` of the MLP units and tokens, drawn at random."""
    data = json.loads(dense)
    for family, bits in (("mlp", 64), ("token", 16)):
        kept = np.ones(bits, dtype=bool)
        masks = []
        for _ in data["masks"][family]:
            kept = kept & (drawn.random(bits) < budget) if family == "token" else drawn.random(bits) < budget
            kept[0] = True
            masks.append(np.packbits(kept).tobytes().hex())
        data["masks"][family] = masks
    return json.dumps(data, separators=(",", ":"))


class _NoWaiting(Folder):
    """A folder that does not wait until the disk has each of thousands of files."""

    def write_bytes(self, name: str, data: bytes) -> None:
        Path(self.uri, name).write_bytes(data)


if __name__ == "__main__":
    run_of_many_points(Path(sys.argv[1]), int(sys.argv[2]))
