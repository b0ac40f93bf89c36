"""The tables of README.md, from the files that measure.py writes."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from slimsweep.report.pareto import best_rates

sys.path.append(str(Path(__file__).parents[1]))  # reports/, for the module that they share
from markdown_tables import with_table, write_or_check

TIMES, ANEW, ACCURACY = "times.parquet", "anew.parquet", "dinov2.parquet"
IN_MS, IN_MS_FEW_TOKENS = "ms budget", "ms budget, few tokens lost"
IN_MACS, TORCH_PRUNING = "MACs budget", "Torch-Pruning"
OTHERS = (IN_MS_FEW_TOKENS, IN_MACS, TORCH_PRUNING)  # whose ms are compared with those of IN_MS
SETTINGS = tuple((batch, runtime) for batch in (1, 8) for runtime in ("torch", "onnxruntime"))
NOT_YET = "Not yet measured."


def write_tables(folder: Path, check: bool = False) -> int:
    """Write the tables of a folder's README.md, or only compare; returns the exit code, 1 where they differ."""
    page = folder / "README.md"
    rows, chosen_anew, of_run = (
        pd.read_parquet(folder / name) if (folder / name).exists() else None for name in (TIMES, ANEW, ACCURACY)
    )
    tables = {
        "equal ms": NOT_YET if rows is None else f"{setup(rows)}\n\n{equal_ms(rows, chosen_busy(folder))}",
        "budgets met": NOT_YET if rows is None else met(rows),
        "chosen anew": NOT_YET if chosen_anew is None else met_anew(chosen_anew),
        "accuracy": NOT_YET if of_run is None else accuracy_at_equal_ms(of_run),
        "methods": NOT_YET if of_run is None else accuracy_of_methods(of_run),
    }
    text = page.read_text()
    for name, table in tables.items():
        text = with_table(text, table, f"<!-- {name} -->", f"<!-- end of {name} -->")
    return write_or_check(page, text, check)


def setup(rows: pd.DataFrame) -> str:
    """One line: machine, versions, days."""
    one = {name: ", ".join(sorted(set(rows[name].dropna().astype(str)))) for name in ("hardware", "threads", "dtype")}
    versions = [
        f"{name} {', '.join(sorted(set(rows[f'{name}_version'].dropna())))}"
        for name in ("torch", "onnxruntime", "timm")
        if rows[f"{name}_version"].notna().any()
    ]
    days = ", ".join(sorted(set(rows.measured_at)))
    return f"{one['hardware']}, {one['threads']} threads, {one['dtype']}, {', '.join(versions)}, {days}:"


def chosen_busy(folder: Path) -> set[tuple[int, str]]:
    """The settings, as (batch size, runtime), whose structures were chosen while the machine was busy."""
    files = {setting: folder / f"{setting[1]}-batch-{setting[0]}.json" for setting in SETTINGS}
    return {setting for setting, file in files.items() if file.exists() and json.loads(file.read_text())["busy"]}


def equal_ms(rows: pd.DataFrame, chosen_busy: set[tuple[int, str]]) -> str:
    """Markdown: the share of the dense model's MACs that each kind keeps, and its ms in those of the budget in ms."""
    lines = [
        "| batch | runtime | budget | dense, ms | " + " | ".join((IN_MS, *OTHERS)) + " | machine |",
        "| ---: | --- | --- | ---: |" + " ---: |" * (1 + len(OTHERS)) + " --- |",
    ]
    for batch, runtime, of_setting in _settings(rows, lines):
        trusted, machine = quiet_runs(of_setting)
        if (batch, runtime) in chosen_busy:
            machine += "; busy while structures were chosen"
        for budget in sorted(of_setting.budget.unique(), reverse=True):
            at = trusted[trusted.budget == budget].set_index(["kind", "run"])
            cells = [_share(at, kind) for kind in (IN_MS, *OTHERS)]
            dense = f"{at.ms_dense.groupby('run').first().median():.2f}"
            lines.append(f"| {batch} | {runtime} | {budget} | {dense} | {' | '.join(cells)} | {machine} |")
    return "\n".join(lines)


