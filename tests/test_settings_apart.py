"""Budgets in ms that a run was given in several settings: their points are no seeds of each other."""

import json
from dataclasses import replace

import pandas as pd
import pytest
from test_latency_shown import CPU, with_latency
from test_report import make_run

from slimsweep.report.page_data import page_data
from slimsweep.report.pareto import best_rates, summarize, with_settings, with_units
from slimsweep.report.run_tables import RunTables
from slimsweep.tools.display import _budget_of


def in_two_settings(threads: tuple[int, int] = (1, 2), hardware: tuple[str, str] = ("EPYC", "EPYC")) -> RunTables:
    """A run whose searched points are at shares of ms, each twice: in the second setting models are larger and better."""
    run = with_latency(make_run())
    dense, searched = (run.results[(run.results.method == "dense") == of_dense] for of_dense in (True, False))
    rows = [dense]
    for place, (count, name) in enumerate(zip(threads, hardware, strict=True)):
        setting = json.dumps({**CPU, "threads": count, "hardware": name})
        own = searched.assign(unit="ms", budget_ms=None, latency_setting=setting, point=searched.point + f"-{place}")
        rows.append(own.assign(macs=own.macs * (1 + place), test_top1=own.test_top1 + place))
    return replace(run, results=pd.concat(rows, ignore_index=True))


def test_points_of_two_settings_are_not_averaged() -> None:
    run = in_two_settings()
    means = summarize(run.results)
    of_ms = means[means.unit == "ms"]
    seeds = run.results.seed.nunique()
    assert (of_ms["count"] == seeds).all()
    assert sorted(of_ms.timed_in.unique()) == [
        "cpu, 1 thread, torch, batch 1, float32",
        "cpu, 2 threads, torch, batch 1, float32",
    ]
    groups = page_data([run])["groups"]
    for members, timed_in, macs in zip(groups["members"], groups["timed_in"], groups["mean"]["macs"], strict=True):
        rows = run.results.iloc[members]
        assert macs == pytest.approx(rows.macs.mean())
        assert rows.latency_setting[rows.unit == "ms"].nunique() <= 1
        assert bool(timed_in) == (rows.unit == "ms").all()


def test_one_setting_on_two_machines_stays_one() -> None:
    run = in_two_settings((2, 2), ("EPYC", "Xeon"))
    assert set(with_settings(with_units(run.results)).timed_in) == {""}
    assert set(page_data([run])["groups"]["timed_in"]) == {""}
    damaged = run.results.assign(latency_setting="{")
    assert set(with_settings(with_units(damaged)).timed_in) == {""}


def test_the_best_rate_is_found_in_each_setting() -> None:
    """The rate with the most seeds counts, and seeds of another setting are none of its."""
    run = in_two_settings()
    rows = run.results.assign(lr=1e-3)
    other = rows[rows.latency_setting.str.contains('"threads": 1') & (rows.unit == "ms")]
    better = other.assign(lr=1e-2, val_top1=other.val_top1 + 1, point=other.point + "-b")
    kept = best_rates(pd.concat([rows, better], ignore_index=True))
    of_one = kept[kept.latency_setting.str.contains('"threads": 1') & (kept.unit == "ms")]
    assert set(of_one.lr) == {1e-2}
    assert set(kept.lr[kept.latency_setting.str.contains('"threads": 2') & (kept.unit == "ms")]) == {1e-3}


def test_the_table_says_which() -> None:
    row = {"unit": "ms", "budget": 0.6, "budget_ms": None, "timed_in": ""}
    assert _budget_of(row) == "60 % of ms"
    assert _budget_of({**row, "timed_in": "cpu, 1 thread"}) == "60 % of ms, cpu, 1 thread"
    assert _budget_of({**row, "budget_ms": 8.0, "timed_in": "Jetson"}) == "8 ms, Jetson"
