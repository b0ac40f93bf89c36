"""The order in which one family's gates leave, over all layers: the smallest first, in steps that keep sizes usable.

Ties go by rank within the layer and then by layer, so gates that are all equal leave every layer evenly. A step of several
gates counts their mean, rounded to float32: equal gates stay equal however they are summed.
"""

from dataclasses import dataclass

import numpy as np

from slimsweep.slimming.shape import Shape

NEVER_REMOVED = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Steps:
    """The order in which one family's gates leave; a step is what leaves together (units, or a dim of every kept head).

    Attributes:
        layer: (steps,) the layer that each step is in.
        removed: by the names of LayerSizes what each step removes of that layer, (steps,) each; what counts as the family's
            progress comes first.
        leave: per layer, in the shape of its gates: each gate's step, NEVER_REMOVED for those of the floor.
        total: dims, units or tokens of the dense model.
    """

    layer: np.ndarray
    removed: dict[str, np.ndarray]
    leave: list[np.ndarray]
    total: int

    @property
    def progress(self) -> np.ndarray:
        """(steps,) share of the family that is gone after each step."""
        return np.cumsum(next(iter(self.removed.values()))) / max(self.total, 1)


def _order(layer: list[np.ndarray], score: list[np.ndarray], rank: list[np.ndarray]) -> np.ndarray:
    """The family's order of all layers' steps: by score, then relative rank within the layer, then layer."""
    return np.lexsort((np.concatenate(layer), np.concatenate(rank), np.concatenate(score)))


def mlp_steps(shape: Shape, scores: list[np.ndarray], floor: float, round_to: int, depth: bool | float = False) -> Steps:
    """MLP units of each layer, `round_to` at a time, the smallest first.

    Args:
        shape: of the dense model.
        scores: per layer a value of at least 0 for each gate, in the gates' shape, float64.
        floor: share of every layer that never leaves.
        round_to: sizes that are left are multiples of this.
        depth: what the floor keeps of a layer leaves too, as one last step, by its mean score. A number is what a whole layer
            costs by itself, as a share of what its gates cost: the rest of the layer then leaves at once as soon as it is
            worth less per cost than the next gates alone.
    """
    layers, values, ranks, removed, groups = [], [], [], [], []
    for index, score in enumerate(scores):
        size = len(score)
        order = np.argsort(score, kind="stable")
        least = _rounded_up(floor * size, round_to)
        # The first group may be smaller, so that all later sizes are multiples.
        ends = np.arange(size - least, 0, -round_to)[::-1]
        if depth is not False and least:
            ends = np.append(ends, size)
        starts = np.concatenate([[0], ends[:-1]]) if len(ends) else ends
        rest: float | None = None  # worth per cost of what leaves as the last step
        if depth is not False and depth is not True and len(ends):
            ends, starts, rest = _rest_at_once(score[order], starts, ends, depth * size)
        units = ends - starts
        group = np.full(size, NEVER_REMOVED)
        group[order[: units.sum()]] = np.repeat(np.arange(len(ends)), units)
        leaving = score[order[: units.sum()]]
        mean = np.add.reduceat(leaving, starts) / units if len(ends) else np.zeros(0)
        if rest is not None:
            mean[-1] = rest
        layers.append(np.full(len(ends), index))
        values.append(np.maximum.accumulate(mean.astype(np.float32)))
        removed.append(units)
        ranks.append(ends / size)
        groups.append(group)
    total = sum(len(s) for s in scores)
    return _assemble(layers, values, ranks, removed={"units": removed}, groups=groups, total=total)


def attention_steps(
    shape: Shape, scores: list[np.ndarray], floor: float, round_to: int, depth: bool | float = False, keep_one: bool = False
) -> Steps:
    """Dims and heads of each layer, so that its kept heads always have one width, each with its own best dims.

    A step takes either the worst dim of every kept head or the worst head, whichever loses less per dim. Arguments as in
    `mlp_steps`.

    Args:
        keep_one: of the layer whose attention is worth most, some dims stay where all of every layer's may leave: without any
            attention no patch reaches the class token, nor another patch, and nothing can be learned.
    """
    found = [_attention_layer(score, floor, round_to, depth) for score in scores]
    if keep_one and not any((group == NEVER_REMOVED).any() for _, group in found):
        last = int(np.argmax([steps[-1][0] for steps, _ in found]))
        found[last] = _attention_layer(scores[last], max(floor, 1 / scores[last].size), round_to, False)
    layers, values, ranks, removed, lost, groups = [], [], [], [], [], []
    for index, (steps, group) in enumerate(found):
        layer = shape.layers[index]
        rows, size = group.shape[0], group.size
        dims_per_gate = layer.heads * layer.head_dim // size
        # Heads of the uniform granularity are all the layer's heads.
        lost_heads = [s[2] * (layer.heads if rows == 1 else 1) for s in steps]
        layers.append(np.full(len(steps), index))
        values.append(np.maximum.accumulate([s[0] for s in steps]) if steps else np.zeros(0))
        removed.append(np.array([s[1] * dims_per_gate for s in steps], dtype=np.int64))
        ranks.append(np.cumsum([s[1] for s in steps]) / size if steps else np.zeros(0))
        lost.append(np.array(lost_heads, dtype=np.int64))
        groups.append(group)
    total = sum(x.heads * x.head_dim for x in shape.layers)
    return _assemble(layers, values, ranks, removed={"dims": removed, "heads": lost}, groups=groups, total=total)


