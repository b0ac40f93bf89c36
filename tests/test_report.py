"""The page as text, and the way from a run folder to it. What a browser makes of it is in test_report_browser.py."""

import base64
import html
import json
import re
import sys
import time
import zlib
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import timm
import torch

from slimsweep.ledger.files import SEARCH_GATES
from slimsweep.ledger.run import Run
from slimsweep.ledger.status import Status, TrainingStatus
from slimsweep.ledger.tables import BENCH, CURVES, GATES, RESULTS, write_table
from slimsweep.methods import METHODS
from slimsweep.report import page as report
from slimsweep.report import picture
from slimsweep.report.page import build_page, page_data, read_run, write_page, write_report
from slimsweep.report.pareto import EQUAL_COMPUTE, summarize, with_units
from slimsweep.report.picture import front_figure, write_picture
from slimsweep.report.run_tables import RunTables
from slimsweep.report.styles import looks
from slimsweep.slimming.gates import GatedModel, add_gates
from slimsweep.slimming.removal_path import solve
from slimsweep.slimming.structure import Structure

# Tables as a run leaves them, with real structures and invented accuracies.

WEB = Path(report.__file__).parent / "web"
SMALL = {"img_size": 8, "patch_size": 2, "in_chans": 1, "num_classes": 10, "embed_dim": 64, "depth": 4, "num_heads": 4}


@cache
def gated_model(big: bool) -> GatedModel:
    """A small transformer, or DeiT-S, whose gates fell off unevenly."""
    model = timm.create_model("deit_small_patch16_224") if big else timm.create_model("vit_tiny_patch16_224", **SMALL)
    gated = add_gates(model)
    random = np.random.default_rng(0)
    gated.set_gates(
        {f: [torch.tensor(random.beta(1.5, 1.0, g.shape), dtype=g.dtype) for g in gs] for f, gs in gated.gates.items()}
    )
    return gated


@cache
def structures(budgets: tuple[float, ...], big: bool = False) -> list[Structure]:
    """Real structures of these budgets."""
    return solve(gated_model(big), list(budgets))


def make_status(*, done: int = 0, failed: int = 0, running: int = 0, waiting: int = 0, alive: bool = False) -> Status:
    """Where a run stands whose points are in these states, its stages done."""
    states = ["done"] * done + ["failed"] * failed + ["running"] * running + ["waiting"] * waiting
    points = [TrainingStatus(name=f"point-{i}", state=state, epochs=3, epochs_total=20) for i, state in enumerate(states)]
    return Status(name="digits", alive=alive, stages=[], points=points)


