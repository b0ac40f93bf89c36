"""The searched model: saved with its gates as the search left it, and put together again for the points cut from it."""

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from slimsweep.ledger.run import Run
from slimsweep.slimming.gates import GatedModel, add_gates


def save_searched(run: Run, gated: GatedModel) -> None:
    """Write what a search has learned to the run's folder."""
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in learned(gated).items()}
    run.write_search(gated.shape, gated.gates, save_tensors(weights))


def load_searched(run: Run, dense: nn.Module) -> GatedModel:
    """The searched model with its gates.

    Args:
        dense: the run's dense model, left alone.
    """
    settings = run.config.search
    gated = add_gates(dense, settings.granularity, settings.families, settings.token_gate)
    state = load_tensors(run.search_weights())
    with torch.no_grad():
        for name, tensor in learned(gated).items():
            tensor.copy_(state[name])
    return gated


def learned(gated: GatedModel) -> dict[str, Tensor]:
    """What a search changes in a gated model: parameters, and running statistics where its stem has some.

    A gate, which the state dict holds under the names of all that it multiplies, is here once; how far token gates are
    annealed, which is the search's alone, not at all.
    """
    kept = {name for name in gated.state_dict() if not name.endswith("token_bias.power")}
    return dict(gated.named_parameters()) | {name: b for name, b in gated.named_buffers() if name in kept}
