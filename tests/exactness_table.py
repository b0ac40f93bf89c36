"""What tests/test_surgery.py holds to 1e-5, as a table: `python tests/exactness_table.py > reports/exactness.md`."""

import timm
import torch
from zoo import MODELS, build, close_gates, difference, random_gates

import slimsweep
from slimsweep import add_gates, macs, slim, solve


def main() -> None:
    print("# How exact the cut is\n")
    print("Each model is shallow (2 or 3 layers, some on small images), random in every parameter and gate, and cut to 0.6 of")
    print("its MACs with uneven masks. The difference is the largest of the outputs of the gated model and of the cut one,")
    print("relative to the largest output (float32). Written by `python tests/exactness_table.py > reports/exactness.md`;")
    print("slimsweep", end=" ")
    print(f"{slimsweep.__version__}, torch {torch.__version__}, timm {timm.__version__}.\n")
    print("| timm model | what is special | MMACs | cut to | largest difference |")
    print("| --- | --- | ---: | ---: | ---: |")
    for kind, (name, _) in MODELS.items():
        dense = build(kind)
        gated = add_gates(dense)
        gates = random_gates(gated)
        gated.set_gates(gates)
        structure = solve(gated, 0.6)
        close_gates(gated, gates, structure)
        small = slim(gated, structure)
        print(f"| {name} | {kind} | {macs(dense) / 1e6:.2f} | {macs(small) / 1e6:.2f} | {difference(gated, small):.1e} |")


if __name__ == "__main__":
    main()
