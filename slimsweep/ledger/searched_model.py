"""The searched model: saved after the search with its weights and gates, and loaded for the points that are cut from it."""

from collections.abc import Mapping, Sequence

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from slimsweep.ledger.files import DENSE, MODEL_CONFIG, MODEL_WEIGHTS, SEARCH_GATES, SEARCH_MODEL, SEARCH_SHAPE
from slimsweep.ledger.run import Run
from slimsweep.saved_models import load
from slimsweep.slimming.gates import GatedModel, add_gates
from slimsweep.training.backbone import families_to_cut


def save_searched(
    run: Run, gated: GatedModel, axes_seconds: float, scores: Mapping[str, Sequence[Tensor]] | None = None
) -> None:
    """Write the gates and weights of a searched model to the run's folder.

    Args:
        axes_seconds: that its principal axes took before the search; 0 where there were none.
        scores: what gates are ranked by, in their shapes; None for the gates themselves.
    """
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in learned(gated).items()}
    run.write_search(gated.shape, gated.gates, scores, save_tensors(weights), axes_seconds)


def load_searched(run: Run, dense: nn.Module) -> GatedModel:
    """The searched model with its gates.

    Args:
        dense: the run's dense model; it is not changed.

    Raises:
        FileNotFoundError: the search has not ended.
    """
    settings = run.config.search
    gated = add_gates(dense, settings.granularity, families_to_cut(run.config, dense), settings.token_gate)
    state = load_tensors(run.search_weights())
    with torch.no_grad():
        for name, tensor in learned(gated).items():
            tensor.copy_(state[name])
    return gated


def restore_search(run: Run) -> None:
    """Write the search's gates and sizes again where their files are damaged, from the searched model, which holds the gates.

    Does nothing where the dense or the searched model is damaged too, and where gates were ranked by scores, which it does not
    hold (search.rank).
    """
    sources = (f"{DENSE}/{MODEL_CONFIG}", f"{DENSE}/{MODEL_WEIGHTS}", SEARCH_MODEL)
    if any(path in run.damaged for path in sources) or not {SEARCH_SHAPE, SEARCH_GATES} & run.damaged.keys():
        return
    gated = load_searched(run, load(run.dense))
    restored = [SEARCH_SHAPE]
    if run.config.search.ranked_by == "gates":
        save_searched(run, gated, axes_seconds=0.0)
        restored.append(SEARCH_GATES)
    else:
        run.write_shape(gated.shape, axes_seconds=0.0)
    for path in restored:
        run.damaged.pop(path, None)


def learned(gated: GatedModel) -> dict[str, Tensor]:
    """The tensors that a search changes: parameters, gates, and running statistics of norms in the stem.

    Each gate is listed once, while the state dict has it under each weight that it multiplies. The annealing of token gates
    (`token_bias.power`) is left out: it matters only during the search.
    """
    kept = {name for name in gated.state_dict() if not name.endswith("token_bias.power")}
    return dict(gated.named_parameters()) | {name: b for name, b in gated.named_buffers() if name in kept}
