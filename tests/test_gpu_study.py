"""reports/gpu: its tables are those of its file, the plan names files that are there, and a rehearsal goes through."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from slimsweep import Structure

ROOT = Path(__file__).parents[1]
STUDY = ROOT / "reports" / "gpu"


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> Any:
    """gpu_plan and gpu_tables, as measure.py imports them."""
    monkeypatch.syspath_prepend(str(STUDY.parent))
    monkeypatch.syspath_prepend(str(STUDY))
    import gpu_plan
    import gpu_tables

    return gpu_plan, gpu_tables


def results(plan: Any, ms: Any) -> dict[str, Any]:
    """A file of results in which each variant takes ms(labels), or the text of an error."""
    variants = {}
    for name, labels in plan.labels.items():
        took = ms(labels)
        info = {"batch": 256, "peak_bytes": 2**30} if labels["part"] == "training" else {"macs": 4_000_000_000}
        if labels["part"] == "latency" and labels["model"] != "dense":
            info = {"macs": int(4e9 * float(labels["model"].rpartition(", ")[2]))}
        groups = [group.title for group in plan.groups if name in group.names]
        times = {"ms": [took] * 3, "ms_together": [took] * 3, "reference_ms": [], "busy": []}
        measured = {} if isinstance(took, str) else {group: times for group in groups}
        error = took if isinstance(took, str) else None
        variants[name] = {**labels, "info": {} if labels["part"] in ("attention", "loop") else info, "error": error}
        variants[name]["measured"] = measured
    about = {"hardware": "a GPU", "cores": 16, "python": "3", "torch": "2", "cuda": "13", "cudnn": 9, "timm": "1"}
    about |= {"date": "2026-01-01", "processes": 14, "took_seconds": 300.0, "gpu": {"at the start": {"clocks.sm": "1 MHz"}}}
    return {"about": about, "log": [], "variants": variants}


def test_the_page_s_tables_are_those_of_its_file(modules: Any) -> None:
    assert modules[1].write_tables(STUDY, check=True) == 0


def test_all_models_of_the_study_have_a_structure_that_is_committed_and_costs_what_its_name_says(modules: Any) -> None:
    plan, _ = modules
    names = {name for which in (plan.MAIN, plan.MULTIPLES, plan.KINDS) for name in plan.inference_models(which)}
    uniform = json.loads((STUDY / "uniform.json").read_text())
    for name in names - {plan.DENSE}:
        kind, _, budget = name.rpartition(", ")
        if kind == "Torch-Pruning uniform":
            macs = uniform[budget]["macs"]
        else:
            macs = Structure.from_json(plan.structure_file(name).read_text()).macs()
        assert 0.93 * float(budget) < macs / 4_598_882_304 <= float(budget), name


def test_shares_and_ratios_compare_with_the_dense_model_called_in_the_same_way(modules: Any, tmp_path: Path) -> None:
    plan, tables = modules
    made = plan.make_plan(plan.STUDY)

    def ms(labels: dict[str, Any]) -> Any:
        if labels["part"] == "training" and labels.get("attention") == "flash" and labels["gates"] == "all gates":
            return "RuntimeError: No available kernel"
        if labels["part"] == "latency" and labels["model"] != "dense":  # half of the MACs in 0.625 of the time: 0.8
            return 1.25 * float(labels["model"].rpartition(", ")[2]) * (10.0 if labels["how"] == "eager" else 1.0)
        if labels["part"] == "latency":
            return 10.0 if labels["how"] == "eager" else 1.0
        return 104.0 if labels.get("gates") == "all gates" else 100.0

    shutil.copy(STUDY / "README.md", tmp_path)
    (tmp_path / "measured.json").write_text(json.dumps(results(made, ms)))
    assert tables.write_tables(tmp_path) == 0
    text = (tmp_path / "README.md").read_text()
    assert "| DeiT-B | torch.compile | all gates | 104.0 | 0.0% | 2,462 | 1.040 | 1.00 | 1.000 |" in text
    assert "| 64 | eager | 10.000 ms, 6,400/s | 6.250 ms, 10,240/s, **0.80** |" in text
    assert "| 256 | torch.compile, CUDA graph | 1.000 ms, 256,000/s | 0.625 ms, 409,600/s, **0.80** |" in text
    assert "| multiples of 8 | 0.5 | 2.000 | 6.250 | 0.80 | 0.625 | 0.80 | 6.250 | 0.80 | 0.625 | 0.80 |" in text
    assert "| flash | 100.0 | failed (see the end) |" in text
    assert "| training / DeiT-S / all gates / eager / flash | RuntimeError: No available kernel |" in text
    assert "Not yet measured" not in text


def test_ratios_of_times_that_differ_between_rounds_are_left_out(modules: Any) -> None:
    plan, tables = modules
    labels = {"part": "latency", "dtype": "bfloat16", "batch": 1, "how": "eager"}

    def variant(model: str, macs: int, times: list[float]) -> dict[str, Any]:
        measured = {"main": {"ms": times, "ms_together": times, "reference_ms": [], "busy": []}}
        return {**labels, "model": model, "info": {"macs": macs}, "error": None, "measured": measured}

    steady, unsteady = [1.0, 1.1, 1.2], [1.0, 1.1, 1.4]
    for dense, cut, share in ((steady, steady, 0.5), (unsteady, steady, None), (steady, unsteady, None)):
        variants = {"dense": variant(plan.DENSE, 2, dense), "cut": variant("cut", 1, cut)}
        assert tables.share(variants, 1, "eager", "cut", "main") == share
    assert tables.ms_or_range(variants["dense"], "main") == "1.100"
    assert tables.ms_or_range(variants["cut"], "main") == "1.000 to 1.400"


def test_what_may_take_long_is_timed_last(modules: Any) -> None:
    plan, _ = modules
    groups = plan.make_plan(plan.STUDY).groups
    assert groups[-1].title == "loop"
    assert all(group.turn_limit <= groups[-1].turn_limit for group in groups)


def test_a_compiled_form_of_attention_has_code_of_its_own_for_each_kernel(modules: Any) -> None:
    import gpu_variants
    from torch._dynamo.testing import CompileCounter

    made = CompileCounter()
    form = torch.compile(gpu_variants.attend_by, dynamic=False, fullgraph=True, backend=made)
    qkv, z = torch.randn(2, 5, 3 * 16), torch.rand(4)
    for backend, graphs in (("flash", 1), ("math", 2), ("flash", 2)):
        form(backend, "extra key dim", qkv, z, 2)
        assert made.frame_count == graphs


def test_the_repository_leaves_room_for_what_a_gpu_machine_lacks(modules: Any) -> None:
    import pack

    if not (ROOT / ".git").exists():
        pytest.skip("not a clone: what belongs to the repository is not known")
    assert pack.bytes_of_sources() <= pack.LIMIT - pack.PACKED


@pytest.mark.long
@pytest.mark.slow
def test_a_rehearsal_times_what_it_can_and_records_why_the_rest_failed(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    program = [sys.executable, str(STUDY / "measure.py")]
    rehearse = [*program, "measure", "--rehearse", "--processes", "2", "--seconds", "500", "--output", str(tmp_path)]
    subprocess.run(rehearse, check=True, timeout=550, env=environment)
    found = json.loads((tmp_path / "measured.json").read_text())["variants"].values()
    timed = {(one["part"], one.get("gates"), one.get("how")) for one in found if one["measured"]}
    for gates in ("dense", "attention and MLP gates", "all gates"):
        assert {("training", gates, "eager"), ("training", gates, "torch.compile")} <= timed
    assert {("latency", None, "eager"), ("latency", None, "torch.compile"), ("loop", None, None)} <= timed
    assert ("attention", "extra value dim", None) in timed or ("attention", "mask with a gradient", None) in timed
    # A CPU has no such kernel, and compiled code of a CPU asks for none.
    eager = [one for one in found if one["part"] == "attention" and not one["gates"].endswith(", compiled")]
    unlike_cpus = [one for one in eager if one["attention"] in ("cudnn", "efficient")]
    assert unlike_cpus
    assert all("RuntimeError" in one["error"] for one in unlike_cpus)
    shutil.copy(STUDY / "README.md", tmp_path)
    subprocess.run([*program, "tables", "--folder", str(tmp_path)], check=True, timeout=60, env=environment)
    assert "Not yet measured" not in (tmp_path / "README.md").read_text()
