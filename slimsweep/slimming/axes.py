"""Principal axes: each attention head turned into the axes in which its dims are ordered by what they do on images.

A head computes the same after its query/key space is changed by an invertible matrix (queries by A, keys by its inverse
transpose), and its value space by another one (values by B, the projection's columns by its inverse). A gate on a dim of a
trained network removes a bit of everything; a gate on a principal axis removes one direction, and the last ones hardly matter.
The axes are those of the singular value decomposition of what the two sides do together on images (balanced truncation:
B. C. Moore, "Principal component analysis in linear systems", 1981): for queries and keys of the logits, for values and
projection of what the head adds to the output.
"""

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from slimsweep.errors import RefusedInput
from slimsweep.slimming.architectures import Timm, architecture_of, attention_rows, tensor_at
from slimsweep.slimming.cut import check_sizes, remaining_dims
from slimsweep.slimming.gates import GatedModel
from slimsweep.slimming.plain_layers import check_layers
from slimsweep.slimming.read_back import in_eval_mode
from slimsweep.slimming.structure import Structure, image_size
from slimsweep.slimming.wrapped_models import unwrapped

JITTER = 1e-6  # of the mean of second moments, added to each: directions that no image has stay finite
NOT_FINITE = (
    "the model computes values that are not finite from these images: give images normalised as in its training, and look at "
    "its weights (float16 holds nothing above 65504: go to float32 or bfloat16)"
)
BATCH = 64  # images per forward pass where they are given as one tensor


def principal_axes(model: Timm, images: Tensor | Iterable[Tensor], structure: Structure | None = None) -> nn.Module:
    """A copy of a model that computes the same, with each head's dims turned into its principal axes, strongest first.

    The two sides of an axis (rows of query and key; row of value and column of the projection) get weights of one norm, as
    training leaves them. A head's output gets the mean 0 on the images, which the projection's bias adds instead. Queries and
    keys stay as they are where rotary embeddings or norms act on them, values and projection where a gate of the attention's
    own acts between them, or where heads share their values.

    Args:
        model: a timm model that can be cut; left alone. It may have been cut already. In half precision the copy is as exact as
            that allows: take the axes in float32, and go to half precision afterwards.
        images: (N, C, H, W), or batches of such, normalised as the model takes them; of the batches of a DataLoader the labels
            are left out. Some hundred are enough.
        structure: what a cut is going to keep: each head's strongest axes then lie at the dims that it keeps.

    Raises:
        RefusedInput: a ValueError: the model has gates, or is of a kind that cannot be cut; the structure is of another model,
            or keeps what is gone; there are no images, or they are not such as the model takes.
    """
    model = without_gates(model)
    check_layers(model)
    check_weights(model, "to take the axes of")
    kept = None if structure is None else kept_dims(model, structure)
    turned: Timm = copy.deepcopy(model)
    heads = turnable_heads(turned)
    with full_precision():
        found = moments_of(turned, [one.attention for one in heads], images)
        for one, moments in zip(heads, found, strict=True):
            if one.queries_and_keys:
                turn_queries_and_keys(one.attention, moments)
            if one.values:
                turn_values(one.attention, moments)
        if kept is not None:
            put_strongest(heads, kept)
    return turned


def strongest_kept(model: Timm, structure: Structure) -> nn.Module:
    """A copy of a model whose heads `principal_axes` has turned, with each head's strongest axes at the dims that are kept.

    Args:
        model: as `principal_axes` returned it without a structure, so that the strongest axes come first; left alone.
        structure: what a cut is going to keep.

    Raises:
        RefusedInput: a ValueError: the model has gates; the structure is of another model, or keeps what is gone.
    """
    model = without_gates(model)
    kept = kept_dims(model, structure)
    ordered: Timm = copy.deepcopy(model)
    with torch.no_grad():
        put_strongest(turnable_heads(ordered), kept)
    return ordered


def without_gates(model: Timm) -> Timm:
    """The model itself, wrappers taken off; raises RefusedInput, a ValueError, where it has gates."""
    model = unwrapped(model)
    if isinstance(model, GatedModel):
        raise RefusedInput("this model has gates, which would be turned along: take the axes first, then add gates")
    return model


class Turnable(NamedTuple):
    """An attention, and which of its spaces can be turned."""

    block: int
    attention: Timm
    queries_and_keys: bool
    values: bool


