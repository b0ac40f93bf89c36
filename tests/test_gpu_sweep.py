"""On a GPU: a sweep whose trials share it, and latencies that are timed on it."""

import json
from pathlib import Path

import pytest
import torch
from conftest import QUICK
from zoo import small_vit

from slimsweep import add_gates, load
from slimsweep.latency.calls import DeviceTimer, about, check_device, timing_cost
from slimsweep.latency.curve import DENSE, measure_curve, solve_ms
from slimsweep.latency.device import hardware
from slimsweep.latency.setting import LatencySetting
from slimsweep.ledger.run import Run
from slimsweep.slimming.budget import Budget
from slimsweep.slimming.removal_path import RemovalPath, equal_gates
from slimsweep.slimming.structure import Structure
from slimsweep.tools.bench import bench

pytestmark = pytest.mark.gpu

EPOCHS = 40  # of a trial: some seconds, in which the other one's process starts too


def path_of(model: torch.nn.Module, depth: bool = False) -> RemovalPath:
    shape = add_gates(model).shape
    return RemovalPath(shape, equal_gates(shape), depth=depth)


# Latency.


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_structures_are_timed_on_the_device_in_each_setting(dtype: str, compiled: bool, device: torch.device) -> None:
    if compiled and device.type == "cpu":
        pytest.skip("tests/test_latency_budgets.py compiles on a CPU")
    dense = small_vit(depth=1)
    setting = LatencySetting(device=device.type, batch_size=4, dtype=dtype, compile=compiled)
    assert setting.label == f"{device.type}, batch size 4, {dtype}, {'torch.compile' if compiled else 'torch'}"
    path = path_of(dense)
    timer = DeviceTimer(dense, setting, rounds=2, min_seconds=0.0)
    found = timer({DENSE: path.prefix(0), "half": path.prefix(path.length // 2)})
    assert set(found.calls) == {DENSE, "half"}
    assert all(0 < timed.median < 10 and min(timed.together) > 0 for timed in found.calls.values())
    assert found.reference > 0
    assert timer.about == about(setting)
    assert timer.about["hardware"] == hardware(device)
    assert {p.device.type for p in dense.parameters()} == {"cpu"}, "the given model was moved"


def test_budgets_in_ms_are_solved_on_the_device(device: torch.device) -> None:
    dense = small_vit(embed_dim=128, num_heads=4, img_size=64)
    setting = LatencySetting(device=device.type, batch_size=8)
    path = path_of(dense, depth=True)
    timer = DeviceTimer(dense, setting, rounds=3, min_seconds=0.005)
    curve = measure_curve(path, timer, count=6)
    assert min(curve.ms) > 0
    # Whole layers leave, so that the end of the path takes far less than this also where other tests use the GPU meanwhile.
    (found,) = solve_ms(path, curve, [Budget.parse("85% ms")], timer, tries=4)
    assert found.length is not None, found.error
    assert 0 < found.timed.ms <= 0.85 * found.timed.ms_dense
    assert timing_cost(dense, setting).ms_dense > 0


def test_a_benchmark_of_the_device_gives_its_memory(cuda: torch.device) -> None:
    check_device(LatencySetting(device="cuda"))
    dense = small_vit()
    (row,) = bench({"dense": dense}, device="cuda", batch_sizes=[4], repeats=2, min_seconds=0.0)
    assert row["device"] == "cuda"
    assert row["hardware"] == torch.cuda.get_device_name()
    assert row["peak_memory_bytes"] >= sum(p.numel() * p.element_size() for p in dense.parameters())


# A sweep.


def test_two_trials_and_two_ranks_share_the_device_in_a_sweep(
    device: torch.device, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    ray = pytest.importorskip("ray")
    request.getfixturevalue("ray_cluster")
    from slimsweep.run import main

    on_gpu = device.type == "cuda"
    if on_gpu:
        assert ray.cluster_resources().get("GPU", 0) >= 1, "Ray does not see the GPU"
    arguments = ["--output", str(tmp_path), "--name", "shared", "--budgets", "0.5", *QUICK, "--retrain.epochs", str(EPOCHS)]
    arguments += ["--search.recovery", "0", "--resources.gpus_per_worker", "0.5" if on_gpu else "0"]
    assert main([*arguments, "--resources.search_workers", "2", "--dense.amp", "bf16", "--retrain.amp", "bf16"]) == 0
    run_folder = tmp_path / "shared"
    run = Run(run_folder)
    rows = run.rows
    assert sorted(zip(rows.method, rows.status, strict=True)) == [("dense", "ok"), ("searched", "ok")]
    assert set(rows.device) == {torch.cuda.get_device_name() if on_gpu else "cpu"}
    for row in rows.to_dict("records"):
        model = load(run.models / row["point"])
        assert {p.device.type for p in model.parameters()} == {"cpu"}
        assert model.structure == Structure.from_json(row["structure"])

    # Each trial has a process of its own, and began before the other had ended.
    lines = [json.loads(line) for line in (run_folder / "epochs.log").read_text().splitlines()]
    trials = [[line for line in lines if line["point"] == point] for point in rows.point]
    assert [len(trial) for trial in trials] == [EPOCHS, EPOCHS]
    assert len({line["pid"] for trial in trials for line in trial}) == 2
    begun = {file.name: file.stat().st_mtime for file in (run_folder / "begun").glob("*/*")}
    assert set(begun) == set(rows.point)
    assert max(begun.values()) < min(created.timestamp() for created in rows.created_at)
