"""ONNX files of models, and calls of them by onnxruntime."""

import importlib
import importlib.util
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from slimsweep.errors import ExportError, RefusedInput
from slimsweep.latency.device import REFERENCE_SIZE
from slimsweep.slimming.structure import image_size

EXPORTED_BATCH = 2  # torch.export would make a batch of 1 a constant
ONE_FILE_LIMIT = 2_000_000_000  # bytes of weights; protobuf is limited to 2 GiB, so that larger weights go to a second file
INPUT, OUTPUT = "images", "logits"
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
INSTALL = "{} needs packages that are not installed ({}): pip install {}"


def refuse_missing(what: str, packages: tuple[str, ...] = ("onnx", "onnxscript", "onnxruntime")) -> None:
    """Refuse work whose packages are not installed.

    Args:
        what: the work, as the sentence begins: "ONNX export".

    Raises:
        RefusedInput: a package is missing.
    """
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise RefusedInput(INSTALL.format(what, ", ".join(missing), " ".join(packages)))


def runtime_version() -> str:
    """The version of onnxruntime, which several packages bring: onnxruntime, onnxruntime-gpu and others."""
    return str(importlib.import_module("onnxruntime").__version__)


def example_images(model: nn.Module, count: int) -> torch.Tensor:
    """(count, channels, height, width) random images of a model's size, the same at each call."""
    return torch.randn(count, *image_size(model), generator=torch.Generator().manual_seed(count))


def write_onnx(
    model: nn.Module, path: Path, metadata: Mapping[str, str] | None = None, *, batch_size: int | None = None
) -> None:
    """Write a model in evaluation mode to an ONNX file: input "images", output "logits".

    Weights above 2 GB go to a second file beside it.

    Args:
        batch_size: the only number of images that the file takes, as compilers for phones and TensorRT want it; any number
            where not given.

    Raises:
        ExportError: torch cannot export this model.
    """
    with exporting("ONNX"):
        program: Any = torch.onnx.export(
            model,
            (example_images(model, batch_size or EXPORTED_BATCH),),
            dynamo=True,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=None if batch_size else ({0: torch.export.Dim("batch")},),
            verbose=False,
        )
        program.model.metadata_props.update(metadata or {})
        weights = sum(p.numel() * p.element_size() for p in model.parameters())
        program.save(path, external_data=weights > ONE_FILE_LIMIT)


def write_reference(path: Path, device: str) -> None:
    """Write a product of two square matrices as an ONNX file: work of a known cost (2 n^3 operations), as `device.reference`.

    Its one input is a number, and its one output too, so that nothing is copied to or from a GPU. Of few bytes.

    Args:
        device: cpu or cuda, for the size n.
    """
    onnx = importlib.import_module("onnx")  # an optional dependency
    helper, size = onnx.helper, REFERENCE_SIZE[device]
    number = onnx.TensorProto.FLOAT
    nodes = [
        helper.make_node(
            "ConstantOfShape", ["shape"], ["matrix"], value=helper.make_tensor("value", number, [1], [1.0 / size])
        ),
        helper.make_node("Add", ["matrix", INPUT], ["other"]),  # else the product would be computed once, on loading
        helper.make_node("MatMul", ["matrix", "other"], ["product"]),
        helper.make_node("ReduceMean", ["product"], [OUTPUT]),
    ]
    sides = [helper.make_tensor_value_info(name, number, [1, 1]) for name in (INPUT, OUTPUT)]
    shape = helper.make_tensor("shape", onnx.TensorProto.INT64, [2], [size, size])
    graph = helper.make_graph(nodes, "reference", sides[:1], sides[1:], [shape])
    # Of versions that runtimes of some years ago read too.
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def session(path: str | os.PathLike[str], *, threads: int | None = None, device: str = "cpu") -> Any:
    """An onnxruntime session of an ONNX file.

    Args:
        threads: CPU threads that compute one operator; onnxruntime's own number where not given.
        device: cpu or cuda.

    Raises:
        RefusedInput: onnxruntime is not installed, or has no provider for the device, or cannot start it.
    """
    refuse_missing("onnxruntime", ("onnxruntime",))
    onnxruntime = importlib.import_module("onnxruntime")  # an optional dependency
    provider = PROVIDERS[device]
    if provider not in onnxruntime.get_available_providers():
        raise RefusedInput(
            f"onnxruntime has no {provider} on this machine, for device {device!r}: install onnxruntime-gpu in place of "
            "onnxruntime, or take cpu"
        )
    if device == "cuda" and hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()  # it does not look for CUDA where pip installs it
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors: its warnings are on constant folding, which users cannot act on
    if threads is not None:
        options.intra_op_num_threads = threads
    opened = onnxruntime.InferenceSession(str(path), options, providers=[provider])
    if provider not in opened.get_providers():  # it falls back to the CPU with a warning only
        raise RefusedInput(
            f"onnxruntime could not start {provider} for device {device!r}, as its own message above says: install the CUDA "
            "and cuDNN that it needs, or take cpu"
        )
    return opened


def session_call(opened: Any, batch_size: int) -> Callable[[], object]:
    """A call that computes one random batch of a session.

    Raises:
        RefusedInput: the model's input is not one array of images.
    """
    (wanted,) = opened.get_inputs()
    size = [batch_size, *wanted.shape[1:]]
    if not all(isinstance(n, int) for n in size):
        raise RefusedInput(f"the ONNX input {wanted.name!r} has the shape {wanted.shape}: only its batch may be dynamic")
    dtype = np.float16 if wanted.type == "tensor(float16)" else np.float32
    feed = {wanted.name: np.random.default_rng(0).standard_normal(size).astype(dtype)}
    return lambda: opened.run(None, feed)


@contextmanager
def exporting(what: str) -> Iterator[None]:
    """Silence the logs and warnings of torch's exporters, and raise their errors as one ExportError.

    Raises:
        OSError: as it is, since it says best what is wrong, such as a full disk.
        ExportError: for any other error.
    """
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except OSError:
        raise
    except Exception as problem:
        reason = (str(problem).strip().splitlines() or [type(problem).__name__])[0]
        raise ExportError(
            f"torch {torch.__version__} cannot turn this model into {what}: {reason}; try another format"
        ) from problem
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
