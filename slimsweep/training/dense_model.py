"""The dense model: built by timm, with a checkpoint's weights where one is given; what does not fit is refused."""

import difflib
import inspect
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from slimsweep.config import Config, ConfigError, did_you_mean
from slimsweep.slimming.weightless import weightless
from slimsweep.training.checkpoint_file import Stored, names_in_order, read_checkpoint
from slimsweep.training.fit_weights import Fitted, fit, heads_of
from slimsweep.training.label_order import also_called, are_numbers, imagenet_names, places_by_name, rows_by_name
from slimsweep.training.optimizer import check_optimizer

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Start:
    """How the weights to start from fit the data's classes.

    Attributes:
        new_head: why training starts from a fresh head; "" where the weights have one for these classes.
        rows: for each of the data's classes the row of the weights' head that is its own; None where the order is the same,
            or nothing is known about it.
        notes: what is done to the weights, in words.
    """

    new_head: str = ""
    rows: list[int] | None = None
    notes: tuple[str, ...] = ()


def build_dense(config: Config, num_classes: int, class_names: Sequence[str] | None = None) -> nn.Module:
    """The model that `config.model` names, with a head of `num_classes`, on the CPU.

    Its weights are timm's pretrained ones, or the checkpoint's, or drawn from torch's global generator. Where a checkpoint's
    head has other classes, a fresh head takes its place, with a warning. Where it has the same ones by name in another order,
    its rows are put into the data's. What else is done to the weights is said too.

    Args:
        config: the configuration.
        num_classes: of the data; 0 for a model without a head, which has the weights' embedding and leaves their head.
        class_names: of the data, in the order of its labels; None where they are not known.

    Raises:
        ConfigError: an unknown model, arguments or an image size that it does not take, weights that are missing or do not fit.
    """
    model = _create(config, num_classes, pretrained=config.model.pretrained)
    if (path := _path(config)) is None:
        start = _start_of_pretrained(config, model, num_classes, class_names)
    else:
        stored = read_checkpoint(path, "cpu")
        fitted = fit(model, stored, path)
        check_finite(fitted.state, path)
        start = _start_of_checkpoint(model, stored, fitted, path, class_names)
        drawn = {name: tensor.clone() for name, tensor in model.state_dict().items() if _of_head(name, model)}
        model.load_state_dict({**model.state_dict(), **fitted.state})
        if start.new_head:
            model.load_state_dict({**model.state_dict(), **drawn})
        _take_preprocessing(model, stored)
    if config.model.pretrained and path is None and start.new_head and _standard(model).get("num_classes") == num_classes:
        model.reset_classifier(num_classes)  # type: ignore[operator]  # timm kept the pretrained one
    if start.rows is not None:
        state = model.state_dict()
        model.load_state_dict({**state, **{name: state[name][start.rows] for name in state if _of_head(name, model)}})
    for note in start.notes:
        log.warning("%s", note)
    return model


def check_model(config: Config, num_classes: int | None = None) -> nn.Module:
    """The model that `build_dense` would build, on the meta device: all checks in little time, without weights or downloads.

    Of a checkpoint only names and shapes are read. The optimizers of all stages are checked too.

    Args:
        config: the configuration.
        num_classes: of the head, 0 for none; None takes data.num_classes, or 10, for the checks do not depend on it.

    Raises:
        ConfigError: as `build_dense`; an optimizer that timm does not have, or that takes other betas.
    """
    for stage in ("dense", "search", "retrain"):
        check_optimizer(getattr(config, stage), stage)
    model = _on_meta(config, num_classes)
    if config.model.pretrained and not any(_standard(model).get(k) for k in ("url", "file", "hf_hub_id", "state_dict")):
        raise ConfigError(
            f"model.pretrained is set, but timm has no weights for {config.model.name}: leave it out, or give model.checkpoint"
        )
    if (path := _path(config)) is not None:
        stored, _ = _fit_on_meta(model, path)
        _take_preprocessing(model, stored)
    return model


def _on_meta(config: Config, num_classes: int | None) -> nn.Module:
    """The model without its weights, for checks."""
    with weightless():
        asked = config.data.num_classes if num_classes is None else num_classes
        return _create(config, 10 if asked is None else asked, pretrained=False)


def check_values(config: Config, num_classes: int | None = None) -> None:
    """Refuse a checkpoint whose weights are NaN or infinite; the whole file is read. Arguments are those of `check_model`.

    Raises:
        ConfigError: names the first such tensor; or as `check_model`.
    """
    if (path := _path(config)) is None:
        return
    check_finite(fit(_on_meta(config, num_classes), read_checkpoint(path, "cpu"), path).state, path)