def make_run(
    name: str = "digits",
    *,
    data: str = "digits",
    model: str = "vit_tiny_patch16_224",
    methods: tuple[str, ...] = ("searched",),
    budgets: tuple[float, ...] = (0.7, 0.5, 0.35, 0.25, 0.15),
    seeds: int = 1,
    best: float = 98.0,
    big: bool = False,
    epochs: int = 10,
    bench: bool = False,
    failed: str = "",
    status: Status | None = None,
) -> RunTables:
    """One run; `failed` is the error of a point that failed, if any."""
    random = np.random.default_rng(sum(map(ord, name)))
    rows, curves, timings = [], [], []
    dense = structures((1.0,), big)[0]
    entries = [("dense", 1.0, dense)] + [
        (m, b, s) for m in methods for b, s in zip(budgets, structures(budgets, big), strict=True)
    ]
    for method, budget, structure in entries:
        for seed in range(seeds):
            drop = 0.9 * (1 / budget - 1) + {"searched": 0.0, "dense": 0.4, "uniform": 1.1, "random": 2.4}.get(method, 1.6) * (
                1.2 - budget
            )
            top1 = best - drop + random.normal(0, 0.25)
            point = f"{method}-{budget:.4f}-s{seed}-{zlib.crc32(f'{name}{method}{budget}{seed}'.encode()) % 65536:04x}"
            rows.append(
                {
                    "run": name,
                    "point": point,
                    "model": model,
                    "data": data,
                    "method": method,
                    "seed": seed,
                    "budget": budget,
                    "status": "ok",
                    "error": "",
                    "macs": structure.macs(),
                    "macs_dense": dense.macs(),
                    "params": structure.params(),
                    "params_dense": dense.params(),
                    "model_bytes": 4 * structure.params() + 5000,
                    "val_top1_cut": max(top1 - 30 * (1 - budget), 10.0),
                    "val_top1": top1 + random.normal(0, 0.2),
                    "test_top1": top1,
                    "test_top5": min(100.0, top1 + 1.5),
                    "test_loss": (100 - top1) / 30,
                    "test_top1_untouched": best - 0.9,
                    "epochs": epochs,
                    "train_seconds": 20 * budget + 2,
                    "device": "cpu",
                    "structure": structure.to_json(),
                    "model_path": f"models/{point}",
                    "created_at": datetime(2026, 1, 1, tzinfo=UTC),
                }
            )
            epoch = np.arange(epochs + 1)
            val = top1 - (25 * (1 - budget) + 2) * np.exp(-3 * epoch / epochs)
            loss = [None, *(0.2 + np.exp(-2 * epoch[1:] / epochs)).tolist()]
            curves += [
                {"stage": "retrain", "point": point, "epoch": e, "loss": u, "val_top1": v}
                for e, u, v in zip(epoch.tolist(), loss, val.tolist(), strict=True)
            ]
            if bench:
                latency = 1.0 + 8.0 * budget
                setting = ["cpu", "EPYC", 2, 1, "float32", False, "torch"]
                measured = [latency, latency * 1.1, 1000 / latency, 30_000_000, structure.macs(), 10, "", 0.02, 1.5]
                timings.append([name, point, *setting, *measured, "2", "1", datetime(2026, 1, 1, tzinfo=UTC)])
    if failed:
        rows.append(
            {
                **rows[-1],
                "point": f"searched-0.0500-s0-{len(failed):04x}",
                "method": "searched",
                "budget": 0.05,
                "status": "failed",
                "error": failed,
                "model_path": None,
            }
        )
        for column in ("test_top1", "val_top1", "test_top5", "test_loss", "model_bytes", "train_seconds", "val_top1_cut"):
            rows[-1][column] = None
    final = {"attention": 0.55, "mlp": 0.4, "token": 0.7}
    for epoch in range(epochs + 1):
        gates = [
            {
                "family": f,
                "layer": i,
                "mean": 1 - (1 - end) * epoch / epochs * (0.8 + 0.1 * i),
                "below_1e-2": 0.02 * i * epoch / epochs,
            }
            for f, end in final.items()
            for i in range(4)
        ]
        curves.append(
            {
                "stage": "search",
                "point": "",
                "epoch": epoch,
                "loss": 0.3,
                "val_top1": best - 3 + 0.2 * epoch,
                "gates": gates,
                "gates_kept": 0.9,
            }
        )
    gate_rows = [
        {"family": f, "layer": i, "index": j, "value": float(v)}
        for f, end in final.items()
        for i in range(4)
        for j, v in enumerate(random.normal(end, 0.15, 64))
    ]
    return RunTables(
        name=name,
        uri=f"/sweeps/{name}",
        results=pa.Table.from_pylist(rows, schema=RESULTS).to_pandas(),
        curves=pa.Table.from_pylist(curves, schema=CURVES).to_pandas(),
        gates=pa.Table.from_pylist(gate_rows, schema=GATES).to_pandas(),
        bench=pd.DataFrame(timings, columns=BENCH.names),
        status=status or make_status(done=len(rows) - bool(failed), failed=int(bool(failed))),
        pace={
            "pace": {"attention": 1.0, "mlp": 1.4, "token": 0.7},
            "tried": [
                {"budget": 0.25, "val_top1": top1, "error": "not finite" * (not top1)} for top1 in (90.0, 94.721, 0.0, 91.389)
            ],
        },
    )


def data_of(page: str) -> dict:
    """The data that a page carries."""
    packed = re.search(r'id="packed-data">([^<]*)<', page)
    return json.loads(zlib.decompress(base64.b64decode(packed[1])))


# What must hold of any page.


def test_a_page_loads_nothing_and_lets_only_its_own_scripts_run():
    page = build_page([make_run()])
    policy = html.unescape(re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)[1])
    assert "default-src 'none'" in policy
    assert not re.search(r"https?:|unsafe-eval|\*", policy)
    scripts = re.search(r"script-src ([^;]*);", policy)[1]
    assert "unsafe-inline" not in scripts
    assert scripts.count("sha256-") == 2
    markup = re.sub(r"<script.*?</script>", "", page, flags=re.S)
    assert not re.search(r"""(?:src|href)=["']?(?:https?:)?//""", markup)
    assert "url(" not in markup
    assert "@import" not in markup


