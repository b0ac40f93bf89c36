"""What a cut alone costs, before any retraining: `python reports/fashion-mnist/before_training.py --run runs/fashion-mnist`.

The dense model of a run of sweep.yaml is cut to each of its budgets: gates ranked in three ways, with and without principal
axes, with and without repair. All numbers are on the validation split. They go to before-training.parquet, and from there into
the README.md of this folder; without --run only the table is written, with --check it is only compared. Two to five minutes on
one CPU core.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from slimsweep import load
from slimsweep.data import calibration_images, load_data, training_images
from slimsweep.ledger.run import Run
from slimsweep.slimming.structure import image_size, macs
from slimsweep.training.evaluate import evaluate_split

sys.path.append(str(Path(__file__).parents[1]))  # reports/, for the modules that the studies share
from cuts_before_training import cuts, single_thread, table_of_cuts
from markdown_tables import with_table, write_or_check

HERE = Path(__file__).parent
PAGE, ROWS = HERE / "README.md", HERE / "before-training.parquet"
START, END = "<!-- before any retraining, written by before_training.py -->", "<!-- end -->"
PACE = {"attention": 1.0, "mlp": 1.4, "token": 0.7}  # for all alike


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
    floors = config.search.floors.model_dump()
    for row, model in cuts(dense, config.sorted_budgets, images, some, labels, floors=floors, pace=PACE, seed=config.seed):
        yield {**row, "val_top1": top1(model)}


def table(rows: pd.DataFrame) -> str:
    """Markdown: rankings and ways x budgets, percent on validation."""
    made = rows[rows["ranking"] != "dense"]
    dense = float(rows.loc[rows["ranking"] == "dense", "val_top1"].iloc[0])
    lines = [f"Dense: {dense:.2f} % on validation.", "", *table_of_cuts(made, lambda row: f"{row['val_top1']:.1f}")]
    seconds = made.loc[made["axes"] & made["repair"], "seconds"]
    lines += ["", f"Axes and repair took {seconds.min():.1f} to {seconds.max():.1f} s per cut on one CPU core."]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="What a cut alone costs, before any retraining.")
    parser.add_argument("--run", help="the folder of a run of sweep.yaml whose dense model is trained")
    parser.add_argument("--check", action="store_true", help="only compare the table with README.md")
    options = parser.parse_args(argv)
    if options.run:
        single_thread()
        pd.DataFrame(measure(options.run)).to_parquet(ROWS, index=False)
    return write_or_check(PAGE, with_table(PAGE.read_text(), table(pd.read_parquet(ROWS)), START, END), options.check)


if __name__ == "__main__":
    sys.exit(main())