def turnable_heads(model: Timm) -> list[Turnable]:
    """The attentions of a model, and what of their heads can be turned."""
    architecture = architecture_of(model)
    return [
        Turnable(
            block=index,
            attention=attention,
            queries_and_keys=not architecture.whole_heads and is_plain(attention, "q_norm", "k_norm"),
            values=is_plain(attention, "norm", "gate") and getattr(attention, "num_kv_groups", 1) == 1,
        )
        for index, attention in ((index, block.attn) for index, block in enumerate(architecture.blocks(model)))
        if hasattr(attention, "proj")
    ]


def put_strongest(heads: list[Turnable], kept: list[Tensor]) -> None:
    """Reorder the turned dims of each head in place, so that its first ones lie where `kept` is True.

    Args:
        kept: for each block of the model, (heads, head_dim).
    """
    for one in heads:
        if one.queries_and_keys:
            put_first(kept[one.block], Rows(one.attention, 0), Rows(one.attention, 1))
        if one.values:
            put_first(kept[one.block], Rows(one.attention, 2), columns=one.attention.proj.weight)


def kept_dims(model: Timm, structure: Structure) -> list[Tensor]:
    """For each block (heads, head_dim): which of the dims that the model has now a structure keeps.

    Raises:
        ValueError: this is no structure, it is of another model, or it keeps what has been cut already.
    """
    if not isinstance(structure, Structure):
        raise RefusedInput(f"the structure is a {type(structure).__name__}: give one that solve returns")
    before: Structure = getattr(model, "structure", structure.shape.full())
    if not hasattr(model, "structure"):
        check_sizes(model, structure)
    elif not before.holds(structure):
        raise RefusedInput("the model has been cut already, to a structure that does not hold all of this one")
    layers = range(len(structure.shape.layers))
    return [remaining_dims(structure.attention_mask(index), before.attention_mask(index)) for index in layers]


def put_first(kept: Tensor, *rows: "Rows", columns: Tensor | None = None) -> None:
    """Reorder each head's dims in place, so that its first ones lie where `kept` (heads, head_dim) is True."""
    for head, mask in enumerate(kept):
        place = torch.cat([mask.nonzero().flatten(), (~mask).nonzero().flatten()])  # of each axis, the strongest first
        axis = place.argsort().to(rows[0].weight.device)  # at each dim
        for one in rows:
            one.weight[head] = one.weight[head][axis]
            if one.bias is not None:
                one.bias[head] = one.bias[head][axis]
        if columns is not None:
            of_head = columns.unflatten(1, kept.shape)[:, head]
            of_head.copy_(of_head[:, axis])


def is_plain(attention: Timm, *names: str) -> bool:
    """Whether an attention has none of these modules, or only identities."""
    return all(isinstance(getattr(attention, name, None), nn.Identity | None) for name in names)


def batches_of(images: Tensor | Iterable[Any], model: Timm) -> Iterator[Tensor]:
    """Batches (B, C, H, W) of images that are given as one tensor, as batches, or as a DataLoader's pairs with labels.

    Raises:
        RefusedInput: a batch is not such as the model takes; says what it is.
    """
    if isinstance(images, Tensor) and images.ndim == 4:
        images = images.split(BATCH)
    elif isinstance(images, Tensor) or not isinstance(images, Iterable):
        images = [images]
    for item in images:
        batch = item[0] if isinstance(item, tuple | list) and item else item
        if reason := not_taken(batch, model):
            raise RefusedInput(
                f"the images {reason}: give a tensor (images, channels, height, width) or batches of such, as the model takes"
            )
        if len(batch):
            yield batch


def not_taken(batch: Any, model: Timm) -> str:
    """Why a model does not take a batch of images; "" where it does."""
    channels, *size = image_size(model)
    fixed = getattr(model.patch_embed, "strict_img_size", False)
    reason = ""
    if not isinstance(batch, Tensor):
        reason = f"are given as a {type(batch).__name__}"
    elif batch.is_meta or batch.ndim != 4:
        reason = f"are a tensor of shape {tuple(batch.shape)}{' without values' if batch.is_meta else ''}"
    elif batch.shape[1] != channels:
        reason = f"have {batch.shape[1]} channels, and the model takes {channels}"
    elif fixed and list(batch.shape[2:]) != size:
        reason = f"have {batch.shape[2]} x {batch.shape[3]} pixels, and the model takes {size[0]} x {size[1]}"
    elif not batch.is_floating_point():
        reason = f"are {batch.dtype}, not normalised"
    elif not batch.isfinite().all():
        reason = "have values that are not finite"
    return reason


