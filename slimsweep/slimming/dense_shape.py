"""What a dense timm model is made of, and what it can lose: the `Shape` that gates, structures and costs are counted on."""

from dataclasses import replace

from torch import nn

from slimsweep.slimming.architectures import HEAD_COLUMNS, MLP_ROWS, Timm, architecture_of, attention_rows, tensor_at
from slimsweep.slimming.gate_families import GATE_FAMILIES
from slimsweep.slimming.shape import Layer, Shape
from slimsweep.slimming.structure import Structure, macs, params


def refused_families(model: Timm) -> dict[str, str]:
    """The gate families that this model cannot lose exactly, and why."""
    architecture = architecture_of(model)
    reasons = {name: family.refusal(model, architecture) for name, family in GATE_FAMILIES.items()}
    return {name: reason for name, reason in reasons.items() if reason}


def whole_heads_reason(model: Timm) -> str:
    """Why attention can only lose whole heads; "" where single dims can leave."""
    architecture = architecture_of(model)
    if any(not isinstance(getattr(b.attn, "q_norm", nn.Identity()), nn.Identity) for b in architecture.blocks(model)):
        return "norms of queries and keys share statistics over the dims of a head"
    return architecture.whole_heads


def shape_of(model: Timm, granularity: str, families: tuple[str, ...]) -> Shape:
    """The sizes of a dense model whose `families` carry gates of `granularity`, and its costs.

    Args:
        model: a timm model that can be cut; its weights are not looked at, so it may be on the meta device.
        granularity: of attention gates: "dim", "head" or "uniform".
        families: the gate families.

    Raises:
        ValueError: the model is of a kind that cannot be cut exactly.
    """
    architecture = architecture_of(model)
    blocks = architecture.blocks(model)
    names = {block: name for name, block in model.named_modules()}
    layers = tuple(_layer(names[block], block, architecture.tokens(model, block)) for block in blocks)
    pools_patches = not architecture.no_tokens and not (
        model.num_prefix_tokens and getattr(model, "global_pool", "") == "token"
    )
    grid = model.patch_embed.grid_size
    # What the gates cannot change is the rest of what is counted; so stems, merging layers and heads need no formula.
    draft = Shape(
        layers=layers,
        grid=(grid[0], grid[1]),
        gate_shapes={
            name: tuple(family.gate_shape(layer, granularity) for layer in layers)
            for name, family in GATE_FAMILIES.items()
            if name in families
        },
        fixed_macs=0,
        fixed_params=0,
        pool_macs_per_token=_pool_macs_per_token(model),
        least_tokens=int(pools_patches),
    )
    gated = Structure(draft, {})
    return replace(draft, fixed_macs=macs(model) - gated.macs(), fixed_params=params(model) - gated.params())


def _layer(name: str, block: Timm, tokens: tuple[int, int, int, int]) -> Layer:
    """One block's sizes and what a unit of each kind costs."""
    patches, prefix, window, padded = tokens
    attention, mlp = block.attn, block.mlp
    inner, hidden = attention.proj.in_features, mlp.fc2.in_features  # all heads' dims; MLP units
    rows = attention_rows(attention)
    trained = [t.numel() for t in (tensor_at(attention, row) for row in rows) if isinstance(t, nn.Parameter)]
    mlp_params = mlp.fc2.weight.numel() + _size(*(getattr(mlp, row) for row in MLP_ROWS[type(mlp)]))
    tables = [table.numel() for table in (tensor_at(attention, column) for column in HEAD_COLUMNS) if table is not None]
    return Layer(
        name=name,
        embed_dim=attention.proj.out_features,
        heads=attention.num_heads,
        head_dim=inner // attention.num_heads,
        hidden=hidden,
        tokens=patches,
        prefix=prefix,
        window=window,
        attention_rows=padded,
        attention_matrices=1 + sum(stacks for row, stacks in rows.items() if row.endswith(".weight")),
        mlp_matrices=1 + sum(MLP_ROWS[type(mlp)].values()),
        attention_params_per_dim=(sum(trained) + attention.proj.weight.numel()) // inner,
        attention_params_per_head=sum(tables) // attention.num_heads,
        attention_params_fixed=_size(block.norm1, *(getattr(attention, norm, None) for norm in ("q_norm", "k_norm"))),
        mlp_params_per_unit=mlp_params // hidden,
        mlp_params_fixed=_size(block.norm2),
    )


def _pool_macs_per_token(model: Timm) -> int:
    """What pooling by attention with latent queries costs per token: keys and values, and the products with the queries."""
    pool: Timm = getattr(model, "attn_pool", None)
    if not hasattr(pool, "kv"):
        return 0
    return int(2 * pool.kv.in_features * (pool.kv.out_features // 2 + pool.latent_len))


def _size(*modules: nn.Module | None) -> int:
    """Parameters of some modules."""
    return sum(p.numel() for module in modules if module is not None for p in module.parameters())
