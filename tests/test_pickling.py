"""Cut and gated models, whose classes are made at run time, go through pickle, torch.save, joblib and into new processes."""

import copy
import io
import pickle
import subprocess
import sys

import joblib
import pytest
import torch
from torch import multiprocessing, nn
from zoo import MODELS, build, difference, images, random_gates, small_vit

from slimsweep import add_gates, macs, slim, solve


def gated_and_cut(model: nn.Module, **arguments) -> tuple[nn.Module, nn.Module]:
    gated = add_gates(model, **arguments)
    gates = random_gates(gated)
    gated.set_gates({f: [v.clamp(max=1) for v in vs] for f, vs in gates.items()})  # a tanh is at most 1
    return gated, slim(gated, solve(gated, 0.5))


def pickled(model: nn.Module, folder) -> nn.Module:
    return pickle.loads(pickle.dumps(model))


def torch_saved(model: nn.Module, folder) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=False)


def joblib_dumped(model: nn.Module, folder) -> nn.Module:
    joblib.dump(model, folder / "model.joblib")
    return joblib.load(folder / "model.joblib")


def copied(model: nn.Module, folder) -> nn.Module:
    return copy.deepcopy(model)


WAYS = [pickled, torch_saved, joblib_dumped, copied]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["class token", "eva02", "swin"])
def test_every_way_to_store_an_object_gives_the_same_model(way, kind, tmp_path):
    for model in gated_and_cut(build(kind)):
        again = way(model, tmp_path)
        assert difference(model, again) < 1e-6
        assert type(again) is type(model)
        assert [n for n, _ in again.named_parameters()] == [n for n, _ in model.named_parameters()]
        assert not {id(p) for p in again.parameters()} & {id(p) for p in model.parameters()}


@pytest.mark.parametrize("kind", MODELS)
def test_every_family_is_pickled(kind, tmp_path):
    gated, small = gated_and_cut(build(kind))
    stored = pickle.dumps((gated, small))  # together: they share classes, not weights
    gated_again, small_again = pickle.loads(stored)
    assert difference(gated, gated_again) < 1e-6
    assert difference(small, small_again) < 1e-6
    assert macs(small_again) == macs(small)
    assert pickle.loads(pickle.dumps(gated_again)).gates.keys() == gated.gates.keys()


def test_gates_of_a_pickled_model_still_act_are_trained_and_cut(tmp_path):
    gated, small = gated_and_cut(small_vit(), token_gate="tanh")
    again = pickled(gated, tmp_path)
    structure = small.structure
    assert difference(slim(again, structure), small) < 1e-6
    again(images(again)).square().sum().backward()
    for family, gates in again.gate_parameters().items():
        assert all(gate.grad is not None and gate.grad.abs().sum() > 0 for gate in gates), family
    before = gated(images(gated))
    again.set_gates({"mlp": [torch.zeros_like(g) for g in again.gates["mlp"]]})
    assert not torch.allclose(again(images(gated)), before), "the gates of the copy do not act"
    assert torch.equal(gated(images(gated)), before), "the copy shares gates with its original"
    # One parameter is behind the weights of a layer and the gate that people read.
    assert len({id(p) for p in again.parameters()}) == len(list(gated.parameters()))


def test_a_copy_of_a_pickled_model_has_its_gates_folded_alone(tmp_path):
    gated, _ = gated_and_cut(small_vit())
    again = pickled(gated, tmp_path)
    slim(again, solve(again, 0.7))
    assert difference(gated, again) < 1e-6, "the cut of a pickled model changed it"


FRESH = """
import pickle, sys
import torch
assert not any(name.startswith("slimsweep") for name in sys.modules)
models, x, expected = torch.load(sys.argv[1], weights_only=False)
with torch.no_grad():
    for model, wanted in zip(models, expected):
        torch.testing.assert_close(model(x), wanted, rtol=1e-5, atol=1e-6)
"""


def test_a_process_that_imported_nothing_reads_them(tmp_path):
    models = gated_and_cut(small_vit())
    x = images(models[0])
    with torch.no_grad():
        torch.save((models, x, [model(x) for model in models]), tmp_path / "models.pt")
    done = subprocess.run(
        [sys.executable, "-c", FRESH, str(tmp_path / "models.pt")], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr


def answer(models, x, queue) -> None:
    with torch.no_grad():
        queue.put([model(x).numpy() for model in models])


@pytest.mark.slow
def test_a_spawned_process_gets_them_as_arguments():
    models = gated_and_cut(small_vit())
    x = images(models[0])
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=answer, args=(models, x, queue))
    process.start()
    got = queue.get(timeout=100)
    process.join()
    with torch.no_grad():
        for model, logits in zip(models, got, strict=True):
            torch.testing.assert_close(torch.from_numpy(logits), model(x), rtol=1e-5, atol=1e-6)