def check_weights(model: nn.Module, purpose: str) -> None:
    """Raise RefusedInput, a ValueError, where a model is on the meta device.

    Args:
        purpose: how the sentence goes on after "no weights".
    """
    if any(parameter.is_meta for parameter in model.parameters()):
        raise RefusedInput(f"this model is on the meta device, so it has no weights {purpose}: give it weights first")


@contextmanager
def full_precision() -> Iterator[None]:
    """No gradients, and no autocast around, which would round what is summed up."""
    with torch.no_grad(), no_autocast():
        yield


@contextmanager
def no_autocast() -> Iterator[None]:
    """Computing in the precision of the weights, whatever autocast is around."""
    with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
        yield


def as_the_weights(batch: Tensor, model: nn.Module) -> Tensor:
    """A batch on the device and in the precision of a model."""
    weight = next(model.parameters())
    return batch.to(weight.device, weight.dtype)


class Moments(NamedTuple):
    """Second moments of one attention, means over all tokens of all images, in float64."""

    inputs: Tensor  # (embed_dim + 1, embed_dim + 1): of its inputs, a 1 appended as the input of the bias
    within: Tensor  # the same, of the inputs less their mean over the tokens that attend to each other
    outputs: Tensor  # (heads, head_dim, head_dim): of each head's output less its mean
    mean: Tensor  # (heads, head_dim): of each head's output


