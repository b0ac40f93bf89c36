"""What the models of a run are judged by: top-1, or without a head the R2 of their features against the dense model's.

All that is said of a measure in tables, in the terminal, in the picture and on the page comes from its entry in `MEASURES`;
its columns' titles, units and decimals stand in `slimsweep.ledger.tables.RESULTS`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd


@dataclass(frozen=True, kw_only=True)
class Measure:
    """What models are judged by. More is better; choices are made by `val`, and `test` is reported."""

    name: str
    title: str  # without the split
    word: str  # what there is more of in a better model: "80 % accuracy", "an R2 of 0.95"
    highest: str  # what the model with the most of it is called
    val: str  # columns of the results
    test: str
    cut: str  # of `val` right after the cut, before retraining
    columns: tuple[str, ...]  # of results that only runs of this measure have
    unit: str
    decimals: int  # that are shown
    point: float  # what is called a point in "within 1 point of dense"
    points: str  # unit of a difference
    untouched: float | None  # what the untouched dense model has by definition; None where it is measured
    untouched_column: str | None  # of results: what the untouched dense model has on test, where that is measured
    error: str | None  # what its distance from the best possible value is called, where that is an axis too
    best: float  # the best possible value

    def text(self, value: float | None, images: float | None = None) -> str:
        """A value as people read it: "81.30 %", "0.9512"; "-" where it is not known.

        Args:
            images: of its split, where they are known: a percentage of few images has fewer decimals.
        """
        known = value is not None and not pd.isna(value)
        return f"{value:.{self.decimals_for(images)}f}{self.unit and f' {self.unit}'}" if known else "-"

    def decimals_for(self, images: float | None) -> int:
        """The decimals of a value over so many images; None or NaN where their number is not known."""
        if self.unit != "%" or images is None or pd.isna(images):
            return self.decimals
        return decimals_of(int(images), self.decimals)


TOP1 = Measure(
    name="top1",
    title="top-1",
    word="accuracy",
    highest="most accurate",
    val="val_top1",
    test="test_top1",
    cut="val_top1_cut",
    columns=("val_top1_cut", "val_top1", "test_top1", "test_top5", "test_loss"),
    unit="%",
    decimals=2,
    point=1.0,
    points=" points",
    untouched=None,
    untouched_column="test_top1_untouched",
    error=None,
    best=100.0,
)
R2 = Measure(
    name="r2",
    title="R2",
    word="R2",
    highest="nearest to dense",
    val="val_r2",
    test="test_r2",
    cut="val_r2_cut",
    columns=(
        *("val_r2_cut", "val_r2", "test_r2", "val_cosine", "test_cosine", "val_nearest", "test_nearest"),
        *("val_knn_top1", "test_knn_top1", "val_probe_top1", "test_probe_top1"),
    ),
    unit="",
    decimals=4,
    point=0.01,
    points="",
    untouched=1.0,
    untouched_column=None,
    error="1 \N{MINUS SIGN} ",
    best=1.0,
)
MEASURES = {measure.name: measure for measure in (TOP1, R2)}


def measure_of(*tables: pd.DataFrame) -> Measure:
    """What a run's models are judged by: R2 where one of its tables has one, else top-1.

    Args:
        tables: its results, and its curves where there may be no results yet. Columns may be missing.
    """
    return R2 if any(R2.val in table and table[R2.val].notna().any() for table in tables) else TOP1


def decimals_of(images: int | None, most: int) -> int:
    """The decimals of a percentage of `images` images: as many as one image changes, at most `most`.

    36 images: 0 (one is 2.8 points). 360: 1. 10,000: 2.
    """
    return most if not images else max(0, min(most, math.ceil(math.log10(images / 100))))


def images_of(rows: pd.DataFrame, known_data: Mapping[str, object] | None = None) -> dict[str, int]:
    """The numbers of images of a run's splits, by "val" and "test"; only those that are known.

    Args:
        rows: of one run; rows of earlier versions do not have them.
        known_data: `Run.known_data`, for those.
    """
    found = recorded_images(known_data)
    for split in ("val", "test"):
        column = f"{split}_images"
        if written := rows[column].dropna().tolist() if column in rows else []:
            found[split] = int(written[-1])
    return {split: number for split, number in found.items() if number}


def recorded_images(known_data: Mapping[str, object] | None) -> dict[str, int]:
    """The numbers of images of a run's splits that its record has, by "val" and "test".

    Args:
        known_data: `Run.known_data`; None where there is no record.
    """
    splits = (known_data or {}).get("splits")
    found: dict[str, int] = {}
    for split in ("val", "test"):
        recorded = splits.get(split) if isinstance(splits, Mapping) else None
        if isinstance(recorded, Mapping) and recorded.get("images"):
            found[split] = int(recorded["images"])
    return found


def measure_decimals(measure: Measure, images: Mapping[str, int]) -> tuple[int, int]:
    """The decimals of a measure on validation and on test."""
    return measure.decimals_for(images.get("val")), measure.decimals_for(images.get("test"))
