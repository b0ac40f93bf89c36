"""What is kept of a vision transformer, and what that costs in multiply-accumulates and parameters.

A `Shape` holds a dense model's sizes, a `Structure` adds what is kept of it: one boolean mask per gate family and layer.
Both are plain data (no weights), so budgets can be solved, stored and priced without building a model.
"""

import copy
import hashlib
import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import singledispatch
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from slimsweep.errors import RefusedInput
from slimsweep.slimming.cost import COSTS
from slimsweep.slimming.wrapped_models import inner_model

FAMILIES = ("attention", "mlp", "token")  # of gates; what differs between them is in gate_families.py

Masks = Mapping[str, Sequence[Tensor]]


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

    def full(self) -> "Structure":
        """The structure that keeps everything."""
        return Structure(self, {f: [torch.ones(s, dtype=torch.bool) for s in shapes] for f, shapes in self.gate_shapes.items()})

    @staticmethod
    def from_dict(data: dict) -> "Shape":
        """The shape from what `dataclasses.asdict` makes of it, also after a way through JSON."""
        return Shape(
            **{
                **data,
                "layers": tuple(Layer(**layer) for layer in data["layers"]),
                "grid": (data["grid"][0], data["grid"][1]),
                "gate_shapes": {f: tuple(tuple(s) for s in shapes) for f, shapes in data["gate_shapes"].items()},
            }
        )


class Structure:
    """What is kept: `masks` in bool, of the shapes of the gates.

    Heads of one layer have one width, that of its widest head: masks from the solver never differ in width; in masks
    made by hand the narrower heads are padded with zeros, and the zeros are counted.

    Args:
        shape: the dense model's sizes.
        masks: for each family that can be cut, one bool tensor per layer: attention (heads, head_dim), mlp (hidden,),
            token (patches,). A family without a key is kept whole.

    Raises:
        ValueError: a mask of the wrong shape, a token kept after a layer that dropped it, or too few tokens left.
    """

    def __init__(self, shape: Shape, masks: Masks) -> None:
        check_families(masks)
        self.shape = shape
        self.masks: dict[str, list[Tensor]] = {f: [m.bool().cpu() for m in masks[f]] for f in FAMILIES if f in masks}
        self.validate()

    def validate(self) -> None:
        """Raise ValueError, in one sentence, where the masks do not describe a model that can be cut."""
        for family, masks in self.masks.items():
            wanted = self.shape.gate_shapes.get(family)
            if wanted is None:
                raise ValueError(
                    f"this model has no {family} gates, so no {family} masks can apply; it has {sorted(self.shape.gate_shapes)}"
                )
            got = tuple(tuple(m.shape) for m in masks)
            if got != wanted:
                raise ValueError(f"{family} masks have the shapes {got}, the model's gates have {wanted}")
        tokens = self.masks.get("token", [])
        for index, (earlier, later) in enumerate(itertools.pairwise(tokens)):
            back = (later & ~earlier).nonzero()
            if len(back):
                raise ValueError(
                    f"token {int(back[0])} is kept in layer {index + 1} but dropped in layer {index}; "
                    "a token that left cannot come back"
                )
        if tokens and int(tokens[-1].sum()) < self.shape.least_tokens:
            raise ValueError("the last layer keeps no token, but this model pools over patch tokens: keep at least one")

    # Per layer: what is kept.

    def attention_mask(self, layer: int) -> Tensor:
        """Kept dims of one layer, (heads, head_dim), whatever the granularity."""
        sizes = self.shape.layers[layer]
        mask = self.masks["attention"][layer] if "attention" in self.masks else torch.ones(1, 1, dtype=torch.bool)
        return mask.expand(sizes.heads, sizes.head_dim)

    def mlp_mask(self, layer: int) -> Tensor:
        """Kept MLP units of one layer, (hidden,)."""
        whole = torch.ones(self.shape.layers[layer].hidden, dtype=torch.bool)
        return self.masks["mlp"][layer] if "mlp" in self.masks else whole

    def token_mask(self, layer: int) -> Tensor:
        """Kept patch tokens of one layer, (patches,)."""
        whole = torch.ones(self.shape.layers[layer].tokens, dtype=torch.bool)
        return self.masks["token"][layer] if "token" in self.masks else whole

    def holds(self, other: "Structure") -> bool:
        """Whether `other` is of the same dense model and keeps nothing that this one does not keep."""
        layers = range(len(self.shape.layers))
        masks = (Structure.attention_mask, Structure.mlp_mask, Structure.token_mask)
        return self.shape == other.shape and all(not (mask(other, i) & ~mask(self, i)).any() for mask in masks for i in layers)

    def sizes(self, layer: int) -> tuple[int, int, int, int]:
        """(heads, head dim, MLP units, patch tokens) that one layer keeps."""
        dims = self.attention_mask(layer).sum(1)
        return int((dims > 0).sum()), int(dims.max()), int(self.mlp_mask(layer).sum()), int(self.token_mask(layer).sum())

    def layer_sizes(self) -> list[LayerSizes]:
        """What each layer keeps, as costs take it."""
        sizes = [self.sizes(index) for index in range(len(self.shape.layers))]
        return [LayerSizes(heads, heads * head_dim, units, tokens) for heads, head_dim, units, tokens in sizes]

    def summary(self) -> list[dict[str, int | str]]:
        """One dict per layer: heads, head_dim, mlp_units, tokens (patches) kept, and each beside its dense size (*_dense)."""
        rows: list[dict[str, int | str]] = []
        for index, layer in enumerate(self.shape.layers):
            heads, head_dim, units, tokens = self.sizes(index)
            rows.append(
                {
                    "layer": layer.name,
                    "heads": heads,
                    "heads_dense": layer.heads,
                    "head_dim": head_dim,
                    "head_dim_dense": layer.head_dim,
                    "mlp_units": units,
                    "mlp_units_dense": layer.hidden,
                    "tokens": tokens,
                    "tokens_dense": layer.tokens,
                }
            )
        return rows

    # Costs.

    def macs(self) -> int:
        """Multiply-accumulates of one image through the cut model."""
        return COSTS["macs"].of(self)

    def params(self) -> int:
        """Parameters of the cut model."""
        return COSTS["params"].of(self)

    # Text.

    @property
    def id(self) -> str:
        """12 hex digits that are equal for structures of equal sizes in every layer, which have equal latency."""
        layers = [[layer.name, layer.embed_dim, *self.sizes(index)] for index, layer in enumerate(self.shape.layers)]
        text = json.dumps([layers, self.shape.fixed_macs, self.shape.fixed_params])
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def to_json(self) -> str:
        """Text that `from_json` takes: the shape, and each mask as its bits in hex, row-major."""
        masks = {f: [np.packbits(m.numpy().reshape(-1)).tobytes().hex() for m in ms] for f, ms in self.masks.items()}
        return json.dumps({"version": 1, "shape": asdict(self.shape), "masks": masks}, separators=(",", ":"))

    @staticmethod
    def from_json(text: str) -> "Structure":
        """The structure that `to_json` wrote.

        Raises:
            ValueError: the text is not such a structure.
        """
        try:
            data = json.loads(text)
            if data["version"] != 1:
                raise ValueError(f"version {data['version']}")
            shape = Shape.from_dict(data["shape"])
            masks: dict[str, list[Tensor]] = {}
            for family, texts in data["masks"].items():
                sizes = shape.gate_shapes[family]
                masks[family] = [_unpack(bits, size) for bits, size in zip(texts, sizes, strict=True)]
            return Structure(shape, masks)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as problem:
            raise ValueError(f"this text is not a structure that slimsweep wrote ({problem!r})") from problem

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Structure) and self.to_json() == other.to_json()

    def __hash__(self) -> int:
        return hash(self.to_json())

    def __repr__(self) -> str:
        rows = ", ".join(f"{r['heads']}x{r['head_dim']}/{r['mlp_units']}/{r['tokens']}" for r in self.summary())
        return f"Structure({self.macs() / 1e6:.1f} MMACs; heads x dims/units/tokens: {rows})"


