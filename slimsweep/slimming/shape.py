"""A dense model's sizes, layer by layer: plain data that is priced and read without a model, and without torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from slimsweep.errors import RefusedInput

if TYPE_CHECKING:
    from slimsweep.slimming.structure import Structure

FAMILIES = ("attention", "mlp", "token")  # of gates; what differs between them is in gate_families.py


def check_families(names: Iterable[str]) -> None:
    """Raise RefusedInput, a ValueError, where a name is no family of gates."""
    if unknown := sorted(set(names) - set(FAMILIES)):
        raise RefusedInput(f"{unknown[0]!r} is not a family of gates; the families are {', '.join(FAMILIES)}")


class LayerSizes(NamedTuple):
    """What one layer keeps: plain numbers for one structure, (prefixes,) int64 arrays for all prefixes of a removal path."""

    heads: Any
    dims: Any  # attention dims of all heads together
    units: Any  # MLP units
    tokens: Any  # patch tokens


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One block's dense sizes, and what each attention dim, head and MLP unit costs, in parameters."""

    name: str
    embed_dim: int
    heads: int
    head_dim: int
    hidden: int  # MLP units
    tokens: int  # patch positions at its input
    prefix: int  # tokens that never leave: class, distillation, registers
    window: int  # keys a query sees; 0 where attention is over all tokens
    attention_rows: int  # tokens that windowed attention computes, its padding included; 0 where it is over all tokens
    attention_matrices: int  # projections of width (heads x head_dim): q, k, v, output, and one for gated attention
    mlp_matrices: int  # projections of width hidden: 2, or 3 for gated MLPs
    attention_params_per_dim: int
    attention_params_per_head: int  # Swin's table of relative positions
    attention_params_fixed: int  # go with the whole branch: its norm, norms of queries and keys
    mlp_params_per_unit: int
    mlp_params_fixed: int

    @property
    def sizes(self) -> LayerSizes:
        """The dense sizes."""
        return LayerSizes(self.heads, self.heads * self.head_dim, self.hidden, self.tokens)

    def attention_macs(self, heads: int | np.ndarray, head_dim: int | np.ndarray, tokens: int | np.ndarray) -> int | np.ndarray:
        """MACs of attention with `heads` heads of `head_dim` dims over `tokens` patch tokens and the prefix.

        Per dim and token: `embed_dim` for each projection, and one per key for the logits and for the weighted sum of values.
        """
        rows = self.attention_rows or tokens + self.prefix
        keys = self.window or tokens + self.prefix
        return heads * head_dim * rows * (self.attention_matrices * self.embed_dim + 2 * keys)

    def mlp_macs(self, units: int | np.ndarray, tokens: int | np.ndarray) -> int | np.ndarray:
        """MACs of the MLP with `units` hidden units over `tokens` patch tokens and the prefix."""
        return units * (tokens + self.prefix) * self.mlp_matrices * self.embed_dim


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A dense model's sizes, layer by layer, and the costs that no gate changes."""

    layers: tuple[Layer, ...]
    grid: tuple[int, int]  # patches: rows, columns
    gate_shapes: dict[str, tuple[tuple[int, ...], ...]]  # the families that can be cut: one shape per layer
    fixed_macs: int  # patch embedding, head, everything outside the blocks that does not depend on the tokens kept
    fixed_params: int
    pool_macs_per_token: int  # what a token left after the last layer costs the pooling
    least_tokens: int  # patch tokens that must stay: 1 where no prefix token is there to pool

    def full(self) -> Structure:
        """The structure that keeps everything."""
        import torch  # here: what reads shapes alone, such as the report, loads no torch

        from slimsweep.slimming.structure import Structure

        return Structure(self, {f: [torch.ones(s, dtype=torch.bool) for s in shapes] for f, shapes in self.gate_shapes.items()})

    @staticmethod
    def from_dict(data: dict) -> Shape:
        """The shape from what `dataclasses.asdict` makes of it, also after a way through JSON."""
        return Shape(
            **{
                **data,
                "layers": tuple(Layer(**layer) for layer in data["layers"]),
                "grid": (data["grid"][0], data["grid"][1]),
                "gate_shapes": {f: tuple(tuple(s) for s in shapes) for f, shapes in data["gate_shapes"].items()},
            }
        )
