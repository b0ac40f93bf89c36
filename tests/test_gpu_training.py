"""On a GPU: steps of search and retraining under bf16, compiled as one graph; resuming; teachers; memory; process groups."""

import copy
import datetime
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parallel import DistributedDataParallel

from slimsweep import add_gates, slim, solve
from slimsweep.config import Config, Recipe, Search, load_config
from slimsweep.data import Data, load_data, mixup_fn
from slimsweep.ledger.checkpoints import Checkpoints
from slimsweep.ledger.recorder import RunRecorder
from slimsweep.ledger.run import Run
from slimsweep.slimming.structure import image_size
from slimsweep.training import MemoryRecorder, Teacher, build_dense, check_model, train
from slimsweep.training.criterion import Criterion, student_of
from slimsweep.training.evaluate import Reference, evaluate_split
from slimsweep.training.loop import State, as_network, backward
from slimsweep.training.ranks import gathered, on_any_rank

pytestmark = pytest.mark.gpu

BF16 = torch.finfo(torch.bfloat16).eps  # 2^-7: a number that is rounded to bf16 is off by at most half of it
CLASSES = 10
STEPS = 3
SMALL = ["--data.limit", "128", "--data.batch_size", "32", "--dense.warmup_epochs", "0"]


def fresh(kind: str) -> tuple[nn.Module, Recipe]:
    """A small model as timm initialises it: with all gates for the search, or cut to half for retraining; and the recipe."""
    torch.manual_seed(0)
    dense = timm.create_model("deit_tiny_patch16_224", img_size=64, depth=2, embed_dim=96, num_heads=3, num_classes=CLASSES)
    if kind == "dense":
        return dense, Recipe(epochs=1, amp="bf16")
    gated = add_gates(dense)
    if kind == "search":
        return gated, Search(epochs=1, amp="bf16", gate_lr=0.01)
    generator = torch.Generator().manual_seed(2)
    scores = {f: [torch.rand(v.shape, generator=generator) for v in vs] for f, vs in gated.gates.items()}
    return slim(gated, solve(gated, 0.5, scores=scores)), Recipe(epochs=1, amp="bf16")


def batch(count: int = 16, size: int = 64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, size, size, generator=generator), torch.arange(count) % CLASSES


Step = Callable[[], Tensor]


def stepper(
    model: nn.Module,
    recipe: Recipe,
    device: torch.device,
    compiled: Callable[[nn.Module], nn.Module] = lambda network: network,
    see: Callable[[nn.Module], None] = lambda model: None,
    given: tuple[Tensor, Tensor] | None = None,
    **criterion: Any,
) -> Step:
    """A training step as the loop makes it, which returns the loss; `see` gets the model while it holds its gradients."""
    model.to(device).train()
    state = State.start(model, recipe)
    loss_of = Criterion(recipe, device, gates=state.gates, **criterion)
    network = compiled(student_of(model, criterion.get("teacher")))
    images, labels = given or batch()
    taken = 0

    def step() -> Tensor:
        nonlocal taken
        state.anneal(taken / STEPS)
        loss = backward(network, loss_of, images, labels, recipe, device)
        see(model)
        state.step(recipe, taken)
        taken += 1
        return loss

    return step


def losses(step: Step) -> list[float]:
    return [float(step()) for _ in range(STEPS)]


# Steps.


