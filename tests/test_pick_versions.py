"""`slimsweep pick` among INT8 versions, and by limits in milliseconds as people write them."""

import shutil
from pathlib import Path

import pandas as pd
import pytest
from test_latency_shown import device_times, with_latency
from test_pick import ROWS
from test_report import make_run

from slimsweep.cli import main
from slimsweep.ledger.run import Run
from slimsweep.ledger.tables import QUANTIZED
from slimsweep.tools.pick import NothingFits, describe, pick

FINISHED = Path(__file__).parent / "data" / "finished-run"
POINT = "searched-0.4000-s0-1eef"


def quantized(**columns: object) -> pd.DataFrame:
    """INT8 versions of two points, one of which loses; both are much faster."""
    return pd.DataFrame(
        {
            "point": ["large", "small"],
            "file": ["exports/large-int8.onnx", "exports/small-int8.onnx"],
            "val_top1": [75.0, 76.0],
            "latency_p50_ms": [3.0, 2.0],
            "latency_p50_ms_fp32": [8.0, 5.0],
            **{"device": "cpu", "hardware": "EPYC", "threads": 2, "batch_size": 1, "onnxruntime_version": "1.32", "busy": ""},
            "created_at": pd.to_datetime(["2026-01-01"] * 2, utc=True),
            **columns,
        }
    )


@pytest.mark.parametrize(
    ("precision", "limits", "point", "int8"),
    [
        ("float32", {"max_latency_ms": 100}, None, False),  # of the benchmark, which there is none of
        ("int8", {"limits": {"macs": 1.0}}, "small", True),
        ("int8", {"max_latency_ms": 3.0, "min_top1": 74}, "small", True),
        ("any", {"limits": {"macs": 1.0}}, "large", False),  # more accurate than its INT8 version
        ("any", {"max_latency_ms": 8}, "large", False),
        ("any", {"max_latency_ms": 5}, "small", True),  # as accurate as its float32 model
        ("any", {"min_top1": 76}, "small", True),
    ],
)
def test_versions_are_chosen_by_their_own_accuracy_and_time(
    precision: str, limits: dict, point: str | None, int8: bool
) -> None:
    if point is None:
        with pytest.raises(ValueError, match="slimsweep bench"):
            pick(ROWS, None, precision=precision, quantized=quantized(), **limits)
        return
    chosen = pick(ROWS, None, precision=precision, quantized=quantized(), **limits)
    assert (chosen.point, bool(chosen.int8_file)) == (point, int8)
    assert (" in INT8 (" in describe(chosen)) == int8


def test_int8_versions_that_are_not_there_or_not_timed_are_refused() -> None:
    for none in (None, quantized().head(0), quantized(point=["gone", "broken"])):
        with pytest.raises(ValueError, match=r"--precision is int8, and no point of this run has an INT8 version: run"):
            pick(ROWS, limits={"macs": 1.0}, precision="int8", quantized=none)
    with pytest.raises(ValueError, match=r"times of INT8 versions that can be trusted, and .* none, as .* busy \(a build\)"):
        pick(ROWS, max_latency_ms=5, precision="any", quantized=quantized(busy="a build"))
    with pytest.raises(ValueError, match="trusted with --batch-size 8, and there are none: run"):
        pick(ROWS, max_latency_ms=5, precision="any", quantized=quantized(), batch_size=8)
    with pytest.raises(ValueError, match="--max-ms counts times of float32 models, and --precision is int8"):
        pick(ROWS, max_ms=5, precision="int8", quantized=quantized())
    with pytest.raises(ValueError, match="--precision is 'int4'; it can be"):
        pick(ROWS, max_latency_ms=5, precision="int4", quantized=quantized())  # type: ignore[arg-type]
    with pytest.raises(NothingFits, match=r"the nearest to at most 1 ms is small in INT8 \("):
        pick(ROWS, max_latency_ms=1, precision="any", quantized=quantized())


def test_times_of_an_earlier_setting_do_not_count() -> None:
    days = pd.to_datetime(["2026-01-01", "2026-01-02"], utc=True)
    mixed = quantized(threads=[4, 2], created_at=days)
    assert pick(ROWS, max_latency_ms=100, precision="int8", quantized=mixed).point == "small"
    with pytest.raises(NothingFits, match="the nearest to at least 80 % on validation is small in INT8"):
        pick(ROWS, max_latency_ms=100, min_top1=80, precision="int8", quantized=mixed)


def test_the_file_is_printed_and_one_of_other_weights_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import hashlib

    run = Run(shutil.copytree(FINISHED, tmp_path / "run"))
    folder = Path(run.uri)
    weights = hashlib.sha256((folder / "models" / POINT / "model.safetensors").read_bytes()).hexdigest()[:16]
    row = dict.fromkeys(QUANTIZED.names) | {
        "run": "run",
        "point": POINT,
        "file": f"exports/{POINT}-int8.onnx",
        "val_top1": 50.0,
    }
    command = ["pick", str(folder), "--max-macs", "1.0", "--precision", "int8"]
    run.products.write_quantized(row | {"weights": weights})
    assert main(command) == 2
    assert f"exports/{POINT}-int8.onnx, the INT8 version of {POINT}, is gone" in " ".join(capsys.readouterr().out.split())
    (folder / "exports").mkdir(exist_ok=True)
    (folder / row["file"]).touch()
    assert main(command) == 0
    said = capsys.readouterr()
    assert said.out.strip() == str(folder / row["file"])
    assert f"{POINT} in INT8 (" in said.err
    run.products.write_quantized(row | {"weights": "0" * 16})
    assert main(command) == 2
    assert "was made before" in capsys.readouterr().out


# Limits in milliseconds.


def test_a_limit_in_ms_is_written_as_a_budget_is() -> None:
    run = with_latency(make_run())
    plain = pick(run.results, max_ms=5.1)
    assert pick(run.results, max_ms="5.1").point == pick(run.results, max_ms="5.1 ms").point == plain.point
    assert pick(run.results, max_ms="51%").point == pick(run.results, max_ms="51% ms").point == plain.point
    with pytest.raises(NothingFits, match=r"no point fits at most 1 % of ms \(dense: 10 ms\); the nearest"):
        pick(run.results, max_ms="1%")
    without_dense = run.results.assign(latency_ms_dense=float("nan"))
    with pytest.raises(ValueError, match="--max-ms is '40% ms', and the dense model was not timed in that setting"):
        pick(without_dense, max_ms="40%")
    jetson = device_times(run, "Jetson", 1.0)
    share = pick(make_run().results, device_times=jetson, max_ms="60%")
    assert share.latency_ms <= 0.6 * share.latency_ms_dense


@pytest.mark.parametrize("wrong", ["0", "-3", "nan", "0%", "140%", "8 s", "12K", "60% params", "fast", float("nan"), 0])
def test_a_limit_that_no_call_takes_is_refused(wrong: str | float) -> None:
    run = with_latency(make_run())
    with pytest.raises(ValueError, match=r"budget|--max-ms") as refused:
        pick(run.results, max_ms=wrong)
    assert not isinstance(refused.value, NothingFits)
    if not isinstance(wrong, str):
        with pytest.raises(ValueError, match=r"--max-latency-ms is .*, which no call takes"):
            pick(run.results, max_latency_ms=wrong)
