"""The card of a saved model: README.md in the form of the Hugging Face hub, for people who get the folder without its run.

YAML front matter for the hub, then what the model is: what it was cut from, on which images, what it costs and how good it is
beside the dense model, its structure, and how to load it. Names that come from data stand in code spans, so that none of them
can be taken for markup.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from slimsweep import __version__
from slimsweep.data.sources import data_name
from slimsweep.errors import DamagedFile
from slimsweep.ledger import tables
from slimsweep.ledger.columns import shown_columns
from slimsweep.ledger.files import DENSE, MODEL_CARD, MODEL_CONFIG, MODELS
from slimsweep.ledger.latencies import latencies, setting_words
from slimsweep.ledger.latencies import trusted as trusted_latencies
from slimsweep.ledger.run import Run
from slimsweep.storage import parted

if TYPE_CHECKING:
    from torch import nn

    from slimsweep.config import Config
    from slimsweep.slimming.structure import Structure

HUB_DATA = ("hfds/", "hfids/")  # how data.name begins where the data set is of the hub
PLAIN = re.compile(r"[A-Za-z0-9][\w.-]*", re.ASCII)  # no markup, whatever stands around it
WRITTEN = re.compile(r"\n<!-- slimsweep wrote this card: (\w+) -->\n\Z")  # the last line, with a hash of all before it


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What a run knows of a model beside the model's own folder."""

    data: str  # what tables call the data set
    hub_data: str = ""  # its id on the hub; empty where it is not from there
    start: str = ""  # which weights the dense model started from, in words
    base_model: str = ""  # id on the hub of the pretrained weights that it started from
    license: str = ""  # theirs, as timm knows it
    images: Mapping[str, int | None] = field(default_factory=dict)  # per split
    dense: Mapping[str, Any] = field(default_factory=dict)  # metrics of the dense model before any cut
    row: Mapping[str, Any] = field(default_factory=dict)  # of the point; empty for the dense model itself
    timed: Sequence[tuple[str, float, float | None]] = ()  # setting, ms, ms of the dense model in the same setting


def run_of_model(path: str) -> tuple[Run, str] | None:
    """The run that a model's folder is of, and the model's name in it; None where it is of no run."""
    parent, name = parted(path.rstrip("/"))
    if name == DENSE:
        run = Run(parent or ".")
    elif parted(parent)[1] == MODELS:
        run = Run(parted(parent)[0] or ".")
    else:
        return None
    return (run, name) if run.is_begun else None


def origin(run: Run, row: Mapping[str, Any] | None = None, timed: Sequence[tuple[str, float, float | None]] = ()) -> Origin:
    """What a run knows of one of its models.

    Args:
        row: the point's row, as far as it is known; None for the dense model.
        timed: as in `Origin`, beside the latency in the row.
    """
    splits = (run.known_data or {}).get("splits", {})
    base_model, license = _pretrained(run.config)
    name = run.config.data.name
    own: list[tuple[str, float, float | None]] = []
    if row is not None and row.get("latency_ms") is not None and not row.get("latency_busy"):
        own = [(setting_words(json.loads(row["latency_setting"])), row["latency_ms"], row["latency_ms_dense"])]
    return Origin(
        data=data_name(run.config),
        hub_data=next((name[len(prefix) :] for prefix in HUB_DATA if name.startswith(prefix)), "").partition(":")[0],
        start=_start(run.config, base_model),
        base_model=base_model,
        license=license,
        images={split: splits.get(split, {}).get("images") for split in ("train", "val", "test")},
        dense=run.dense_description["metrics"] if row is not None else {},
        row=row or {},
        timed=[*own, *timed],
    )


def origin_of_saved(folder: str) -> Origin | None:
    """What the run of a saved model knows of it today, with what `slimsweep bench` and other devices timed since.

    None where the folder is of no run, or the run's configuration cannot be read.
    """
    found = run_of_model(folder)
    if found is None:
        return None
    run, name = found
    try:
        if name == DENSE:
            return origin(run)
        rows = run.rows[run.rows["point"] == name]
        if rows.empty:
            return None
        row: dict[str, Any] = {str(key): value for key, value in rows.iloc[0].items() if pd.notna(value)}
        row.pop("latency_ms", None)  # `_timed` has it, unless it is not to be trusted
        return origin(run, row, _timed(run, rows, name))
    except DamagedFile:  # the model itself is whole, and its folder says the rest
        return None


