"""What the processes of measure.py prepare and time. Each function of a job yields (name, turn, what is known of it).

A turn takes the fastest seconds of the reference so far and returns times in seconds: `seconds` of single calls, `together`
per call of calls that follow without a pause, `reference`, and `busy`, why they are not to be trusted. In place of a turn there
is the error where a variant could not be prepared.
"""

import copy
import functools
import gc
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal

import timm
import torch
import torch._dynamo
import torch._functorch.config
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import flex_attention
from torch.utils.data import TensorDataset

from slimsweep import Structure, add_gates, macs, slim, solve
from slimsweep.config import Config, Recipe, Search
from slimsweep.data import images_seen
from slimsweep.data.splits import load_data
from slimsweep.latency.calls import WARM_UP_CALLS, time_calls
from slimsweep.latency.device import seconds_without_pause
from slimsweep.latency.setting import LatencySetting
from slimsweep.slimming.structure import image_size

sys.path.append(str(Path(__file__).parents[1]))  # reports/, for the modules that they share
from gpu_plan import COMPILED, COMPILED_GRAPH, DENSE, EAGER, EAGER_GRAPH, GATES, HERE, structure_file
from gpu_pool import gpu_alone
from training_steps import bare_loop, our_loop, stepper

Turn = Callable[[float | None], dict[str, Any]]
Prepared = Iterator[tuple[str, Turn | BaseException, dict[str, Any]]]
CLASSES = 1000
COMPILED_FORM = ", compiled"  # the end of the name of a form of attention that torch.compile compiles
KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
WARM_SECONDS = 0.04  # of a turn, so that clocks are up, and memory is there again that other processes had
LOOP_EPOCHS = 2  # of a turn of a loop; its last one counts
LOADING_PROCESSES = 4  # of each loader of a loop; they take much of a turn to start
# Every model and batch size is a graph of its own of timm's forward: beyond the limit torch would run eager.
torch._dynamo.config.recompile_limit = 1024
torch._dynamo.config.accumulated_recompile_limit = 8192
torch._dynamo.config.fail_on_recompile_limit_hit = True


def free_memory() -> None:
    """Give all memory that is not in use back to the GPU, for the other processes."""
    gc.collect()
    free_cache()


def free_cache() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def kernel(attention: str) -> AbstractContextManager[Any]:
    """The kernel of attention; torch's own choice, and what is no kernel of its attention, need no word."""
    return sdpa_kernel(KERNELS[attention]) if attention in KERNELS else nullcontext()


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


# Training.


def training(
    names: Sequence[str],
    lock: Path,
    *,
    timm_name: str,
    kwargs: Mapping[str, Any],
    gates: Sequence[str],
    attention: Sequence[str],
    compile_by: str | None,
    batch: int,
    device: str,
    steps: int,
) -> Prepared:
    """Training steps of the loop in bf16: one variant per pair of `gates` and `attention`."""
    for name, of_gates, kernel_name in zip(names, gates, attention, strict=True):
        try:
            yield name, *_training_variant(timm_name, kwargs, of_gates, kernel_name, compile_by, batch, device, steps, lock)
        except Exception as problem:
            yield name, problem, {}
        free_memory()


