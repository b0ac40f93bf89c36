"""Writes the paper's table beside the sizes of slimsweep's cuts into README.md: `python reports/imagenet/make_table.py`.

`--check` only compares the table with README.md. No weights and no images are needed: sizes follow from the presets.
"""

import argparse
import json
import sys
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path

from slimsweep import Structure, add_gates
from slimsweep.config import load_config
from slimsweep.slimming.removal_path import RemovalPath, equal_gates
from slimsweep.training.dense_model import check_model

sys.path.append(str(Path(__file__).parents[1]))  # reports/, for the module that they share
from markdown_tables import with_table, write_or_check

PAGE = Path(__file__).parent / "README.md"
START, END = "<!-- written by make_table.py -->", "<!-- end -->"
PUBLISHED_START, PUBLISHED_END = "<!-- published figures, written by make_table.py -->", "<!-- end of published figures -->"

# Why one of our sizes does not round to the paper's, by the letter in the table's notes.
REASONS = {
    "a": "parameters: in these lines the paper's figures equal ours, truncated after the first decimal; in the others they are "
    "rounded.",
    "b": "MACs: the authors' own counter adds softmax and biases, which makes 3.26 of 3.24; slimsweep counts matrix "
    "products, as torch's counter does.",
    "c": "MACs: in the authors' code a share of tokens is a threshold on single gates, and a token that any later layer keeps "
    "stays in all layers before it, so more tokens stay than the share says. Here a share is exactly what stays. The figures "
    "are for equal gates, which leave all layers alike; those of a search will differ.",
    "d": "both: Swin's stages differ in what a gate costs, so sizes depend on which gates are removed. The figures are for "
    "equal gates; the paper's lie between the sizes where the first stages lose their gates first and where the last ones do.",
}


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line of the paper's table, as printed."""

    model: str
    preset: str
    shares: dict[str, float] = field(default_factory=dict)  # none: dense
    params: str | None  # millions; None where the paper's table is not at hand
    gmacs: str | None
    top1: str  # percent
    differs: str = ""  # letters of REASONS


def line_of(
    model: str, preset: str, params: str | None, gmacs: str | None, top1: str, differs: str = "", **shares: float
) -> Line:
    return Line(model=model, preset=preset, shares=shares, params=params, gmacs=gmacs, top1=top1, differs=differs)


deit_s = partial(line_of, "DeiT-S", "deit-small-imagenet")
deit_b = partial(line_of, "DeiT-B", "deit-base-imagenet")
swin_t = partial(line_of, "Swin-T", "swin-tiny-imagenet")

LINES = (
    deit_s("22.0", "4.6", "79.90", "a"),
    deit_s("19.9", "4.1", "80.90", attention=0.7),
    deit_s("19.2", "3.9", "80.63", attention=0.6),
    deit_s("18.5", "3.7", "80.10", attention=0.5),
    deit_s("17.8", "3.5", "79.61", attention=0.4),
    deit_s("17.8", "3.8", "80.80", mlp=0.7),
    deit_s("16.4", "3.5", "80.39", mlp=0.6),
    deit_s("15.0", "3.2", "79.89", mlp=0.5),
    deit_s("13.5", "2.9", "79.20", mlp=0.4),
    deit_s("17.7", "3.7", "80.60", "a", attention=0.8, mlp=0.8),
    deit_s("15.6", "3.3", "80.03", "ab", attention=0.7, mlp=0.7),
    deit_s("13.5", "2.8", "79.20", attention=0.6, mlp=0.6),
    deit_s("11.4", "2.3", "77.94", attention=0.5, mlp=0.5),
    deit_s("15.6", "3.1", "79.91", "ac", attention=0.7, mlp=0.7, token=0.8),
    deit_s("15.6", "2.9", "79.72", "ac", attention=0.7, mlp=0.7, token=0.7),
    deit_s("15.6", "2.8", "79.51", "ac", attention=0.7, mlp=0.7, token=0.6),
    deit_b(None, None, "81.8"),
    deit_b("52.6", "10.6", "82.4", attention=0.6, mlp=0.6),
    swin_t(None, None, "81.3"),
    swin_t("22.3", "3.8", "81.3", "d", attention=0.8, mlp=0.8),
    swin_t("19.4", "3.4", "80.7", "d", attention=0.7, mlp=0.7),
)


@dataclass(frozen=True, kw_only=True)
class Published:
    """A cut model that others have published."""

    gmacs: str
    top1: str  # percent
    method: str  # a key of SOURCES
    model: str  # what was cut; "" where the method's name says it
    teacher: str