def _timed(run: Run, rows: pd.DataFrame, name: str) -> list[tuple[str, float, float | None]]:
    found: list[tuple[str, float, float | None]] = []
    for time in trusted_latencies(latencies(rows, run.products.device_times())).to_dict("records"):
        found.append((str(time["setting"]), time["ms"], None if pd.isna(time["dense_ms"]) else time["dense_ms"]))
    last = tables.last_timed(run.products.bench())
    for timing in last[last["point"] == name].to_dict("records"):
        alike = last[(last["point"] == DENSE) & (last["batch_size"] == timing["batch_size"])]
        for column in tables.SETTING:
            alike = alike[alike[column] == timing[column]]
        dense = None if alike.empty else float(alike["latency_p50_ms"].iloc[-1])
        words = setting_words({str(key): value for key, value in timing.items()})
        found.append((words, float(timing["latency_p50_ms"]), dense))
    return found


def _pretrained(config: "Config") -> tuple[str, str]:
    """The id on the hub of timm's pretrained weights that a run started from, and their license; empty where there are none."""
    if not config.model.pretrained or config.model.checkpoint:
        return "", ""
    import timm

    known = timm.get_pretrained_cfg(config.model.name)
    if known is None:
        return "", ""
    full = f"{known.architecture}.{known.tag}" if known.tag else str(known.architecture)
    hub = known.hf_hub_id or ""
    return (hub + full if hub.endswith("/") else hub), known.license or ""


def _start(config: "Config", base_model: str) -> str:
    if config.model.checkpoint:
        return "a checkpoint of its owner"
    if config.model.pretrained:
        return f"timm's pretrained weights{f' {literal(base_model)}' if base_model else ''}"
    return "random weights"


# The text.