def _training_variant(
    timm_name: str,
    kwargs: Mapping[str, Any],
    gates: str,
    attention: str,
    compile_by: str | None,
    batch: int,
    device: str,
    steps: int,
    lock: Path,
) -> tuple[Turn, dict[str, Any]]:
    model, recipe = _model_and_recipe(timm_name, kwargs, gates)
    on_gpu = device == "cuda"
    allocate_workspaces(device)
    before = torch.cuda.memory_allocated() if on_gpu else 0
    images = torch.randn(batch, *image_size(model), device=device)
    labels = torch.randint(CLASSES, (batch,), device=device)
    turn_of_gpu = gpu_alone(lock)
    # A compiled model waits for the GPU when its code is there, an eager one at once.
    waits = _Once(turn_of_gpu.__enter__)
    backend = _compile_then(compile_by, waits) if compile_by else "inductor"
    step, _ = stepper(model, recipe, images, labels, compile_by is not None, backend)
    began = time.perf_counter()
    try:
        if compile_by is None:
            waits()
        with kernel(attention):
            step()
            synchronize(device)
            first = time.perf_counter() - began
            step()
            synchronize(device)
            if on_gpu:
                torch.cuda.reset_peak_memory_stats()
            step()
            synchronize(device)
        info: dict[str, Any] = {
            "batch": batch,
            "first_step_seconds": first,
            "peak_bytes": torch.cuda.max_memory_allocated() - before if on_gpu else None,
        }
    finally:
        free_memory()
        if waits.done:
            turn_of_gpu.__exit__(None, None, None)

    def turn(known: float | None) -> dict[str, Any]:
        with kernel(attention):
            step()  # also brings its memory back
            if on_gpu:
                seconds = seconds_without_pause(step, steps, torch.device(device)) / steps
            else:
                start = time.perf_counter()
                for _ in range(steps):
                    step()
                seconds = (time.perf_counter() - start) / steps
        free_cache()
        return {"seconds": [seconds], "together": [seconds], "reference": None, "busy": ""}

    return turn, info


def allocate_workspaces(device: str) -> None:
    """Let the library of matrix products take its memory, which stays: else the first model of a process seems to need it."""
    layer = nn.Linear(64, 64, device=device, dtype=torch.bfloat16)
    layer(torch.ones(64, 64, device=device, dtype=torch.bfloat16, requires_grad=True)).sum().backward()
    synchronize(device)


def _model_and_recipe(timm_name: str, kwargs: Mapping[str, Any], gates: str) -> tuple[nn.Module, Recipe]:
    torch.manual_seed(0)
    dense = timm.create_model(timm_name, num_classes=CLASSES, **kwargs)
    families = GATES[gates]
    if families is None:
        return dense, Recipe(epochs=1, amp="bf16")
    return add_gates(dense, families=families), Search(epochs=1, amp="bf16")