def start_of(config: Config, num_classes: int, class_names: Sequence[str] | None = None) -> Start:
    """How the weights to start from fit the data's classes; arguments are those of `build_dense`.

    Raises:
        ConfigError: as `check_model`.
    """
    with weightless():
        model = _create(config, num_classes, pretrained=False)
    if (path := _path(config)) is not None:
        return _start_of_checkpoint(model, *_fit_on_meta(model, path), path, class_names)
    return _start_of_pretrained(config, model, num_classes, class_names)


def _path(config: Config) -> Path | None:
    return None if config.model.checkpoint is None else Path(config.model.checkpoint).expanduser()


def _fit_on_meta(model: nn.Module, path: Path) -> tuple[Stored, Fitted]:
    """A checkpoint, fitted to a model on the meta device: by names and shapes, or where that fails by its values."""
    stored = read_checkpoint(path, "meta")
    try:
        return stored, fit(model, stored, path)
    except ConfigError:  # some of timm's filters compute with the values
        stored = read_checkpoint(path, "cpu")
        return stored, fit(model, stored, path)


def _start_of_checkpoint(
    model: nn.Module, stored: Stored, fitted: Fitted, path: Path, class_names: Sequence[str] | None
) -> Start:
    notes = (f"model.checkpoint {path}: {'; '.join(fitted.notes)}",) if fitted.notes else ()
    classes = int(getattr(model, "num_classes", 0))
    if not classes:  # a backbone: the file's head is left
        return Start(notes=notes)
    if fitted.fresh:
        said = f"the head of {path} is not one for {classes} classes: training starts from a new head"
        return Start(new_head=f"have no head for the {classes} classes", notes=(*notes, said))
    start = order_of_rows(stored.class_names, class_names, classes, f"model.checkpoint {path}", notes)
    if start.new_head:
        said = f"the head of {path} is for other classes than the data's: training starts from a new head"
        return Start(new_head=start.new_head, notes=(*notes, said))
    return start


def order_of_rows(
    names: Sequence[str] | None, class_names: Sequence[str] | None, classes: int, weights: str, notes: tuple[str, ...] = ()
) -> Start:
    """How the rows of a head of as many classes as the data have to be put into the data's order, by the classes' names.

    Args:
        names: of the head's rows; None where they are not known.
        class_names: of the data, in the order of its labels; None where they are not known.
        weights: what a note calls the head's weights.
        notes: what is already said of them.
    """
    if not names or not class_names or len(names) != classes or (are_numbers(names) and not are_numbers(class_names)):
        return Start(notes=notes)  # nothing is known of the order
    rows = rows_by_name(class_names, also_called(names))
    if rows is None:
        return Start(new_head=f"are for other classes ({_difference(names, class_names)}) than the {classes}", notes=notes)
    return _in_order(rows, weights, notes)


def _start_of_pretrained(config: Config, model: nn.Module, num_classes: int, class_names: Sequence[str] | None) -> Start:
    usual = _standard(model)
    if num_classes and (not config.model.pretrained or usual.get("num_classes") != num_classes):
        return Start(new_head=f"have no head for the {num_classes} classes")
    own = names_in_order(usual.get("label_names"))
    known: Sequence[Sequence[str]] | None = also_called(own) if own else imagenet_names(num_classes)
    if not class_names or known is None or len(known) != num_classes:
        return Start()
    rows = rows_by_name(class_names, known)
    if rows is not None:
        return _in_order(rows, f"the pretrained weights of {config.model.name}", ())
    matched, in_place = places_by_name(class_names, known)
    if matched >= num_classes / 2:  # a few are spelled in other ways
        if in_place > matched / 2:
            return Start()
        reason = "have a head whose classes come in another order than"
        said = f"the pretrained head of {config.model.name} has its classes in another order, and not all are known by name"
        return Start(new_head=f"{reason} the {num_classes} classes", notes=(f"{said}: training starts from a new head",))
    said = (
        f"the classes of the data are not those of the pretrained head of {config.model.name} by name "
        f"({_difference([names[0] for names in known], class_names)}): its rows are taken in their order"
    )
    return Start(notes=(said,))


def _in_order(rows: list[int], weights: str, notes: tuple[str, ...]) -> Start:
    if rows == list(range(len(rows))):
        return Start(notes=notes)
    said = f"{weights}: the head's rows are put into the order of the data's classes, by their names"
    return Start(rows=rows, notes=(*notes, said))


def _difference(known: Sequence[str], wanted: Sequence[str]) -> str:
    """Names that only one of two lists has, at most two of each."""
    first, second = ([n for n in one if n not in set(other)] for one, other in ((known, wanted), (wanted, known)))
    parts = [
        f"only {who} {', '.join(map(repr, names[:2]))}" for who, names in (("it has", first), ("data has", second)) if names
    ]
    return "; ".join(parts) or "in another number"


