"""Agreement and retrieval of trained models: `python reports/dinov2/saved_models.py --data data/dinov2 MODEL [MODEL ...]`.

A MODEL is a folder in RUN/models of a run of label-free.yaml. It is measured on the images, and by the measures, of
before_training.py, beside the untouched model: agreement with it on the maker that was left out, and how often the nearest
image of another maker is the same emoji. --rows keeps the numbers in a Parquet file.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from before_training import backbone, chosen, embeddings, loaded, measures, stored_images
from rich.console import Console

from slimsweep import load, macs
from slimsweep.errors import RefusedInput, exit_code

UNTOUCHED = "untouched"


def rows(data: Path, folders: list[Path]) -> Iterator[dict[str, Any]]:
    """A row per model, the untouched one first: model, macs, r2, cosine, nearest, retrieval.

    Raises:
        RefusedInput: a model has classes, or embeddings of other dims.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dense, transform = backbone(data)
    pictures = chosen(*(stored_images(data, split) for split in ("train", "validation", "test")))
    queries, gallery = (loaded(images, transform) for images in (pictures.queries, pictures.gallery))
    codes = [[image.code for image in images] for images in (pictures.queries, pictures.gallery)]
    aims = embeddings(dense.to(device), queries)
    for name, model in ((UNTOUCHED, dense), *((folder.name, load(str(folder)).eval()) for folder in folders)):
        own = embeddings(model.to(device), queries)
        if own.shape != aims.shape:
            raise RefusedInput(
                f"MODEL {name} gives {own.shape[1]} numbers per image, not {aims.shape[1]}: give one without a head"
            )
        yield {"model": name, "macs": macs(model), **measures(own, embeddings(model, gallery), aims, *codes)}


def table(found: pd.DataFrame) -> str:
    """Markdown: a line per row."""
    lines = [
        "| model | MMACs | R2 | centred cosine | own nearest % | retrieval % |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in found.itertuples():
        numbers = f"{row.r2:.3f} | {row.cosine:.3f} | {row.nearest:.1f} | {row.retrieval:.1f}"
        lines.append(f"| {row.model} | {row.macs / 1e6:.0f} | {numbers} |")
    return "\n".join(lines)


def run(options: argparse.Namespace) -> int:
    found = pd.DataFrame(rows(options.data, options.models))
    if options.rows:
        found.to_parquet(options.rows, index=False)
    print(table(found))
    return 0


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Agreement and retrieval of models after training.")
    parser.add_argument("models", type=Path, nargs="+", metavar="MODEL", help="a folder that slimsweep saved")
    parser.add_argument("--data", type=Path, required=True, help="the folder that make_data.py made")
    parser.add_argument("--rows", type=Path, help="Parquet file for the numbers")
    options = parser.parse_args(argv)
    return exit_code(lambda: run(options), Console(stderr=True))


if __name__ == "__main__":
    sys.exit(main())