@pytest.mark.parametrize("kind", ["search", "retrain"])
def test_a_compiled_step_is_one_graph_that_learns_as_the_eager_one_and_is_compiled_once(
    kind: str, device: torch.device, record_property: Any
) -> None:
    start, recipe = fresh(kind)
    gradients: list[dict[str, float]] = []

    def see(model: nn.Module) -> None:
        gates = {n: p for n, p in model.named_parameters() if n.endswith("_gate")}
        gradients.append({n: 0.0 if p.grad is None else float(p.grad.abs().max()) for n, p in gates.items()})

    torch._dynamo.reset()
    # On a CPU the graph's own code generator would take a minute per model; what breaks a graph is found before it.
    backend = "inductor" if device.type == "cuda" else "aot_eager"
    step = stepper(copy.deepcopy(start), recipe, device, lambda m: torch.compile(m, fullgraph=True, backend=backend), see)
    compiled = [float(step())]
    with torch._dynamo.config.patch(error_on_recompile=True):
        compiled += [float(step()) for _ in range(STEPS - 1)]
    eager = losses(stepper(copy.deepcopy(start), recipe, device, see=see))
    exact = losses(stepper(copy.deepcopy(start), recipe.model_copy(update={"amp": "off"}), device))
    said = f"{kind}: eager {eager}, compiled {compiled}, eager in float32 {exact}"
    print(said)
    record_property("losses of three steps", said)
    # A compiled graph rounds to bf16 in other places; each loss is a mean, so it moves by less than one rounding.
    assert compiled == pytest.approx(eager, rel=BF16)
    assert compiled == pytest.approx(exact, rel=2 * BF16)
    assert eager[-1] < eager[0]
    assert len(gradients) == 2 * STEPS
    if kind == "search":
        assert all(len(of) == 2 * 3 and min(of.values()) > 0 for of in gradients), gradients


@pytest.mark.parametrize("optimizer", ["proximal", "adam"])
def test_gates_learn_under_both_optimizers(optimizer: str, device: torch.device) -> None:
    gated, recipe = fresh("search")
    recipe = recipe.model_copy(update={"gate_optimizer": optimizer, "clip_grad": 1.0, "ema_decay": 0.9})
    before = {name: p.detach().clone() for name, p in gated.named_parameters()}
    found = losses(stepper(gated, recipe, device))
    assert all(map(torch.isfinite, torch.tensor(found)))
    moved = {n for n, p in gated.named_parameters() if not torch.equal(p.detach().cpu(), before[n])}
    assert {n for n in before if n.endswith("_gate")} <= moved
    assert {p.device.type for p in gated.parameters()} == {device.type}


@pytest.mark.parametrize("answers", ["soft", "hard", "features"])
def test_a_teacher_on_the_device_is_learned_from_with_mixup(answers: str, device: torch.device) -> None:
    student, recipe = fresh("retrain")
    dense, _ = fresh("dense")
    teacher = Teacher(dense, alpha=0.5, temperature=2.0, answers=answers)
    augment = load_config(["--data.augment.mixup", "0.8", "--data.augment.cutmix", "1.0"])[0].data.augment
    step = stepper(student, recipe, device, mixup=mixup_fn(augment, CLASSES, label_smoothing=0.1), teacher=teacher)
    found = losses(step)
    assert all(map(torch.isfinite, torch.tensor(found)))
    assert {p.device.type for p in dense.parameters()} == {device.type}
    assert all(p.grad is None for p in dense.parameters())


# Memory.


