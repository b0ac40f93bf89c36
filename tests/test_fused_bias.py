"""Token gates in torch's fused attention, which slimsweep uses on GPUs: the same values, also compiled."""

import pytest
import timm
import torch

from slimsweep import add_gates
from slimsweep.slimming import gate_modules
from slimsweep.slimming.gates import fold_gates

TINY = {"img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2, "num_classes": 3}


def test_the_fused_form_gives_the_same_as_the_plain_one_and_compiles_as_one_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    gated = add_gates(timm.create_model("vit_tiny_patch16_224", **TINY))
    gated.set_gates({"token": [torch.tensor([1.0, 0.5, 0.0, 0.25])]})
    images = torch.randn(2, 3, 16, 16)
    attention = gated.blocks[0].attn
    assert not attention.fused_attn
    plain = gated(images)
    monkeypatch.setattr(gate_modules, "fused_is_fast", lambda weight: True)
    assert attention.fused_attn
    torch.testing.assert_close(gated(images), plain)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(gated, fullgraph=True, backend="eager")(images), plain)


def test_plain_attention_stays_plain_where_timm_s_model_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    dense = timm.create_model("vit_tiny_patch16_224", **TINY)
    dense.blocks[0].attn.fused_attn = False
    gated = add_gates(dense)
    monkeypatch.setattr(gate_modules, "fused_is_fast", lambda weight: True)
    assert not gated.blocks[0].attn.fused_attn
    assert vars(fold_gates(gated).blocks[0].attn).keys() == vars(dense.blocks[0].attn).keys()