class _Once:
    """A function that is called the first time only."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self.function, self.done = function, False

    def __call__(self) -> None:
        if not self.done:
            self.function()
            self.done = True


def _compile_then(compile_by: str, then: Callable[[], None]) -> Callable[..., Any]:
    """A backend of torch.compile that compiles forward and backward before anything runs, then calls `then`."""

    def compiled(graph: Any, inputs: Any, **options: Any) -> Any:
        with torch._functorch.config.patch(force_non_lazy_backward_lowering=True):
            made = torch._dynamo.lookup_backend(compile_by)(graph, inputs, **options)
        then()
        return made

    return compiled


# Attention alone.


def attention(
    names: Sequence[str],
    lock: Path,
    *,
    shape: tuple[int, int, int, int],
    variants: Sequence[tuple[str, str]],
    device: str,
    turn_seconds: float,
) -> Prepared:
    """Forward and backward of attention in bf16, from the output of the qkv projection to the input of the next one."""
    for name, (gates, backend) in zip(names, variants, strict=True):
        try:
            with gpu_alone(lock):
                call = attention_call(gates, backend, shape, device)
                for _ in range(WARM_UP_CALLS):
                    call()
                info = attention_errors(gates, backend, (2, *shape[1:]), device)
                if backend == "default":
                    info["chosen kernel"] = chosen_kernel(gates, shape, device)
            yield name, _timed_turn(call, device, turn_seconds), info
        except Exception as problem:
            yield name, problem, {}
        free_memory()


def attend(gates: str, qkv: Tensor, z: Tensor, heads: int) -> Tensor:
    """Attention whose keys have token gates z.

    Args:
        gates: how they act: "no gates", "mask with a gradient" (log z added to the logits), "extra key dim" (a key dim that
            carries log z, read by a constant in the queries), "extra value dim" (the mean of z times values, divided by the
            mean of z), "flex attention" (log z added in torch's flex_attention).
        qkv: (batch, tokens, 3 x heads x head dim), float32 or bf16.
        z: (tokens - 1,), above 0; the first token is the class token.

    Returns:
        (batch, tokens, heads x head dim).
    """
    batch, tokens, width = qkv.shape
    dim = width // (3 * heads)
    q, k, v = qkv.reshape(batch, tokens, 3, heads, dim).permute(2, 0, 3, 1, 4).unbind(0)
    whole = F.pad(z, (1, 0), value=1.0)
    pad = 8  # a fused kernel wants head dims in multiples of 8
    if gates == "no gates":
        out = F.scaled_dot_product_attention(q, k, v)
    elif gates == "mask with a gradient":
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=whole.log().to(q.dtype).view(1, 1, 1, -1))
    elif gates == "extra key dim":
        scale = dim**-0.5
        ones = F.pad(q.new_ones(1), (0, pad - 1))
        column = F.pad((whole.log() / scale).to(q.dtype).view(-1, 1), (0, pad - 1))
        wide_q = torch.cat([q, ones.expand(batch, heads, tokens, pad)], -1)
        wide_k = torch.cat([k, column.expand(batch, heads, tokens, pad)], -1)
        out = F.scaled_dot_product_attention(wide_q, wide_k, F.pad(v, (0, pad)), scale=scale)[..., :dim]
    elif gates == "flex attention":
        log = whole.log()
        out = flex_attention(q, k, v, score_mod=lambda score, image, head, query, key: score + log[key])
    else:
        ones = F.pad(q.new_ones(1), (0, pad - 1))
        wide_v = torch.cat([v, ones.expand(batch, heads, tokens, pad)], -1) * whole.to(q.dtype).view(1, 1, -1, 1)
        if gates == "extra value dim, all padded":
            q, k = F.pad(q, (0, pad)), F.pad(k, (0, pad))
        both = F.scaled_dot_product_attention(q, k, wide_v, scale=dim**-0.5)
        out = both[..., :dim] / both[..., dim : dim + 1]
    return out.transpose(1, 2).reshape(batch, tokens, heads * dim)


def attend_by(backend: str, gates: str, qkv: Tensor, z: Tensor, heads: int) -> Tensor:
    """`attend` by a kernel, chosen in here: torch.compile does not see a choice outside, and would take the code it has."""
    with kernel(backend):
        return attend(gates, qkv, z, heads)


def chosen_kernel(gates: str, shape: tuple[int, int, int, int], device: str) -> str:
    """The name of the kernel that torch chooses by itself."""
    batch, tokens, heads, dim = shape
    q = torch.empty(batch, heads, tokens, dim, device=device, dtype=torch.bfloat16, requires_grad=True)
    mask = None if gates == "no gates" else q.new_zeros(batch, heads, tokens, tokens).requires_grad_()
    return str(SDPBackend(torch._fused_sdp_choice(q, q, q, mask)).name).lower()


def attention_call(gates: str, backend: str, shape: tuple[int, int, int, int], device: str) -> Callable[[], Any]:
    """A function that computes attention and all its gradients."""
    batch, tokens, heads, dim = shape
    if (gates, backend) == ("extra value dim", "flash"):
        gates = "extra value dim, all padded"  # flash wants queries, keys and values of one width
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(batch, tokens, 3 * heads * dim, generator=generator).to(device, torch.bfloat16).requires_grad_()
    z = (0.2 + 0.8 * torch.rand(tokens - 1, generator=generator)).to(device).requires_grad_()
    above = torch.randn(batch, tokens, heads * dim, generator=generator).to(device, torch.bfloat16)
    inputs = [qkv] if gates == "no gates" else [qkv, z]
    compiled = gates.endswith(COMPILED_FORM)
    gates = gates.removesuffix(COMPILED_FORM)
    form = torch.compile(attend_by, dynamic=False, fullgraph=True) if compiled else attend_by

    def call() -> tuple[Tensor, ...]:
        out = form(backend, gates, qkv, z, heads)
        return out, *torch.autograd.grad(out, inputs, above)

    return call


def attention_errors(gates: str, backend: str, shape: tuple[int, int, int, int], device: str) -> dict[str, Any]:
    """How far output and gradients are from float32 by plain products: norm of the difference / norm."""
    batch, tokens, heads, dim = shape
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(batch, tokens, 3 * heads * dim, generator=generator).to(device, torch.bfloat16).float().requires_grad_()
    z = (0.2 + 0.8 * torch.rand(tokens - 1, generator=generator)).to(device).requires_grad_()
    above = torch.randn(batch, tokens, heads * dim, generator=generator).to(device, torch.bfloat16).float()
    plain = "no gates" if gates == "no gates" else "mask with a gradient"
    with sdpa_kernel(SDPBackend.MATH):
        out = attend(plain, qkv, z, heads)
        wanted = (out, *torch.autograd.grad(out, [qkv] if plain == "no gates" else [qkv, z], above))
    found = attention_call(gates, backend, shape, device)()
    parts = ("output", "qkv gradient", "gate gradient")
    return {
        f"error of {part}": float((one.detach().float() - right.detach()).norm() / right.detach().norm())
        for part, one, right in zip(parts, found, wanted, strict=False)
    }


# Inference.


def inference(
    names: Sequence[str],
    lock: Path,
    *,
    models: Sequence[str],
    compile_by: str | None,
    graphs: bool,
    dtype: str,
    batch: int,
    device: str,
    turn_seconds: float,
    rehearsed: bool,
) -> Prepared:
    """Calls of models on one batch of random images: per model one, and where asked for one that replays a CUDA graph of it."""
    waiting = list(names)
    how, how_graph = (COMPILED, COMPILED_GRAPH) if compile_by else (EAGER, EAGER_GRAPH)
    for model in models:
        call = None
        for kind in (how, how_graph) if graphs else (how,):
            name = waiting.pop(0)
            try:
                began = time.perf_counter()
                if kind == how:
                    built = copy.deepcopy(built_model(model, rehearsed)).eval().to(device, DTYPES[dtype])
                    info = {"macs": macs(built), "params": sum(one.numel() for one in built.parameters())}
                    call = _forward(built, batch, dtype, device, compile_by)
                    made = call
                elif call is None:
                    raise RuntimeError(f"no graph is captured, since {how} failed")
                else:
                    made = _captured(call)
                yield name, _timed_turn(made, device, turn_seconds), {**info, "seconds": time.perf_counter() - began}
            except Exception as problem:
                yield name, problem, {}
        free_memory()


@functools.cache
def built_model(name: str, rehearsed: bool) -> nn.Module:
    """The model of a name in `gpu_plan.inference_models`, on the CPU; weights are random: trained ones take as long."""
    if rehearsed:
        return _tiny_model(name)
    dense = _dense()
    kind, _, budget = name.rpartition(", ")
    if name == DENSE:
        return dense
    if kind == "Torch-Pruning uniform":
        return uniform_model(json.loads((HERE / "uniform.json").read_text())[budget])
    return slim(dense, Structure.from_json(structure_file(name).read_text()))


@functools.cache
def _dense() -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = timm.create_model("deit_small_patch16_224").eval()
    return model


@functools.cache
def _tiny_model(name: str) -> nn.Module:
    from gpu_plan import TINY

    torch.manual_seed(0)
    dense: nn.Module = timm.create_model("vit_tiny_patch16_224", num_classes=10, **TINY).eval()
    return dense if name == DENSE else slim(dense, solve(add_gates(dense), float(name.rpartition(", ")[2])))


def uniform_model(sizes: Mapping[str, Any]) -> nn.Module:
    """A DeiT-S of the sizes that Torch-Pruning's uniform mode left, with fresh weights."""
    wide = sizes["embed_dim"]
    torch.manual_seed(0)
    model: Any = timm.create_model("deit_small_patch16_224", embed_dim=wide, num_heads=1)
    for block, layer in zip(model.blocks, sizes["layers"], strict=True):
        attention, inner = block.attn, layer["heads"] * layer["head_dim"]
        attention.num_heads, attention.head_dim, attention.attn_dim = layer["heads"], layer["head_dim"], inner
        attention.scale = layer["head_dim"] ** -0.5
        attention.qkv, attention.proj = nn.Linear(wide, 3 * inner), nn.Linear(inner, wide)
        block.mlp.fc1, block.mlp.fc2 = nn.Linear(wide, layer["units"]), nn.Linear(layer["units"], wide)
    return model.eval()


def _forward(model: nn.Module, batch: int, dtype: str, device: str, compile_by: str | None) -> Callable[[], Any]:
    """A call as slimsweep's bench makes it, warmed up."""
    with torch.inference_mode():
        images = torch.randn(batch, *image_size(model), device=device, dtype=DTYPES[dtype])
    forward: Callable[..., Any] = model
    if compile_by:
        forward = torch.compile(model, fullgraph=True, dynamic=False, backend=compile_by)

    def call() -> Any:
        with torch.inference_mode():
            return forward(images)

    for _ in range(WARM_UP_CALLS):
        call()
    synchronize(device)
    return call


@functools.cache
def _graph_pool() -> Any:
    """Memory that all graphs of this process share: none is replayed while another one's result is needed."""
    return torch.cuda.graph_pool_handle()


def _captured(call: Callable[[], Any]) -> Callable[[], Any]:
    """A call that replays a CUDA graph of another call."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP_CALLS):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=_graph_pool()):
        call()
    graph.replay()
    torch.cuda.synchronize()

    def replay(keeps_images: Callable[[], Any] = call) -> None:
        graph.replay()

    return replay


def _timed_turn(call: Callable[[], Any], device: str, turn_seconds: float) -> Turn:
    """A turn of slimsweep's own timer: calls for some time, with a reference before and after."""
    setting = LatencySetting(device=device, threads=1)

    def turn(known: float | None) -> dict[str, Any]:
        end = time.perf_counter() + WARM_SECONDS
        while time.perf_counter() < end:
            call()
            synchronize(device)
        found = time_calls({"": call}, setting, rounds=1, min_seconds=turn_seconds, known=known)
        timed = found.calls[""]
        free_cache()
        return {"seconds": timed.seconds, "together": timed.together, "reference": found.reference, "busy": timed.busy}

    return turn


# The loop.


def images(config: Config) -> tuple[TensorDataset, TensorDataset, TensorDataset]:
    """Random images of the model's size, in memory: `data.limit` many to train on."""
    generator = torch.Generator().manual_seed(0)
    size = config.model.kwargs.get("img_size", 224)
    count, few = config.data.limit, config.data.batch_size
    sets = [
        TensorDataset(torch.rand(number, 3, size, size, generator=generator), torch.arange(number) % 10)
        for number in (count, few, few)
    ]
    return sets[0], sets[1], sets[2]


def loops(
    names: Sequence[str],
    lock: Path,
    *,
    timm_name: str,
    kwargs: Mapping[str, Any],
    batch: int,
    device: str,
    batches: int,
) -> Prepared:
    """train() and a bare loop over the same loader, in bf16: seconds per image of an epoch after the first ones."""
    amp: Literal["bf16"] = "bf16"
    workers = LOADING_PROCESSES if device == "cuda" else 0
    data_settings = {
        **{"name": "gpu_variants:images", "num_classes": 10, "batch_size": batch, "limit": batch * batches},
        **{"workers": workers, "augment": {"scale": None, "hflip": 0.0}},
    }
    config = Config(
        data=data_settings,
        model={"name": timm_name, "kwargs": dict(kwargs)},
        dense={"epochs": LOOP_EPOCHS, "lr": 1e-3, "amp": amp, "drop_path": 0.0},
    )
    torch.manual_seed(0)
    start = timm.create_model(timm_name, num_classes=10, **kwargs)
    data = load_data(config, image_size(start), start.pretrained_cfg)
    count, place = images_seen(data), torch.device(device)

    def bare() -> float:
        return bare_loop(copy.deepcopy(start), data, LOOP_EPOCHS, place, bf16=True)

    def ours() -> float:
        return our_loop(copy.deepcopy(start), data, config, place)[-1]

    def turn(loop: Callable[[], float], known: float | None) -> dict[str, Any]:
        seconds = loop() / count
        free_memory()
        return {"seconds": [seconds], "together": [seconds], "reference": None, "busy": ""}

    for name, loop in zip(names, (bare, ours), strict=True):
        yield name, functools.partial(turn, loop), {"batch": batch, "images": count, "loading_processes": workers}
