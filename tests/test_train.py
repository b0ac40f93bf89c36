"""The training loop: data parallel, resumed, diverging, distilled."""

import copy
import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.distributed as dist
import torch.nn.functional as F
from processes import in_processes
from torch.utils._python_dispatch import TorchDispatchMode

from slimsweep.cluster.worker import data_for
from slimsweep.config import Config, ConfigError, load_config
from slimsweep.data import train_loader
from slimsweep.ledger.checkpoints import Checkpoints
from slimsweep.ledger.recorder import RunRecorder
from slimsweep.ledger.run import Run
from slimsweep.ledger.searched_model import load_searched, save_searched
from slimsweep.slimming.gate_optimizer import GateOptimizer, penalty_weights
from slimsweep.slimming.gates import add_gates
from slimsweep.storage import Folder
from slimsweep.training import MemoryRecorder, Recorders, Teacher, TrainingDiverged, build_dense, train
from slimsweep.training.loop import gate_training
from slimsweep.training.optimizer import weight_optimizer
from slimsweep.training.recorder import Row

CPU = torch.device("cpu")
SMALL = [
    "--data.limit",
    "128",
    "--data.batch_size",
    "32",
    "--search.epochs",
    "2",
    "--dense.epochs",
    "3",
    "--dense.warmup_epochs",
    "0",
]


def config_of(*more: str) -> Config:
    return load_config([*SMALL, *more])[0]


def searched(config: Config, folder: str) -> torch.nn.Module:
    """A gated model after `config.search` on digits."""
    torch.manual_seed(0)
    data = data_for(config)
    gated = add_gates(build_dense(config, data.num_classes))
    return train(gated, data, config.search, RunRecorder(Run(folder), "search"), device=CPU)


def one_rank(rank: int, world: int, folder: str) -> None:
    """A process of a data-parallel search, without Ray: leaves its gates and weights in a file."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    gated = searched(config_of(), folder)
    torch.save({n: p.detach() for n, p in gated.named_parameters()}, f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


def test_gates_of_two_ranks_are_identical_and_what_one_worker_finds(tmp_path: Path) -> None:
    in_processes(one_rank, [(rank, 2, str(tmp_path)) for rank in range(2)])
    first, second = (torch.load(tmp_path / f"rank{r}.pt", weights_only=True) for r in (0, 1))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[n], second[n]) for n in first)
    gates = {n: p for n, p in first.items() if n.endswith("_gate")}
    assert any((g != 1).any() for g in gates.values())
    # The batch is global: the same images per step, so only float rounding differs. Gates move by normalized steps, which
    # spread rounding a little.
    alone = dict(searched(config_of(), str(tmp_path / "alone")).named_parameters())
    for name, gate in gates.items():
        assert torch.allclose(gate, alone[name].detach(), atol=0.02), name


class Stopped(Exception):
    """The moment at which a test ends a training."""


def test_a_resumed_training_is_the_uninterrupted_one(tmp_path: Path) -> None:
    config = config_of("--dense.ema_decay", "0.9", "--dense.drop_path", "0.1")
    data = data_for(config)

    def trained(folder: Path, stop_after: int | None = None) -> torch.nn.Module:
        torch.manual_seed(1)
        model = build_dense(config, data.num_classes)

        class StopAfter(RunRecorder):
            def checkpoint(self, epoch: int, state: Mapping[str, Any]) -> None:
                super().checkpoint(epoch, state)
                if epoch == stop_after:
                    raise Stopped

        return train(model, data, config.dense, StopAfter(Run(folder), "dense"), seed=3, device=CPU)

    whole = trained(tmp_path / "whole")
    with pytest.raises(Stopped):
        trained(tmp_path / "parts", stop_after=2)
    parts = trained(tmp_path / "parts")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, parts.state_dict()[name]), name
    columns = ("epoch", "loss", "val_top1")
    assert [[r[c] for c in columns] for r in Run(tmp_path / "whole").curve("dense")] == [
        [r[c] for c in columns] for r in Run(tmp_path / "parts").curve("dense")
    ]
    assert len((tmp_path / "parts" / "epochs.log").read_text().splitlines()) == 3


class Listening:
    """A tracker as anyone would write one."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.results: list[Row | None] = []

    def epoch(self, row: Row) -> None:
        self.rows.append(row)

    def finished(self, row: Row | None) -> None:
        self.results.append(row)