def _settings(rows: pd.DataFrame, lines: list[str]) -> Iterator[tuple[int, str, pd.DataFrame]]:
    """(batch size, runtime, its rows) of each setting; for one without rows a line of the table says so instead."""
    columns = lines[1].count("|") - 1
    for batch, runtime in SETTINGS:
        of_setting = rows[(rows.batch_size == batch) & (rows.runtime == runtime)]
        if of_setting.empty:
            lines.append(f"| {batch} | {runtime} | not yet measured |" + " |" * (columns - 3))
        else:
            yield batch, runtime, of_setting


def _share(at: pd.DataFrame, kind: str) -> str:
    """The kept share of MACs; of other kinds than IN_MS with their ms, divided by IN_MS's in the same run."""
    if kind not in at.index.get_level_values("kind"):
        return "none"
    share = f"{100 * at.loc[kind].share_of_macs.iloc[0]:.1f} %"
    if kind == IN_MS or IN_MS not in at.index.get_level_values("kind"):
        return share
    return f"{share} ({(at.loc[kind].ms / at.loc[IN_MS].ms).median():.3f})"


def quiet_runs(of_setting: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """The rows of the runs in which the machine was quiet, or all where it never was; and how many were, in words."""
    runs, quiet = of_setting.run.nunique(), of_setting[of_setting.busy == ""]
    count = quiet.run.nunique()
    if not count:
        return of_setting, "**busy: not to be trusted**"
    return quiet, f"quiet in {count} of {runs} runs"


def met(rows: pd.DataFrame) -> str:
    """Markdown: measured ms divided by the budget's, over the runs."""
    lines = [
        "| batch | runtime | budget | kind | ms / budget: median | least | most | above the budget | machine |",
        "| ---: | --- | --- | --- | ---: | ---: | ---: | ---: | --- |",
    ]
    for batch, runtime, of_setting in _settings(rows, lines):
        trusted, machine = quiet_runs(of_setting)
        for budget in sorted(of_setting.budget.unique(), reverse=True):
            for kind in (IN_MS, IN_MS_FEW_TOKENS):
                one = trusted[(trusted.budget == budget) & (trusted.kind == kind)]
                if one.empty:
                    continue
                ratio = one.ms / one.ms_dense / _share_asked(budget)
                numbers = " | ".join(f"{value:.3f}" for value in (ratio.median(), ratio.min(), ratio.max()))
                above = f"{(ratio > 1).sum()} of {len(ratio)}"
                lines.append(f"| {batch} | {runtime} | {budget} | {kind} | {numbers} | {above} | {machine} |")
    return "\n".join(lines)


def _share_asked(budget: str) -> float:
    """0.5 for "50% ms"."""
    return float(budget.partition("%")[0]) / 100


def met_anew(rows: pd.DataFrame) -> str:
    """Markdown: measured ms divided by the budget's, where each run chose its structures anew: then, and later."""
    lines = [
        "| batch | runtime | budget | MACs kept | ms / budget, as chosen | in a later process | least | most | machine |",
        "| ---: | --- | --- | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for batch, runtime, of_setting in _settings(rows, lines):
        disturbed = of_setting.busy.where(of_setting.chosen_busy == "", of_setting.chosen_busy)
        trusted, machine = quiet_runs(of_setting.assign(busy=disturbed))
        for budget, one in sorted(trusted.groupby("budget"), reverse=True):
            chosen = one.chosen_ms / one.chosen_ms_dense / _share_asked(str(budget))
            later = one.ms / one.ms_dense / _share_asked(str(budget))
            cells = [f"{100 * one.share_of_macs.min():.0f} to {100 * one.share_of_macs.max():.0f} %"]
            cells += [
                f"{chosen.min():.3f} to {chosen.max():.3f}",
                *(f"{value:.3f}" for value in (later.median(), later.min(), later.max())),
            ]
            lines.append(f"| {batch} | {runtime} | {budget} | {' | '.join(cells)} | {machine} |")
    return "\n".join(lines)


def accuracy_at_equal_ms(rows: pd.DataFrame) -> str:
    """Markdown: test top-1 of cuts to budgets in ms, and of cuts to budgets in MACs at the same ms.

    The latter is read off a line between the neighbouring cuts in MACs (and the dense model) of the same seed, and compared
    seed by seed. Latencies are divided by the dense model's in the same rounds.
    """
    ok = best_rates(rows[(rows.status == "ok") & rows.method.isin(["searched", "dense"])])
    ok = ok.assign(share=ok.latency_ms / ok.latency_ms_dense)
    in_ms = ok[(ok.method == "searched") & (ok.unit == "ms")]
    in_macs = ok[(ok.method == "dense") | (ok.unit == "macs")]
    lines = [
        "| budget | ms / dense | MACs / dense | test top-1 % | of MACs budgets at these ms | difference | seeds | machine |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for budget in sorted(in_ms.budget.unique(), reverse=True):
        cuts = in_ms[in_ms.budget == budget]
        beside = pd.Series({one.seed: _at_share(in_macs[in_macs.seed == one.seed], one.share) for one in cuts.itertuples()})
        own = cuts.set_index("seed").test_top1
        both = (own - beside).dropna()
        busy = cuts.latency_busy.fillna("").ne("").any() or in_macs.latency_busy.fillna("").ne("").any()
        cells = [
            f"{100 * budget:g} % ms",
            f"{cuts.share.mean():.3f}",
            f"{(cuts.macs / cuts.macs_dense).mean():.3f}",
            _mean(own),
            _mean(beside.dropna()) if len(both) else "outside their range",
            _mean(both, sign="+") if len(both) else "",
            f"{len(both)} of {len(own)}",
            "**busy: not to be trusted**" if busy else "quiet",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    failed = rows[(rows.status == "failed") & (rows.unit == "ms")]
    lines += [f"\n{one.error}" for one in failed.drop_duplicates("error").itertuples()]
    return "\n".join(lines)


def accuracy_of_methods(rows: pd.DataFrame) -> str:
    """Markdown: test top-1 of each method at the same budgets, and of the models as they were cut, on validation."""
    ok = best_rates(rows[rows.status == "ok"])
    methods = ["searched", *sorted(set(ok.method) - {"searched", "dense"})]
    cells = [f"{name}: {what}" for name in methods for what in ("cut alone, validation", "test")]
    lines = [f"| budget | {' | '.join(cells)} |", f"| --- |{' ---: |' * len(cells)}"]
    for (unit, budget), of_budget in sorted(ok[ok.method != "dense"].groupby(["unit", "budget"]), reverse=True):
        found = {name: of_budget[of_budget.method == name] for name in methods}
        columns = [(one, column) for one in found.values() for column in ("val_top1_cut", "test_top1")]
        shown = [_mean(one[column]) if len(one) else "not reached" for one, column in columns]
        lines.append(f"| {100 * budget:g} % {'ms' if unit == 'ms' else 'MACs'} | {' | '.join(shown)} |")
    dense = ok[ok.method == "dense"]
    lines.append(
        f"\nThe dense model, trained as long: {_mean(dense.test_top1)} on test, {_mean(dense.val_top1)} on validation."
    )
    return "\n".join(lines)


def _at_share(of_seed: pd.DataFrame, share: float) -> float:
    """Top-1 between the neighbours in latency; nan outside of all of them."""
    rising = of_seed.dropna(subset=["share"]).sort_values("share")
    return float(np.interp(share, rising.share, rising.test_top1, left=np.nan, right=np.nan)) if len(rising) else np.nan


def _mean(values: pd.Series, sign: str = "") -> str:
    error = f" ± {values.sem():.2f}" if len(values) > 1 else ""
    return f"{values.mean():{sign}.2f}{error}"