def _attention_layer(
    score: np.ndarray, floor: float, round_to: int, depth: bool | float
) -> tuple[list[tuple[float, int, int]], np.ndarray]:
    """The steps of one layer, and in the shape of its gates the number of each gate's step.

    Args:
        score: (heads, head_dim), (heads, 1) or (1, head_dim).
        floor, round_to, depth: as in `attention_steps`.

    Returns:
        Steps as (mean score that is lost, gates, heads that are lost whole).
    """
    rows, columns = score.shape
    order = np.argsort(-score, axis=1, kind="stable")  # best dims first
    best = np.cumsum(np.take_along_axis(score, order, axis=1), axis=1)
    best = np.concatenate([np.zeros((rows, 1)), best], axis=1)  # best[h, w]: what the w best dims of head h add up to
    heads, width = list(range(rows)), columns
    least = max(floor * rows * columns, 0)
    own = 0.0 if isinstance(depth, bool) else depth * rows * columns  # what the layer costs by itself, in gates
    group = np.full(score.shape, NEVER_REMOVED)
    steps: list[tuple[float, int, int]] = []
    while heads and width:
        # A narrower width must be a multiple of round_to; the first step to one may be smaller.
        narrower = (width - 1) // round_to * round_to if columns > 1 else width
        options = []
        if columns > 1 and len(heads) * narrower >= least:
            loss = (best[heads, width] - best[heads, narrower]).mean() / (width - narrower)
            options.append((float(np.float32(loss)), 0, narrower))
        if rows > 1 and (len(heads) - 1) * width >= least:
            worst = min(heads, key=lambda h: (best[h, width], h))
            options.append((float(np.float32(best[worst, width] / width)), 1, worst))
        if not options:
            break
        loss, kind, which = min(options)
        if own and loss > best[heads, width].sum() / (len(heads) * width + own):
            break  # the rest is worth less per cost
        number = len(steps)
        if kind == 0:
            for head in heads:
                group[head, order[head, which:width]] = number
            steps.append((loss, len(heads) * (width - which), len(heads) if which == 0 else 0))
            width = which
        else:
            group[which, order[which, :width]] = number
            steps.append((loss, width, 1))
            heads.remove(which)
    if depth is not False and heads and width:
        for head in heads:
            group[head, order[head, :width]] = len(steps)
        left = best[heads, width]
        worth = left.sum() / (len(heads) * width + own) if own else left.mean() / width
        steps.append((float(np.float32(worth)), len(heads) * width, len(heads)))
    return steps, group


