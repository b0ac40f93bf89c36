"""How long it takes to find a model's worst layers, and whether a few images find the same as many.

    python reports/quantization/worst_layers.py MODEL_DIR DATA

MODEL_DIR is a saved model, DATA a folder of images as `slimsweep quantize --data` takes it. Each layer is quantized alone and
its loss is computed from 256 validation images; of the same outputs it is then computed from fewer, spread evenly. The first
three layers by all images should be among the eight that `slimsweep quantize` looks at again. CPU seconds of one thread are
printed, so that other processes matter little, for all of this and for what `slimsweep quantize` does.
"""

import sys
import tempfile
import time
from pathlib import Path

import torch

from slimsweep.data import training_images
from slimsweep.latency.int8_files import (
    AT_ONCE,
    FIRST_IMAGES,
    LOOKED_AT_CLOSER,
    SessionModel,
    calibrate,
    evenly,
    layer_losses,
    prepare,
    write_int8,
)
from slimsweep.saved_models import load
from slimsweep.tools.quantize import _images_of
from slimsweep.tools.quantize_work import _looked_at

NAMED = 3


def outputs(path: Path, images: torch.Tensor) -> torch.Tensor:
    """(N, outputs) of a file, in float64."""
    model = SessionModel(path, 1)
    return torch.cat([model(batch) for batch in images.split(AT_ONCE)]).double()


def main() -> None:
    torch.set_num_threads(1)
    model = load(sys.argv[1])
    data = _images_of(sys.argv[2], model, {})
    images = _looked_at(data)
    how = {"method": "minmax", "weight_bits": 8}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        prepared = prepare(model, folder)
        calibrate(prepared, training_images(data, 0, 128)[0], "minmax")
        layers, alone = list(prepared.layers), folder / "alone.onnx"
        start = time.process_time()
        plain = outputs(prepared.plain, images)
        changes = []
        for layer in layers:
            write_int8(prepared, alone, layers=[layer], **how)
            changes.append((outputs(alone, images) - plain).square().sum(1))
        print(f"{len(layers)} layers on {len(images)} images each: {time.process_time() - start:.0f} s of CPU time")
        start = time.process_time()
        found = layer_losses(prepared, images, layers=layers, threads=1, **how)
        print(f"as slimsweep quantize does it, without its limit: {time.process_time() - start:.0f} s of CPU time")

    def order(count: int) -> list[str]:
        places = evenly(torch.arange(len(images)), count)
        some = plain[places]
        losses = torch.stack(changes)[:, places].sum(1) / (some - some.mean(0)).square().sum()
        return [layers[place] for place in losses.argsort(descending=True).tolist()]

    worst = order(len(images))[:NAMED]
    print(f"worst by {len(images)} images: {', '.join(worst)}; named: {', '.join(list(found)[:NAMED])}")
    for count in (4, 8, FIRST_IMAGES, 32):
        ranks = [order(count).index(layer) + 1 for layer in worst]
        kept = "all" if max(ranks) <= LOOKED_AT_CLOSER else "not all"
        print(f"by {count} images they are number {', '.join(map(str, ranks))}: {kept} among the {LOOKED_AT_CLOSER} worst")


if __name__ == "__main__":
    main()
