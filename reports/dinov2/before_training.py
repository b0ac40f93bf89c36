"""What a cut keeps of DINOv2-S before any training: `python reports/dinov2/before_training.py --data data/dinov2`.

The pretrained backbone, at 70 pixels, is cut to each budget: attention and MLPs only, gates ranked in three ways, with and
without principal axes, with and without repair. Axes, repair and rankings look at images of three makers. All is measured on
the fourth maker, whose images nothing else has seen:

- how near the embeddings (class tokens) are to those of the untouched model (`agreement`);
- retrieval: of how many images the nearest image of another maker, by the cosine of the embeddings, is the same emoji.

Embeddings go to --work, one file per cut, so that a measurement that was stopped goes on with the same command. From there the
numbers go to before-training.parquet, and into the README.md of this folder; --collect does only that, with the cuts that are
there. Without both only the table is written; with --check it is only compared.

Taylor's ranking needs a loss. The backbone has no classes, so it gets a linear classifier of the 70 kinds for it, fitted to the
frozen embeddings of HEAD_IMAGES training images: it is the one ranking here that uses labels.
"""

import argparse
import json
import random
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import timm
import torch
from PIL import Image
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import save_file
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from slimsweep.errors import RefusedInput, exit_code
from slimsweep.slimming.structure import macs
from slimsweep.training.feature_metrics import agreement, knn_top1

sys.path.append(str(Path(__file__).parents[1]))  # reports/, for the modules that the studies share
from cuts_before_training import RANKINGS, WAYS, cuts, single_thread, table_of_cuts
from markdown_tables import with_table, write_or_check

HERE = Path(__file__).parent
PAGE, ROWS = HERE / "README.md", HERE / "before-training.parquet"
START, END = "<!-- before any training, written by before_training.py -->", "<!-- end -->"
BUDGETS = (0.5, 0.7, 0.25)  # in the order in which they are measured
FAMILIES = ("attention", "mlp")  # all tokens stay
FLOORS, PACE = {"attention": 0.1, "mlp": 0.1}, {"attention": 1.0, "mlp": 1.0}  # for all alike
SIDE = 70  # pixels: 5 x 5 patches
CALIBRATION_IMAGES, RANKING_IMAGES, HEAD_IMAGES = 1024, 512, 2048
EMOJI = 500  # of the maker that was left out, and their images of the other makers
BATCH = 64


class Stored(NamedTuple):
    """An image that make_data.py wrote."""

    path: Path
    maker: str
    code: str
    kind: str


class Pictures(NamedTuple):
    """What the measurement looks at."""

    calibration: list[Stored]  # axes and repair; the first RANKING_IMAGES rank gates
    head: list[Stored]  # taylor's classifier; none of them is in calibration
    queries: list[Stored]  # of the maker that was left out
    gallery: list[Stored]  # the same emoji of the other makers


def stored_images(data: Path, split: str) -> list[Stored]:
    """The images of a split, in the order of their names.

    Raises:
        RefusedInput: there are none.
    """
    found = sorted((data / "emoji" / split).glob("*/*.png"))
    if not found:
        raise RefusedInput(f"--data {data} has no images in emoji/{split}: make them by reports/dinov2/make_data.py {data}")
    return [Stored(path, *path.stem.split("-", 1), path.parent.name) for path in found]


def chosen(train: Sequence[Stored], validation: Sequence[Stored], test: Sequence[Stored], seed: int = 0) -> Pictures:
    """Which images are looked at: drawn by a seed. Calibration and classifier see training images only.

    Args:
        test: of the maker that was left out; those count whose emoji another maker has too.
    """
    drawn = random.Random(seed).sample(list(train), min(len(train), CALIBRATION_IMAGES + HEAD_IMAGES))
    others: dict[str, list[Stored]] = defaultdict(list)
    for image in (*train, *validation):
        others[image.code].append(image)
    shared = [image for image in test if image.code in others]
    queries = random.Random(seed).sample(shared, min(len(shared), EMOJI))
    gallery = [image for query in queries for image in others[query.code]]
    return Pictures(drawn[:CALIBRATION_IMAGES], drawn[CALIBRATION_IMAGES:], queries, gallery)


