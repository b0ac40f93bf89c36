"""What is measured on a GPU, in which order, and how variants are grouped. Light to import: no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SPEED = HERE.parent / "speed"
BUDGETS = (0.5, 0.3)
DENSE = "dense"
GATES: dict[str, tuple[str, ...] | None] = {
    DENSE: None,
    "attention and MLP gates": ("attention", "mlp"),
    "all gates": ("attention", "mlp", "token"),
}
BACKENDS = ("flash", "efficient", "cudnn", "math")
EAGER, EAGER_GRAPH = "eager", "eager, CUDA graph"
COMPILED, COMPILED_GRAPH = "torch.compile", "torch.compile, CUDA graph"
MAIN, MULTIPLES, KINDS = "main", "multiples", "kinds"  # which tables a model of inference belongs to
ATTENTION = (  # (how the token gates act, backend)
    *(("no gates", backend) for backend in ("default", "flash", "efficient", "cudnn")),
    *(("mask with a gradient", backend) for backend in ("default", "efficient", "cudnn", "math")),
    *(("extra key dim", backend) for backend in ("flash", "efficient", "cudnn")),
    *(("extra value dim", backend) for backend in ("flash", "efficient")),
    *(("mask with a gradient, compiled", backend) for backend in ("efficient",)),
    *(("extra key dim, compiled", backend) for backend in ("flash", "cudnn")),
    ("flex attention, compiled", "triton"),
)


@dataclass(frozen=True)
class Job:
    """What one process prepares in one go: one function of gpu_variants, which gives one turn per name."""

    make: str
    arguments: Mapping[str, Any]
    names: tuple[str, ...]


@dataclass(frozen=True)
class Group:
    """Variants that are timed in the same interleaved rounds."""

    title: str
    names: tuple[str, ...]
    rounds: int
    wave: int
    turn_seconds: float | None = None  # how long a turn is thought to take, where it is unlike the others
    turn_limit: float = 45.0  # seconds after which a turn is given up


@dataclass
class Plan:
    """All jobs and groups, the most wanted first, and what each variant is."""

    waves: list[list[Job]] = field(default_factory=list)
    groups: list[Group] = field(default_factory=list)
    labels: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, wave: int, make: str, arguments: Mapping[str, Any], labels: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
        """Add a job whose variants have these labels; returns their names."""
        names = tuple(name_of(one) for one in labels)
        for name, one in zip(names, labels, strict=True):
            assert name not in self.labels, name
            self.labels[name] = dict(one)
        while len(self.waves) <= wave:
            self.waves.append([])
        self.waves[wave].append(Job(make, arguments, names))
        return names


@dataclass(frozen=True)
class Sizes:
    """How large and how long: the study, or a rehearsal on any machine."""

    device: str
    training: Mapping[str, tuple[str, Mapping[str, Any]]]
    training_batch: int
    attention: Mapping[str, tuple[int, int, int, int]]  # (batch, tokens, heads, head dim)
    batches: tuple[int, ...]  # of inference, the most wanted first
    backend: str  # of torch.compile
    rounds: int
    turn_seconds: float
    steps: int  # of training per turn
    loop_batches: int
    rehearsed: bool = False


TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
STUDY = Sizes(
    device="cuda",
    training={
        "DeiT-S": ("deit_small_patch16_224", {}),
        "DeiT-B": ("deit_base_patch16_224", {}),
        "DINOv2-S": ("vit_small_patch14_dinov2", {"img_size": 224}),
    },
    training_batch=256,
    attention={"DeiT-S": (256, 197, 6, 64), "DeiT-B": (256, 197, 12, 64)},
    batches=(64, 256, 1, 8),
    backend="inductor",
    rounds=4,
    turn_seconds=0.03,
    steps=4,
    loop_batches=8,
)
REHEARSAL = Sizes(
    device="cpu",
    training={"DeiT-S": ("vit_tiny_patch16_224", TINY)},
    training_batch=4,
    attention={"DeiT-S": (2, 17, 2, 16)},
    batches=(2, 1),
    backend="aot_eager",
    rounds=1,
    turn_seconds=0.001,
    steps=1,
    loop_batches=2,
    rehearsed=True,
)


def name_of(labels: Mapping[str, Any]) -> str:
    return " / ".join(str(value) for value in labels.values())


def inference_models(which: str) -> list[str]:
    """Names of the models of a table, which are also how gpu_variants finds their files."""
    if which == MAIN:
        ours = [f"multiples of 16, {budget}" for budget in BUDGETS]
        theirs = [f"Torch-Pruning {mode}, {budget}" for mode in ("bottleneck", "uniform") for budget in BUDGETS]
        return [DENSE, *ours, *theirs]
    if which == MULTIPLES:
        return [f"multiples of {multiple}, {budget}" for multiple in (32, 8, 64) for budget in BUDGETS]
    kinds = ("no token lost", "few tokens lost", "whole heads no token lost", "whole heads few tokens lost")
    of_16 = [f"{kind} multiples of 16, {budget}" for kind in kinds for budget in BUDGETS]
    return of_16 + [f"no token lost multiples of {multiple}, {budget}" for multiple in (32, 8, 64) for budget in BUDGETS]


def structure_file(model: str) -> Path:
    """The committed structure of a model that is no dense one and not Torch-Pruning's uniform mode."""
    kind, _, budget = model.rpartition(", ")
    if kind.startswith("Torch-Pruning"):
        return HERE / f"torch-pruning-bottleneck-multiples-of-16-{budget}.json"
    kind = f"all {kind}" if kind.startswith("multiples") else kind
    name = f"deit-s-{kind.replace(' ', '-')}-{budget}.json"
    return HERE / name if (HERE / name).exists() else SPEED / name


