"""What a cut alone costs, before any retraining: `python reports/fashion-mnist/before_training.py --run runs/fashion-mnist`.

The dense model of a run of sweep.yaml is cut to each of its budgets: gates ranked in three ways, with and without principal
axes, with and without repair. All numbers are on the validation split. They go to before-training.parquet, and from there into
the README.md of this folder; without --run only the table is written, with --check it is only compared. Two to five minutes on
one CPU core.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from slimsweep import activation_scores, add_gates, load, principal_axes, repair, slim
from slimsweep.data import calibration_images, load_data, training_images
from slimsweep.ledger.run import Run
from slimsweep.methods.taylor import taylor_scores
from slimsweep.methods.weight_squares import attention_squares, mlp_squares
from slimsweep.slimming.removal_path import RemovalPath
from slimsweep.slimming.structure import image_size, macs
from slimsweep.training.evaluate import evaluate_split

sys.path.append(str(Path(__file__).parents[1]))  # reports/, for the module that the studies share
from markdown_tables import with_table, write_or_check

HERE = Path(__file__).parent
PAGE, ROWS = HERE / "README.md", HERE / "before-training.parquet"
START, END = "<!-- before any retraining, written by before_training.py -->", "<!-- end -->"
PACE = {"attention": 1.0, "mlp": 1.4, "token": 0.7}  # for all alike
RANKINGS = {
    "magnitude": "squared weights",
    "taylor": "squared gate x gradient",
    "activation": "activation energy, no labels",
}
WAYS = {(False, False): "alone", (False, True): "repair", (True, False): "axes", (True, True): "axes + repair"}


def measure(folder: str) -> Iterator[dict[str, Any]]:
    """The rows of the table: each cut's top-1 in percent on validation, and the seconds that axes and repair took."""
    run = Run(folder)
    config, dense = run.config, load(run.dense)
    data = load_data(config, image_size(dense), getattr(dense, "pretrained_cfg", None))
    images = calibration_images(data, config.seed, dense)
    some, labels = training_images(data, config.seed)
    cpu = torch.device("cpu")

    def top1(model: torch.nn.Module) -> float:
        return evaluate_split(model, data, "val", cpu, config.retrain).top1

    whole = {"ranking": "dense", "axes": False, "repair": False, "budget": 1.0, "macs": macs(dense)}
    yield {**whole, "val_top1": top1(dense), "seconds": 0.0}
    for axes in (False, True):
        began = time.perf_counter()
        model = principal_axes(dense, images) if axes else dense
        turning = time.perf_counter() - began if axes else 0.0
        gated = add_gates(model)
        tokens = taylor_scores(model, some, labels)
        heads = gated.shape.layers[0].heads, gated.shape.layers[0].head_dim
        scores = {
            # A token has no weights, so magnitude takes the tokens that taylor takes.
            "magnitude": {
                "attention": [attention_squares(block, *heads) for block in model.blocks],
                "mlp": [mlp_squares(block) for block in model.blocks],
                "token": tokens["token"],
            },
            "taylor": tokens,
            "activation": activation_scores(gated, some, config.seed),
        }
        for ranking in RANKINGS:
            path = RemovalPath(gated.shape, scores[ranking], config.search.floors.model_dump(), 1, PACE)
            for budget in config.sorted_budgets:
                cut = slim(model, path.solve(budget))
                row = {"ranking": ranking, "axes": axes, "budget": float(budget), "macs": macs(cut)}
                yield {**row, "repair": False, "val_top1": top1(cut), "seconds": turning}
                began = time.perf_counter()
                repaired = repair(cut, model, images)
                seconds = turning + time.perf_counter() - began
                yield {**row, "repair": True, "val_top1": top1(repaired), "seconds": seconds}


def table(rows: pd.DataFrame) -> str:
    """Markdown: rankings and ways x budgets, percent on validation."""
    cuts = rows[rows["ranking"] != "dense"]
    budgets = sorted(cuts["budget"].unique(), reverse=True)
    dense = float(rows.loc[rows["ranking"] == "dense", "val_top1"].iloc[0])
    lines = [
        f"Dense: {dense:.2f} % on validation.",
        "",
        "| ranked by | cut | " + " | ".join(f"{100 * budget:g} %" for budget in budgets) + " |",
        "| --- | --- |" + " ---: |" * len(budgets),
    ]
    for ranking, says in RANKINGS.items():
        for (axes, repaired), way in WAYS.items():
            mine = cuts[(cuts["ranking"] == ranking) & (cuts["axes"] == axes) & (cuts["repair"] == repaired)]
            top1 = mine.set_index("budget")["val_top1"]
            cells = " | ".join(f"{top1[budget]:.1f}" for budget in budgets)
            lines.append(f"| {ranking} ({says}) | {way} | {cells} |")
    seconds = cuts.loc[cuts["axes"] & cuts["repair"], "seconds"]
    lines += ["", f"Axes and repair took {seconds.min():.1f} to {seconds.max():.1f} s per cut on one CPU core."]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="What a cut alone costs, before any retraining.")
    parser.add_argument("--run", help="the folder of a run of sweep.yaml whose dense model is trained")
    parser.add_argument("--check", action="store_true", help="only compare the table with README.md")
    options = parser.parse_args(argv)
    if options.run:
        torch.set_num_threads(1)
        pd.DataFrame(measure(options.run)).to_parquet(ROWS, index=False)
    return write_or_check(PAGE, with_table(PAGE.read_text(), table(pd.read_parquet(ROWS)), START, END), options.check)


if __name__ == "__main__":
    sys.exit(main())