def backbone(data: Path) -> tuple[nn.Module, Callable[[Image.Image], Tensor]]:
    """The pretrained model at SIDE pixels, and how an image becomes what it takes."""
    dense = timm.create_model(f"local-dir:{data / 'backbone'}", pretrained=True, img_size=SIDE).eval()
    preprocessing = {name: dense.pretrained_cfg[name] for name in ("mean", "std", "interpolation")}
    return dense, timm.data.create_transform(input_size=(3, SIDE, SIDE), crop_pct=1.0, **preprocessing)


def loaded(images: Sequence[Stored], transform: Callable[[Image.Image], Tensor]) -> Tensor:
    """(N, 3, H, W), as the model takes them."""
    tensors = []
    for image in images:
        with Image.open(image.path) as opened:
            tensors.append(transform(opened.convert("RGB")))
    return torch.stack(tensors)


def embeddings(model: nn.Module, images: Tensor) -> Tensor:
    """(N, D) what a model without a head gives, in the CPU's memory."""
    device = next(model.parameters()).device
    with torch.inference_mode():
        return torch.cat([model(batch.to(device)).cpu() for batch in images.split(BATCH)]).clone()


def classifier(features: np.ndarray, kinds: np.ndarray) -> nn.Linear:
    """A linear classifier, fitted to standardised features by logistic regression."""
    mean, deviation = features.mean(0), features.std(0)
    fitted = LogisticRegression(C=0.01, max_iter=300).fit((features - mean) / deviation, kinds)
    weight = fitted.coef_ / deviation
    layer = nn.Linear(features.shape[1], len(fitted.classes_))
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weight))
        layer.bias.copy_(torch.from_numpy(fitted.intercept_ - weight @ mean))
    return layer


# The slow part: embeddings of each cut.


def measure(data: Path, work: Path) -> None:
    """Write the embeddings of each cut to `work`, those that are not there yet."""
    record = data / "record.json"
    if not record.is_file():
        raise RefusedInput(f"--data {data} has no record.json: make it by reports/dinov2/make_data.py {data}")
    settings = {
        "data": json.loads(record.read_text())["emoji"]["sha256"],
        "backbone": json.loads(record.read_text())["backbone"]["sha256"],
        "images": [CALIBRATION_IMAGES, RANKING_IMAGES, HEAD_IMAGES, EMOJI, SIDE],
        "path": [FLOORS, PACE],
    }
    work.mkdir(parents=True, exist_ok=True)
    check_settings(work, settings)
    dense, transform = backbone(data)
    pictures = chosen(*(stored_images(data, split) for split in ("train", "validation", "test")))
    queries, gallery = (loaded(images, transform) for images in (pictures.queries, pictures.gallery))
    calibration = loaded(pictures.calibration, transform)
    kinds = sorted({image.kind for image in (*pictures.calibration, *pictures.head)})

    def keep(row: Mapping[str, Any], model: nn.Module) -> None:
        tensors = {"queries": embeddings(model, queries), "gallery": embeddings(model, gallery)}
        unfinished = work / "unfinished"
        save_file(tensors, unfinished, metadata={"row": json.dumps(row)})
        unfinished.rename(file_of(work, row))
        print(json.dumps(row), flush=True)

    whole = {"ranking": "dense", "axes": False, "repair": False, "budget": 1.0, "macs": macs(dense), "seconds": 0.0}
    if not file_of(work, whole).exists():
        codes = {name: [image.code for image in getattr(pictures, name)] for name in ("queries", "gallery")}
        (work / "emoji.json").write_text(json.dumps(codes))
        keep(whole, dense)
    layer: list[nn.Linear] = []

    def with_classes(model: Any) -> nn.Module:
        if not layer:
            features = embeddings(dense, loaded(pictures.head, transform)).numpy()
            layer.append(classifier(features, np.array([kinds.index(image.kind) for image in pictures.head])))
        model.reset_classifier(layer[0].out_features)
        model.head.load_state_dict(layer[0].state_dict())
        return model

    made = cuts(
        dense,
        BUDGETS,
        calibration,
        calibration[:RANKING_IMAGES],
        torch.tensor([kinds.index(image.kind) for image in pictures.calibration[:RANKING_IMAGES]]),
        floors=FLOORS,
        pace=PACE,
        families=FAMILIES,
        with_classes=with_classes,
        done=lambda row: file_of(work, row).exists(),
    )
    for row, model in made:
        keep(row, model)


def file_of(work: Path, row: Mapping[str, Any]) -> Path:
    ways = "".join(f"-{way}" for way in ("axes", "repair") if row[way])
    return work / f"{row['ranking']}{ways}-{row['budget']:g}.safetensors"


