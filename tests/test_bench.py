"""The benchmark: fair turns, typed rows, a table that puts speed beside MACs."""

import time

import pandas as pd
import pytest
import torch
from rich.console import Console
from torch import nn
from zoo import random_gates, small_vit

from slimsweep import add_gates, macs, save, slim, solve
from slimsweep.ledger.run import Run
from slimsweep.ledger.tables import BENCH
from slimsweep.tools.bench import bench, bench_dir, bench_run, table

QUICK = {"repeats": 2, "min_seconds": 0.0, "batch_sizes": (1, 2)}


def cut(model, budget):
    gated = add_gates(model)
    gated.set_gates(random_gates(gated))
    return slim(gated, solve(gated, budget))


class Sleeper(nn.Module):
    """Takes a known time, and writes down when its turn came."""

    def __init__(self, name, seconds, log):
        super().__init__()
        self.name, self.seconds, self.note = name, seconds, log.append
        self.patch_embed, self.in_chans = small_vit().patch_embed, 3

    def forward(self, x):
        self.note(self.name)
        time.sleep(self.seconds)
        return x


def test_times_are_those_of_the_models_and_turns_are_interleaved():
    log = []
    models = {"dense": Sleeper("dense", 0.02, log), "half": Sleeper("half", 0.005, log)}
    rows = {row["point"]: row for row in bench(models, batch_sizes=[4, 4], repeats=4, min_seconds=0.03, device="cpu")}
    for name, seconds in (("dense", 0.02), ("half", 0.005)):
        assert seconds * 1e3 <= rows[name]["latency_p50_ms"] <= rows[name]["latency_p90_ms"]
        assert rows[name]["images_per_second"] <= 4 / seconds
    turns = [name for i, name in enumerate(log) if i == 0 or log[i - 1] != name]
    # Counting, warming up, then four rounds, each of which starts with the other model: two turns in a row are one here.
    assert turns == ["dense", "half"] * 2 + ["dense", "half", "dense", "half", "dense"]
    assert rows["half"]["latency_p50_ms"] < rows["dense"]["latency_p50_ms"]


def test_rows_are_those_of_the_schema(tmp_path):
    model = small_vit()
    before = torch.get_num_threads()
    rows = bench({"dense": model, "half": cut(model, 0.5)}, threads=1, device="cpu", **QUICK)
    assert torch.get_num_threads() == before
    assert [(r["point"], r["batch_size"]) for r in rows] == [("dense", 1), ("half", 1), ("dense", 2), ("half", 2)]
    assert set(rows[0]) | {"run"} == set(BENCH.names)
    assert rows[0]["macs"] == macs(model)
    assert rows[0]["peak_memory_bytes"] is None
    assert rows[0]["hardware"]
    assert all(r["threads"] == 1 and r["dtype"] == "float32" and not r["compile"] for r in rows)


def test_bfloat16_leaves_the_given_model_alone():
    model = small_vit()
    (row,) = bench({"dense": model}, dtype="bfloat16", device="cpu", batch_sizes=[2], repeats=1, min_seconds=0)
    assert row["dtype"] == "bfloat16"
    assert next(model.parameters()).dtype == torch.float32


@pytest.mark.slow
def test_compiled(monkeypatch):
    """Every model and batch size is one whole graph; the C++ back end would take minutes here."""
    graphs = []
    compiler = torch.compile

    def count(graph, inputs):
        graphs.append(graph)
        return graph

    monkeypatch.setattr(torch, "compile", lambda model, **options: compiler(model, backend=count, **options))
    models = {"dense": small_vit(), **{str(b): cut(small_vit(), b) for b in (0.7, 0.4)}}
    rows = bench(models, compile=True, device="cpu", batch_sizes=[1, 2, 3], repeats=1, min_seconds=0)
    assert len(graphs) == len(rows) == 9
    assert all(r["compile"] for r in rows)


def test_a_run_is_timed_beside_its_dense_model(tmp_path):
    model = small_vit()
    run = Run(tmp_path / "digits")
    with pytest.raises(ValueError, match="no dense model"):
        bench_run(run)
    save(model, tmp_path / "digits" / "dense")
    for budget in (0.7, 0.4):
        save(cut(model, budget), tmp_path / "digits" / "models" / f"searched-{budget}")
    rows = bench_run(run, device="cpu", **QUICK)
    assert len(rows) == 6
    found = pd.read_parquet(tmp_path / "digits" / "bench")
    assert list(found.columns) == BENCH.names
    assert set(found.point) == {"dense", "searched-0.7", "searched-0.4"}
    assert set(found.run) == {"digits"}
    bench_run(run, ["searched-0.4"], device="cpu", **QUICK)
    assert len(run.products.bench()) == 10
    with pytest.raises(ValueError, match=r"no model 'searched-0\.3'; it has searched-0\.4, searched-0\.7"):
        bench_run(run, ["searched-0.3"])


def test_a_folder_is_timed_beside_its_dense_architecture(tmp_path):
    save(cut(small_vit(), 0.5), tmp_path / "half")
    rows = bench_dir(tmp_path / "half", device="cpu", **QUICK)
    assert {r["point"]: r["macs"] for r in rows}["dense"] == macs(small_vit())
    save(small_vit(), tmp_path / "whole")
    assert [r["point"] for r in bench_dir(tmp_path / "whole", device="cpu", **QUICK)] == ["whole", "whole"]


def test_the_table_puts_speed_beside_macs():
    common = {"device": "cpu", "hardware": "A processor", "threads": 2, "dtype": "float32", "compile": False, "batch_size": 8}
    rows = [
        {"point": "dense", "macs": 4_000_000_000, "latency_p50_ms": 100.0, "latency_p90_ms": 110.0, "images_per_second": 80.0},
        {"point": "half", "macs": 2_000_000_000, "latency_p50_ms": 52.0, "latency_p90_ms": 60.0, "images_per_second": 150.0},
    ]
    console = Console(width=140, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table([{**common, "peak_memory_bytes": None, **row} for row in rows]))
    text = console.export_text()
    assert "A processor, 2 threads, float32, eager" in text
    (half,) = [line for line in text.splitlines() if "half" in line]
    assert "2.00x" in half
    assert "1.92x" in half


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"batch_sizes": []}, "batch sizes"),
        ({"batch_sizes": [0]}, "batch sizes"),
        ({"threads": 0}, "threads is 0"),
        ({"dtype": "int8"}, "float32 or bfloat16"),
        ({"device": "tpu"}, "cpu or cuda"),
        ({"repeats": 0}, "repeats is 0"),
    ],
)
def test_arguments_that_mean_nothing_are_refused(options, reason):
    with pytest.raises(ValueError, match=reason):
        bench({"dense": small_vit()}, **options)
    with pytest.raises(ValueError, match="no model"):
        bench({})
