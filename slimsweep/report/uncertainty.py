"""How much an accuracy can tell: its error from the number of images, and what to warn of.

Terminal, picture and page ask here. The page gets errors, decimals and warnings as data; only whether two numbers on it can be
told apart it works out itself, by the same rule (`web/uncertainty.js`; tests/page/apart_cases.json holds both to it).
"""

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd

from slimsweep.ledger.columns import shown_columns
from slimsweep.ledger.measures import TOP1, Measure, images_of, measure_decimals, measure_of
from slimsweep.ledger.tables import RESULTS
from slimsweep.report.run_tables import RunTables

Z = 1.96  # standard errors on either side of a 95 % interval
FEW_IMAGES = 200  # below this many, choices on validation are mostly chance
HANDFUL = 5  # images: a choice that hangs on no more of them is called so
ALIKE = 0.01  # of the dense model's cost: two models whose costs differ by no more cost the same

# The columns that are a percentage of a split's images, and that split.
SPLITS = {column.name: column.name.split("_")[0] for column in shown_columns(RESULTS) if column.unit == "%"}


def wilson(percent: float, images: int) -> tuple[float, float]:
    """The 95 % interval of a percentage of `images` images, in percent (Wilson 1927, score interval).

    Unlike the usual formula it is right for few images, and has a width at 0 and 100 %.

    Args:
        percent: of the images, 0 to 100.
        images: at least 1.
    """
    share = percent / 100
    centre = (share + Z**2 / (2 * images)) / (1 + Z**2 / images)
    half = Z / (1 + Z**2 / images) * math.sqrt(share * (1 - share) / images + Z**2 / (4 * images**2))
    return 100 * (centre - half), 100 * (centre + half)


def binomial_error(percent: float, images: float | None) -> float:
    """The standard error of a percentage of `images` images, in points: half the width of its 95 % interval, by 1.96.

    It is NaN where either is not known.
    """
    if images is None or not images >= 1 or not 0 <= percent <= 100:
        return math.nan
    low, high = wilson(percent, int(images))
    return (high - low) / (2 * Z)


def told_apart(difference: float, *errors: float | None) -> bool:
    """Whether a difference of two numbers is more than their standard errors explain (95 %).

    Without a known error nothing speaks against it. Two models see the same images, so their errors go along with each
    other in part; this counts them as independent, which claims less.

    Args:
        errors: standard errors of both; None or NaN where one is not known.
    """
    known = [error for error in errors if error is not None and not math.isnan(error)]
    return not known or abs(difference) > Z * math.hypot(*known)


def with_binomial(means: pd.Series, errors: pd.Series, images: pd.Series) -> pd.Series:
    """Standard errors over seeds, and where there is none (one seed) that of the number of images.

    Args:
        means: percentages.
        errors: standard errors over seeds; NaN for one seed.
        images: of each one's split; NaN where not known.
    """
    counted = [binomial_error(mean, number) for mean, number in zip(means, images, strict=True)]
    return errors.where(errors.notna(), pd.Series(counted, index=errors.index, dtype="float64"))


def cautions(tables: RunTables) -> list[str]:
    """What a reader of a run's results has to know before believing them, a sentence each; empty where there is nothing."""
    measure = measure_of(tables.results)
    ok = tables.results[tables.results["status"] == "ok"]
    images = images_of(tables.results, tables.known_data)
    said = [_few_images(measure, images), _chance(tables, ok, measure, images), _pace(tables, measure, images)]
    return [sentence for sentence in said if sentence] if len(ok) else []


def _few_images(measure: Measure, images: Mapping[str, int]) -> str:
    """Warns of splits with few images."""
    few = {split: number for split, number in images.items() if number < FEW_IMAGES}
    if not few or measure is not TOP1:
        return ""
    names = {"val": "validation", "test": "test"}
    have = " and ".join(f"{number} {names[split]} {'image' if number == 1 else 'images'}" for split, number in few.items())
    worth = 100 / min(few.values())
    what = "what is chosen on validation (the most accurate model, learning rates, paces) may be chance" if "val" in few else ""
    rest = what or "differences between models on test may be chance"
    return f"There are only {have}: one image is {worth:.1f} points, so {rest}."


def _chance(tables: RunTables, ok: pd.DataFrame, measure: Measure, images: Mapping[str, int]) -> str:
    """Warns of a dense model that is no better than guessing."""
    written = ok["classes"].dropna().tolist() if "classes" in ok else []
    classes = int(written[0]) if written else tables.classes
    if measure is not TOP1 or not classes or classes < 2:
        return ""
    dense = ok.loc[ok["method"] == "dense", TOP1.test].dropna()
    top1 = dense.mean() if len(dense) else ok["test_top1_untouched"].dropna().mean()
    guessed = 100 / classes
    low = wilson(top1, images["test"])[0] if "test" in images and not math.isnan(top1) else top1
    if not low <= guessed:  # NaN: not known
        return ""
    shown = f"{top1:.{measure_decimals(measure, images)[1]}f} %"
    return (
        f"The dense model is at chance: {shown} on test, and guessing among {classes} classes gives {guessed:.3g} %. "
        "Train it better first: nothing can be said of the models that are cut from it."
    )


def _pace(tables: RunTables, measure: Measure, images: Mapping[str, int]) -> str:
    """Warns of a pace that was chosen by a few images."""
    if tables.pace is None or measure is not TOP1 or "val" not in images:
        return ""
    tried = sorted((one[measure.val] for one in tables.pace["tried"] if one[measure.val] is not None), reverse=True)
    if len(tried) < 2:
        return ""
    lead = round((tried[0] - tried[1]) * images["val"] / 100)
    if lead > HANDFUL:
        return ""
    by = "no image" if lead == 0 else "one image" if lead == 1 else f"{lead} images"
    return (
        f"The pace at which each family of gates is removed was chosen by {by} of {images['val']:,} on validation: the best "
        "try cannot be told apart from the next."
    )


def front_tolerance(rows: pd.DataFrame, x: str) -> float:
    """How far two costs may be apart that count as equal on the front: 1 % of the smallest dense model's, 0 for other columns.

    Args:
        x: a column of the results.
    """
    dense = rows[f"{x}_dense"].dropna() if f"{x}_dense" in rows else pd.Series(dtype="float64")
    return ALIKE * float(np.min(dense)) if len(dense) else 0.0
