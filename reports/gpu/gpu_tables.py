"""The tables of README.md, from the file that measure.py writes."""

import json
import statistics
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))  # reports/, for the module that they share
from gpu_plan import (
    ATTENTION,
    BACKENDS,
    BUDGETS,
    COMPILED,
    COMPILED_GRAPH,
    DENSE,
    EAGER,
    EAGER_GRAPH,
    GATES,
    KINDS,
    MAIN,
    MULTIPLES,
    inference_models,
)
from markdown_tables import with_table, write_or_check

MEASURED = "measured.json"
NOT_YET = "Not yet measured."
GAP = "–"
STEADY = 0.25  # rounds that differ by more than this share of their median tell no ratio
Variants = dict[str, dict[str, Any]]


def write_tables(folder: Path, check: bool = False) -> int:
    """Write the tables of a folder's README.md, or only compare; returns the exit code, 1 where they differ."""
    page, file = folder / "README.md", folder / MEASURED
    found = json.loads(file.read_text()) if file.exists() else None
    text = page.read_text()
    for name, table in TABLES.items():
        made = NOT_YET if found is None else table(found["variants"]) if name != "setup" else setup(found)
        text = with_table(text, made, f"<!-- {name} -->", f"<!-- end of {name} -->")
    return write_or_check(page, text, check)


def setup(found: dict[str, Any]) -> str:
    """Machine, versions, day; then what nvidia-smi said, what was disturbed and what is missing."""
    about = found["about"]
    versions = f"torch {about['torch']}, CUDA {about['cuda']}, cuDNN {about['cudnn']}, timm {about['timm']}"
    took = f" in {about['took_seconds']:.0f} s" if "took_seconds" in about else ", cut off before its end"
    lines = [
        f"{about['hardware']}, {about['cores']} CPU cores, Python {about['python']}, {versions}, {about['date']}; "
        f"{about['processes']} processes prepared side by side{took}.",
        "",
        "| nvidia-smi | SM clock | most | memory clock | temperature | power | limit | driver |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for when, state in about["gpu"].items():
        asked = ("clocks.sm", "clocks.max.sm", "clocks.mem", "temperature.gpu", "power.draw", "power.limit", "driver_version")
        lines.append(f"| {when} | " + " | ".join(state.get(name, GAP) for name in asked) + " |")
    variants = found["variants"]
    timed = sum(bool(one["measured"]) for one in variants.values())
    turns = [times for one in variants.values() for times in one["measured"].values()]
    busy = [reason for times in turns for reason in times["busy"]]
    lines += ["", f"{timed} of {len(variants)} variants were timed."]
    if busy:
        lines.append(
            f"In {len(busy)} of {sum(len(times['ms']) for times in turns)} turns something disturbed, such as: {busy[0]}."
        )
    by_error: dict[str, list[str]] = {}
    for name, one in variants.items():
        if one["error"]:
            by_error.setdefault(one["error"], []).append(name)
    if by_error:
        lines += ["", "| not timed | why |", "| --- | --- |"]
        lines += [f"| {_few(names)} | {_cell(error)} |" for error, names in by_error.items()]
    return "\n".join(lines)


def _few(names: list[str]) -> str:
    return "; ".join(names[:3]) + (f"; and {len(names) - 3} more" if len(names) > 3 else "")


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def ms(variant: dict[str, Any] | None, group: str | None = None, *, together: bool = False) -> float | None:
    """The median over rounds of the ms of a call; of calls that follow without a pause, where `together`.

    Args:
        group: the rounds of one group only; where not given, of the first.
    """
    if variant is None or not variant["measured"]:
        return None
    times = variant["measured"].get(group) if group else next(iter(variant["measured"].values()))
    return statistics.median(times["ms_together" if together else "ms"]) if times else None


def spread(variant: dict[str, Any], group: str | None = None, *, together: bool = True) -> float:
    """(largest - smallest) / median over the rounds of a group; the arguments are those of `ms`."""
    measured = variant["measured"]
    times = (measured[group] if group else next(iter(measured.values())))["ms_together" if together else "ms"]
    return (max(times) - min(times)) / statistics.median(times)


def steady(variant: dict[str, Any] | None, group: str) -> bool:
    """Whether the rounds of a group agree well enough for a ratio."""
    return variant is not None and group in variant["measured"] and spread(variant, group, together=False) <= STEADY


def ms_or_range(variant: dict[str, Any] | None, group: str) -> str:
    """The median ms of a group's rounds; the fastest and the slowest where they differ by more than STEADY."""
    took = ms(variant, group)
    if variant is None or took is None or steady(variant, group):
        return number(took, ".3f")
    times = variant["measured"][group]["ms"]
    return f"{min(times):.3f} to {max(times):.3f}"


def find(variants: Variants, **labels: Any) -> dict[str, Any] | None:
    return next((one for one in variants.values() if all(one.get(name) == value for name, value in labels.items())), None)


def table(heads: list[str], rows: Iterable[list[str]], left: int = 1) -> str:
    """Markdown; the first `left` columns are words, all others numbers."""
    lines = [f"| {' | '.join(heads)} |", "| " + " | ".join(["---"] * left + ["---:"] * (len(heads) - left)) + " |"]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows])