def _of_head(name: str, model: nn.Module) -> bool:
    return any(name.startswith(f"{head}.") for head in heads_of(model))


def check_finite(state: Mapping[str, torch.Tensor], path: Path, field: str = "model.checkpoint") -> None:
    """Refuse weights that are NaN or infinite: nothing could be trained from them.

    Args:
        field: what names the path, for messages.

    Raises:
        ConfigError: names the first such tensor.
    """
    broken = next((k for k, v in state.items() if v.is_floating_point() and not bool(torch.isfinite(v).all())), None)
    if broken is not None:
        raise ConfigError(
            f"{field} {str(path)!r} has values in {broken} that are not finite: the training that made it went wrong, "
            "give an earlier checkpoint"
        )


def _take_preprocessing(model: nn.Module, stored: Stored) -> None:
    """Let the model say how the images of its weights were prepared, as it does of timm's own weights."""
    if stored.preprocessing:
        cfg: Any = model
        cfg.pretrained_cfg = {**_standard(model), **stored.preprocessing}
        cfg.default_cfg = cfg.pretrained_cfg


def _standard(model: nn.Module) -> Mapping[str, Any]:
    """timm's pretrained_cfg of a model: its usual weights, images and head."""
    return getattr(model, "pretrained_cfg", None) or {}


def _create(config: Config, num_classes: int, pretrained: bool) -> nn.Module:
    name, arguments = config.model.name, dict(config.model.kwargs)
    if ":" not in name:  # hf-hub:... and local-dir:... are not in the registry
        _known(name)
    side = config.data.image_size
    if side is not None and arguments.setdefault("img_size", side) not in (side, [side, side], (side, side)):
        raise ConfigError(
            f"data.image_size is {side}, but model.kwargs has img_size {arguments['img_size']}: leave one of them out"
        )
    try:
        model = timm.create_model(name, pretrained=pretrained, num_classes=num_classes, **arguments)
    except TypeError as problem:
        raise ConfigError(_wrong_argument(name, arguments, str(problem))) from problem
    except Exception as problem:  # timm, torch and download libraries raise whatever they like
        said = str(problem).strip().splitlines()[0] if str(problem).strip() else type(problem).__name__
        way_out = "check model.kwargs"
        if pretrained:
            way_out += ", and whether this machine can download from the Hugging Face hub; model.checkpoint takes a local file"
        raise ConfigError(f"model {name!r} cannot be built with model.kwargs {arguments} ({said}): {way_out}") from problem
    _check_patches(model, name)
    return model


def _known(name: str) -> None:
    base, _, tag = name.partition(".")
    if timm.is_model(base):
        tags = [n.partition(".")[2] for n in timm.list_pretrained(f"{base}.*")]
        if tag and tag not in tags:
            way_out = did_you_mean(tag, tags, f"it has {', '.join(tags)}" if tags else "leave the tag out")
            raise ConfigError(f"model.name is {name!r}, but timm has no weights of that tag; {way_out}")
        return
    models = timm.list_models()
    near = [n for n in models if name and n.startswith(name)][:3] or difflib.get_close_matches(name, models, n=3, cutoff=0.7)
    way_out = f"did you mean {' or '.join(near)}?" if near else "timm.list_models() lists all, such as deit_small_patch16_224"
    raise ConfigError(f"model.name is {name!r}, which timm does not have; {way_out}")


def _wrong_argument(name: str, arguments: Mapping[str, Any], said: str) -> str:
    found = re.search(r"unexpected keyword argument '(\w+)'", said)
    if found is None:
        return f"model {name!r} cannot be built with model.kwargs {dict(arguments)} ({said}): check their types"
    wrong = found.group(1)
    with weightless():
        plain = timm.create_model(name)
    takes = [p for p in inspect.signature(type(plain).__init__).parameters if p != "self"]
    if wrong == "img_size":
        return f"model {name!r} takes images of any size, not img_size: leave data.image_size and model.kwargs.img_size out"
    way_out = did_you_mean(wrong, takes, f"it takes {', '.join(takes)}")
    return f"model.kwargs has {wrong!r}, which {name} does not take; {way_out}"


def _check_patches(model: nn.Module, name: str) -> None:
    embed = getattr(model, "patch_embed", None)
    size, patch = getattr(embed, "img_size", None), getattr(embed, "patch_size", None)
    if size is None or patch is None or getattr(embed, "dynamic_img_pad", False):
        return
    if any(s % p for s, p in zip(size, patch, strict=True)):
        nearest = " x ".join(str(max(1, round(s / p)) * p) for s, p in zip(size, patch, strict=True))
        raise ConfigError(
            f"the image size {size[0]} x {size[1]} does not divide by the patches of {name}, {patch[0]} x {patch[1]}: "
            f"set model.kwargs.img_size to {nearest}, or another patch_size"
        )