def test_text_from_data_is_never_markup():
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"
    run = make_run(evil, model=evil, data=evil, failed=evil)
    page = build_page([run])
    assert evil not in page
    assert "<img" not in re.sub(r"<script.*?</script>", "", page, flags=re.S)
    assert page.count("<script") == page.count("</script>") == 3
    assert data_of(page)["runs"][0]["model"] == evil  # kept whole, for the script to show as text


def test_the_same_tables_give_the_same_page():
    when = datetime(2026, 1, 1, tzinfo=UTC)
    assert build_page([make_run()], written_at=when) == build_page([make_run()], written_at=when)


def test_fifty_points_fit_into_three_megabytes():
    budgets = tuple(np.round(np.linspace(0.9, 0.2, 16), 3).tolist())
    run = make_run("deit-s", methods=("searched", "uniform", "random"), budgets=budgets, big=True, epochs=300)
    assert len(run.results) == 49
    page = build_page([run])
    assert len(page.encode()) < 3e6


def distinct(text: str, number: int) -> str:
    """A structure with other MLP units kept in its first layer."""
    structure = json.loads(text)
    units = structure["masks"]["mlp"][0]
    structure["masks"]["mlp"][0] = f"{number:08x}" + units[8:]
    return json.dumps(structure, separators=(",", ":"))


@pytest.mark.slow
def test_a_thousand_points_of_twenty_runs_are_built_in_ten_seconds():
    budgets = tuple(np.round(np.linspace(0.9, 0.2, 8), 3).tolist())
    base = make_run("deit-s", methods=("searched", "uniform"), budgets=budgets, seeds=3, big=True, epochs=100)
    runs = [RunTables(**{**vars(base), "name": f"run {i}", "results": base.results.copy()}) for i in range(20)]
    for i, run in enumerate(runs):  # all structures differ, as if each point had been searched by itself
        run.results["structure"] = [distinct(text, 1000 * i + j) for j, text in enumerate(run.results["structure"])]
    assert len({text for run in runs for text in run.results["structure"]}) >= 1000
    assert sum(len(run.results) for run in runs) >= 1000
    start = time.process_time()  # of this process: what else the machine does is not the page's doing
    build_page(runs)
    assert time.process_time() - start < 10


# What the page is told.


def test_points_carry_their_structure_and_equal_structures_are_stored_once():
    run = make_run(seeds=3, budgets=(0.5, 0.25))
    data = page_data([run])
    assert len(data["points"]["point"]) == 9
    assert len(data["structures"]) == 3
    assert len(data["shapes"]) == 1
    for place, text in zip(data["points"]["structure"], run.results["structure"], strict=True):
        structure, seen = Structure.from_json(text), data["structures"][place]
        for i, layer in enumerate(structure.summary()):
            assert sum(dims > 0 for dims in seen["heads"][i]) == layer["heads"]
            assert max(seen["heads"][i]) == layer["head_dim"]
            assert seen["units"][i] == layer["mlp_units"]
            assert seen["tokens"][i] == layer["tokens"]
            assert [last > i for last in seen["last"]] == structure.masks["token"][i].tolist()


def test_a_model_without_token_gates_has_no_token_maps():
    model = timm.create_model("vit_tiny_patch16_224", **SMALL)
    structure = solve(add_gates(model, families=("attention", "mlp")), 0.6)
    run = make_run()
    run.results["structure"] = structure.to_json()
    assert page_data([run])["structures"][0]["last"] is None


def test_a_structure_that_cannot_be_read_costs_its_picture_only():
    run = make_run()
    run.results.loc[1, "structure"] = '{"version": 99}'
    run.results.loc[2, "structure"] = None
    data = page_data([run])
    assert [place is None for place in data["points"]["structure"]] == [False, True, True, False, False, False]


def test_numbers_that_are_missing_or_not_finite_become_null():
    run = make_run(failed="out of memory")
    run.results.loc[0, "test_loss"] = float("inf")
    page = build_page([run])  # JSON without NaN or Infinity, or this raises
    points = data_of(page)["points"]
    assert points["test_loss"][0] is None
    assert points["test_top1"][-1] is None
    assert points["error"][-1] == "out of memory"


