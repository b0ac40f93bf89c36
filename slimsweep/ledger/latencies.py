"""What points take in milliseconds: as the sweep itself timed them, and as files of other devices' times say.

`slimsweep bench` measures something else: the points' saved models, all beside each other, after the sweep. Its times are in a
table of their own (`tables.BENCH`).
"""

import json
from collections.abc import Mapping
from typing import Any

import pandas as pd

from slimsweep.ledger.tables import DEVICE_TIMES
from slimsweep.slimming.kept_masks import KeptMasks

SWEEP, DEVICE = "sweep", "device"  # who timed: the sweep itself; another device, by latency.table or `slimsweep latency add`
COLUMNS = ["point", "source", "setting", "batch_size", "ms", "dense_ms", "spread", "busy", "of_row"]


def latencies(rows: pd.DataFrame, device_times: pd.DataFrame | None = None) -> pd.DataFrame:
    """One row per point and setting in which it was timed.

    Args:
        rows: results (`tables.RESULTS`), of one run. The times in the columns latency_* are the sweep's own, or those of
            latency.table.
        device_times: of schema `tables.DEVICE_TIMES`; they count for the points whose structure they name.

    Returns:
        Columns point, source (SWEEP or DEVICE), setting (in words), batch_size, ms, dense_ms (of the dense model in the same
        setting, nan where that is not known), spread (nan where it is not known), busy (why the time is not to be trusted;
        empty where it is) and of_row (whether it is in the row itself, and a budget in ms counts it). Failed points have none.
    """
    found: list[dict[str, Any]] = []
    settings: dict[str, dict[str, Any]] = {}
    for row in rows.to_dict("records"):
        ms = row.get("latency_ms")
        if row["status"] != "ok" or ms is None or pd.isna(ms):
            continue
        text = row.get("latency_setting") or ""
        if text not in settings:
            settings[text] = _said(text)
        found.append(
            {
                **{"point": row["point"], **settings[text]},
                **{"ms": ms, "dense_ms": row.get("latency_ms_dense"), "spread": row.get("latency_spread")},
                **{"busy": row.get("latency_busy") or "", "of_row": True},
            }
        )
    if device_times is not None and len(device_times):
        found += _of_devices(rows, device_times)
    table = pd.DataFrame(found, columns=COLUMNS).astype({"ms": "float64", "dense_ms": "float64", "spread": "float64"})
    # A file may have been given as latency.table and added too.
    return table.drop_duplicates(["point", "setting"], ignore_index=True)


def trusted(found: pd.DataFrame) -> pd.DataFrame:
    """The latencies (of `latencies`) that were not taken on a busy machine."""
    return found[found["busy"] == ""]


def left_out(found: pd.DataFrame) -> str:
    """One sentence on the latencies (of `latencies`) that are not to be trusted, and on how to replace them; or empty."""
    busy = found[found["busy"] != ""]
    if busy.empty:
        return ""
    one = len(busy) == 1
    of_sweep, of_devices = (busy[busy["source"] == source] for source in (SWEEP, DEVICE))
    ways = []
    if len(of_sweep):
        ways.append("`slimsweep bench RUN` times the models again, or `slimsweep latency export`, `time` and `add`")
    if len(of_devices):
        ways.append("time the files of `slimsweep latency export` again and add the times")
    return (
        f"{len(busy)} {'latency is' if one else 'latencies are'} left out ({'; '.join(dict.fromkeys(busy['setting']))}), "
        f"because the machine was busy ({busy['busy'].iloc[-1]}); when nothing else runs: {'; '.join(ways)}"
    )


def _of_devices(rows: pd.DataFrame, device_times: pd.DataFrame) -> list[dict[str, Any]]:
    """`latencies` of the points whose structures were timed on other devices."""
    ids: dict[str, tuple[str, str]] = {}
    found: list[dict[str, Any]] = []
    by_setting: dict[tuple[Any, ...], dict[str, dict[Any, Any]]] = {}
    for time in device_times.reindex(columns=DEVICE_TIMES.names).to_dict("records"):
        key = (time["device"], time["runtime"], int(time["batch_size"]), time["dtype"])
        by_setting.setdefault(key, {})[time["structure"]] = time

    for row in rows.to_dict("records"):
        text = row.get("structure")
        if row["status"] != "ok" or not isinstance(text, str):
            continue
        if text not in ids:
            ids[text] = structure_ids(text)
        own, dense = ids[text]
        for (device, runtime, batch_size, dtype), times in by_setting.items():
            if own not in times:
                continue
            found.append(
                {
                    **{"point": row["point"], "source": DEVICE, "batch_size": batch_size},
                    "setting": f"{device}, {runtime}, batch {batch_size}, {dtype}",
                    **{"ms": times[own]["ms"], "spread": times[own]["spread"], "busy": times[own]["busy"] or ""},
                    "of_row": False,
                    "dense_ms": times[dense]["ms"] if dense in times and not times[dense]["busy"] else None,
                }
            )
    return found


def structure_ids(text: str) -> tuple[str, str]:
    """(id of a structure, id of its dense model); empty texts where the JSON is of another version of slimsweep."""
    try:
        kept = KeptMasks.from_json(text)
    except ValueError:
        return "", ""
    return kept.id, KeptMasks.whole(kept.shape).id


def _said(text: str) -> dict[str, Any]:
    """The setting of a row's latency, from its JSON: source, setting and batch_size as in COLUMNS."""
    try:
        found = json.loads(text)
        assert isinstance(found, dict)
    except (ValueError, AssertionError):  # of a later version, or damaged: the times are still those of one setting
        return {"source": SWEEP, "setting": text or "an unknown setting", "batch_size": None}
    source = DEVICE if found.get("table") else SWEEP
    return {"source": source, "setting": setting_words(found), "batch_size": found.get("batch_size")}


def setting_words(setting: Mapping[str, Any]) -> str:
    """The setting of a row's latency in words: processor, threads, runtime, batch, type."""
    device, hardware = setting.get("device") or "cpu", setting.get("hardware")
    threads = setting.get("threads")
    words = [str(hardware or device)]
    if device == "cpu" and not setting.get("table"):  # what a table says of threads stands in its runtime
        words.append("all threads" if threads is None else f"{threads} thread{'' if threads == 1 else 's'}")
    words.append("torch.compile" if setting.get("compile") else str(setting.get("runtime") or "torch"))
    return ", ".join([*words, f"batch {setting.get('batch_size', 1)}", str(setting.get("dtype") or "float32")])
