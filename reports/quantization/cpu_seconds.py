"""CPU time per call of float32 and INT8 files of one of timm's models, with random weights: time does not depend on them.

    python reports/quantization/cpu_seconds.py deit_tiny_patch16_224

One thread computes, and its own CPU time counts, so that other processes matter little.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import timm
import torch

from slimsweep.latency.device import hardware
from slimsweep.latency.int8_files import calibrate, prepare, write_int8
from slimsweep.latency.onnx_files import example_images, session, session_call

ROUNDS = 15
BATCHES = (1, 8)


def main() -> None:
    name = sys.argv[1]
    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    with tempfile.TemporaryDirectory() as folder:
        prepared = prepare(model, Path(folder))
        calibrate(prepared, example_images(model, 8), "minmax")
        int8 = Path(folder) / "int8.onnx"
        write_int8(prepared, int8, method="minmax", weight_bits=8)
        for batch in BATCHES:
            calls = {
                kind: session_call(session(file, threads=1), batch)
                for kind, file in (("float32", prepared.plain), ("int8", int8))
            }
            seconds: dict[str, list[float]] = {kind: [] for kind in calls}
            for _ in range(ROUNDS):
                for kind, call in calls.items():
                    call()
                    start = time.thread_time()
                    call()
                    seconds[kind].append(time.thread_time() - start)
            before, after = (1e3 * statistics.median(seconds[kind]) for kind in ("float32", "int8"))
            where = hardware(torch.device("cpu"))
            print(f"{name}, batch {batch}, {where}: float32 {before:.1f} ms, int8 {after:.1f} ms, {before / after:.2f}x")


if __name__ == "__main__":
    main()