def test_curves_go_to_their_points():
    run = make_run(epochs=7)
    data = page_data([run])
    for point, curve in zip(data["points"]["point"], data["curves"], strict=True):
        own = run.curves[run.curves["point"] == point]
        assert curve["epoch"] == own["epoch"].tolist()
        assert curve["val"] == pytest.approx(own["val_top1"].tolist(), abs=1e-3)
        assert curve["loss"][0] is None


def test_the_search_is_told_by_family_layer_and_epoch():
    data = page_data([make_run(epochs=5)])["runs"][0]
    assert set(data["search"]["families"]) == {"attention", "mlp", "token"}
    mlp = data["search"]["families"]["mlp"]["mean"]
    means = np.array(mlp["layers"])
    assert means.shape == (4, 6)
    assert (np.diff(means) < 0).all()
    assert mlp["mean"] == pytest.approx(means.mean(0), abs=1e-5)
    assert {family: sum(h["counts"]) for family, h in data["gates"].items()} == dict.fromkeys(
        ("attention", "mlp", "token"), 256
    )


def test_timings_go_to_their_points_by_setting():
    run = make_run(bench=True)
    second = run.bench.assign(batch_size=64, latency_p50_ms=99.0)
    run = RunTables(**{**vars(run), "bench": pd.concat([run.bench, second], ignore_index=True)})
    data = page_data([run])
    assert len(data["settings"]) == 2
    assert len(data["bench"]) == 2 * len(run.results)
    assert {numbers[0] for _, setting, numbers in data["bench"] if "batch 64" in data["settings"][setting]} == {99}


def test_timings_of_different_hardware_do_not_share_an_axis():
    one, other = (
        RunTables(**{**vars(make_run(name, bench=True)), "bench": make_run(name, bench=True).bench.assign(hardware=hardware)})
        for name, hardware in (("a", "EPYC"), ("b", "Xeon"))
    )
    assert page_data([one, one])["settings"] == ["cpu, 2 threads, batch 1, float32"]
    assert page_data([one, other])["settings"] == [f"{name}, 2 threads, batch 1, float32" for name in ("EPYC", "Xeon")]


def test_hypervolumes_of_a_data_set_share_one_reference_and_tell_their_spread():
    small = make_run("a", seeds=3, methods=("searched", "uniform"))
    large = make_run("b", seeds=1, big=True)
    other = make_run("c", data="torch/fashion_mnist")
    data = page_data([small, large, other])
    assert [(d["name"], d["runs"]) for d in data["datasets"]] == [("digits", [0, 1]), ("torch/fashion_mnist", [2])]
    assert data["datasets"][0]["reference_macs"] == large.results["macs_dense"].max()
    assert data["datasets"][1]["reference_macs"] == other.results["macs_dense"].max()
    searched, uniform = sorted(data["runs"][0]["hypervolume"], key=lambda row: -row["mean"])
    assert (searched["method"], searched["seeds"], searched["budgets"]) == ("searched", 3, 5)
    assert searched["mean"] > uniform["mean"]
    assert searched["se"] > 0
    assert data["runs"][1]["hypervolume"][0]["se"] is None


def test_runs_of_one_name_are_told_apart():
    assert [run["name"] for run in page_data([make_run("a"), make_run("a")])["runs"]] == ["a", "a (2)"]


def test_a_comparison_names_the_settings_that_differ():
    texts = ["name: a\nretrain: {lr: [0.001], epochs: 20}\nseed: 0\n", "name: b\nretrain: {lr: [0.002]}\nseed: 0\n", None]
    runs = [replace(make_run(name), config=text) for name, text in zip("abc", texts, strict=True)]
    assert page_data(runs)["differing"] == [{"field": "retrain.lr", "values": ["[0.001]", "[0.002]", None]}]
    assert page_data(runs[:1])["differing"] == []
    strange = [replace(make_run(), config=text) for text in ("name: [", "- 1")]
    assert page_data(strange)["differing"] == []


def test_only_an_unfinished_page_refreshes():
    running = make_status(done=2, running=1, waiting=3, alive=True)
    assert data_of(build_page([make_run(status=running)]))["refresh_seconds"] == report.REFRESH_SECONDS
    assert data_of(build_page([make_run()]))["refresh_seconds"] is None
    assert data_of(build_page([make_run(), make_run(status=running)]))["refresh_seconds"] == report.REFRESH_SECONDS


