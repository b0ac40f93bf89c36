"""INT8 files: ONNX files that onnxruntime's own static quantization made, and how much each layer loses by it.

What is quantized: the products of activations with weights (linear layers, the patch embedding), which hold nearly all
weights and most multiply-accumulates. What stays in float32: the two products inside attention, softmax, LayerNorm and
additions: they have no weights that get smaller, and values of one tensor differ by orders of magnitude there.

Weights are int8, symmetric, with a scale per output channel. Activations are uint8 with one scale and a zero point per tensor,
because what comes out of GELU is not symmetric. A file is in onnxruntime's QDQ format: plain ONNX operators.
"""

import ast
import contextlib
import importlib
import inspect
import io
import logging
import math
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from slimsweep.errors import ExportError, RefusedInput
from slimsweep.latency.onnx_files import INPUT, ONE_FILE_LIMIT, OUTPUT, refuse_missing, session, write_onnx

Calibration = Literal["minmax", "entropy", "percentile"]
CALIBRATIONS: tuple[Calibration, ...] = ("minmax", "entropy", "percentile")

PACKAGES = ("onnx", "onnxscript", "onnxruntime", "sympy")  # sympy: for the shapes that quantization has to know
QUANTIZED = ("MatMul", "Gemm", "Conv")  # operators
# The results of these stay float32: a bias is added to them next, and a second rounding would only lose.
NOT_ROUNDED_AFTER = ("MatMul", "Gemm")
SCOPES = "pkg.torch.onnx.name_scopes"  # in which torch's exporter writes the modules that a node comes from
SETTINGS_KEY = "slimsweep.int8"  # of the file's metadata

# Images whose activations are in memory at once. The calibrators with histograms are given all activations of a batch: about
# 200 MB per image of DeiT-B at 224 pixels.
CALIBRATION_BATCH: dict[Calibration, int] = {"minmax": 32, "entropy": 4, "percentile": 4}
# onnxruntime's own numbers would leave entropy no choice: as many bins as levels give a single candidate. Percentiles are of
# both signs apart, as activations are quantized with a zero point.
CALIBRATION_OPTIONS: dict[Calibration, dict[str, Any]] = {
    "minmax": {},
    "entropy": {"num_bins": 512, "num_quantized_bins": 128},
    "percentile": {"num_bins": 2048, "percentile": 99.99, "symmetric": False},
}

# How layers are compared: all of them on a few images, and the worst of these on more.
FIRST_IMAGES, LEAST_IMAGES = 16, 4
LOOKED_AT_CLOSER = 8  # layers
AT_ONCE = 32  # images


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A model as float32 ONNX files: as every export writes it, and as quantization wants it."""

    plain: Path
    ready: Path  # constants folded, shapes known
    layers: dict[str, list[str]]  # per layer that can be quantized, in the model's order, the names of its nodes in `ready`
    ranges: Path  # where `calibrate` writes the ranges of activations
    metadata: dict[str, str]


def refuse_missing_packages() -> None:
    """Refuse to quantize where a package is missing, or onnxruntime is too old.

    Raises:
        RefusedInput: says what to install.
    """
    refuse_missing("INT8 quantization", PACKAGES)
    with _quiet():
        quantization = _quantization()
    if "calibration_cache_path" not in inspect.signature(quantization.quantize_static).parameters:
        version = importlib.import_module("onnxruntime").__version__
        raise RefusedInput(
            f"INT8 quantization needs an onnxruntime that keeps the ranges of a calibration, which {version} does not: "
            "pip install --upgrade onnxruntime"
        )


def prepare(model: nn.Module, folder: Path, metadata: Mapping[str, str] | None = None) -> Prepared:
    """Write a model's float32 ONNX files to a folder.

    Args:
        model: in evaluation mode.
        metadata: texts to keep in the files.

    Raises:
        RefusedInput: its weights are too large for one ONNX file.
        ExportError: torch cannot export it, or it has no layer that can be quantized.
    """
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    if size > ONE_FILE_LIMIT:
        raise RefusedInput(
            f"the model has {size / 1e9:.1f} GB of weights, and onnxruntime quantizes ONNX files of at most "
            f"{ONE_FILE_LIMIT / 1e9:.0f} GB: take a smaller model, such as one of a smaller budget"
        )
    import onnx

    known = dict(metadata or {})
    plain, named, ready = folder / "float32.onnx", folder / "named.onnx", folder / "ready.onnx"
    write_onnx(model, plain, known)
    proto = onnx.load(plain)
    nodes = _name_nodes(proto, {name for name, _ in model.named_modules() if name})
    onnx.save(proto, named)
    with _quiet():
        _quantization().quant_pre_process(str(named), str(ready))
    constants = onnx.load(ready)
    weights = {tensor.name for tensor in constants.graph.initializer}
    layers: dict[str, list[str]] = {}
    for node in constants.graph.node:
        if node.name in nodes and node.input[1] in weights:
            layers.setdefault(nodes[node.name], []).append(node.name)
    if not layers:
        raise ExportError("this model has no linear layer or convolution that onnxruntime could quantize")
    return Prepared(plain=plain, ready=ready, layers=layers, ranges=folder / "ranges.json", metadata=known)


def _name_nodes(proto: Any, modules: set[str]) -> dict[str, str]:
    """Name the nodes that may be quantized after the modules they come from; returns the module of each name.

    Nodes keep their names when constants are folded; what torch's exporter says of their modules gets lost.
    """
    found: dict[str, str] = {}
    taken = {node.name for node in proto.graph.node}
    for node in proto.graph.node:
        if node.op_type not in QUANTIZED:
            continue
        said = next((entry.value for entry in node.metadata_props if entry.key == SCOPES), "[]")
        module = next((scope for scope in reversed(ast.literal_eval(said)) if scope in modules), node.name)
        name, number = module, 1
        while name in taken:  # several products in one module, such as those of attention
            number += 1
            name = f"{module}:{number}"
        node.name = name
        taken.add(name)
        found[name] = module
    return found


def calibrate(prepared: Prepared, images: Tensor, method: Calibration) -> int:
    """Find the ranges of all activations, for `write_int8`.

    Memory: the activations of one batch (CALIBRATION_BATCH), and of entropy and percentile a histogram per tensor.

    Args:
        images: (N, C, H, W) as the model sees them.

    Returns:
        The number of images.

    Raises:
        RefusedInput: there are no images.
    """
    if not len(images):
        raise RefusedInput("there is no training image to calibrate with")
    calibration = importlib.import_module("onnxruntime.quantization.calibrate")
    kind = {"minmax": "MinMax", "entropy": "Entropy", "percentile": "Percentile"}[method]
    with _quiet():
        calibrator = calibration.create_calibrator(
            prepared.ready,
            list(QUANTIZED),
            augmented_model_path=str(prepared.ready.with_name("augmented.onnx")),
            calibrate_method=calibration.CalibrationMethod[kind],
            extra_options=CALIBRATION_OPTIONS[method],
        )
        for batch in images.split(CALIBRATION_BATCH[method]):
            # One call per batch: a single call for all of them would hold the activations of all images at once.
            calibrator.collect_data(_Reader([{INPUT: batch.numpy()}]))
        calibration.save_tensors_data(calibrator.compute_data(), prepared.ranges)
    return len(images)


class _Reader:
    """What onnxruntime's calibrators read inputs from."""

    def __init__(self, feeds: Sequence[dict[str, np.ndarray]]) -> None:
        self.feeds = iter(feeds)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.feeds, None)


