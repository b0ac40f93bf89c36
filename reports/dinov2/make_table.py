"""Writes the label-free study's table into the README.md of this folder: `python reports/dinov2/make_table.py`.

The table comes from label-free/. `--run FOLDER` first copies the rows of a run of label-free.yaml there, with its curves and
gates, from which `slimsweep report reports/dinov2/label-free` makes a page; `--models FILE` copies what saved_models.py
measured of its models. `--check` only compares the table with README.md.
"""

import argparse
import sys
from pathlib import Path

import pandas as pd

from slimsweep.ledger.run import Run
from slimsweep.report.comparison import with_error
from slimsweep.report.pareto import best_rates

sys.path.append(str(Path(__file__).parents[1]))  # reports/, for the module that they share
from markdown_tables import with_table, write_or_check

HERE = Path(__file__).parent
PAGE, TABLES = HERE / "README.md", HERE / "label-free"
ROWS, MODELS = TABLES / "results.parquet", TABLES / "saved-models.parquet"
START, END = "<!-- label-free, written by make_table.py -->", "<!-- end of label-free -->"
UNTOUCHED = "untouched"  # saved_models.py's name of the model before the study


def table(rows: pd.DataFrame, models: pd.DataFrame) -> str:
    """Markdown: a line per budget, means over seeds with standard errors.

    Args:
        rows: of the run; of each budget the learning rate counts that is best on validation.
        models: of saved_models.py: one row per point of the run that it measured, and the untouched model's.
    """
    ok = best_rates(rows[rows["status"] == "ok"])
    measured = models.set_index("model")
    dense = measured.loc[UNTOUCHED]
    heads = ["MACs", "learning rate", "seeds", "R2, validation, cut only", "R2, validation", "R2, test"]
    heads += ["centred cosine", "own nearest %", "retrieval %"]
    lines = [
        f"The untouched model has {dense['macs'] / 1e6:.0f} MMACs and finds the same emoji in {dense['retrieval']:.1f} %.",
        "",
        f"| {' | '.join(heads)} |",
        f"|{' ---: |' * len(heads)}",
    ]
    for budget, points in sorted(ok[ok["method"] == "searched"].groupby("budget"), reverse=True):
        of_models = measured.reindex(points["point"])
        (rate,) = points["lr"].unique()
        columns = [(points["val_r2_cut"], 4), (points["val_r2"], 4), (points["test_r2"], 4)]
        columns += [(of_models[name], digits) for name, digits in (("cosine", 4), ("nearest", 1), ("retrieval", 1))]
        cells = [with_error(values.mean(), values.sem(), digits) for values, digits in columns]
        lines.append(f"| {100 * budget:g} % | {rate:g} | {len(points)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", help="the folder of a run of label-free.yaml, whose rows are copied first")
    parser.add_argument("--models", type=Path, help="a file that saved_models.py wrote by --rows, which is copied first")
    parser.add_argument("--check", action="store_true", help="write nothing; fail where the page has another table")
    options = parser.parse_args(argv)
    if options.run:
        TABLES.mkdir(exist_ok=True)
        run = Run(options.run)
        run.rows.sort_values("point", ignore_index=True).to_parquet(ROWS)
        run.curves().to_parquet(TABLES / "curves.parquet")
        run.gates_table().to_parquet(TABLES / "gates.parquet")
    if options.models:
        pd.read_parquet(options.models).to_parquet(MODELS, index=False)
    text = table(pd.read_parquet(ROWS), pd.read_parquet(MODELS))
    return write_or_check(PAGE, with_table(PAGE.read_text(), text, START, END), options.check)


if __name__ == "__main__":
    sys.exit(main())