VITSLIM, ISOMORPHIC, TORCH_DAG = "ViT-Slim", "Isomorphic Pruning", "torch-dag"
REGNET, LARGER = "RegNetY-16GF, hard labels", "a larger DeiT-III"
SOURCES = {
    VITSLIM: "[arXiv 2201.00814](https://arxiv.org/abs/2201.00814)",
    ISOMORPHIC: "[arXiv 2407.04616](https://arxiv.org/abs/2407.04616)",
    TORCH_DAG: "its repository",
    "NViT": "its paper",
    "SAViT": "its paper",
    "OFB": "its paper",
}

PUBLISHED = tuple(
    Published(gmacs=gmacs, top1=top1, method=method, model=model, teacher=teacher)
    for gmacs, top1, method, model, teacher in (
        ("10.99", "84.53", TORCH_DAG, "BEiT-B", "not at hand"),
        ("10.6", "82.4", VITSLIM, "DeiT-B", "none"),
        ("6.8", "83.29", "NViT", "NViT-B", REGNET),
        ("6.2", "82.95", "NViT", "NViT-H", REGNET),
        ("5.3", "81.66", "SAViT", "", REGNET),
        ("4.2", "82.19", "NViT", "NViT-S", REGNET),
        ("4.16", "82.41", ISOMORPHIC, "distilled DeiT-B", REGNET),
        ("3.3", "80.03", VITSLIM, "DeiT-S", "none"),
        ("3.04", "81.85", TORCH_DAG, "DeiT-III-S (ImageNet-21k)", LARGER),
        ("2.61", "81.13", ISOMORPHIC, "distilled DeiT-B", REGNET),
        ("2.3", "77.94", VITSLIM, "DeiT-S", "none"),
        ("2.19", "80.87", TORCH_DAG, "DeiT-III-S (ImageNet-21k)", LARGER),
        ("1.21", "77.50", ISOMORPHIC, "distilled DeiT-S", REGNET),
        ("1.1", "76.1", "OFB", "OFB-B", "not at hand"),
        ("0.62", "72.60", ISOMORPHIC, "distilled DeiT-T", REGNET),
    )
)
# (GMACs, top-1 %, the model): anyone can download these.
DOWNLOADABLE = (
    ("4.6", "83.1", "DeiT-III-S (ImageNet-21k)"),
    ("4.3", "84.8", "TinyViT-21M (ImageNet-21k)"),
    ("2.0", "83.2", "TinyViT-11M (ImageNet-21k)"),
    ("1.3", "80.7", "TinyViT-5M (ImageNet-21k)"),
)


def published_table() -> str:
    """What others have published, cut models and ones to download, in Markdown, from large to small."""
    rows = [(one.gmacs, one.top1, one.method, one.model, one.teacher, SOURCES[one.method]) for one in PUBLISHED]
    rows += [(gmacs, top1, "none: to download", model, "", "timm") for gmacs, top1, model in DOWNLOADABLE]
    rows.sort(key=lambda row: -float(row[0]))
    lines = ["| GMACs | top-1 % | slimmed by | model | teacher | source |", "| ---: | ---: | --- | --- | --- | --- |"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


@cache
def removal_path(preset: str) -> RemovalPath:
    """The path of a preset's model over gates that are all alike."""
    config, _ = load_config(["--config", preset])
    search = config.search
    shape = add_gates(check_model(config), search.granularity, search.families, search.token_gate).shape
    return RemovalPath(shape, equal_gates(shape), search.floors.model_dump(), search.round_to)


def structure(line: Line) -> Structure:
    """What is left of the line's model."""
    return removal_path(line.preset).shares(line.shares)


def agrees(line: Line) -> bool:
    """Whether our parameters and MACs, rounded as the paper prints them, are the paper's."""
    kept = structure(line)
    return all(
        printed is None or f"{ours:.1f}" == printed
        for printed, ours in ((line.params, kept.params() / 1e6), (line.gmacs, kept.macs() / 1e9))
    )


def table() -> str:
    """The table and its notes, in Markdown."""
    rows = [
        "| model | shares | M params: paper | slimsweep | GMACs: paper | slimsweep | top-1 %: paper | slimsweep | notes |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | --- | --- |",
    ]
    for line in LINES:
        kept = structure(line)
        shares = f"`{json.dumps(line.shares)}`" if line.shares else "dense"
        rows.append(
            f"| {line.model} | {shares} | {line.params or '–'} | {kept.params() / 1e6:.3f} | {line.gmacs or '–'} "
            f"| {kept.macs() / 1e9:.3f} | {line.top1} | not run here | {', '.join(line.differs)} |"
        )
    used = {letter for line in LINES for letter in line.differs}
    return "\n".join([*rows, "", *(f"- {letter}: {text}" for letter, text in REASONS.items() if letter in used)])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail where the page has another table")
    check = parser.parse_args(argv).check
    text = with_table(PAGE.read_text(), table(), START, END)
    return write_or_check(PAGE, with_table(text, published_table(), PUBLISHED_START, PUBLISHED_END), check)


if __name__ == "__main__":
    sys.exit(main())
