"""How a run was made, for the page: configuration, command, versions, devices and time. What is not known is left out."""

import json
import shlex
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import yaml

from slimsweep.config.yaml_text import read_yaml
from slimsweep.report.run_tables import RunTables
from slimsweep.slimming.kept_masks import KeptMasks
from slimsweep.slimming.shape import FAMILIES

PACKAGES = ("slimsweep", "torch", "timm", "ray")
OF_THE_FOLDER = ("name", "output")  # where a run lies, not how it was made


def about(run: RunTables) -> dict[str, Any]:
    """Configuration (YAML) and command, or None where there are tables alone; versions and devices; seconds per stage.

    Seconds are those of trainings, added up: points that were trained side by side took less time by the clock.
    """
    rows = run.results
    seconds = {stage: _sum(run.curves.loc[run.curves["stage"] == stage, "seconds"]) for stage in ("dense", "search")}
    seconds["retrain"] = _sum(rows["train_seconds"])
    seconds["repair"] = _sum(rows["repair_seconds"])
    mean = rows["train_seconds"].mean()
    return {
        "config": run.config,
        "command": None if run.config_path is None else f"python -m slimsweep.run --config {shlex.quote(run.config_path)}",
        "versions": {name: found for name in PACKAGES if (found := _texts(rows[f"{name}_version"]))},
        "devices": _texts(rows["device"]),
        "seconds": {stage: took for stage, took in seconds.items() if took},
        "mean_retraining": None if pd.isna(mean) else round(float(mean), 3),
    }


def read_settings(config: str | None) -> dict[str, Any]:
    """The sections of a configuration; empty where it is not known, or somebody else's that cannot be read."""
    try:
        found = read_yaml(config or "{}")
    except yaml.YAMLError:  # of a table of somebody else's; the page shows the text as it is
        return {}
    return found if isinstance(found, dict) else {}


def differing_settings(configs: Sequence[str | None]) -> list[dict[str, Any]]:
    """The fields in which runs differ: `field` and one text per run in `values`, None where a run's configuration lacks it.

    A run of an earlier version lacks fields that it did not have: that alone is no difference.
    """
    if len(configs) < 2:
        return []
    settings = [dict(_flat(read_settings(config))) for config in configs]
    fields = dict.fromkeys(name for one in settings for name in one if name not in OF_THE_FOLDER)
    found = [{"field": name, "values": [one.get(name) for one in settings]} for name in fields]
    return [one for one in found if len({value for value in one["values"] if value is not None}) > 1]


def _flat(section: dict[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """Dotted names and values as text."""
    for key, value in section.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)


def leaving(run: RunTables) -> dict[str, Any]:
    """Per family, a histogram of what its gates are ranked by, split by the smallest budget that still keeps each gate.

    `budgets` are those of searched points, largest first. `counts[i]` is of the gates that leave on the way to budget i, and
    the last one of those that the smallest budget keeps. Families whose gates and structures do not fit are left out.
    """
    rows = run.results
    own = rows[(rows["method"] == "searched") & (rows["status"] == "ok") & (rows["shares"].fillna("") == "")]
    own = own[own["structure"].notna() & own["budget"].notna()]
    if own.empty or run.gates.empty:
        return {}
    unit = own["unit"].mode().iloc[0]
    own = own[own["unit"] == unit].drop_duplicates("budget").sort_values("budget", ascending=False)
    try:
        structures = [KeptMasks.from_json(text) for text in own["structure"]]
    except ValueError:  # of another version; the page says so at its point
        return {}
    found = {}
    for family in FAMILIES:
        of_family = run.gates[run.gates["family"] == family]
        if of_family.empty:
            continue
        gates = of_family.sort_values(["layer", "index"])
        ranked = gates["score"] if gates["score"].notna().all() else gates["value"].abs()
        if any(family not in structure.masks for structure in structures):
            continue
        kept = [np.concatenate([mask.reshape(-1) for mask in structure.masks[family]]) for structure in structures]
        if any(len(one) != len(ranked) for one in kept) or ranked.isna().any():
            continue
        left = np.array([~one for one in kept]).argmax(0)  # the first budget without the gate
        left[np.all(kept, axis=0)] = len(kept)
        values = ranked.to_numpy()
        top = float(np.quantile(values, 0.995)) or 1.0  # a few very large ones would press the others together
        edges = np.linspace(min(0.0, float(values.min())), top, 41)
        counts = [np.histogram(np.minimum(values[left == i], top), bins=edges)[0].tolist() for i in range(len(kept) + 1)]
        found[family] = {
            "edges": np.round(edges, 6).tolist(),
            "counts": counts,
            "by": "score" if ranked.name == "score" else "value",
            "kept": [round(float(one.mean()), 4) for one in kept],
        }
    return {"budgets": own["budget"].round(6).tolist(), "unit": str(unit), "families": found} if found else {}


def _sum(values: pd.Series) -> float | None:
    total = values.dropna().sum()
    return round(float(total), 3) if total > 0 else None


def _texts(values: pd.Series) -> str:
    return ", ".join(dict.fromkeys(str(value) for value in values.dropna() if str(value)))