def write_int8(
    prepared: Prepared,
    path: Path,
    *,
    method: Calibration,
    weight_bits: int,
    layers: Sequence[str] | None = None,
    settings: str = "",
) -> None:
    """Write a quantized file, after `calibrate`.

    Args:
        method: that `calibrate` was called with.
        weight_bits: 8, or 7 for processors on which products of 8 bits overflow (`products_overflow`).
        layers: names of the layers to quantize; all where not given.
        settings: a text to keep in the file.

    Raises:
        RefusedInput: no layer is left to quantize.
    """
    import onnx

    chosen = prepared.layers if layers is None else layers
    nodes = [node for layer in chosen for node in prepared.layers[layer]]
    if not nodes:
        raise RefusedInput("no layer is left to quantize: keep fewer layers in float32")
    quantization = _quantization()
    kind = {"minmax": "MinMax", "entropy": "Entropy", "percentile": "Percentile"}[method]
    with _quiet():
        quantization.quantize_static(
            prepared.ready,
            path,
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=list(QUANTIZED),
            nodes_to_quantize=nodes,
            per_channel=True,
            reduce_range=weight_bits == 7,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            calibrate_method=quantization.CalibrationMethod[kind],
            calibration_cache_path=prepared.ranges,
            extra_options={"MatMulConstBOnly": True, "OpTypesToExcludeOutputQuantization": list(NOT_ROUNDED_AFTER)},
        )
    if texts := {**prepared.metadata, **({SETTINGS_KEY: settings} if settings else {})}:
        proto = onnx.load(path)
        onnx.helper.set_model_props(proto, texts)
        onnx.save(proto, path)


def quantized_nodes(path: Path) -> set[str]:
    """The names of the nodes of a file whose weights are int8."""
    import onnx

    graph = onnx.load(path).graph
    integers = {tensor.name for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.INT8}
    weights = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear" and node.input[0] in integers}
    return {node.name for node in graph.node if node.op_type in QUANTIZED and node.input[1] in weights}


class SessionModel(nn.Module):
    """An ONNX file as a module: images (B, C, H, W) in, what the file's first output gives out, on the CPU.

    Args:
        threads: CPU threads that compute one operator; onnxruntime's own number where not given.
    """

    def __init__(self, path: Path, threads: int | None = None) -> None:
        super().__init__()
        self.opened = session(path, threads=threads)

    def forward(self, images: Tensor) -> Tensor:
        return torch.from_numpy(self.opened.run([OUTPUT], {INPUT: images.numpy()})[0])


