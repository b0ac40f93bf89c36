"""The tables of reports/latency are those of the files beside them, and say where a machine was busy."""

import json
import runpy
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

STUDY = Path(__file__).parents[1] / "reports" / "latency"


@pytest.fixture(scope="module")
def tables() -> dict[str, Any]:
    return runpy.run_path(str(STUDY / "latency_tables.py"))


def test_the_page_s_tables_are_those_of_its_files(tables: dict[str, Any]) -> None:
    assert tables["write_tables"](STUDY, check=True) == 0


def test_what_was_timed_is_what_was_chosen(tables: dict[str, Any]) -> None:
    if not (STUDY / tables["TIMES"]).exists():
        assert (STUDY / "README.md").read_text().count("\nNot yet measured.\n") >= 2
        return
    rows = pd.read_parquet(STUDY / tables["TIMES"])
    for (runtime, batch), of_setting in rows.groupby(["runtime", "batch_size"]):
        chosen = json.loads((STUDY / f"{runtime}-batch-{batch}.json").read_text())["models"]
        wanted = {(one["budget"], one["kind"], one["id"]) for one in chosen.values()}
        assert {tuple(one) for one in of_setting[["budget", "kind", "id"]].to_numpy()} == wanted


def timed(busy: dict[int, str]) -> pd.DataFrame:
    """Rows of two kinds at a budget of half of 100 ms: 49 ms, in later runs 1 ms more each, and twice that."""
    return pd.DataFrame(
        {
            **{"runtime": "torch", "batch_size": 1, "run": run, "budget": "50% ms", "kind": kind},
            **{"share_of_macs": 0.4 * times, "ms": (48 + run) * times, "ms_dense": 100.0, "busy": busy.get(run, "")},
        }
        for run in (1, 2, 3)
        for times, kind in ((1, "ms budget"), (2, "Torch-Pruning"))
    )


def test_a_busy_run_does_not_count_and_is_said(tables: dict[str, Any]) -> None:
    quiet, one_busy = tables["met"](timed({})), tables["met"](timed({3: "other processes used 2 of 2 cores"}))
    assert "| 1.000 | 0.980 | 1.020 | 1 of 3 | quiet in 3 of 3 runs |" in quiet
    assert "| 0.990 | 0.980 | 1.000 | 0 of 2 | quiet in 2 of 3 runs |" in one_busy
    all_busy = timed(dict.fromkeys((1, 2, 3), "other processes used 2 of 2 cores"))
    for table in (tables["met"](all_busy), tables["equal_ms"](all_busy, set())):
        assert "busy: not to be trusted" in table
        assert "quiet" not in table


def test_kinds_are_compared_in_the_same_run_and_missing_settings_are_said(tables: dict[str, Any]) -> None:
    table = tables["equal_ms"](timed({}), {(1, "torch")})
    assert "| 100.00 | 40.0 % | none | none | 80.0 % (2.000) | quiet in 3 of 3 runs; busy while" in table
    assert table.count("not yet measured") == 3


def test_accuracy_at_equal_ms_is_read_off_the_line_of_the_same_seed(tables: dict[str, Any]) -> None:
    rows = [
        {
            **{"status": "ok", "method": method, "terms": "retraining", "unit": unit, "budget": budget, "shares": ""},
            **{"seed": seed, "lr": 1e-3, "epochs": 3, "val_top1": top1 + seed, "test_top1": top1 + seed},
            **{"macs": 5, "macs_dense": 10, "latency_ms": ms, "latency_ms_dense": 10.0, "latency_busy": ""},
        }
        for seed in (0, 1)
        for method, unit, budget, ms, top1 in (
            ("dense", "macs", 1.0, 10.0, 90.0),
            ("searched", "macs", 0.5, 6.0, 86.0),
            ("searched", "macs", 0.25, 4.0, 80.0),
            ("searched", "ms", 0.5, 5.0, 84.0 + seed),  # between 86 and 80: 83; one seed is ahead by 1, the other by 2
            ("searched", "ms", 0.25, 2.5, 70.0),  # below all latencies of MACs budgets
        )
    ]
    table = tables["accuracy_at_equal_ms"](pd.DataFrame(rows))
    assert "| 50 % ms | 0.500 | 0.500 | 85.00 ± 1.00 | 83.50 ± 0.50 | +1.50 ± 0.50 | 2 of 2 | quiet |" in table
    assert "| 25 % ms | 0.250 | 0.500 | 70.50 ± 0.50 | outside their range |  | 0 of 2 | quiet |" in table


def test_structures_that_are_chosen_anew_are_judged_by_a_later_process(tables: dict[str, Any]) -> None:
    rows = timed({2: "other processes used 2 of 2 cores"})
    rows = rows[rows.kind == "ms budget"].assign(chosen_ms=40.0, chosen_ms_dense=[80.0, 90.0, 100.0], chosen_busy=["", "", ""])
    table = tables["met_anew"](rows)
    assert "| 1 | torch | 50% ms | 40 to 40 % | 0.800 to 1.000 | 1.000 | 0.980 | 1.020 | quiet in 2 of 3 runs |" in table
    busy_then = rows.assign(chosen_busy=["other processes used 2 of 2 cores", "", ""])
    assert "| 0.800 to 0.800 | 1.020 | 1.020 | 1.020 | quiet in 1 of 3 runs |" in tables["met_anew"](busy_then)


def test_methods_stand_beside_each_other_at_each_budget(tables: dict[str, Any]) -> None:
    rows = [
        {
            **{"status": "ok", "method": method, "terms": "retraining", "unit": "macs", "budget": budget, "shares": ""},
            **{"seed": seed, "lr": 1e-3, "epochs": 3, "val_top1_cut": 10.0, "val_top1": top1, "test_top1": top1 + seed},
        }
        for seed in (0, 2)
        for method, budget, top1 in (
            ("dense", 1.0, 90.0),
            ("searched", 0.5, 86.0),
            ("searched", 0.25, 80.0),
            ("uniform", 0.5, 70.0),
        )
    ]
    table = tables["accuracy_of_methods"](pd.DataFrame(rows))
    assert "| 50 % MACs | 10.00 ± 0.00 | 87.00 ± 1.00 | 10.00 ± 0.00 | 71.00 ± 1.00 |" in table
    assert "| 25 % MACs | 10.00 ± 0.00 | 81.00 ± 1.00 | not reached | not reached |" in table
    assert "91.00 ± 1.00 on test, 90.00 ± 0.00 on validation" in table