def peak_bytes(model: nn.Module, recipe: Recipe, device: torch.device, given: tuple[Tensor, Tensor]) -> int:
    """Of a second step: weights, gradients, optimizer state and activations."""
    # The library of matrix products takes memory at its first one, and keeps it.
    layer = nn.Linear(64, 64, device=device, dtype=torch.bfloat16)
    layer(torch.ones(64, 64, device=device, dtype=torch.bfloat16, requires_grad=True)).sum().backward()
    del layer
    before = torch.cuda.memory_allocated(device)
    step = stepper(model, recipe, device, given=given)
    step()
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    step()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def test_a_gated_step_of_deit_s_keeps_little_more_memory_than_a_dense_one(cuda: torch.device, record_property: Any) -> None:
    size = 64
    images, labels = (part.to(cuda) for part in batch(size, 224))
    dense = timm.create_model("deit_small_patch16_224", num_classes=CLASSES)
    variants: dict[str, tuple[Callable[[], nn.Module], Recipe]] = {
        "dense": (lambda: copy.deepcopy(dense), Recipe(epochs=1, amp="bf16")),
        "attention and MLP gates": (lambda: add_gates(dense, families=["attention", "mlp"]), Search(epochs=1, amp="bf16")),
        "all gates": (lambda: add_gates(dense), Search(epochs=1, amp="bf16")),
    }
    peak = {}
    for name, (make, recipe) in variants.items():
        peak[name] = peak_bytes(make(), recipe, cuda, (images, labels))
        torch.cuda.empty_cache()
        said = f"{name}: {peak[name] / 2**20:.0f} MiB, {peak[name] / peak['dense']:.3f} x dense"
        print(said)
        record_property("peak memory, DeiT-S, batch 64, bf16", said)
    # A gated weight, of queries, keys, values and fc2, is made anew in each step: in float32, and in bf16 as it is used.
    gated_weights = sum(b.attn.qkv.weight.numel() + b.mlp.fc2.weight.numel() for b in dense.blocks)
    bound = peak["dense"] + 6 * gated_weights
    assert peak["attention and MLP gates"] < 1.02 * bound
    assert peak["attention and MLP gates"] < 1.15 * peak["dense"]
    # Token gates: the gradient of the logits of one layer, in float32 at most, and no attention matrix of any other layer.
    tokens, heads = 197 + 3, dense.blocks[0].attn.num_heads
    logits = size * heads * tokens * tokens
    assert peak["all gates"] < 1.02 * (bound + 2 * 4 * logits)


# The loop.


class Stopped(Exception):
    """The moment at which a test ends a training."""


@pytest.fixture
def repeatable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Kernels that give the same numbers each time, where torch has them; attention by plain products, which are such."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    with sdpa_kernel(SDPBackend.MATH):
        yield
    torch.use_deterministic_algorithms(False)


def data_for(config: Config) -> Data:
    """The splits as a worker prepares them, without Ray."""
    model = check_model(config)
    return load_data(config, image_size(model), getattr(model, "pretrained_cfg", None))


def trained(config: Config, stage: str, folder: Path, device: torch.device, stop_after: int | None = None) -> nn.Module:
    """A model trained on digits as the loop does it, into a run's folder or on from what lies there."""

    class StopAfter(RunRecorder):
        def checkpoint(self, epoch: int, state: Mapping[str, Any]) -> None:
            super().checkpoint(epoch, state)
            if epoch == stop_after:
                raise Stopped

    data = data_for(config)
    torch.manual_seed(1)
    model = build_dense(config, data.num_classes)
    recipe = config.search if stage == "search" else config.dense
    model = add_gates(model) if stage == "search" else model
    return train(model, data, recipe, StopAfter(Run(folder), stage), seed=3, device=device)


def apart(one: nn.Module, other: nn.Module) -> float:
    """The largest difference of two models' weights, gates and buffers."""
    there = other.state_dict()
    return max(
        float((value.double().cpu() - there[name].double().cpu()).abs().max()) for name, value in one.state_dict().items()
    )


@pytest.mark.parametrize("stage", ["dense", "search"])
def test_a_training_goes_on_from_its_checkpoint_as_if_it_had_never_stopped(
    stage: str, device: torch.device, tmp_path: Path, repeatable: None, record_property: Any
) -> None:
    more = ["--dense.epochs", "2", "--dense.ema_decay", "0.9", "--dense.drop_path", "0.1", "--search.epochs", "2"]
    config = load_config([*SMALL, *more, "--dense.amp", "bf16", "--search.amp", "bf16"])[0]
    whole, again = (trained(config, stage, tmp_path / name, device) for name in ("whole", "again"))
    with pytest.raises(Stopped):
        trained(config, stage, tmp_path / "parts", device, stop_after=1)

    epoch, state = Checkpoints(Run(tmp_path / "parts"), stage).load() or (0, {})
    assert epoch == 1
    assert {value.device.type for value in state["model"].values()} == {"cpu"}, "a machine without a GPU could not read it"
    parts = trained(config, stage, tmp_path / "parts", device)
    # What two undisturbed runs differ by is what the device itself does not repeat: nothing, with the kernels asked for.
    itself, resumed = apart(whole, again), apart(whole, parts)
    said = f"{stage}: two undisturbed runs are {itself:.1e} apart, the resumed one {resumed:.1e}"
    print(said)
    record_property("resumed", said)
    assert resumed <= 4 * itself
    if itself == 0:
        curves = [[(r["epoch"], r["loss"], r["val_top1"]) for r in Run(tmp_path / n).curve(stage)] for n in ("whole", "parts")]
        assert curves[0] == curves[1]


