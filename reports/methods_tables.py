"""Tables of a study that compares methods: test top-1 of methods x budgets, and how far the search is ahead of each."""

from collections.abc import Iterator, Mapping

import pandas as pd

from slimsweep.report.comparison import compare_methods, with_error
from slimsweep.report.pareto import best_rates, summarize


def tables(rows: pd.DataFrame, terms_mean: Mapping[str, str]) -> Iterator[str]:
    """Markdown, one table per kind of terms: test top-1 of methods x budgets, and the search compared with each method.

    Args:
        rows: of a run; of each method and budget the learning rate counts that is best on validation.
        terms_mean: what each kind of terms means in this study, in a sentence that stands above its table.
    """
    ok = best_rates(rows[rows["status"] == "ok"])
    searched = ok[ok["method"] == "searched"]
    for terms, says in terms_mean.items():
        others = ok[(ok["terms"] == terms) & ~ok["method"].isin(["searched", "dense"])]
        if others.empty:
            continue
        yield f"{says}\n\n{_table(pd.concat([searched, others]))}"


def _table(rows: pd.DataFrame) -> str:
    budgets = sorted(rows["budget"].unique(), reverse=True)
    means = summarize(rows, metrics=["test_top1"]).set_index(["method", "budget"])
    ahead = ahead_at_budgets(rows)
    equal = compare_methods(rows).set_index("method")
    percent = [f"{100 * b:g} %" for b in budgets]
    headings = [*percent, *(f"ahead at {p}" for p in percent), "ahead at equal MACs", "MACs for the same accuracy"]
    lines = [f"| method | {' | '.join(headings)} |", f"| --- |{' ---: |' * len(headings)}"]
    for method in ["searched", *equal.sort_values("difference").index]:
        cells = [mean_cell(means.loc[(method, b)]) if (method, b) in means.index else "" for b in budgets]
        cells += [ahead_cell(ahead.loc[(method, b)]) if (method, b) in ahead.index else "" for b in budgets]
        if method in equal.index:
            found = equal.loc[method]
            cells.append(with_error(found["difference"], found["difference_se"], 2, sign=True))
            cells.append(with_error(found["ratio"], found["ratio_se"], 2, "x"))
        else:
            cells += ["", ""]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def dense_line(rows: pd.DataFrame) -> str:
    """What the dense model has on test, retrained as the points are, and before that."""
    dense = best_rates(rows[rows["method"] == "dense"])
    mean = summarize(dense, metrics=["test_top1"]).iloc[0]
    untouched = dense["test_top1_untouched"].iloc[0]
    return f"Dense, retrained alike: {mean_cell(mean)} % (before that {untouched:.2f} %)."


def ahead_at_budgets(rows: pd.DataFrame) -> pd.DataFrame:
    """By (method, budget), how far the search is ahead in points of test top-1: `mean` and `se`, paired by seed."""
    top1 = rows.pivot_table(index=["budget", "seed"], columns="method", values="test_top1")
    ahead = top1.drop(columns="searched").rsub(top1["searched"], axis=0).stack().dropna().groupby(["method", "budget"])
    return pd.DataFrame({"mean": ahead.mean(), "se": ahead.sem()})


def ahead_cell(difference: pd.Series) -> str:
    """In bold where it is more than two standard errors from 0."""
    mark = "**" if abs(difference["mean"]) > 2 * difference["se"] else ""
    return f"{mark}{with_error(difference['mean'], difference['se'], 2, sign=True)}{mark}"


def mean_cell(summary: pd.Series) -> str:
    """Mean and standard error of test top-1, from a row of `summarize`."""
    return with_error(summary["test_top1_mean"], summary["test_top1_se"], 2)
