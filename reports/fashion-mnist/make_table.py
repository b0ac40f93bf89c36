"""Writes the study's tables into the README.md of this folder: `python reports/fashion-mnist/make_table.py`.

Tables come from results.parquet, variants.parquet and two-sizes.parquet. `--run FOLDER` first copies the rows of a run to the
first, with its curves and gates, from which `slimsweep report reports/fashion-mnist` makes a page. `--variants FOLDER ...`
copies the rows of runs of the same model with other settings to the second; `--two-sizes FOLDER` those of a sweep over two
models to the third.
`--check` only compares the tables with README.md. `--picture` makes report.png in place of the tables: the page of some of the
rows, as Chromium shows it.
"""

import argparse
import sys
from pathlib import Path

import pandas as pd

from slimsweep.ledger.run import Run
from slimsweep.report.pareto import best_rates, pareto_front, summarize

sys.path.append(str(Path(__file__).parents[1]))  # reports/, for the modules that they share
from kept_tables import keep_tables, make_picture
from markdown_tables import with_table, write_or_check
from methods_tables import ahead_at_budgets, ahead_cell, dense_line, mean_cell, tables

HERE = Path(__file__).parent
PAGE, ROWS, SIZES = HERE / "README.md", HERE / "results.parquet", HERE / "two-sizes.parquet"
VARIANTS = HERE / "variants.parquet"
PICTURE = HERE / "report.png"
START, END = "<!-- written by make_table.py -->", "<!-- end -->"
LEARNED, LEARNED_START = "fashion-mnist-learned", "<!-- learned gates, written by make_table.py -->"
LONGER, LONGER_START = "fashion-mnist-longer", "<!-- longer retraining, written by make_table.py -->"
SIZES_START = "<!-- two sizes, written by make_table.py -->"
TERMS = {
    "retraining": "Equal retraining: every model is trained on the same number of images after the cut.",
    "compute": "Equal compute: the other methods are retrained longer, by the compute of the tries of paces, over all budgets.",
}


def learned_table(rows: pd.DataFrame, learned: pd.DataFrame) -> str:
    """Markdown: test top-1 at each budget by gates that are ranked without training and by trained ones, paired by seed."""
    both = pd.concat(
        best_rates(of_one[(of_one["status"] == "ok") & (of_one["method"] == "searched")]).assign(method=name)
        for name, of_one in (("searched", rows), ("learned", learned[learned["lr"].isin(rows["lr"])]))
    )
    means, ahead = summarize(both, metrics=["test_top1"]).set_index(["method", "budget"]), ahead_at_budgets(both)
    lines = [
        "| budget | activation energy, nothing trained | gates trained for one epoch | ahead without training |",
        "| ---: | ---: | ---: | ---: |",
    ]
    for budget in sorted(both["budget"].unique(), reverse=True):
        cells = [mean_cell(means.loc[(name, budget)]) for name in ("searched", "learned")]
        lines.append(f"| {100 * budget:g} % | {' | '.join(cells)} | {ahead_cell(ahead.loc[('learned', budget)])} |")
    return "\n".join(lines)


def longer_table(rows: pd.DataFrame) -> str:
    """Markdown: test top-1 of dense and of cuts, and how far the cut to half is ahead of each, paired by seed."""
    best = best_rates(rows[rows["status"] == "ok"])
    means = summarize(best, metrics=["test_top1"]).set_index("method")
    top1 = best.pivot_table(index="seed", columns="method", values="test_top1")
    lines = ["| model | learning rate | test % | searched is ahead by |", "| --- | ---: | ---: | ---: |"]
    for method in means.index:
        (rate,) = best[best["method"] == method]["lr"].unique()
        ahead = (top1["searched"] - top1[method]).agg(["mean", "sem"]).set_axis(["mean", "se"])
        share = "" if method == "dense" else f", {100 * best[best['method'] == method]['budget'].iloc[0]:g} % of the MACs"
        last = "" if method == "searched" else ahead_cell(ahead)
        lines.append(f"| {method}{share} | {rate:g} | {mean_cell(means.loc[method])} | {last} |")
    return "\n".join(lines)


def sizes_table(rows: pd.DataFrame) -> str:
    """Markdown: MMACs and test top-1 from each dense model at each budget; bold on the Pareto front over both."""
    ok = rows[rows["status"] == "ok"]
    ok = pd.concat(best_rates(of_one) for _, of_one in ok.groupby("macs_dense"))
    means = summarize(ok, by=("macs_dense", "budget"))
    front = set(pareto_front(means, x="macs_mean", y="test_top1_mean").index)
    bold = ["**" if place in front else "" for place in means.index]
    tops = [mean_cell(row) for _, row in means.iterrows()]
    means["cell"] = [f"{mark}{top}{mark}" for mark, top in zip(bold, tops, strict=True)]
    sizes = sorted(means["macs_dense"].unique(), reverse=True)
    head = " | ".join(f"MMACs | from {size / 1e6:.1f} MMACs: test %" for size in sizes)
    lines = [f"| budget | {head} |", f"| --- |{' ---: |' * 2 * len(sizes)}"]
    for budget in sorted(means["budget"].unique(), reverse=True):
        at = means[means["budget"] == budget].set_index("macs_dense")
        cells = [
            f"{at.loc[size, 'macs_mean'] / 1e6:.2f} | {at.loc[size, 'cell']}" if size in at.index else " | " for size in sizes
        ]
        lines.append(f"| {100 * budget:g} % | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail where the page has other tables")
    parser.add_argument("--run", help="a run's folder, whose rows are copied first")
    parser.add_argument("--variants", nargs="+", help="the folders of runs with other settings, whose rows are copied first")
    parser.add_argument("--two-sizes", help="the folder of a sweep over two models, whose rows are copied first")
    parser.add_argument("--picture", nargs="?", const=PICTURE, help="make report.png, or this file, in place of the tables")
    options = parser.parse_args(argv)
    if options.picture:
        make_picture(pd.read_parquet(ROWS), "fashion-mnist", Path(options.picture))
        return 0
    if options.run:
        keep_tables(Run(options.run), HERE)
    if options.variants:
        both = pd.concat([Run(folder).rows for folder in options.variants])
        both.sort_values(["run", "point"], ignore_index=True).to_parquet(VARIANTS)
    if options.two_sizes:
        both = pd.concat([Run(f).rows for f in sorted(Path(options.two_sizes).iterdir()) if f.is_dir()])
        both = both[both["method"].isin(["dense", "searched"])]  # baselines are in results.parquet
        both.sort_values(["macs_dense", "point"], ignore_index=True).to_parquet(SIZES)
    rows = pd.read_parquet(ROWS)
    methods = "\n\n".join([dense_line(rows), *tables(rows, TERMS)])
    text = with_table(PAGE.read_text(), f"\n{methods}\n", START, END)
    variants = pd.read_parquet(VARIANTS)
    learned, longer = (variants[variants["run"] == name] for name in (LEARNED, LONGER))
    text = with_table(text, f"\n{learned_table(rows, learned)}\n", LEARNED_START, END)
    text = with_table(text, f"\n{longer_table(longer)}\n", LONGER_START, END)
    text = with_table(text, f"\n{sizes_table(pd.read_parquet(SIZES))}\n", SIZES_START, END)
    return write_or_check(PAGE, text, options.check)


if __name__ == "__main__":
    sys.exit(main())
