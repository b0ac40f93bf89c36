"""Compare ways to quantize the models of a finished run: bits, types of values, calibration, what is rounded.

    python reports/quantization/settings.py RUN > reports/quantization/settings.csv

Each way is judged on the run's validation split: its top-1, and how far the model's outputs move (as
`slimsweep.latency.int8_files.layer_losses` counts it). The test split is not read.
"""

import csv
import importlib
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from slimsweep.cluster.worker import data_of
from slimsweep.data import training_images
from slimsweep.latency.int8_files import (
    NOT_ROUNDED_AFTER,
    QUANTIZED,
    Calibration,
    Prepared,
    SessionModel,
    calibrate,
    prepare,
    refuse_missing_packages,
)
from slimsweep.ledger.files import DENSE
from slimsweep.ledger.run import Run
from slimsweep.saved_models import load

IMAGES = 512  # of calibration


@dataclass(frozen=True)
class Way:
    """One way to quantize; the default is that of `slimsweep quantize`."""

    calibration: Calibration = "minmax"
    activations: str = "QUInt8"
    weights: str = "QInt8"
    weight_bits: int = 8
    per_channel: bool = True
    attention: bool = False  # the two products inside attention too
    outputs: bool = False  # the results of linear layers too


DEFAULT = Way()
WAYS = {
    "slimsweep's": DEFAULT,
    "weights of 7 bits": replace(DEFAULT, weight_bits=7),
    "weights uint8": replace(DEFAULT, weights="QUInt8"),
    "activations int8": replace(DEFAULT, activations="QInt8"),
    "one scale per weight tensor": replace(DEFAULT, per_channel=False),
    "results of linear layers too": replace(DEFAULT, outputs=True),
    "products inside attention too": replace(DEFAULT, attention=True),
    "percentile 99.99": replace(DEFAULT, calibration="percentile"),
    "entropy": replace(DEFAULT, calibration="entropy"),
}


def write(prepared: Prepared, path: Path, way: Way) -> None:
    """Write a file quantized in one way, after `calibrate`."""
    quantization: Any = importlib.import_module("onnxruntime.quantization")
    kind = {"minmax": "MinMax", "entropy": "Entropy", "percentile": "Percentile"}[way.calibration]
    quantization.quantize_static(
        prepared.ready,
        path,
        quant_format=quantization.QuantFormat.QDQ,
        op_types_to_quantize=list(QUANTIZED),
        nodes_to_quantize=[] if way.attention else [node for nodes in prepared.layers.values() for node in nodes],
        per_channel=way.per_channel,
        reduce_range=way.weight_bits == 7,
        activation_type=quantization.QuantType[way.activations],
        weight_type=quantization.QuantType[way.weights],
        calibrate_method=quantization.CalibrationMethod[kind],
        calibration_cache_path=prepared.ranges,
        extra_options={
            "MatMulConstBOnly": not way.attention,
            "OpTypesToExcludeOutputQuantization": [] if way.outputs else list(NOT_ROUNDED_AFTER),
        },
    )


def compared(run: Run) -> Iterator[dict[str, Any]]:
    """A row per model and way."""
    dense = load(run.dense)
    data = data_of(run, dense)
    images = training_images(data, 0, IMAGES)[0]
    pairs = [data.val[i] for i in range(len(data.val))]
    x, labels = torch.stack([image for image, _ in pairs]), torch.tensor([label for _, label in pairs])
    for point in [DENSE, *run.rows.point[run.rows.status == "ok"]]:
        model = dense if point == DENSE else load(run.models / point)
        with tempfile.TemporaryDirectory() as folder:
            prepared = prepare(model, Path(folder))
            before = SessionModel(prepared.plain)(x)
            scale = float((before - before.mean(0)).square().sum())
            top1 = 100 * float((before.argmax(1) == labels).float().mean())
            yield {"point": point, "way": "float32", "val_top1": round(top1, 2), "output_moves": 0.0}
            calibrated = None
            for name, way in WAYS.items():
                if way.calibration != calibrated:
                    prepared.ranges.unlink(missing_ok=True)
                    calibrate(prepared, images, way.calibration)
                    calibrated = way.calibration
                write(prepared, Path(folder) / "int8.onnx", way)
                after = SessionModel(Path(folder) / "int8.onnx")(x)
                top1 = 100 * float((after.argmax(1) == labels).float().mean())
                moves = float((after - before).square().sum()) / scale
                yield {"point": point, "way": name, "val_top1": round(top1, 2), "output_moves": float(f"{moves:.3g}")}


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("give the folder of a finished run")
    refuse_missing_packages()
    writer = csv.DictWriter(sys.stdout, ["point", "way", "val_top1", "output_moves"])
    writer.writeheader()
    for row in compared(Run(sys.argv[1])):
        writer.writerow(row)
        sys.stdout.flush()


if __name__ == "__main__":
    main()