def token_steps(shape: Shape, scores: list[np.ndarray], floor: float, round_to: int, depth: bool | float = False) -> Steps:
    """Tokens leave in an order in which each leaves the last layer first; a layer gives them up `round_to` at a time.

    A token's rank in a layer is its best one there or later, so that a token kept in a layer is kept in all earlier ones.
    Those that make the number of rows odd leave first, from all layers. Arguments as in `mlp_steps`; a size here is the patch
    tokens with the prefix, and what the floor keeps stays, whatever `depth` says: tokens are no branch.
    """
    score = np.stack(scores)  # (layers, patches)
    count, patches = score.shape
    lasting = np.maximum.accumulate(score[::-1], axis=0)[::-1]
    least = max(int(np.ceil(floor * patches - 1e-9)), shape.least_tokens)
    # Equal tokens leave from the border inwards; all layers agree on that order, so that what left stays away.
    rows, columns = shape.grid
    row, column = np.divmod(np.arange(patches), columns)
    outwards = np.maximum(np.abs(row - (rows - 1) / 2), np.abs(column - (columns - 1) / 2))
    tie = np.empty(patches, dtype=np.int64)
    tie[np.lexsort((np.arange(patches), -outwards))] = np.arange(patches)
    # Rows beyond a multiple are a group of their own to a matrix product: a few tokens less in every layer save most.
    if round_to > 1:
        lasting[:, np.lexsort((tie, lasting[0]))[: (patches + shape.layers[0].prefix) % round_to]] = -1.0
    layer_of, patch_of = np.divmod(np.arange(count * patches), patches)
    order = np.lexsort((-layer_of, tie[patch_of], lasting.reshape(-1)))
    # The floor: each layer's last `least` tokens in that order, and those that a later layer's floor needs.
    stays = np.zeros(count * patches, dtype=bool)
    for index in range(count):
        mine = order[layer_of[order] == index]
        stays[mine[patches - least :]] = True
    for index in range(count - 2, -1, -1):
        stays[index * patches : (index + 1) * patches] |= stays[(index + 1) * patches : (index + 2) * patches]
    order = order[~stays[order]]
    # A matrix product's rows are all tokens, the prefix too: those are what is kept to multiples.
    waits = [_excess(patches + layer.prefix, round_to) for layer in shape.layers]  # tokens that the next step takes
    ready: list[list[int]] = [[] for _ in range(count)]  # tokens whose turn has come, and which no later layer has any more
    due = np.zeros((count, patches), dtype=bool)
    leave = np.full((count, patches), NEVER_REMOVED)
    layers: list[int] = []
    removed: list[int] = []
    for layer, patch in zip(layer_of[order].tolist(), patch_of[order].tolist(), strict=True):
        due[layer, patch] = True
        if layer == count - 1 or leave[layer + 1, patch] < NEVER_REMOVED:
            ready[layer].append(patch)
        at = layer
        while at >= 0 and len(ready[at]) >= waits[at]:
            group, ready[at] = ready[at][: waits[at]], ready[at][waits[at] :]
            leave[at, group] = len(layers)
            layers.append(at)
            removed.append(len(group))
            waits[at] = round_to
            at -= 1  # where those that left here, if it is their turn, are now free to leave
            if at >= 0:
                ready[at] += [token for token in group if due[at, token]]
    return Steps(np.array(layers, int), {"tokens": np.array(removed, int)}, list(leave), count * patches)


def _rest_at_once(rising: np.ndarray, starts: np.ndarray, ends: np.ndarray, own: float) -> tuple[np.ndarray, np.ndarray, float]:
    """The steps of a layer that ends at once: from where all that is left is worth less per cost than the next step alone.

    Args:
        rising: (gates,) scores of the layer, the smallest first.
        starts, ends: (steps,) of its steps; the last one ends with the last gate.
        own: what the layer costs by itself, in gates.

    Returns:
        Ends and starts of the steps that stay, of which the last takes all that is left, and what that is worth per cost.
    """
    below = np.concatenate([[0.0], np.cumsum(rising)])
    alone = (below[ends] - below[starts]) / (ends - starts)
    rest = (below[-1] - below[starts]) / (len(rising) - starts + own)
    last = int(np.argmax(np.append(alone[:-1] > rest[:-1], True)))
    return np.append(ends[:last], len(rising)), starts[: last + 1], float(rest[last])


def _assemble(
    layers: list[np.ndarray],
    values: list[np.ndarray],
    ranks: list[np.ndarray],
    *,
    removed: dict[str, list[np.ndarray]],
    groups: list[np.ndarray],
    total: int,
) -> Steps:
    """One order over all layers, and each gate's step in it from its step in its layer.

    Args:
        layers, values, ranks: per layer, of its steps: the layer's index, how much they lose, how far into the layer they are.
        removed: as in `Steps`, per layer.
        groups: per layer, in the shape of its gates: each gate's step within the layer.
        total: as in `Steps`.
    """
    order = _order(layers, values, ranks)
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    leave, start = [], 0
    for layer, group in zip(layers, groups, strict=True):
        mine = np.append(place[start : start + len(layer)], NEVER_REMOVED)
        leave.append(mine[np.minimum(group, len(layer))])
        start += len(layer)
    gone = {name: np.concatenate(per_layer)[order] for name, per_layer in removed.items()}
    return Steps(np.concatenate(layers)[order], gone, leave, total)


def _excess(size: int, multiple: int) -> int:
    """How many are removed first, so that all later sizes are multiples."""
    return size % multiple or multiple


def _rounded_up(size: float, multiple: int) -> int:
    """The smallest multiple that is at least `size`, but for rounding errors."""
    return int(-(-np.ceil(size - 1e-9) // multiple) * multiple)