def in_one_line(text: str) -> str:
    """A name without line breaks and control characters: a line of three dashes would end the YAML."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def literal(text: str) -> str:
    """A name as Markdown that shows it as it is: a code span where anything in it could be markup."""
    line = in_one_line(text)
    if PLAIN.fullmatch(line) or not line:
        return line
    longest = max((len(run) for run in re.findall("`+", line)), default=0)
    fence = "`" * (longest + 1)
    pad = " " if longest else ""
    return f"{fence}{pad}{line}{pad}{fence}"


def model_card(
    model: "nn.Module", description: Mapping[str, Any], *, name: str, source: str, of_run: Origin | None = None
) -> str:
    """The card of a saved model.

    Args:
        model: the model, cut or dense.
        description: its config.json.
        name: its title.
        source: what timm.create_model is to be given, such as "hf-hub:OWNER/NAME".
        of_run: what its run knows of it.
    """
    from slimsweep.slimming.cut import CUT_ARCHITECTURE
    from slimsweep.slimming.structure import macs, params

    structure: Structure | None = getattr(model, "structure", None)
    base = description.get("model_args", {}).get("base") or description["architecture"]
    cut = structure is not None
    counts = {"MMACs of an image": (macs(model) / 1e6, structure.shape.full().macs() / 1e6 if structure else None)}
    counts["parameters"] = (params(model), structure.shape.full().params() if structure else None)
    kept = macs(model) / structure.shape.full().macs() if structure else 1.0
    of_dense = f" to {100 * kept:.1f} % of the multiply-accumulates of the dense model" if cut else ""
    head = f"{literal(str(base))}{', cut by slimsweep' if cut else ', saved by slimsweep'} {__version__}{of_dense}."
    input_size = description.get("pretrained_cfg", {}).get("input_size")
    parts = [
        f"# {literal(name)}",
        head,
        *_facts(description, of_run, input_size),
        "## Cost and accuracy",
        _numbers(counts, description, of_run, cut),
        *(["## Structure", *_structure(structure)] if structure else []),
        "## Load",
        _how_to_load(source, known_to_timm=description["architecture"] != CUT_ARCHITECTURE),
    ]
    text = f"---\n{_front(description, name, of_run)}---\n\n" + "\n\n".join(parts) + "\n"
    return f"{text}\n<!-- slimsweep wrote this card: {_hash(text)} -->\n"


def is_unchanged(card: str) -> bool:
    """Whether a card is as slimsweep wrote it, so that it may be replaced by a newer one."""
    found = WRITTEN.search(card)
    return found is not None and _hash(card[: found.start()]) == found[1]


def card_of_folder(model: "nn.Module", folder: Path, *, name: str, source: str, of_run: Origin | None) -> str:
    """The card to send along with a saved model: the one in its folder where somebody wrote or changed it, else a new one."""
    file = folder / MODEL_CARD
    if file.is_file():
        card = file.read_text(encoding="utf-8", errors="replace")
        if not is_unchanged(card):
            return card
    description = json.loads((folder / MODEL_CONFIG).read_bytes())
    return model_card(model, description, name=name, source=source, of_run=of_run)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _front(description: Mapping[str, Any], name: str, of_run: Origin | None) -> str:
    """The card's YAML, as the hub reads it."""
    from huggingface_hub import EvalResult, ModelCardData

    data_name, hub_data, base_model, license, title = (
        in_one_line(text)
        for text in (
            *((of_run.data, of_run.hub_data, of_run.base_model, of_run.license) if of_run else ("", "", "", "")),
            name,
        )
    )
    classes = description.get("num_classes", 0)
    task = "image-classification" if classes else "image-feature-extraction"
    results: list[EvalResult] = []
    test_top1 = description.get("metrics", {}).get("test_top1")
    if data_name and isinstance(test_top1, int | float):
        results.append(
            EvalResult(
                task_type=task,
                dataset_type=hub_data or data_name,
                dataset_name=data_name,
                dataset_split="test",
                metric_type="accuracy",
                metric_value=round(test_top1 / 100, 4),
            )
        )
    data = ModelCardData(
        library_name="timm",
        pipeline_tag=task,
        tags=[task, "timm", "slimsweep", "pruning"],
        base_model=base_model or None,
        license=license or None,
        datasets=[hub_data] if hub_data else None,
        metrics=["accuracy"] if classes else None,
        model_name=title if results else None,
        eval_results=results or None,
    )
    return f"{data.to_yaml(line_break=chr(10)).rstrip()}\n"


def _facts(description: Mapping[str, Any], of_run: Origin | None, input_size: Any) -> list[str]:
    """What it was made from and on, a line each."""
    lines = []
    if of_run is not None:
        counted = {"train": "training", "val": "validation", "test": "test"}
        images = [f"{of_run.images[split]:,} {word}" for split, word in counted.items() if of_run.images.get(split)]
        counts = ", ".join(images)
        lines.append(f"- Data set: {literal(of_run.data)}{f' ({counts} images)' if images else ''}")
        lines.append(f"- The dense model started from {of_run.start}.")
        row = of_run.row
        if row.get("epochs"):
            taught = f", taught by {literal(str(row['teacher']))}" if row.get("teacher") else ""
            lines.append(f"- Retrained for {row['epochs']:.0f} epochs after the cut{taught}.")
    metrics = description.get("metrics", {})
    if metrics.get("method"):
        unit = {"macs": "multiply-accumulates", "params": "parameters", "ms": "milliseconds"}[metrics.get("unit", "macs")]
        budget = f", at a budget of {100 * metrics['budget']:.4g} % of the dense model's {unit}" if "budget" in metrics else ""
        lines.append(f"- What stays was chosen by the method {literal(str(metrics['method']))}{budget}.")
    if input_size:
        lines.append(f"- Images: {' x '.join(str(int(n)) for n in input_size)} (channels, height, width).")
    if classes := description.get("num_classes"):
        lines.append(f"- Outputs: {classes} classes{', named in config.json' if description.get('label_names') else ''}.")
    else:
        lines.append(f"- Outputs: {description.get('num_features')} features; it has no head.")
    return ["\n".join(lines)]