def test_a_run_without_any_point_has_a_page():
    run = make_run(
        status=Status(name="new", alive=True, stages=[TrainingStatus(name="dense", state="running", epochs=1, epochs_total=40)])
    )
    empty = RunTables(
        **{**vars(run), "results": run.results.iloc[:0], "curves": run.curves.iloc[:0], "gates": run.gates.iloc[:0]}
    )
    data = data_of(build_page([empty]))
    assert data["points"]["point"] == []
    assert data["runs"][0]["progress"]["bar"] == {"done": 1, "waiting": 39}  # epochs, before there are points
    assert data["runs"][0]["progress"]["under_way"][0]["name"] == "dense"


def test_a_page_of_no_run_is_refused():
    with pytest.raises(ValueError, match="at least one run"):
        build_page([])


# From a run folder.


@pytest.fixture
def folder(tmp_path: Path) -> Run:
    """A run folder with the tables of `make_run`, written as a run writes them."""
    tables = make_run(bench=True)
    run = Run(tmp_path / "digits")
    for row in pa.Table.from_pandas(tables.results, schema=RESULTS).to_pylist():
        run.write_row(row)
    curves = pa.Table.from_pandas(tables.curves, schema=CURVES).to_pylist()
    for name in {row["point"] or row["stage"] for row in curves}:
        run.write_curve(name, [row for row in curves if (row["point"] or row["stage"]) == name])
    write_table(run.folder, SEARCH_GATES, tables.gates.to_dict("records"), GATES)
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pandas(tables.bench, schema=BENCH), sink)
    run.folder.write_bytes("bench/cpu.parquet", sink.getvalue().to_pybytes())
    return run


def test_a_run_folder_is_read_whole(folder: Run):
    tables, expected = read_run(folder), make_run(bench=True)
    assert tables.name == "digits"
    assert tables.uri == folder.uri
    assert sorted(tables.results["point"]) == sorted(expected.results["point"])
    assert len(tables.curves) == len(expected.curves)
    assert len(tables.gates) == len(expected.gates)
    assert len(tables.bench) == len(expected.bench)
    assert build_page([tables])


def test_a_model_timed_twice_counts_once(folder: Run):
    folder.folder.write_bytes("bench/cpu-again.parquet", folder.folder.read_bytes("bench/cpu.parquet"))
    assert len(read_run(folder).bench) == len(make_run(bench=True).bench)


def test_an_empty_folder_reads_as_empty_tables(tmp_path: Path):
    tables = read_run(Run(tmp_path))
    assert tables.results.empty
    assert tables.curves.empty
    assert tables.gates.empty
    assert tables.bench.empty


def status(finished: bool) -> Status:
    points = [
        TrainingStatus(name="searched-0.5000-s0-ab12", state="done" if finished else "running", epochs=3, epochs_total=20)
    ]
    return Status(name="mine", alive=not finished, stages=[], points=points)


