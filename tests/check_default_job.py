"""Check what the default job left: `python tests/check_default_job.py runs/digits`."""

import json
import sys
from pathlib import Path

import pandas as pd


def main(run: Path) -> None:
    rows = pd.read_parquet(run / "results")
    assert len(rows) == 6, f"{len(rows)} rows, not 6"
    assert (rows.status == "ok").all(), rows[["point", "error"]].to_string()
    searched = rows[rows.method == "searched"].set_index("budget")
    assert sorted(searched.index) == [0.15, 0.25, 0.35, 0.5, 0.7]
    share = searched.macs / searched.macs_dense
    assert (share <= searched.index).all(), share
    assert (share >= searched.index - 0.03).all(), share
    untouched = float(rows.test_top1_untouched.iloc[0])
    half = float(searched.test_top1[0.5])
    assert half >= 95, f"{half} % at half the MACs"
    assert half >= untouched - 2, f"{half} % at half the MACs, {untouched} % dense"
    epochs = [json.loads(line) for line in (run / "epochs.log").read_text().splitlines()]
    tries = {epoch["pid"] for epoch in epochs if epoch["point"].startswith("pace-")}
    search = {epoch["pid"] for epoch in epochs if epoch["stage"] in ("dense", "search")}
    points = {epoch["pid"] for epoch in epochs if epoch["point"] in set(rows.point)}
    assert search <= points | tries, f"the process that searched, {search}, was not used again: {tries}, {points}"
    assert points & tries, f"all points were trained in processes that had to load everything: {points}, and not {tries}"
    assert (run / "report.html").stat().st_size > 1_000_000
    print(rows[["point", "macs", "params", "val_top1", "test_top1"]].to_string(index=False))
    print(f"default job: 6 ok rows, budgets kept, {half:.2f} % at half the MACs beside {untouched:.2f} % dense")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