def _numbers(
    counts: Mapping[str, tuple[float, float | None]], description: Mapping[str, Any], of_run: Origin | None, cut: bool
) -> str:
    """A table of costs, qualities and latencies beside those of the dense model."""
    lines = [f"| | this model |{' dense model |' if cut else ''}", f"| --- | ---: |{' ---: |' if cut else ''}"]

    def line(title: str, own: str, dense: str) -> None:
        lines.append(f"| {title} | {own} |{f' {dense} |' if cut else ''}")

    for title, (own, dense) in counts.items():
        form = ",.0f" if title == "parameters" else ",.2f"
        line(title, format(own, form), "" if dense is None else format(dense, form))
    metrics, of_dense = description.get("metrics", {}), of_run.dense if of_run else {}
    for column in shown_columns(tables.RESULTS):
        value = metrics.get(column.name)
        if column.axis == "y" and isinstance(value, int | float):
            form, dense = f".{column.decimals or 2}f", of_dense.get(column.name)
            title = f"{column.title}{f', {column.unit}' if column.unit else ''}"
            line(title, format(value, form), format(dense, form) if isinstance(dense, int | float) else "")
    for setting, ms, dense_ms in of_run.timed if of_run else ():
        words = literal(setting).replace("|", "\\|")
        line(f"ms per call ({words})", f"{ms:.3g}", "" if dense_ms is None else f"{dense_ms:.3g}")
    if cut and of_dense:
        retrained = ", and before the retraining that this model got" if of_run is not None and of_run.row.get("epochs") else ""
        lines.append(f"\nThe dense model's accuracy is that before any cut{retrained}, on the same images.")
    return "\n".join(lines)


def _structure(structure: "Structure") -> list[str]:
    """What each layer keeps, in words and as a table."""
    rows = structure.summary()

    def total(key: str) -> tuple[int, int]:
        return sum(int(row[key]) for row in rows), sum(int(row[f"{key}_dense"]) for row in rows)

    dims = (
        sum(int(r["heads"]) * int(r["head_dim"]) for r in rows),
        sum(int(r["heads_dense"]) * int(r["head_dim_dense"]) for r in rows),
    )
    shares = [
        f"{100 * own / dense:.0f} % of the {what}"
        for what, (own, dense) in {
            "attention dims": dims,
            "MLP units": total("mlp_units"),
            "token positions": total("tokens"),
        }.items()
        if dense
    ]
    words = (
        f"Over its {len(rows)} layers it keeps {', '.join(shares)} of the dense model. Nothing is masked: matrices are smaller."
    )
    gone = {
        "attention": [str(r["layer"]) for r in rows if not int(r["heads"]) * int(r["head_dim"])],
        "MLP": [str(r["layer"]) for r in rows if not r["mlp_units"]],
    }
    missing = [f"{', '.join(map(literal, layers))} without {what}" for what, layers in gone.items() if layers]
    table = ["| layer | heads | dims per head | MLP units | tokens |", "| --- | ---: | ---: | ---: | ---: |"]
    for row in rows:
        cells = [f"{row[key]} of {row[f'{key}_dense']}" for key in ("heads", "head_dim", "mlp_units", "tokens")]
        table.append(f"| {literal(str(row['layer']))} | {' | '.join(cells)} |")
    return [words + (f" Layers that lost a branch: {'; '.join(missing)}." if missing else ""), "\n".join(table)]


def _how_to_load(source: str, known_to_timm: bool) -> str:
    imports = (
        "import timm"
        if known_to_timm
        else "import slimsweep  # registers the architecture of cut models with timm\nimport timm"
    )
    resolve = (
        "config = timm.data.resolve_model_data_config(model)\n"
        "transform = timm.data.create_transform(**config, is_training=False)  # from PIL images"
    )
    return f"```python\n{imports}\n\nmodel = timm.create_model({json.dumps(source)}, pretrained=True).eval()\n{resolve}\n```"