def test_a_tracker_is_told_every_epoch_and_the_finished_row_and_the_run_folder_keeps_them(tmp_path: Path) -> None:
    config = config_of("--retrain.epochs", "3")
    data, run = data_for(config), Run(tmp_path)

    def trained(epochs: int) -> Listening:
        torch.manual_seed(0)
        model, listening = build_dense(config, data.num_classes), Listening()
        recorder = Recorders(RunRecorder(run, "retrain", "p"), listening)
        train(model, data, config.retrain.at(1e-3, epochs), recorder, device=CPU)
        if epochs == 3:
            recorder.finished({"point": "p", "val_top1": 50.0})
        return listening

    first = trained(1)
    assert [row["epoch"] for row in first.rows] == [0, 1]
    assert not first.results
    second = trained(3)  # goes on from the run folder's checkpoint
    assert [row["epoch"] for row in second.rows] == [2, 3]
    assert first.rows + second.rows == run.curve("p")
    assert all((row["stage"], row["point"]) == ("retrain", "p") for row in second.rows)
    assert second.results == [{"point": "p", "val_top1": 50.0}]
    assert run.has_ok_row("p")
    assert run.folder.list("checkpoints/p") == []


def test_a_resumed_search_keeps_its_gates(tmp_path: Path) -> None:
    whole = searched(config_of(), str(tmp_path / "a"))
    run = Run(tmp_path / "b")
    searched(config_of("--search.epochs", "1", "--search.token_anneal", "0"), run.uri)  # the first epoch, before any annealing
    resumed = searched(config_of("--search.token_anneal", "0"), run.uri)
    assert [r["epoch"] for r in run.curve("search")] == [0, 1, 2]
    assert all(torch.isfinite(g).all() for layers in resumed.gates.values() for g in layers)
    assert resumed.gates.keys() == whole.gates.keys()


def test_a_process_decodes_the_images_of_all_its_points_once() -> None:
    config, _ = load_config(["--data.limit", "100", "--data.batch_size", "50"])
    first = data_for(config)
    first.train.batch(range(100))
    assert data_for(config.changed(**{"retrain.epochs": 7, "budgets": [0.3]})) is first
    other = data_for(config.changed(**{"data.limit": 60}))
    assert len(other.train) == 60
    assert data_for(config) is not first  # only the last ones are kept


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    config = config_of("--dense.clip_grad", "null")
    data, run = data_for(config), Run(tmp_path)
    model = build_dense(config, data.num_classes)

    class Poison(RunRecorder):
        def checkpoint(self, epoch: int, state: Mapping[str, Any]) -> None:
            super().checkpoint(epoch, state)
            if epoch == 1:
                model.head.weight.data.fill_(float("inf"))

    with pytest.raises(
        TrainingDiverged, match=r"dense is not finite in epoch 2, step 1; .*after epoch 1, is kept: lower dense.lr"
    ):
        train(model, data, config.dense, Poison(run, "dense"), device=CPU)
    found = Checkpoints(run, "dense").load()
    assert found is not None
    epoch, state = found
    assert epoch == 1
    assert all(torch.isfinite(v).all() for v in state["model"].values())


def test_learning_from_the_teacher_s_answers_comes_nearer_to_them(tmp_path: Path) -> None:
    config = config_of("--retrain.epochs", "4", "--retrain.warmup_epochs", "0", "--retrain.distill.alpha", "1.0")
    data = data_for(config)
    torch.manual_seed(0)
    teacher, student = build_dense(config, data.num_classes), build_dense(config, data.num_classes)
    images = torch.stack([data.val[i][0] for i in range(64)])

    def distance() -> float:
        with torch.no_grad():
            answers = (model.eval()(images).log_softmax(1) for model in (student, teacher))
            return float(torch.nn.functional.kl_div(*answers, reduction="batchmean", log_target=True))

    with torch.no_grad():
        teacher.head.weight.normal_()  # answers that no label explains
    before = distance()
    retrain = config.retrain
    recorder = RunRecorder(Run(tmp_path), "retrain", "p")
    train(student, data, retrain, recorder, device=CPU, teacher=Teacher.of(teacher, retrain.distill))
    assert distance() < 0.9 * before


