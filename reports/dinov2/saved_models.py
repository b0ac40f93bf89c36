"""Agreement and retrieval of trained models: `python reports/dinov2/saved_models.py --data data/dinov2 MODEL [MODEL ...]`.

A MODEL is a folder in RUN/models of a run of label-free.yaml. It is measured on the images, and by the measures, of
before_training.py, beside the untouched model: agreement with it on the maker that was left out, and how often the nearest
image of another maker is the same emoji.
"""

import argparse
import sys
from pathlib import Path

from before_training import backbone, chosen, embeddings, loaded, measures, stored_images
from rich.console import Console

from slimsweep import load, macs
from slimsweep.errors import RefusedInput, exit_code


def table(data: Path, folders: list[Path]) -> str:
    """Markdown: a row per model, the untouched one first.

    Raises:
        RefusedInput: a model has classes, or embeddings of other dims.
    """
    dense, transform = backbone(data)
    pictures = chosen(*(stored_images(data, split) for split in ("train", "validation", "test")))
    queries, gallery = (loaded(images, transform) for images in (pictures.queries, pictures.gallery))
    codes = [[image.code for image in images] for images in (pictures.queries, pictures.gallery)]
    aims = embeddings(dense, queries)
    lines = [
        "| model | MMACs | R2 | centred cosine | own nearest % | retrieval % |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, model in (("untouched", dense), *((folder.name, load(str(folder)).eval()) for folder in folders)):
        own = embeddings(model, queries)
        if own.shape != aims.shape:
            raise RefusedInput(
                f"MODEL {name} gives {own.shape[1]} numbers per image, not {aims.shape[1]}: give one without a head"
            )
        found = measures(own, embeddings(model, gallery), aims, *codes)
        numbers = f"{found['r2']:.3f} | {found['cosine']:.3f} | {found['nearest']:.1f} | {found['retrieval']:.1f}"
        lines.append(f"| {name} | {macs(model) / 1e6:.0f} | {numbers} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Agreement and retrieval of models after training.")
    parser.add_argument("models", type=Path, nargs="+", metavar="MODEL", help="a folder that slimsweep saved")
    parser.add_argument("--data", type=Path, required=True, help="the folder that make_data.py made")
    options = parser.parse_args(argv)
    return exit_code(lambda: print(table(options.data, options.models)), Console(stderr=True))


if __name__ == "__main__":
    sys.exit(main())