def test_a_checkpoint_of_the_device_is_trained_on_by_a_cpu(device: torch.device, tmp_path: Path) -> None:
    config = load_config([*SMALL, "--search.epochs", "2", "--search.token_anneal", "0"])[0]
    whole = trained(config, "search", tmp_path / "whole", device)
    with pytest.raises(Stopped):
        trained(config, "search", tmp_path / "parts", device, stop_after=1)
    parts = trained(config, "search", tmp_path / "parts", torch.device("cpu"))
    assert {p.device.type for p in parts.parameters()} == {"cpu"}
    # Rounding alone differs over one epoch; gates move by normalised steps, which spread it a little.
    for (family, ours), theirs in zip(whole.gates.items(), parts.gates.values(), strict=True):
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one.cpu(), other, rtol=0, atol=0.02, msg=family)


def test_validation_and_references_on_the_device_are_those_of_a_cpu(device: torch.device) -> None:
    config = load_config([*SMALL, "--dense.epochs", "2"])[0]
    data = data_for(config)
    torch.manual_seed(0)
    model = train(build_dense(config, data.num_classes), data, config.dense, MemoryRecorder("dense"), device=device)
    here = evaluate_split(model, data, "val", device)
    there = evaluate_split(copy.deepcopy(model).cpu(), data, "val", torch.device("cpu"))
    assert here.top1 == pytest.approx(there.top1, abs=100 * 1.01 / len(data.val))  # an image on the border may turn
    assert here.loss == pytest.approx(there.loss, rel=1e-4)
    backbone = copy.deepcopy(model)
    backbone.reset_classifier(0)
    small = slim(backbone, solve(add_gates(backbone), 0.7))
    found = [
        Reference(copy.deepcopy(backbone), data).agreement(copy.deepcopy(small), "val", place)
        for place in (device, torch.device("cpu"))
    ]
    assert found[0].r2 == pytest.approx(found[1].r2, abs=1e-3)


# Process groups.


@pytest.fixture
def one_rank(device: torch.device) -> Iterator[None]:
    """A process group of this process alone: of NCCL on a GPU."""
    store = dist.HashStore()
    backend = "nccl" if device.type == "cuda" else "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(0)
    dist.init_process_group(backend, store=store, rank=0, world_size=1, timeout=datetime.timedelta(seconds=30))
    yield
    dist.destroy_process_group()


def test_a_data_parallel_search_step_gives_the_gradients_of_the_model(device: torch.device, one_rank: None) -> None:
    start, recipe = fresh("search")
    recipe = recipe.model_copy(update={"amp": "off"})
    found: list[dict[str, Tensor]] = []

    def see(model: nn.Module) -> None:
        found.append({n: p.grad.detach().clone() for n, p in model.named_parameters() if p.grad is not None})

    ids = [device] if device.type == "cuda" else None
    stepper(copy.deepcopy(start), recipe, device, lambda m: DistributedDataParallel(m, device_ids=ids), see)()
    stepper(copy.deepcopy(start), recipe, device, lambda m: as_network(m, recipe, device), see)()
    assert found[0].keys() == found[1].keys()
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name], rtol=1e-4, atol=1e-5 * float(value.abs().max()), msg=name)
    assert gathered({"images": 3}, device) == [{"images": 3}]
    assert on_any_rank(True, device)