def test_the_last_two_checkpoints_are_kept_and_a_damaged_one_falls_back(tmp_path: Path) -> None:
    checkpoints = Checkpoints(Run(tmp_path), "dense")
    weight = torch.arange(3.0)
    for epoch in (1, 2, 3):
        checkpoints.save(
            epoch, {"model": {"a": weight * epoch, "b": weight}, "steps": epoch, "nested": [{"x": (1, 2)}], 5: None}
        )
    files = sorted((tmp_path / "checkpoints" / "dense").iterdir())
    assert [f.name for f in files] == ["epoch-00002.safetensors", "epoch-00003.safetensors"]
    epoch, state = checkpoints.load() or (0, {})
    assert (epoch, state["steps"], state["nested"], state[5]) == (3, 3, [{"x": [1, 2]}], None)
    assert torch.equal(state["model"]["a"], weight * 3)
    files[1].write_bytes(files[1].read_bytes()[:100])
    epoch, state = checkpoints.load() or (0, {})
    assert (epoch, state["steps"]) == (2, 2)
    files[0].write_bytes(b"")
    assert checkpoints.load() is None


@pytest.mark.parametrize("optimizer", ["proximal", "adam"])
def test_pressure_without_a_task_takes_every_gate_to_zero(optimizer: str) -> None:
    config = config_of(
        "--search.gate_optimizer", optimizer, "--search.gate_lr", "0.05", "--search.l1", '{"attention":1,"mlp":1,"token":1}'
    )
    gated = add_gates(build_dense(config, 10))
    gates = GateOptimizer(gated, gate_training(config.search))
    for _ in range(60):
        for family in gates.gates.values():
            for gate in family:
                gate.grad = torch.zeros_like(gate)
        if optimizer == "adam":
            gates.penalty().backward()
        gates.step()
    for family in gated.gates.values():
        for gate in family:
            assert float(gate.abs().max()) < 0.1


def test_annealed_token_gates_are_pressed_no_more_by_adam_either() -> None:
    """At power 0 a token gate above 0 acts as 1: nothing of the task would push back."""
    config = config_of("--search.gate_optimizer", "adam", "--search.token_gate", "linear")
    gated = add_gates(build_dense(config, 10), token_gate="linear")
    gates = GateOptimizer(gated, gate_training(config.search))
    with torch.no_grad():
        gates.gates["token"][0][0] = -0.1  # absent: 0 is where the l1 would have it

    def pressed() -> list[list[float]]:
        gates.penalty().backward()
        found = [gate.grad.tolist() for gate in gates.gates["token"]]
        for family in gates.gates.values():
            for gate in family:
                gate.grad = None
        return found

    assert pressed()[0][:2] == [0.0, pytest.approx(config.search.l1.token)]
    gates.anneal(1.0)
    assert not any(map(any, pressed()))


def test_a_search_s_running_statistics_come_back(tmp_path: Path) -> None:
    """Of a stem with BatchNorm: without them, evaluation would be another model's."""
    torch.manual_seed(0)
    dense = timm.create_model("vit_small_resnet26d_224", img_size=64, embed_dim=64, depth=2, num_heads=2, num_classes=10)
    config, images = config_of(), torch.randn(4, 3, 64, 64)
    gated = add_gates(dense).train()
    gated(images)
    run = Run(tmp_path, config)
    save_searched(run, gated, 0.0)
    with torch.no_grad():
        assert torch.equal(load_searched(run, dense).eval()(images), gated.eval()(images))


def test_a_macs_penalty_presses_by_cost() -> None:
    shape = add_gates(build_dense(config_of(), 10)).shape
    weights = penalty_weights(shape, gate_training(config_of("--search.penalty", "macs").search))
    layer = shape.layers[0]
    unit = layer.mlp_macs(1, layer.tokens)
    dim = layer.attention_macs(1, 1, layer.tokens)
    assert weights["attention"][0] / weights["mlp"][0] == pytest.approx(dim / unit)
    assert weights["token"][0] > weights["attention"][0]
    assert penalty_weights(shape, gate_training(config_of().search))["mlp"] == [0.05] * 4


def test_annealing_moves_kept_tokens_to_one_and_leaves_absent_ones_absent() -> None:
    config = config_of()
    gated = add_gates(build_dense(config, 10)).eval()
    with torch.no_grad():
        for block in gated.gated_blocks():
            block.token_gate.fill_(0.3)
            block.token_gate[:4] = 0
    gates = GateOptimizer(gated, gate_training(config.search))
    gates.anneal(0.5)
    assert float(gated.gated_blocks()[0].token_bias(torch.float32)[0, 0, 0, -1].detach()) == pytest.approx(
        torch.tensor(0.3).log().item()
    )
    gates.anneal(1.0)
    bias = gated.gated_blocks()[0].token_bias(torch.float32).flatten()
    assert (bias[1:5] == -torch.inf).all()
    assert (bias[5:] == 0).all()