def _unpack(bits: str, size: tuple[int, ...]) -> Tensor:
    """A mask of a shape from its bits in hex, row-major."""
    packed = np.frombuffer(bytes.fromhex(bits), dtype=np.uint8)
    count = math.prod(size)
    if len(packed) != -(-count // 8):
        raise ValueError(f"{len(packed)} bytes for a mask of {count} bits")
    return torch.from_numpy(np.unpackbits(packed, count=count).astype(bool)).reshape(size)


@singledispatch
def macs(what: Structure | nn.Module) -> int:
    """Multiply-accumulates of one image: analytic for a Structure, counted operator by operator for a model.

    ViT papers call this number FLOPs. Counts matrix products, convolutions and attention, as
    torch.utils.flop_counter does (whose count is twice this one), not element-wise work.
    """
    raise TypeError(f"macs() takes a Structure or a model, not {type(what).__name__}")


@macs.register
def _(what: Structure) -> int:
    return what.macs()


@macs.register
def _(what: nn.Module) -> int:
    if (inside := inner_model(what)) is not what:
        return macs(inside)
    # A copy without weights: counting needs shapes only, costs no memory, and cannot touch the model.
    meta = torch.device("meta")
    weightless: dict[int, Any] = {id(b): torch.empty_like(b, device=meta) for b in what.buffers()}
    weightless |= {id(p): nn.Parameter(torch.empty_like(p, device=meta), requires_grad=False) for p in what.parameters()}
    model = copy.deepcopy(what, weightless).eval()
    image = torch.zeros(1, *image_size(what), device=meta, dtype=next(what.parameters()).dtype)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        try:
            model(image)
        except (AssertionError, RuntimeError) as problem:
            reason = (str(problem).strip().splitlines() or [type(problem).__name__])[0]
            raise RefusedInput(
                f"this {type(what).__name__} cannot compute an image of its own size, {tuple(image.shape[1:])} (channels, "
                f"height, width), so its MACs cannot be counted: {reason}"
            ) from problem
    return counter.get_total_flops() // 2


@singledispatch
def params(what: Structure | nn.Module) -> int:
    """Number of parameters of a model, or of the model that a Structure describes."""
    raise TypeError(f"params() takes a Structure or a model, not {type(what).__name__}")


@params.register
def _(what: Structure) -> int:
    return what.params()


@params.register
def _(what: nn.Module) -> int:
    return sum(p.numel() for p in what.parameters())


def image_size(model: Any) -> tuple[int, int, int]:
    """(channels, height, width) of the image that a timm model takes."""
    usual = getattr(model, "pretrained_cfg", None) or {}
    channels, height, width = usual.get("input_size", (3, 224, 224))
    height, width = getattr(getattr(model, "patch_embed", None), "img_size", None) or (height, width)
    return getattr(model, "in_chans", channels), height, width
