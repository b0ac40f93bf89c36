"""The model that a limit leaves: chosen by validation, and a clear answer where nothing fits."""

import pandas as pd
import pytest

from slimsweep.tools.pick import NothingFits, pick

ROWS = pd.DataFrame(
    {
        "point": ["dense", "large", "small", "broken"],
        "status": ["ok", "ok", "ok", "failed"],
        "macs": [1000_000_000, 700_000_000, 300_000_000, 100_000_000],
        "macs_dense": 1000_000_000,
        "val_top1": [80.0, 81.0, 76.0, 99.0],
        "params": [20, 15, 8, 1],
        "params_dense": 20,
        "test_top1": [80.0, 70.0, 90.0, 99.0],  # would choose otherwise
    }
)
BENCH = pd.DataFrame(
    {
        "point": ["dense", "large", "small", "large"],
        "batch_size": [1, 1, 1, 8],
        "latency_p50_ms": [9.0, 7.0, 4.0, 30.0],
        **{"device": "cpu", "hardware": "EPYC", "threads": 2, "dtype": "float32", "compile": False},
        "created_at": pd.to_datetime(["2026-01-01"] * 4, utc=True),
    }
)


@pytest.mark.parametrize(
    ("limits", "point"),
    [
        ({"limits": {"macs": 0.5}}, "small"),
        ({"limits": {"macs": None, "params": "50%"}}, "small"),
        ({"limits": {"macs": "0.9G"}}, "large"),
        ({"limits": {"macs": 1.0}}, "large"),  # the most accurate on validation, not the largest
        ({"min_top1": 75}, "small"),  # the cheapest that is good enough
        ({"min_top1": 80.5}, "large"),
        ({"max_latency_ms": 5}, "small"),
        ({"max_latency_ms": 8, "min_top1": 78}, "large"),
    ],
)
def test_the_choice_is_by_validation(limits: dict, point: str) -> None:
    assert pick(ROWS, BENCH, **limits).point == point


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ({"limits": {"macs": "100M"}}, "the nearest to at most 100.00 MMACs is small"),
        ({"min_top1": 90}, "the nearest to at least 90 % on validation is large"),
        ({"limits": {"macs": 0.5}, "min_top1": 80}, "the nearest to at least 80 % on validation is small"),
        ({"max_latency_ms": 1}, "the nearest to at most 1 ms is small"),
    ],
)
def test_where_nothing_fits_the_nearest_is_named(limits: dict, said: str) -> None:
    with pytest.raises(NothingFits, match=said):
        pick(ROWS, BENCH, **limits)


def test_what_cannot_be_answered_says_what_to_do() -> None:
    with pytest.raises(ValueError, match="give a limit"):
        pick(ROWS)
    with pytest.raises(ValueError, match="slimsweep bench"):
        pick(ROWS, None, max_latency_ms=5)
    with pytest.raises(ValueError, match="neither a fraction"):
        pick(ROWS, limits={"macs": "much"})
    with pytest.raises(ValueError, match="--max-macs is '60% params', which counts params: give it as --max-params"):
        pick(ROWS, limits={"macs": "60% params"})
    for share in (0.8, -1):
        with pytest.raises(ValueError, match=f"--min-top1 is {share:g} %: give percent, such as --min-top1 80"):
            pick(ROWS, min_top1=share)
    with pytest.raises(NothingFits, match="no point of this run is done"):
        pick(ROWS[ROWS.status == "failed"], limits={"macs": 0.5})


def test_latencies_are_those_of_one_setting() -> None:
    """Of another device, a point would be fast beside others for no merit of its own."""
    setting = {"device": "cpu", "threads": 2, "dtype": "float32", "compile": False}
    slow = BENCH.assign(**setting, hardware="old")
    fast = BENCH[BENCH.point == "dense"].assign(**setting, hardware="new", latency_p50_ms=1.0)
    fast["created_at"] = pd.to_datetime("2025-01-01", utc=True)
    assert pick(ROWS, pd.concat([fast, slow]), max_latency_ms=5).point == "small"
    # Nor does it matter that another setting had a smaller batch, where the latest has its own.
    later = slow[slow.batch_size == 1].assign(batch_size=32, device="cuda", latency_p50_ms=[9.0, 3.0, 20.0])
    later["created_at"] = pd.to_datetime("2027-01-01", utc=True)
    assert pick(ROWS, pd.concat([slow, later]), max_latency_ms=5).point == "large"
