"""Writes the studies' tables into the README.md of this folder: `python reports/dinov2/make_table.py`.

With labels: the tables come from results.parquet, and `--supervised FOLDER` first copies the rows of a run of sweep.yaml to it,
with its curves and gates, from which `slimsweep report reports/dinov2` makes a page. Without labels: they come from
label-free/, and `--label-free FOLDER` copies a run of label-free.yaml there alike; `--models FILE` copies what saved_models.py
measured of its models. Teachers and equal time: from teachers.parquet and equal-time.parquet, which teachers.py and
equal_time.py write. `--check` only compares the tables with README.md. `--picture` makes report.png in place of the tables.
"""

import argparse
import sys
from pathlib import Path

import pandas as pd

from slimsweep.ledger.run import Run
from slimsweep.report.comparison import with_error
from slimsweep.report.pareto import best_rates

sys.path.append(str(Path(__file__).parents[1]))  # reports/, for the modules that they share
from kept_tables import keep_tables, make_picture
from markdown_tables import with_table, write_or_check
from methods_tables import ahead_cell, dense_line, tables

HERE = Path(__file__).parent
PAGE, PICTURE = HERE / "README.md", HERE / "report.png"
ROWS = HERE / "results.parquet"
START, END = "<!-- with labels, written by make_table.py -->", "<!-- end of with labels -->"
TERMS = {"retraining": "Equal retraining: every model is trained for one epoch after the cut. Test top-1 in percent:"}
TEACHERS = HERE / "teachers.parquet"
TEACHERS_START, TEACHERS_END = "<!-- teachers, written by make_table.py -->", "<!-- end of teachers -->"
EQUAL_TIME = HERE / "equal-time.parquet"
EQUAL_TIME_START, EQUAL_TIME_END = "<!-- equal time, written by make_table.py -->", "<!-- end of equal time -->"
LABEL_FREE = HERE / "label-free"
MODELS = LABEL_FREE / "saved-models.parquet"
LABEL_FREE_START, LABEL_FREE_END = "<!-- label-free, written by make_table.py -->", "<!-- end of label-free -->"
UNTOUCHED = "untouched"  # saved_models.py's name of the model before the study


def label_free_table(rows: pd.DataFrame, models: pd.DataFrame) -> str:
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


def teachers_table(rows: pd.DataFrame) -> str:
    """Markdown: a line per teacher, and how far its points are ahead of those without one, paired by seed."""
    lines = ["| teacher | seeds | validation % | test % | ahead of none on test |", "| --- | ---: | ---: | ---: | ---: |"]
    alone = rows[rows["teacher"] == "none"].set_index("seed")["test_top1"]
    for teacher, points in rows.groupby("teacher", sort=False):
        tops = [_mean(points[column]) for column in ("val_top1", "test_top1")]
        last = "" if teacher == "none" else _ahead(points.set_index("seed")["test_top1"] - alone)
        lines.append(f"| {teacher} | {len(points)} | {' | '.join(tops)} | {last} |")
    return "\n".join(lines)


def equal_time_table(longer: pd.DataFrame) -> str:
    """Markdown: a line per budget, and how far the search is ahead of taylor in equal time and in equal epochs, paired by seed.

    Args:
        longer: of equal_time.py; of each training the learning rate counts that is best on validation with the first seed.
    """
    lines = [
        "| MACs | taylor: epochs | % | searched: epochs in equal time | % | ahead | searched in equal epochs, % | ahead |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    groups = longer.groupby(["budget", "taylor_epochs"])
    for (budget, epochs), points in sorted(groups, key=lambda group: (-group[0][0], group[0][1])):
        taylor = _of_best_rate(points[points["method"] == "taylor"])
        searched = {terms: some for terms, some in points[points["method"] == "searched"].groupby("terms")}
        cells = [str(epochs), _mean(taylor), str(searched["time"]["epochs"].max()) if "time" in searched else "-"]
        for terms in ("time", "epochs"):
            found = _of_best_rate(searched[terms]) if terms in searched else None
            cells += ["-", "-"] if found is None else [_mean(found), _ahead(found - taylor)]
        lines.append(f"| {100 * budget:g} % | {' | '.join(cells)} |")
    return "\n".join(lines)


def _of_best_rate(points: pd.DataFrame) -> pd.Series:
    """Test top-1 by seed of one method at one budget."""
    first = points[points["seed"] == points["seed"].min()]
    rate = first.loc[first["val_top1"].idxmax(), "lr"]
    return points[points["lr"] == rate].set_index("seed")["test_top1"]


def _mean(top1: pd.Series) -> str:
    return with_error(top1.mean(), top1.sem(), 2)


def _ahead(difference: pd.Series) -> str:
    return ahead_cell(pd.Series({"mean": difference.mean(), "se": difference.sem()}))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--supervised", help="the folder of a run of sweep.yaml, whose rows are copied first")
    parser.add_argument("--label-free", help="the folder of a run of label-free.yaml, whose rows are copied first")
    parser.add_argument("--models", type=Path, help="a file that saved_models.py wrote by --rows, which is copied first")
    parser.add_argument("--check", action="store_true", help="write nothing; fail where the page has other tables")
    parser.add_argument("--picture", nargs="?", const=PICTURE, help="make report.png, or this file, in place of the tables")
    options = parser.parse_args(argv)
    if options.picture:
        make_picture(pd.read_parquet(ROWS), "dinov2-emoji", Path(options.picture))
        return 0
    for folder, kept in ((options.supervised, HERE), (options.label_free, LABEL_FREE)):
        if folder:
            keep_tables(Run(folder), kept)
    if options.models:
        pd.read_parquet(options.models).to_parquet(MODELS, index=False)
    rows = pd.read_parquet(ROWS)
    text = with_table(PAGE.read_text(), "\n\n".join([dense_line(rows), *tables(rows, TERMS)]), START, END)
    text = with_table(text, teachers_table(pd.read_parquet(TEACHERS)), TEACHERS_START, TEACHERS_END)
    text = with_table(text, equal_time_table(pd.read_parquet(EQUAL_TIME)), EQUAL_TIME_START, EQUAL_TIME_END)
    label_free = label_free_table(pd.read_parquet(LABEL_FREE / "results.parquet"), pd.read_parquet(MODELS))
    return write_or_check(PAGE, with_table(text, label_free, LABEL_FREE_START, LABEL_FREE_END), options.check)


if __name__ == "__main__":
    sys.exit(main())
