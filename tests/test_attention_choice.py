"""Workers compute attention in the way that is fast where they train."""

from collections.abc import Iterator

import pytest
import timm
from timm.layers import set_fused_attn, use_fused_attn

from slimsweep.cluster.worker import choose_attention
from slimsweep.config import Config


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("TIMM_FUSED_ATTN", raising=False)
    before = use_fused_attn()
    yield
    set_fused_attn(before)


@pytest.mark.parametrize("stage", ["dense", "search", "retrain"])
def test_a_cpu_that_trains_in_bf16_computes_attention_by_plain_products(stage: str) -> None:
    choose_attention(Config(**{stage: {"amp": "bf16"}}))
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1)
    assert not model.blocks[0].attn.fused_attn
    choose_attention(Config())
    assert use_fused_attn()


def test_a_gpu_keeps_its_fused_kernels() -> None:
    choose_attention(Config(retrain={"amp": "bf16"}, resources={"gpus_per_worker": 1}))
    assert use_fused_attn()


def test_the_persons_own_choice_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIMM_FUSED_ATTN", "1")
    choose_attention(Config(retrain={"amp": "bf16"}))
    assert use_fused_attn()
