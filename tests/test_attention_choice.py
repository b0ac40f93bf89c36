"""Workers compute attention, and in mixed precision, in the way that is fast where they train."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import timm
import torch
from timm.layers import set_fused_attn, use_fused_attn

from slimsweep.checks import check
from slimsweep.cluster.latency_job import timer_of
from slimsweep.cluster.worker import choose_attention
from slimsweep.config import Config, Recipe, load_config
from slimsweep.ledger.run import Run
from slimsweep.training.evaluate import autocast

FINISHED = Path(__file__).parent / "data" / "finished-run"


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("TIMM_FUSED_ATTN", raising=False)
    before = use_fused_attn()
    processor(monkeypatch, "AVX512")
    yield
    set_fused_attn(before)


def processor(monkeypatch: pytest.MonkeyPatch, capability: str) -> None:
    """Let torch say that it runs on an x86 processor with these instructions."""
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)


@pytest.mark.parametrize("stage", ["dense", "search", "retrain"])
def test_a_cpu_that_trains_in_bf16_computes_attention_by_plain_products(stage: str) -> None:
    choose_attention(Config(**{stage: {"amp": "bf16"}}))
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1)
    assert not model.blocks[0].attn.fused_attn
    choose_attention(Config())
    assert use_fused_attn()


def test_what_is_timed_computes_attention_as_loaded_models_do() -> None:
    """Whatever the process trained before: a latency in which training's choice counted would be of another model."""
    choose_attention(Config(retrain={"amp": "bf16"}))
    timer = timer_of(Run(FINISHED))
    assert timer.dense.blocks[0].attn.fused_attn
    assert not use_fused_attn()


def test_a_gpu_keeps_its_fused_kernels() -> None:
    choose_attention(Config(retrain={"amp": "bf16"}, resources={"gpus_per_worker": 1}))
    assert use_fused_attn()


def test_the_persons_own_choice_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIMM_FUSED_ATTN", "1")
    choose_attention(Config(retrain={"amp": "bf16"}))
    assert use_fused_attn()


def test_a_processor_without_bf16_computes_in_float32_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """In bf16 each product would take many times as long there."""
    config, cpu = load_config(["--config", "digits", "--retrain.amp", "bf16"])[0], torch.device("cpu")
    matrix = torch.ones(2, 2)
    with autocast(Recipe(epochs=1, amp="bf16"), cpu):
        assert (matrix @ matrix).dtype == torch.bfloat16
    assert not [note for note in check(config) if "bf16" in note]
    processor(monkeypatch, "AVX2")
    with autocast(Recipe(epochs=1, amp="bf16"), cpu):
        assert (matrix @ matrix).dtype == torch.float32
    choose_attention(config)
    assert use_fused_attn()
    assert [note for note in check(config) if "bf16" in note and "float32" in note]