def check_settings(work: Path, settings: Mapping[str, Any]) -> None:
    """Refuse a folder whose embeddings were made from other data or with other settings; note them in a new one."""
    noted = work / "settings.json"
    if not noted.exists():
        noted.write_text(json.dumps(settings))
    elif json.loads(noted.read_text()) != settings:
        raise RefusedInput(f"--work {work} holds embeddings that were made from other data or settings: give another folder")


# The quick part: numbers from embeddings.


def rows_of(work: Path) -> Iterator[dict[str, Any]]:
    """A row per cut that is measured, the dense model first.

    Raises:
        RefusedInput: nothing was measured there.
    """
    files = sorted(work.glob("*.safetensors"), key=lambda path: (not path.name.startswith("dense"), path.name))
    if not files or not files[0].name.startswith("dense"):
        raise RefusedInput(f"--work {work} has no embeddings of the dense model: give --data too, to make them")
    codes = json.loads((work / "emoji.json").read_text())
    dense: Tensor | None = None
    for path in files:
        with safe_open(path, framework="pt") as file:
            row = json.loads(file.metadata()["row"])
            queries, gallery = file.get_tensor("queries"), file.get_tensor("gallery")
        dense = queries if dense is None else dense
        counts = {"images": len(queries), "gallery": len(gallery)}
        yield {**row, **counts, **measures(queries, gallery, dense, codes["queries"], codes["gallery"])}


def measures(
    queries: Tensor, gallery: Tensor, dense: Tensor, query_codes: Sequence[str], gallery_codes: Sequence[str]
) -> dict[str, float]:
    """r2, cosine, nearest and retrieval of a model's embeddings.

    Args:
        queries, gallery: (N, D) and (M, D), the model's.
        dense: (N, D), the dense model's of the queries.
        query_codes, gallery_codes: the emoji of each image.
    """
    number = {code: place for place, code in enumerate(query_codes)}
    of_queries, of_gallery = (torch.tensor([number[code] for code in codes]) for codes in (query_codes, gallery_codes))
    return {
        **agreement(queries, dense)._asdict(),
        "retrieval": knn_top1(gallery, of_gallery, queries, of_queries, neighbours=1),
    }


def table(rows: pd.DataFrame) -> str:
    """Markdown: rankings and ways x budgets, twice: how near embeddings are, and what is found by them."""
    dense = rows[rows["ranking"] == "dense"].iloc[0]
    made = rows[rows["ranking"] != "dense"]
    says = {
        "magnitude": "squared weights",
        "taylor": "squared gate x gradient, labels",
        "activation": "activation energy, no labels",
    }
    lines = [
        f"The dense model has {dense['macs'] / 1e6:.0f} MMACs at {SIDE} pixels. Measured on {dense['images']} images of",
        f"the maker that was left out, and {dense['gallery']:,} of the same emoji by the others. "
        f"Measured so far: {len(made)} of {len(BUDGETS) * len(RANKINGS) * len(WAYS)} cuts.",
        "",
        "R2 / centred cosine:",
        "",
        *table_of_cuts(made, lambda row: f"{row['r2']:.3f} / {row['cosine']:.3f}", says),
        "",
        f"Own dense embedding nearest / retrieval, percent (dense: 100.0 / {dense['retrieval']:.1f}):",
        "",
        *table_of_cuts(made, lambda row: f"{row['nearest']:.1f} / {row['retrieval']:.1f}", says),
    ]
    return "\n".join(lines)


def run(options: argparse.Namespace) -> int:
    if options.data:
        single_thread()
        measure(options.data, options.work)
    if options.data or options.collect:
        pd.DataFrame(rows_of(options.work)).to_parquet(ROWS, index=False)
    return write_or_check(PAGE, with_table(PAGE.read_text(), table(pd.read_parquet(ROWS)), START, END), options.check)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="What a cut keeps of DINOv2-S before any training.")
    parser.add_argument("--data", type=Path, help="the folder that make_data.py made: measures what --work does not hold yet")
    parser.add_argument("--work", type=Path, default=Path("runs/dinov2-before-training"), help="where embeddings are kept")
    parser.add_argument("--collect", action="store_true", help="only make the numbers from what --work holds")
    parser.add_argument("--check", action="store_true", help="only compare the table with README.md")
    options = parser.parse_args(argv)
    return exit_code(lambda: run(options), Console(stderr=True))


if __name__ == "__main__":
    sys.exit(main())