def moments_of(model: Timm, attentions: list[Timm], images: Tensor | Iterable[Tensor]) -> list[Moments]:
    """The second moments of each attention on images. Memory does not depend on the number of images."""
    sums: list[list[Tensor]] = [[] for _ in attentions]
    tokens = [0] * len(attentions)

    def add(place: int, first: int, values: list[Tensor]) -> None:
        if len(sums[place]) <= first:
            sums[place] += [torch.zeros_like(value) for value in values]
        for total, value in zip(sums[place][first:], values, strict=False):
            total.add_(value)

    def watch(place: int, attention: Timm) -> list[torch.utils.hooks.RemovableHandle]:
        def at_input(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            x = args[0].double()  # (batch, tokens, embed_dim)
            x = torch.cat([x, x.new_ones(*x.shape[:-1], 1)], -1)
            means, each = x.mean(1), x.shape[1]  # over the tokens that attend to each other
            x = x.flatten(0, 1)
            tokens[place] += len(x)
            second = x.T @ x
            add(place, 0, [second, second - each * means.T @ means])

        def at_projection(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            z = args[0].double().flatten(0, -2).unflatten(1, (attention.num_heads, -1))
            add(place, 2, [torch.einsum("nhi,nhj->hij", z, z), z.sum(0)])

        return [attention.register_forward_pre_hook(at_input), attention.proj.register_forward_pre_hook(at_projection)]

    hooks = [hook for place, attention in enumerate(attentions) for hook in watch(place, attention)]
    try:
        with in_eval_mode(model):
            for batch in batches_of(images, model):
                model(as_the_weights(batch, model))
    finally:
        for hook in hooks:
            hook.remove()
    if not all(tokens):
        raise RefusedInput("there are no images to take the axes from: give some hundred")
    if not all(value.isfinite().all() for values in sums for value in values):
        raise RefusedInput(NOT_FINITE)
    found = []
    for (inputs, within, outputs, total), count in zip(sums, tokens, strict=True):
        mean = total / count
        found.append(Moments(inputs / count, within / count, outputs / count - mean[:, :, None] * mean[:, None], mean))
    return found


def turn_queries_and_keys(attention: Timm, moments: Moments) -> None:
    """Turn the query/key space of each head, in place.

    With second moments Lq Lq^T of the queries and Lk Lk^T of the keys, and U S V^T = Lq^T Lk, queries are multiplied by
    S U^T Lq^-1 and keys by V^T Lk^-1. Keys count less their mean over an image, which adds the same to all of a query's logits.
    """
    query, key = Rows(attention, 0), Rows(attention, 1)
    for head in range(attention.num_heads):
        q, k = query.of(head), key.of(head)
        lq, lk = factor(q @ moments.inputs @ q.T), factor(k @ moments.within @ k.T)
        u, s, vt = torch.linalg.svd(lq.T @ lk)
        q, k = s[:, None] * (u.T @ divided(lq, q)), vt @ divided(lk, k)
        share = balance(q[:, :-1], k[:, :-1])
        query.set(head, q * share)
        key.set(head, k / share)


def turn_values(attention: Timm, moments: Moments) -> None:
    """Turn the value space of each head, in place, and move its mean output into the projection's bias.

    With second moments L L^T of the head's output and its columns P of the projection, and U S V^T = L^T P^T, values are
    multiplied by U^T L^-1, columns become P L U.
    """
    value, projection = Rows(attention, 2), attention.proj
    columns = projection.weight.double().unflatten(1, (attention.num_heads, -1))  # (embed_dim, heads, head_dim), a copy
    centred = value.bias is not None and projection.bias is not None
    if centred:  # the weights of the values sum to 1 for each query, so that a bias of the values is one of the output
        projection.bias += torch.einsum("ohd,hd->o", columns, moments.mean).to(projection.bias.dtype)
    for head in range(attention.num_heads):
        v = value.of(head)
        second = moments.outputs[head]
        if centred:
            v[:, -1] -= moments.mean[head]
        else:
            second = second + torch.outer(moments.mean[head], moments.mean[head])
        lower = factor(second)
        u, _, _ = torch.linalg.svd(lower.T @ columns[:, head].T)
        v, column = u.T @ divided(lower, v), columns[:, head] @ lower @ u
        share = balance(v[:, :-1], column.T)
        value.set(head, v * share)
        columns[:, head] = column / share.T
    projection.weight.copy_(columns.flatten(1))


class Rows:
    """The rows of one of an attention's projections: queries (0), keys (1) or values (2), head by head.

    Attributes:
        weight: (heads, head_dim, embed_dim), a view of the attention's.
        bias: (heads, head_dim), a view, or None.
    """

    def __init__(self, attention: Timm, which: int) -> None:
        letter, have = "qkv"[which], attention_rows(attention)
        own = f"{letter}_proj.weight" in have
        weight = tensor_at(attention, f"{letter}_proj.weight" if own else "qkv.weight")
        assert weight is not None
        names = [name for name in (f"{letter}_proj.bias", f"{letter}_bias", f"qkv.{letter}_bias") if name in have]
        bias = tensor_at(attention, names[0]) if names else None
        if not own:
            weight = weight.chunk(3)[which]
            if bias is None and (stacked := tensor_at(attention, "qkv.bias")) is not None:
                bias = stacked.chunk(3)[which]
        self.weight = weight.unflatten(0, (attention.num_heads, -1))
        self.bias = None if bias is None else bias.unflatten(0, (attention.num_heads, -1))

    def of(self, head: int) -> Tensor:
        """(head_dim, embed_dim + 1) in float64: weight and bias."""
        weight = self.weight[head]
        bias = weight.new_zeros(len(weight)) if self.bias is None else self.bias[head]
        return torch.cat([weight, bias[:, None]], 1).double()

    def set(self, head: int, rows: Tensor) -> None:
        """Write what `of` gives."""
        self.weight[head] = rows[:, :-1].to(self.weight.dtype)
        if self.bias is not None:
            self.bias[head] = rows[:, -1].to(self.bias.dtype)


def factor(moments: Tensor) -> Tensor:
    """The Cholesky factor of second moments (D, D), made positive definite by JITTER."""
    level = moments.diagonal().mean().clamp(min=torch.finfo(torch.float32).tiny)
    lower, failed = torch.linalg.cholesky_ex(
        moments + JITTER * level * torch.eye(len(moments), dtype=moments.dtype, device=moments.device)
    )
    if not failed:
        return lower
    # Next to a large mean, small moments are mostly rounding and may come out negative.
    values, vectors = torch.linalg.eigh(moments)
    root = vectors * values.clamp(min=float(JITTER * level)).sqrt()
    upper = torch.linalg.qr(root.T).R
    return upper.T


def divided(lower: Tensor, rows: Tensor) -> Tensor:
    """L^-1 rows, of a lower triangular (D, D) and (D, M)."""
    return torch.linalg.solve_triangular(lower, rows, upper=False)


def balance(one: Tensor, other: Tensor) -> Tensor:
    """(D, 1): what the rows of one side, (D, M), are multiplied by, and those of the other divided by, to get equal norms.

    1 where a side has none.
    """
    tiny = torch.finfo(torch.float32).tiny
    norm, others = one.norm(dim=1, keepdim=True), other.norm(dim=1, keepdim=True)
    return torch.where((norm > tiny) & (others > tiny), (others / norm).sqrt(), 1.0)