def layer_losses(
    prepared: Prepared,
    images: Tensor,
    *,
    method: Calibration,
    weight_bits: int,
    layers: Sequence[str],
    threads: int | None = None,
    seconds: float = math.inf,
    progress: Callable[[str], None] = lambda what: None,
) -> dict[str, float]:
    """What each layer does to the model's output when it alone is quantized: the most harmful first.

    The loss of a layer is sum |y_int8 - y|^2 / sum |y - mean(y)|^2 over images and outputs: 0 where nothing changes, about 1
    where nothing is left of what tells images apart. Errors of weights and activations by themselves do not tell that: what a
    layer gets wrong may not matter behind it.

    All layers are tried on a few of the images, and the worst eight of them on all, which saves most of the time: what a layer
    does differs by orders of magnitude, and few images show that.

    Args:
        images: (N, C, H, W); a few hundred are enough.
        method, weight_bits: as for `write_int8`.
        layers: to look at.
        seconds: that may be spent on computing images, about. Where all would take longer there are fewer of them, but at
            least 4. Files have to be written beside that, one per layer.
        progress: called with a layer's name and place before it is tried.
    """
    plain, tried = SessionModel(prepared.plain, threads), prepared.ready.with_name("tried.onnx")
    bare = replace(prepared, metadata={})

    def losses_of(names: Sequence[str], count: int) -> dict[str, float]:
        batches = evenly(images, count).split(AT_ONCE)
        before = torch.cat([plain(batch) for batch in batches]).double()
        scale = float((before - before.mean(0)).square().sum()) or 1.0
        found: dict[str, float] = {}
        for place, layer in enumerate(names, 1):
            progress(f"{layer} alone ({place} of {len(names)}, {len(before)} images)")
            write_int8(bare, tried, method=method, weight_bits=weight_bits, layers=[layer])
            model = SessionModel(tried, threads)
            after = torch.cat([model(batch) for batch in batches]).double()
            found[layer] = float((after - before).square().sum()) / scale
        return found

    plain(images[:1])  # the first call takes longer
    few = evenly(images, LEAST_IMAGES)
    start = time.perf_counter()
    plain(few)
    affordable = seconds / 2 * len(few) / (time.perf_counter() - start)  # images, in each of the two looks

    def images_for(count: int, most: int) -> int:
        return int(max(LEAST_IMAGES, min(most, affordable / count)))

    if len(layers) <= LOOKED_AT_CLOSER:
        losses = losses_of(layers, images_for(len(layers), len(images)))
    else:
        first = images_for(len(layers), FIRST_IMAGES)
        losses = losses_of(layers, first)
        if first < len(images):
            worst = sorted(losses, key=lambda layer: -losses[layer])[:LOOKED_AT_CLOSER]
            losses |= losses_of(worst, max(first, images_for(len(worst), len(images))))
    return dict(sorted(losses.items(), key=lambda entry: -entry[1]))


def evenly(items: Tensor, count: int) -> Tensor:
    """At most `count` rows of a tensor, evenly spaced: images are often sorted by class."""
    if count >= len(items):
        return items
    return items[torch.linspace(0, len(items) - 1, count, dtype=torch.float64).round().long()]


def matching_layers(layers: Iterable[str], names: Sequence[str]) -> dict[str, list[str]]:
    """The layers that each name stands for: the layer of this name, and those inside the module of this name.

    Some modules compute with the weights of a module inside them; in a file, their layer has the outer name alone.

    Args:
        names: such as blocks.3.mlp.fc2, blocks.3.mlp or blocks.3.
    """
    known = list(layers)
    found = {name: [layer for layer in known if layer == name or layer.startswith(f"{name}.")] for name in names}
    return {name: inside or [layer for layer in known if name.startswith(f"{layer}.")] for name, inside in found.items()}


def products_overflow() -> bool:
    """Whether onnxruntime's products of uint8 and int8 overflow on this processor.

    x86 processors without VNNI add two products in 16 bits, which saturate at 32,767 where 2 x 255 x 127 = 64,770 is meant
    (https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html, "When to use reduce-range"). It is found by
    computing such sums.
    """
    import onnx

    rows, columns = 64, 16
    weights = onnx.numpy_helper.from_array(np.full((rows, columns), 127, dtype=np.int8), "weights")
    helper, kinds = onnx.helper, onnx.TensorProto
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["activations", "weights"], ["sums"])],
        "overflow",
        [helper.make_tensor_value_info("activations", kinds.UINT8, [8, rows])],
        [helper.make_tensor_value_info("sums", kinds.INT32, [8, columns])],
        [weights],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnxruntime = importlib.import_module("onnxruntime")
    opened = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    (sums,) = opened.run(None, {"activations": np.full((8, rows), 255, dtype=np.uint8)})
    return bool((sums != rows * 255 * 127).any())


def copy_whole(source: Path, target: Path) -> None:
    """Copy a file so that the target is whole or as it was."""
    beside = target.with_name(f".{target.name}.part")
    try:
        shutil.copyfile(source, beside)
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)


def _quantization() -> Any:
    return importlib.import_module("onnxruntime.quantization")  # an optional dependency


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what onnxruntime's quantization prints and logs to the root logger: which step it is at, and general advice."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        root.setLevel(level)
