"""Times DeiT-S cut to the committed structures, and pruned by Torch-Pruning: `python reports/speed/measure.py`.

Nothing else may run on the machine. Writes bench.parquet and the table of README.md in 8 to 12 minutes on 2 cores. The models
of each part are timed in interleaved rounds in one process.
"""

import sys
from pathlib import Path

import pandas
import timm
import torch

from slimsweep import Structure, macs, slim
from slimsweep.methods.torch_pruning import prune
from slimsweep.tools.bench import DENSE, bench

sys.path.append(str(Path(__file__).parents[1]))  # reports/, for the module that they share
from markdown_tables import with_table

FOLDER = Path(__file__).parent
THREADS, ROUNDS, SECONDS = 2, 25, 0.2
PARTS = ((0.5, 16), (0.3, 16), (0.5, 1), (0.3, 1))  # budget, and what sizes are multiples of
START, END = "<!-- table -->", "<!-- end of table -->"


def models(budget: float, multiple: int) -> dict[str, torch.nn.Module]:
    """The models to time, by their name in the table. Weights are random: trained ones take as long."""
    torch.manual_seed(0)
    dense = timm.create_model("deit_small_patch16_224")
    found = {DENSE: dense}
    for file in sorted(FOLDER.glob(f"*-of-{multiple}-{budget}.json")):
        name = file.stem.removeprefix("deit-s-").removesuffix(f"-{budget}").replace("-", " ")
        found[f"{budget}: {name}"] = slim(dense, Structure.from_json(file.read_text()))
    limit = int(budget * macs(dense))
    for mode, embed_dim in (("bottleneck", False), ("uniform", True)):
        by = max(multiple, 2)  # its heads stay even
        found[f"{budget}: Torch-Pruning {mode} multiples of {by}"] = prune(
            dense, limit, importance="magnitude", embed_dim=embed_dim, round_to=by
        )
    return found


def table(rows: pandas.DataFrame) -> str:
    """Markdown: how many times fewer MACs and how many times faster than dense, and the ratio of the two."""
    batches = sorted(rows.batch_size.unique())
    heads = "".join(f" ms at batch {b} | times faster | share |" for b in batches)
    lines = [f"| model | GMACs | times fewer |{heads}", "| --- | ---: | ---: |" + " ---: | ---: | ---: |" * len(batches)]
    for (run, point), group in rows.groupby(["run", "point"], sort=False):
        cells = []
        for batch in batches:
            dense = rows[(rows.run == run) & (rows.point == DENSE) & (rows.batch_size == batch)].iloc[0]
            row = group[group.batch_size == batch].iloc[0]
            fewer, faster = dense.macs / row.macs, dense.latency_p50_ms / row.latency_p50_ms
            cells.append(f"{row.latency_p50_ms:.2f} | {faster:.2f} | {faster / fewer:.2f} |")
        lines.append(f"| {in_words(point)} | {row.macs / 1e9:.3f} | {fewer:.2f} | {' '.join(cells)}")
    return "\n".join(lines)


def in_words(point: str) -> str:
    """A model's name in the table: "0.5: whole heads, few tokens lost, multiples of 16"."""
    return point.replace("whole heads ", "whole heads, ").replace(" multiples", ", multiples")


def main() -> None:
    options = {"batch_sizes": (1, 8), "threads": THREADS, "repeats": ROUNDS, "min_seconds": SECONDS}
    rows = [
        {**row, "run": f"budget {budget}, multiples of {multiple}"}
        for budget, multiple in PARTS
        for row in bench(models(budget, multiple), **options, progress=lambda line: print(line, flush=True))
    ]
    frame = pandas.DataFrame(rows)
    frame.to_parquet(FOLDER / "bench.parquet", index=False)
    readme = FOLDER / "README.md"
    about = frame.iloc[0]
    said = (
        f"{about.hardware}, {about.threads} threads, {about['dtype']}, eager, torch {about.torch_version}, "
        f"timm {about.timm_version}, median of {about.repeats} interleaved rounds of {SECONDS} s, {about.created_at:%Y-%m-%d}:"
    )
    readme.write_text(with_table(readme.read_text(), f"{said}\n\n{table(frame)}", START, END))
    print(table(frame))


if __name__ == "__main__":
    main()