def number(value: float | None, form: str) -> str:
    return GAP if value is None else format(value, form)


def over(above: float | None, below: float | None) -> float | None:
    return None if above is None or not below else above / below


def training(variants: Variants) -> str:
    """Time and memory of training steps, beside the dense model's in the same rounds."""
    rows = []
    for model in dict.fromkeys(one["model"] for one in variants.values() if one["part"] == "training"):
        for how in (EAGER, COMPILED):
            chosen = {
                gates: find(variants, part="training", model=model, gates=gates, how=how, attention="default")
                for gates in GATES
            }
            dense = chosen[DENSE]
            for gates, one in chosen.items():
                took, peak, of_dense = ms(one, together=True), _peak(one), _peak(dense)
                speed = over(1e3 * one["info"]["batch"], took) if one and took else None
                rows.append(
                    [
                        *(model, how, gates, number(took, ".1f")),
                        number(spread(one), ".1%") if one and took else GAP,
                        number(speed, ",.0f"),
                        number(over(took, ms(dense, together=True)), ".3f"),
                        number(None if peak is None else peak / 2**30, ".2f"),
                        number(over(peak, of_dense), ".3f"),
                    ]
                )
    heads = ["model", "how", "gates", "ms per step", "spread", "images/s", "x dense", "peak GiB", "x dense"]
    return table(heads, rows, left=3)


def _peak(variant: dict[str, Any] | None) -> float | None:
    return variant["info"].get("peak_bytes") if variant else None


def backends(variants: Variants) -> str:
    """Eager training steps of DeiT-S by the kernel of attention."""
    rows = []
    default = find(variants, part="training", model="DeiT-S", gates=DENSE, how=EAGER, attention="default")
    for backend in ("default", *BACKENDS):
        both = [
            find(variants, part="training", model="DeiT-S", gates=gates, how=EAGER, attention=backend)
            for gates in (DENSE, "all gates")
        ]
        cells = [number(ms(one, together=True), ".1f") if ms(one) else _why(one) for one in both]
        peaks = [None if (peak := _peak(one)) is None else peak / 2**30 for one in both]
        ratios = [number(over(ms(one, together=True), ms(default, together=True)), ".3f") for one in both]
        rows.append([backend, *cells, *ratios, *(number(peak, ".2f") for peak in peaks)])
    heads = ["kernel", "dense, ms", "all gates, ms", "dense, x default dense", "all gates, x default dense"]
    return table([*heads, "dense, peak GiB", "all gates, peak GiB"], rows)


def _why(variant: dict[str, Any] | None) -> str:
    """Why a variant has no time, in few words."""
    error = (variant or {}).get("error") or "not planned"
    return "no time left" if error.startswith("not measured") else "failed (see the end)"


def attention(variants: Variants) -> str:
    """Forward and backward of attention alone."""
    models = list(dict.fromkeys(one["model"] for one in variants.values() if one["part"] == "attention"))
    parts = ("output", "qkv gradient", "gate gradient")
    rows = []
    for gates, backend in ATTENTION:
        row = [gates, backend]
        worst: dict[str, float] = {}
        for model in models:
            one = find(variants, part="attention", model=model, gates=gates, attention=backend)
            flash = find(variants, part="attention", model=model, gates="no gates", attention="default")
            took = ms(one, together=True)
            row += [number(took, ".3f") if took else _why(one), number(over(took, ms(flash, together=True)), ".2f")]
            info = one["info"] if one else {}
            if chosen := info.get("chosen kernel"):
                row[1] = f"{backend}: {chosen}"
            for part in parts:
                if (error := info.get(f"error of {part}")) is not None:
                    worst[part] = max(error, worst.get(part, 0.0))
        rows.append([*row, *(number(worst.get(part), ".1e") for part in parts)])
    heads = ["token gates", "kernel"]
    for model in models:
        heads += [f"{model}, ms", "x no gates, default"]
    return table([*heads, "error of output", "of qkv gradient", "of gate gradient"], rows, left=2)