def make_plan(sizes: Sizes) -> Plan:
    """Waves: what training costs; bf16 latency at large batches; all else, the most wanted first."""
    plan = Plan()
    _training(plan, sizes)
    large, small = sizes.batches[: len(sizes.batches) // 2], sizes.batches[len(sizes.batches) // 2 :]
    _inference(plan, sizes, 1, "bfloat16", large, MAIN, graphs=True)
    _inference(plan, sizes, 2, "bfloat16", large, MULTIPLES, graphs=False)
    _inference(plan, sizes, 2, "float16", large, MAIN, graphs=True, compiled=False)
    _inference(plan, sizes, 2, "bfloat16", small, MAIN, graphs=True)
    loop = _loop(plan, sizes, 2)
    _inference(plan, sizes, 2, "float16", small, MAIN, graphs=True, compiled=False)
    _inference(plan, sizes, 2, "bfloat16", large[:1], KINDS, graphs=False)
    _inference(plan, sizes, 2, "bfloat16", large[1:], KINDS, graphs=False)
    _inference(plan, sizes, 2, "float16", sizes.batches, MAIN, graphs=True, eager=False)
    plan.groups.append(loop)  # its turns are the longest: what goes wrong there takes no time from others
    return plan


def _training(plan: Plan, sizes: Sizes) -> None:
    groups: dict[str, list[str]] = {model: [] for model in sizes.training}
    common = {"batch": sizes.training_batch, "device": sizes.device, "steps": sizes.steps}
    for model in sorted(sizes.training, key=lambda model: model != "DeiT-B"):  # the slowest to compile first
        timm_name, kwargs = sizes.training[model]
        for gates in reversed(GATES):
            label = {"part": "training", "model": model, "gates": gates, "how": COMPILED, "attention": "default"}
            arguments = {"timm_name": timm_name, "kwargs": kwargs, "gates": [gates], "attention": ["default"]}
            compiled = {"compile_by": sizes.backend, **common}
            groups[model] += plan.add(0, "training", {**arguments, **compiled}, [label])
    for model, (timm_name, kwargs) in sizes.training.items():
        choices = [(gates, "default") for gates in GATES]
        if model == "DeiT-S":
            choices += [(gates, backend) for backend in BACKENDS for gates in (DENSE, "all gates")]
        labels = [
            {"part": "training", "model": model, "gates": gates, "how": EAGER, "attention": attention}
            for gates, attention in choices
        ]
        arguments = {
            "timm_name": timm_name,
            "kwargs": kwargs,
            "gates": [gates for gates, _ in choices],
            "attention": [attention for _, attention in choices],
        }
        groups[model] += plan.add(0, "training", {**arguments, "compile_by": None, **common}, labels)
    for model, names in groups.items():
        plan.groups.append(
            Group(f"training {model}", tuple(names), min(3, sizes.rounds) if model == "DeiT-B" else sizes.rounds, 0)
        )
    for model, shape in sizes.attention.items():
        labels = [{"part": "attention", "model": model, "gates": gates, "attention": backend} for gates, backend in ATTENTION]
        arguments = {"shape": shape, "variants": ATTENTION, "device": sizes.device, "turn_seconds": sizes.turn_seconds}
        names = plan.add(0, "attention", arguments, labels)
        plan.groups.append(Group(f"attention {model}", names, sizes.rounds, 0))


def _inference(
    plan: Plan,
    sizes: Sizes,
    wave: int,
    dtype: str,
    batches: Sequence[int],
    which: str,
    *,
    graphs: bool,
    eager: bool = True,
    compiled: bool = True,
) -> None:
    graphs = graphs and sizes.device == "cuda"
    for batch in batches:
        names: list[str] = []
        common = {
            "dtype": dtype,
            "batch": batch,
            "device": sizes.device,
            "turn_seconds": sizes.turn_seconds,
            "rehearsed": sizes.rehearsed,
        }
        models = inference_models(which)[: 3 if sizes.rehearsed else None]

        def label(model: str, how: str, batch: int = batch) -> dict[str, Any]:
            return {"part": "latency", "dtype": dtype, "batch": batch, "how": how, "model": model}

        if eager:
            hows = (EAGER, EAGER_GRAPH) if graphs else (EAGER,)
            labels = [label(model, how) for model in models for how in hows]
            names += plan.add(wave, "inference", {"models": models, "compile_by": None, "graphs": graphs, **common}, labels)
        if compiled:
            hows = (COMPILED, COMPILED_GRAPH) if graphs else (COMPILED,)
            for model in models:
                arguments = {"models": [model], "compile_by": sizes.backend, "graphs": graphs, **common}
                names += plan.add(wave, "inference", arguments, [label(model, how) for how in hows])
        if which != MAIN:  # beside the dense model again, which is prepared already
            names += [name_of(label(DENSE, how)) for how in (EAGER, COMPILED)]
        plan.groups.append(Group(f"{which} {dtype} batch {batch}", tuple(names), sizes.rounds, wave))


def _loop(plan: Plan, sizes: Sizes, wave: int) -> Group:
    timm_name, kwargs = sizes.training["DeiT-S"]
    arguments = {
        "timm_name": timm_name,
        "kwargs": kwargs,
        "batch": sizes.training_batch,
        "device": sizes.device,
        "batches": sizes.loop_batches,
    }
    labels = [{"part": "loop", "model": "DeiT-S", "loop": loop} for loop in ("bare loop", "train()")]
    names = plan.add(wave, "loops", arguments, labels)
    return Group("loop", names, 1, wave, turn_seconds=20.0, turn_limit=90.0)
