"""Which gates a structure keeps, as arrays of numpy: what its sizes are counted from, and its text.

A `Structure` holds the same masks as tensors; the report reads structures from result rows and loads no torch for it.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from slimsweep.slimming.shape import LayerSizes, Shape


@dataclass(frozen=True)
class KeptMasks:
    """One boolean mask per gate family and layer.

    Attributes:
        shape: the dense model's sizes.
        masks: as those of a `Structure`, in arrays.

    Raises:
        ValueError: they describe no model that can be cut; says in one sentence why.
    """

    shape: Shape
    masks: Mapping[str, Sequence[np.ndarray]]

    def __post_init__(self) -> None:
        for family, masks in self.masks.items():
            wanted = self.shape.gate_shapes.get(family)
            if wanted is None:
                raise ValueError(
                    f"this model has no {family} gates, so no {family} masks can apply; it has {sorted(self.shape.gate_shapes)}"
                )
            got = tuple(mask.shape for mask in masks)
            if got != wanted:
                raise ValueError(f"{family} masks have the shapes {got}, the model's gates have {wanted}")
        tokens = self.masks.get("token", [])
        for index, (earlier, later) in enumerate(itertools.pairwise(tokens)):
            back = np.flatnonzero(later & ~earlier)
            if len(back):
                raise ValueError(
                    f"token {back[0]} is kept in layer {index + 1} but dropped in layer {index}; "
                    "a token that left cannot come back"
                )
        if len(tokens) and int(tokens[-1].sum()) < self.shape.least_tokens:
            raise ValueError("the last layer keeps no token, but this model pools over patch tokens: keep at least one")

    def attention(self, layer: int) -> np.ndarray:
        """Kept dims of one layer, (heads, head_dim), whatever the granularity; read-only."""
        sizes = self.shape.layers[layer]
        mask = self.masks["attention"][layer] if "attention" in self.masks else np.ones((1, 1), dtype=bool)
        return np.broadcast_to(mask, (sizes.heads, sizes.head_dim))

    def mlp(self, layer: int) -> np.ndarray:
        """Kept MLP units of one layer, (hidden,)."""
        return self.masks["mlp"][layer] if "mlp" in self.masks else np.ones(self.shape.layers[layer].hidden, dtype=bool)

    def token(self, layer: int) -> np.ndarray:
        """Kept patch tokens of one layer, (patches,)."""
        return self.masks["token"][layer] if "token" in self.masks else np.ones(self.shape.layers[layer].tokens, dtype=bool)

    def sizes(self, layer: int) -> tuple[int, int, int, int]:
        """(heads, head dim, MLP units, patch tokens) that one layer keeps."""
        dims = self.attention(layer).sum(1)
        return int((dims > 0).sum()), int(dims.max()), int(self.mlp(layer).sum()), int(self.token(layer).sum())

    def layer_sizes(self) -> list[LayerSizes]:
        """What each layer keeps, as costs take it."""
        sizes = [self.sizes(index) for index in range(len(self.shape.layers))]
        return [LayerSizes(heads, heads * head_dim, units, tokens) for heads, head_dim, units, tokens in sizes]

    @property
    def id(self) -> str:
        """12 hex digits that are equal for structures of equal sizes in every layer, which have equal latency."""
        layers = [[layer.name, layer.embed_dim, *self.sizes(index)] for index, layer in enumerate(self.shape.layers)]
        text = json.dumps([layers, self.shape.fixed_macs, self.shape.fixed_params])
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def to_json(self) -> str:
        """Text that `from_json` takes: the shape, and each mask as its bits in hex, row-major."""
        masks = {f: [np.packbits(mask.reshape(-1)).tobytes().hex() for mask in of_f] for f, of_f in self.masks.items()}
        return json.dumps({"version": 1, "shape": asdict(self.shape), "masks": masks}, separators=(",", ":"))

    @staticmethod
    def whole(shape: Shape) -> KeptMasks:
        """The masks that keep everything."""
        return KeptMasks(shape, {})

    @staticmethod
    def from_json(text: str) -> KeptMasks:
        """The masks that `to_json` wrote.

        Raises:
            ValueError: the text is not such a structure.
        """
        try:
            data = json.loads(text)
            if data["version"] != 1:
                raise ValueError(f"version {data['version']}")
            shape = Shape.from_dict(data["shape"])
            masks: dict[str, list[np.ndarray]] = {}
            for family, texts in data["masks"].items():
                sizes = shape.gate_shapes[family]
                masks[family] = [_unpack(bits, size) for bits, size in zip(texts, sizes, strict=True)]
            return KeptMasks(shape, masks)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as problem:
            raise ValueError(f"this text is not a structure that slimsweep wrote ({problem!r})") from problem


def _unpack(bits: str, size: tuple[int, ...]) -> np.ndarray:
    """A mask of a shape from its bits in hex, row-major."""
    packed = np.frombuffer(bytes.fromhex(bits), dtype=np.uint8)
    count = math.prod(size)
    if len(packed) != -(-count // 8):
        raise ValueError(f"{len(packed)} bytes for a mask of {count} bits")
    return np.unpackbits(packed, count=count).astype(bool).reshape(size)