def latency(dtype: str) -> Callable[[Variants], str]:
    """A function that makes the table of latencies in a dtype: per batch size and way of calling ms, images/s, share."""

    def made(variants: Variants) -> str:
        of_dtype = {name: one for name, one in variants.items() if one["part"] == "latency" and one["dtype"] == dtype}
        models = [model for model in inference_models(MAIN) if find(of_dtype, model=model)]
        rows = []
        for batch in sorted({one["batch"] for one in of_dtype.values()}):
            for how in (EAGER, EAGER_GRAPH, COMPILED, COMPILED_GRAPH):
                if find(of_dtype, batch=batch, how=how):
                    group = f"{MAIN} {dtype} batch {batch}"
                    rows.append([str(batch), how, *(_times(of_dtype, batch, how, model, group) for model in models)])
        return table(["batch", "how", *(_with_macs(of_dtype, model) for model in models)], rows, left=2)

    return made


def _times(variants: Variants, batch: int, how: str, model: str, group: str) -> str:
    """ "12.34 ms, 5,186/s, 0.95": the last one, the share, not of the dense model; ms from to where rounds differ."""
    one = find(variants, batch=batch, how=how, model=model)
    took, together = ms(one, group), ms(one, group, together=True)
    if took is None or together is None:
        return GAP
    cell = f"{ms_or_range(one, group)} ms, {1e3 * batch / together:,.0f}/s"
    return cell if model == DENSE else f"{cell}, **{number(share(variants, batch, how, model, group), '.2f')}**"


def share(variants: Variants, batch: int, how: str, model: str, group: str) -> float | None:
    """Times faster / times fewer MACs, as reports/speed has it, in the rounds of one group; None where they differ too much."""
    one, dense = (find(variants, batch=batch, how=how, model=name) for name in (model, DENSE))
    faster = over(ms(dense, group), ms(one, group))
    if faster is None or one is None or dense is None or not (steady(one, group) and steady(dense, group)):
        return None
    return faster / (dense["info"]["macs"] / one["info"]["macs"])


def _with_macs(variants: Variants, model: str) -> str:
    counts = [one["info"]["macs"] for one in variants.values() if one["model"] == model and "macs" in one["info"]]
    return f"{model} ({counts[0] / 1e9:.2f} GMACs)" if counts else model


def multiples(variants: Variants) -> str:
    """ms and share of structures in multiples of 8, 16, 32, 64, from the same gates."""
    names = [f"multiples of {multiple}" for multiple in (8, 16, 32, 64)]
    return _by_kind(variants, names, lambda name: MAIN if name.endswith(" 16") else MULTIPLES)


def kinds(variants: Variants) -> str:
    """ms and share of other kinds of structures."""
    names = list(dict.fromkeys(model.rpartition(", ")[0] for model in inference_models(KINDS)))
    return _by_kind(variants, names, lambda _: KINDS)


def _by_kind(variants: Variants, names: list[str], which: Callable[[str], str]) -> str:
    of_dtype = {name: one for name, one in variants.items() if one["part"] == "latency" and one["dtype"] == "bfloat16"}
    batches = sorted({one["batch"] for one in of_dtype.values()})[-2:]
    rows = []
    for name in names:
        for budget in BUDGETS:
            model = f"{name}, {budget}"
            if not find(of_dtype, model=model):
                continue
            row = [name, str(budget)]
            for batch in batches:
                for how in (EAGER, COMPILED):
                    group = f"{which(name)} bfloat16 batch {batch}"
                    took = ms_or_range(find(of_dtype, batch=batch, how=how, model=model), group)
                    row += [took, number(share(of_dtype, batch, how, model, group), ".2f")]
            counts = next((one["info"].get("macs") for one in of_dtype.values() if one["model"] == model), None)
            rows.append([*row[:2], number(over(counts, 1e9), ".3f"), *row[2:]])
    heads = ["structure", "budget", "GMACs"]
    for batch in batches:
        for how in (EAGER, COMPILED):
            heads += [f"batch {batch}, {how}: ms", "share"]
    return table(heads, rows, left=2)


def loop(variants: Variants) -> str:
    """Images per second of the loops."""
    both = {name: find(variants, part="loop", loop=name) for name in ("bare loop", "train()")}
    step = find(variants, part="training", model="DeiT-S", gates=DENSE, how=EAGER, attention="default")
    took = ms(step, together=True)
    speeds = [over(1e3 * step["info"]["batch"], took) if step and took else None]
    speeds += [over(1e3, ms(one, together=True)) for one in both.values()]
    row = ["DeiT-S", *(number(speed, ",.0f") for speed in speeds), number(over(speeds[2], speeds[1]), ".3f")]
    return table(["model", "images/s, steps alone", "bare loop", "train()", "train() / bare loop"], [row])


TABLES: dict[str, Callable[[Variants], str]] = {
    "training": training,
    "backends": backends,
    "attention": attention,
    "latency bf16": latency("bfloat16"),
    "latency fp16": latency("float16"),
    "multiples": multiples,
    "kinds": kinds,
    "loop": loop,
    "setup": lambda variants: "",
}