def test_a_report_is_written_as_a_run_goes_on_and_its_picture_at_the_end(folder: Run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(picture, "kaleido_here", lambda: False)
    assert write_report(folder, status(finished=False)) is None
    data = data_of(folder.folder.read_bytes("report.html").decode())
    assert (data["runs"][0]["name"], data["runs"][0]["progress"]["running"]) == ("mine", 1)
    assert data["runs"][0]["progress"]["under_way"][0]["epochs"] == 3
    assert data["refresh_seconds"]
    assert "kaleido" in write_report(folder, status(finished=True))
    assert data_of(folder.folder.read_bytes("report.html").decode())["refresh_seconds"] is None


def test_a_page_goes_on_to_refresh_while_points_wait_for_others(folder: Run):
    between = replace(status(finished=True), alive=True, later=4)
    assert write_report(folder, between) is None
    data = data_of(folder.folder.read_bytes("report.html").decode())
    assert data["refresh_seconds"]
    assert data["runs"][0]["progress"]["planned"] == 5
    write_report(folder, replace(between, alive=False))  # those that they wait for have failed
    assert data_of(folder.folder.read_bytes("report.html").decode())["refresh_seconds"] is None


def test_a_page_of_several_runs_is_written_where_asked(folder: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(report, "read_status", lambda run: status(finished=True))
    monkeypatch.chdir(tmp_path)
    for output in ("page.html", "deeper/page.html", str(tmp_path / "whole.html")):
        write_page([folder, folder], output)
        assert len(data_of(Path(output).read_text(encoding="utf-8"))["runs"]) == 2


# The static picture.


def test_without_kaleido_the_picture_is_skipped_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(picture, "kaleido_here", lambda: False)
    said = write_picture(Run(tmp_path), make_run())
    assert "kaleido" in said
    assert list(tmp_path.iterdir()) == []


def test_a_browser_that_fails_costs_the_picture_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    class Kaleido:
        @staticmethod
        def calc_fig_sync(*arguments: object, **options: object) -> bytes:
            raise RuntimeError("no browser here")

    monkeypatch.setattr(picture, "kaleido_here", lambda: True)
    monkeypatch.setitem(sys.modules, "kaleido", Kaleido)
    assert "no browser here" in write_picture(Run(tmp_path), make_run())


def test_the_picture_shows_means_with_spread_and_the_front():
    run = make_run(methods=("searched", "uniform"), seeds=3)
    figure = front_figure(run)
    searched = next(trace for trace in figure.data if trace.name == "searched")
    assert len(searched.x) == 5  # a mean a budget, not a point a seed
    assert min(searched.error_y.array) > 0
    assert all(trace.line.shape == "hv" for trace in figure.data if trace.mode == "lines")
    assert all("GL" not in trace.type.upper() for trace in figure.data)


# Colours and markers: one table for the picture and the page, apart for everyone.

# Machado, Oliveira and Fernandes 2009, severity 1, on linear RGB.
VISION = {
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def linear(colour: str) -> np.ndarray:
    channels = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = to_xyz @ rgb.clip(0, 1) / [0.9505, 1, 1.089]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("vision", VISION)
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_colours_of_methods_stay_apart_without_full_colour_vision(vision: str, theme: str):
    seen = [lab(np.array(VISION[vision]) @ linear(getattr(method.style, theme))) for method in METHODS.values()]
    apart = [np.linalg.norm(a - b) for i, a in enumerate(seen) for b in seen[:i]]
    assert min(apart) > 12  # CIE76; about five times what can just be told apart


def test_every_method_has_a_marker_of_its_own_and_the_picture_and_the_page_have_its_style():
    methods = [name for name in METHODS if name != "dense"]
    run = make_run(methods=tuple(methods), budgets=(0.5,))
    markers = {trace.name: trace.marker for trace in front_figure(run).data if trace.mode == "markers"}
    data = page_data([run])
    for name, method in METHODS.items():
        assert (markers[name].color, markers[name].symbol) == (method.style.light, method.style.symbol)
        assert data["looks"][name] == {**vars(method.style), "hollow": False}
    assert len({method.style.symbol for method in METHODS.values()}) == len(METHODS)
    icons = set(re.findall(r'^  "?([a-z-]+)"?: "M', (WEB / "styles.js").read_text(), re.MULTILINE))
    assert {method.style.symbol for method in METHODS.values()} <= icons  # the page draws markers in its table too


def test_unknown_methods_have_a_look_too():
    found = looks(["newer", "dense", "newest", "newer, equal compute"])
    assert found["newer"].symbol == "hexagon"
    assert found["newest"].symbol == "hourglass"
    assert found["newer, equal compute"].symbol == "hexagon-open"


def test_equal_compute_is_a_method_of_its_own_in_the_same_colour_and_hollow():
    run = make_run(methods=("searched", "uniform"), seeds=2)
    longer = run.results[run.results["method"] == "uniform"].assign(terms="compute", point=lambda t: t["point"] + "-longer")
    both = pd.concat([run.results.assign(terms="retraining"), longer], ignore_index=True)
    run = RunTables(name="digits", uri="runs/digits", results=both)
    data = page_data([run])
    assert set(data["methods"]) == {"dense", "searched", "uniform", "uniform, equal compute"}
    assert "uniform, equal compute" in {entry["method"] for entry in data["runs"][0]["hypervolume"]}
    assert [name for name, look in data["looks"].items() if look["hollow"]] == ["uniform, equal compute"]
    assert not any(EQUAL_COMPUTE in module.read_text() for module in WEB.glob("*.js"))  # Python alone knows the words
    markers = {trace.name: trace.marker for trace in front_figure(run).data if trace.mode == "markers"}
    plain, hollow = markers["uniform"], markers["uniform, equal compute"]
    assert hollow.color == plain.color
    assert hollow.symbol == f"{plain.symbol}-open"


def test_the_page_shows_the_best_learning_rate_by_validation():
    run = make_run(seeds=1)
    better = run.results.assign(lr=3e-3, val_top1=run.results["val_top1"] + 1, point=run.results["point"] + "-other")
    both = pd.concat([run.results.assign(lr=1e-3), better], ignore_index=True).assign(terms="retraining")
    data = page_data([RunTables(name="digits", uri="runs/digits", results=both)])
    assert len(data["points"]["point"]) == len(run.results)
    assert set(data["points"]["lr"]) == {0.003}


# Means and standard errors over seeds are computed in Python, once.


def test_groups_have_the_means_and_errors_of_pareto():
    run = make_run(methods=("searched", "uniform"), seeds=3, bench=True, failed="out of memory")
    groups = page_data([run])["groups"]
    assert len(groups["members"]) == 11  # five budgets of two methods, and dense; the failed point is in none
    for kind in ("mean", "se"):
        for metric in ("macs", "test_top1", "val_top1", "test_loss", "train_seconds"):
            expected = summarize(run.results, metrics=[metric]).set_index(["method", "budget"])[f"{metric}_{kind}"]
            found = dict(zip(zip(groups["method"], groups["budget"], strict=True), groups[kind][metric], strict=True))
            assert found == pytest.approx(expected.to_dict(), abs=6e-3)
    points = run.results.reset_index(drop=True)
    for place, members, best in zip(groups["mean"]["latency_p50_ms:0"], groups["members"], groups["best"], strict=True):
        assert len(members) == 3
        assert place == pytest.approx(1 + 8 * points.loc[members[0], "budget"], abs=1e-4)
        assert best == points.loc[members, "val_top1"].idxmax()


def test_one_seed_has_no_standard_error_and_what_was_not_measured_no_mean():
    run = make_run(bench=True)
    run = replace(run, bench=run.bench.iloc[:2])
    groups = page_data([run])["groups"]
    assert set(groups["se"]["test_top1"]) == {None}
    assert [value is None for value in groups["mean"]["latency_p50_ms:0"]] == [False, False, True, True, True, True]


def in_params(run: RunTables) -> RunTables:
    """The run, its budgets ones of parameters."""
    return replace(run, results=with_units(run.results).assign(unit="params"))


def test_budgets_of_parameters_are_no_seeds_of_budgets_of_macs():
    both = make_run(budgets=(0.5,))
    more = in_params(both).results.query("method == 'searched'").assign(point="searched-params")
    data = page_data([replace(both, results=pd.concat([both.results.assign(unit=None), more], ignore_index=True))])
    assert data["points"]["unit"] == ["macs", "macs", "params"]
    assert sorted(zip(data["groups"]["method"], data["groups"]["unit"], strict=True)) == [
        ("dense", "macs"),
        ("searched", "macs"),
        ("searched", "params"),
    ]


def test_rows_without_a_unit_are_shown_as_of_macs():
    run = make_run()
    data = page_data([replace(run, results=run.results.drop(columns="unit", errors="ignore"))])
    assert set(data["points"]["unit"]) == {"macs"}


def test_the_pace_says_what_its_budget_is_of():
    run = make_run()
    assert page_data([run])["runs"][0]["pace"]["unit"] == "macs"  # a file of an older version says nothing
    tried = [{**one, "unit": "params"} for one in run.pace["tried"]]
    assert page_data([replace(run, pace={**run.pace, "tried": tried})])["runs"][0]["pace"]["unit"] == "params"


def test_a_described_column_reaches_the_page_without_more_said():
    data = page_data([make_run()])
    described = {column["name"]: column for column in data["columns"]}
    assert described["test_loss"] == {
        "name": "test_loss",
        "title": "test loss",
        "unit": "nats",
        "decimals": 3,
        "axis": "y",
        "more": False,
    }
    assert set(described) <= set(data["points"])
    assert set(described) <= set(data["groups"]["mean"])


def test_the_picture_does_not_average_shares_into_a_budget():
    run = make_run(budgets=(0.5,))
    same = run.results[run.results["method"] == "searched"].assign(shares='{"mlp":0.6}', point="shares")
    both = pd.concat([run.results.assign(shares=""), same], ignore_index=True)
    markers = {t.name: t for t in front_figure(replace(run, results=both)).data if t.mode == "markers"}
    assert len(markers["searched"].x) == 2