def test_storage_refuses_names_that_lead_out() -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.raises(ValueError, match="leads out of"):
        Folder(folder).write_bytes("../outside", b"")


def test_training_is_the_plain_loop_that_anyone_would_write() -> None:
    config = config_of("--dense.clip_grad", "null", "--dense.epochs", "2")
    data, recipe = data_for(config), config.dense
    torch.manual_seed(0)
    start = build_dense(config, data.num_classes)
    plain = copy.deepcopy(start).train()
    loader = train_loader(data.train, config.data, seed=5)
    decayed = [p for n, p in plain.named_parameters() if p.ndim > 1 and n not in plain.no_weight_decay()]
    others = [p for n, p in plain.named_parameters() if p.ndim <= 1 or n in plain.no_weight_decay()]
    groups = [{"params": others, "weight_decay": 0.0}, {"params": decayed, "weight_decay": recipe.weight_decay}]
    optimizer = torch.optim.AdamW(groups, lr=recipe.lr)
    steps = recipe.epochs * len(loader)
    for epoch in range(recipe.epochs):
        loader.set_epoch(epoch)
        for step, (images, labels) in enumerate(loader):
            for group in optimizer.param_groups:  # from lr to min_lr along half a cosine
                turn = math.cos(math.pi * (epoch * len(loader) + step) / steps)
                group["lr"] = recipe.min_lr + 0.5 * (recipe.lr - recipe.min_lr) * (1 + turn)
            F.cross_entropy(plain(images), labels, label_smoothing=recipe.label_smoothing).backward()
            optimizer.step()
            optimizer.zero_grad()
    trained = train(copy.deepcopy(start), data, recipe, MemoryRecorder("dense"), seed=5, device=CPU)
    images = torch.stack([data.test[i][0] for i in range(32)])
    with torch.no_grad():  # key biases change nothing, and are moved by rounding alone: what the models compute is compared
        expected, found, before = plain.eval()(images), trained.eval()(images), start.eval()(images)
    assert torch.allclose(found, expected, atol=1e-4)
    assert not torch.allclose(before, expected, atol=0.1)


def test_a_recipe_s_betas_reach_the_optimizers_that_take_two_and_no_others() -> None:
    model = torch.nn.Linear(2, 2)

    def betas_of(optimizer: str, *betas: str) -> object:
        config = config_of("--dense.optimizer", optimizer, *(["--dense.betas", ",".join(betas)] if betas else []))
        return weight_optimizer(model, config.dense).param_groups[0].get("betas")

    for name in ("adamw", "nadamw", "lamb", "lion", "adopt", "laprop", "lookahead_radam"):
        assert betas_of(name, "0.8", "0.95") == (0.8, 0.95), name
    # The default pair is what version 0.1.0 made of it: an optimizer's own betas, but for two kinds.
    for name, own in (("adamw", (0.9, 0.999)), ("adopt", (0.9, 0.9999)), ("laprop", (0.9, 0.999)), ("novograd", (0.95, 0.98))):
        assert betas_of(name) == own, name
    assert betas_of("adafactor") is None
    assert betas_of("lion") == (0.9, 0.999)
    assert betas_of("adan") == (0.98, 0.92, 0.99)
    assert betas_of("sgd", "0.8", "0.95") is None
    with pytest.raises(ConfigError, match=r"betas is \[0.8, 0.95\], but adan takes 3 betas: leave betas out"):
        betas_of("adan", "0.8", "0.95")


class CountReads(TorchDispatchMode):
    """Counts how often the host asks for a number, such as a loss, for which it waits. Indices are the loader's own."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            self.reads += args[0].is_floating_point()
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("optimizer", ["proximal", "adam"])
def test_no_step_of_the_search_waits_for_the_device(tmp_path: Path, optimizer: str) -> None:
    reads = {}
    for batch in (32, 8):  # 4 steps an epoch, and 16
        config = config_of(
            "--data.batch_size",
            str(batch),
            "--data.eval_batch_size",
            "64",
            "--search.gate_optimizer",
            optimizer,
            "--search.clip_grad",
            "1.0",
        )
        with CountReads() as counted:
            searched(config, str(tmp_path / f"{batch}"))
        reads[batch] = counted.reads
    assert 0 < reads[8] == reads[32]  # the losses of an epoch are looked at, validation is counted
