"""What the person says: one typed configuration, from a YAML file, the environment and the command line, in that order.

    SLIMSWEEP_SEARCH__EPOCHS=30 python -m slimsweep.run --config sweep.yaml --budgets 0.3,0.5,2.3G --search.lr 1e-3

Light to import (no torch), so that a wrong key is refused at once.
"""

import argparse
import difflib
import hashlib
import itertools
import json
import math
import os
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, Self, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsConfigDict

from slimsweep.storage import joined

Stage = Literal["dense", "search", "retrain"]
Family = Literal["attention", "mlp", "token"]
Baseline = Literal["uniform", "random", "taylor", "scratch", "small", "torch-pruning"]
Terms = Literal["retraining", "compute"]
T = TypeVar("T")

ENV_PREFIX = "SLIMSWEEP_"
UNITS = {"K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


class ConfigError(ValueError):
    """Something the person said cannot work; the text is one sentence that names it and says what to do."""


def did_you_mean(word: str, known: Sequence[str], otherwise: str = "") -> str:
    """'did you mean X?' with the nearest known words, or `otherwise` where none is near."""
    near = difflib.get_close_matches(word, known, n=3, cutoff=0.6)
    return f"did you mean {' or '.join(near)}?" if near else otherwise


class Section(BaseModel):
    """Keyword-only, frozen, no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    @field_validator("*", mode="before")
    @classmethod
    def _from_text(cls, value: Any, info: ValidationInfo) -> Any:
        """Environment and command line give text: 'null' is None, lists and mappings may be JSON, lists also commas."""
        annotation = cls.model_fields[str(info.field_name)].annotation
        kinds = _kinds(annotation)
        if value is False and "off" in _choices(annotation):
            return "off"  # YAML reads an unquoted off as false
        if isinstance(value, bool) and bool not in kinds and Any not in kinds:
            raise ValueError(f"must not be {str(value).lower()}")  # pydantic would read true as 1
        if not isinstance(value, str):
            return value
        if type(None) in kinds and value.lower() in ("null", "none", ""):
            return None
        if kinds & {list, tuple, dict} or any(isinstance(k, type) and issubclass(k, BaseModel) for k in kinds):
            if value.lstrip().startswith(("[", "{")):
                try:
                    return json.loads(value)
                except json.JSONDecodeError as problem:
                    raise ValueError(f"must be JSON, which this is not ({problem})") from problem
            if kinds & {list, tuple}:
                return [part.strip() for part in value.split(",") if part.strip()]
        return value


class Affine(Section):
    """Random affine warp, bilinear, black outside the image."""

    degrees: float = Field(0.0, ge=0, le=180)
    """Rotation, drawn between minus and plus this many degrees."""
    translate: float = Field(0.0, ge=0, le=1)
    """Shift, as a share of the image's side, in both directions."""
    scale: tuple[float, float] | None = None
    """Zoom, drawn between these two, such as 0.9,1.1."""
    shear: float = Field(0.0, ge=0, lt=90)
    """Shear along x, drawn between minus and plus this many degrees."""

    @field_validator("scale")
    @classmethod
    def _ordered(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        return _range(value)


class Augment(Section):
    """What happens to training images; the defaults suit photographs (random crops and mirrored images)."""

    scale: tuple[float, float] | None = (0.08, 1.0)
    """Share of the image that a random crop covers; null for no random crop."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Aspect ratio of a random crop."""
    hflip: float = Field(0.5, ge=0, le=1)
    """Probability of mirroring left and right: 0 for digits and letters."""
    vflip: float = Field(0.0, ge=0, le=1)
    """Probability of mirroring top and bottom."""
    color_jitter: float = Field(0.0, ge=0)
    """Strength of random brightness, contrast and saturation; off where auto_augment is on."""
    auto_augment: str | None = None
    """timm's text, such as rand-m9-mstd0.5-inc1."""
    reprob: float = Field(0.0, ge=0, le=1)
    """Probability of random erasing."""
    remode: Literal["const", "rand", "pixel"] = "pixel"
    """What erased areas are filled with."""
    recount: int = Field(1, ge=1)
    """Areas erased in an image, at most."""
    mixup: float = Field(0.0, ge=0)
    """Mixup's alpha; 0 is off."""
    cutmix: float = Field(0.0, ge=0)
    """CutMix's alpha; 0 is off."""
    mixup_prob: float = Field(1.0, ge=0, le=1)
    """Probability of mixing a batch at all."""
    mixup_switch_prob: float = Field(0.5, ge=0, le=1)
    """Probability of CutMix where both are on."""
    affine: Affine | None = None
    """Random rotation, shift, zoom and shear."""
    repeated: int = Field(1, ge=1)
    """Times that an image comes in a batch, augmented anew each time (DeiT used 3); an epoch stays as long."""

    @field_validator("scale", "ratio")
    @classmethod
    def _ordered(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        return _range(value)

    @field_validator("auto_augment")
    @classmethod
    def _known_policy(cls, value: str | None) -> str | None:
        if value is not None and value.split("-")[0] not in ("rand", "augmix", "original", "originalr", "v0", "v0r", "3a"):
            raise ValueError("must be a policy of timm, such as rand-m9-mstd0.5-inc1, augmix-m5-w4, 3a, or null")
        return value

    @property
    def mixes(self) -> bool:
        """Whether batches are mixed (Mixup or CutMix), which takes an even number of images."""
        return self.mixup_prob > 0 and (self.mixup > 0 or self.cutmix > 0)


class DataConfig(Section):
    """The images."""

    name: str = "digits"
    """digits, a data set of timm (folder, torch/NAME, hfds/NAME, hfids/NAME, wds/NAME), or package.module:function."""
    root: str | None = None
    """Where the data set lies."""
    train_split: str = "train"
    """Name of the training split."""
    val_split: str | None = None
    """Name of the validation split, from which all choices are made; null takes that of an image folder which has a test
    split too, and else val_share of the training images."""
    val_share: float = Field(0.1, gt=0, lt=1)
    """Share of the training images kept for validation: the same ones in every run."""
    test_split: str | None = None
    """Name of the split that is read once, at the end of each point; null takes test of an image folder that has it, of
    torch/NAME, and where val_split is named; else validation."""
    num_classes: int | None = Field(None, ge=2)
    """Classes; null finds out."""
    batch_size: int = Field(256, ge=1)
    """Images a step over all workers together: results do not change with the number of workers."""
    eval_batch_size: int | None = Field(None, ge=1)
    """Images that one worker evaluates at once; null takes a training step's."""
    workers: int = Field(0, ge=0)
    """Loading processes of each training worker; 0 loads in the worker itself."""
    limit: int | None = Field(None, ge=1)
    """Images a split, at most: for trials."""
    max_damaged: int = Field(0, ge=0)
    """Images a split that may be unreadable: each is named in a warning and skipped, one more stops the run. They are
    counted over all epochs and workers of a training, and none is allowed where nobody says so, as a gap changes what
    is measured."""
    image_size: int | None = Field(None, ge=1)
    """Side of the images in pixels; null takes the model's."""
    mean: tuple[float, ...] | None = None
    """Mean a channel, of values from 0 to 1; null takes the model's."""
    std: tuple[float, ...] | None = None
    """Standard deviation a channel; null takes the model's."""
    interpolation: Literal["bilinear", "bicubic", "nearest"] | None = None
    """How images are resized; null takes the model's way."""
    crop_pct: float | None = Field(None, gt=0, le=1)
    """Share of the side that evaluation looks at; null takes the model's, or all where the size is not the model's own."""
    augment: Augment = Augment()
    """What happens to training images."""

    @field_validator("std")
    @classmethod
    def _positive(cls, value: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if value is not None and min(value, default=0.0) <= 0:
            raise ValueError("must be numbers above 0, one a channel")
        return value

    @model_validator(mode="after")
    def _channels_agree(self) -> Self:
        if self.mean is not None and self.std is not None and len(self.mean) != len(self.std):
            raise ValueError(
                f"data.mean has {len(self.mean)} channels and data.std has {len(self.std)}: give both one number a channel"
            )
        return self


class ModelConfig(Section):
    """The dense model, from timm."""

    name: str = "deit_small_patch16_224"
    """timm's name of a vision transformer."""
    pretrained: bool = False
    """Start from timm's pretrained weights (downloads them)."""
    checkpoint: str | None = None
    """Start from these weights: a .safetensors file, or a file of torch.save."""
    kwargs: dict[str, Any] = {}
    """Arguments of timm.create_model, such as {"img_size": 160}; --model.kwargs.depth 6 changes one of the file's."""

    @field_validator("kwargs")
    @classmethod
    def _own_keys(cls, value: dict[str, Any]) -> dict[str, Any]:
        taken = {
            "pretrained": "model.pretrained",
            "num_classes": "data.num_classes",
            "checkpoint_path": "model.checkpoint",
            "drop_path_rate": "dense.drop_path, search.drop_path and retrain.drop_path",
        }
        for key in value:
            if key in taken:
                raise ValueError(f"must not set {key}: say it in {taken[key]}")
        return value


class Recipe(Section):
    """One training."""

    epochs: int = Field(ge=1)
    """Passes over the training images."""
    lr: float = Field(5e-4, gt=0)
    """Highest learning rate of the weights, for the batch size as it is (no scaling behind your back)."""
    optimizer: str = "adamw"
    """timm's name of an optimizer."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the moments, for the optimizers of Adam's kind."""
    weight_decay: float = Field(0.05, ge=0)
    """Weight decay, on matrices only."""
    scheduler: Literal["cosine", "constant"] = "cosine"
    """How the learning rate goes on after the warm-up."""
    warmup_epochs: int = Field(0, ge=0)
    """Epochs over which the learning rate rises."""
    min_lr: float = Field(1e-6, ge=0)
    """Where the warm-up starts and the cosine ends."""
    label_smoothing: float = Field(0.1, ge=0, lt=1)
    """Share of each label that goes to all classes."""
    drop_path: float = Field(0.0, ge=0, lt=1)
    """Probability of skipping a branch of the last layer; earlier layers less."""
    ema_decay: float | None = Field(None, gt=0, lt=1)
    """Decay of a moving average of the weights, which is then what is evaluated and kept; null is off."""
    clip_grad: float | None = Field(None, gt=0)
    """Largest norm of the gradient; null is off."""
    accumulate: int = Field(1, ge=1)
    """Parts in which a batch is computed one after another, to save memory; the batch stays data.batch_size."""
    amp: Literal["off", "bf16"] = "off"
    """Mixed precision."""
    compile: bool = False
    """torch.compile."""
    grad_checkpointing: bool = False
    """Recompute activations in the backward pass, to save memory."""

    @field_validator("betas")
    @classmethod
    def _decays(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in value):
            raise ValueError("must be two numbers from 0 to below 1, such as 0.9,0.999")
        return value


class Dense(Recipe):
    """Training of the dense model, before anything is cut."""

    epochs: int = Field(300, ge=0)
    """Passes over the training images; 0, the default where there are pretrained weights, takes those as they are."""
    warmup_epochs: int = Field(0, ge=0)
    """Epochs over which the learning rate rises."""


class Distill(Section):
    """Learning from the dense model's answers."""

    alpha: float = Field(0.0, ge=0, le=1)
    """Share of the loss that the dense model's answers make up; 0 is off."""
    temperature: float = Field(1.0, gt=0)
    """How soft the answers are made."""


class L1(Section):
    """Pressure on the gates of each family."""

    attention: float = Field(0.05, ge=0)
    """On attention dims."""
    mlp: float = Field(0.05, ge=0)
    """On MLP units."""
    token: float = Field(0.05, ge=0)
    """On tokens."""


class Floors(Section):
    """Share of the gates of each layer that never leaves."""

    attention: float = Field(0.1, ge=0, lt=1)
    """Of attention dims."""
    mlp: float = Field(0.1, ge=0, lt=1)
    """Of MLP units."""
    token: float = Field(0.1, ge=0, lt=1)
    """Of tokens."""


class Pace(Section):
    """How fast each family's gates leave: where the path keeps a share s, a family keeps s to the power of its pace."""

    attention: float = Field(1.0, gt=0, le=10)
    """Of attention dims."""
    mlp: float = Field(1.0, gt=0, le=10)
    """Of MLP units."""
    token: float = Field(1.0, gt=0, le=10)
    """Of tokens."""


class Search(Recipe):
    """The one search, with learnable gates."""

    epochs: int = Field(50, ge=1)
    """Passes over the training images."""
    weight_decay: float = Field(1e-3, ge=0)
    """Weight decay, on matrices only; never on gates."""
    scheduler: Literal["cosine", "constant"] = "constant"
    """How the learning rate goes on after the warm-up."""
    gate_lr: float = Field(0.02, gt=0)
    """Learning rate of the gates."""
    gate_optimizer: Literal["proximal", "adam"] = "proximal"
    """How gates move: proximal steps (soft threshold), or Adam on the l1's gradient."""
    penalty: Literal["l1", "macs"] = "l1"
    """What a gate costs: the same for all of a family, or its multiply-accumulates."""
    l1: L1 = L1()
    """Pressure on the gates of each family."""
    granularity: Literal["dim", "head", "uniform"] = "dim"
    """One attention gate a head and dim, a head, or a dim of all heads."""
    families: list[Family] | None = None
    """What has gates: of attention, mlp and token those named; null is all that the model can lose exactly."""
    token_gate: Literal["linear", "tanh"] = "linear"
    """Token gates as they are, or as the tanh of a parameter."""
    token_anneal: float = Field(0.3, ge=0, le=1)
    """Last share of the search, over which kept token gates move to 1."""
    distill: Distill = Distill()
    """Learning from the dense model's answers."""
    floors: Floors = Floors()
    """Share of the gates of each layer that never leaves."""
    paces: list[Pace] = [
        Pace.model_construct(attention=1.0, mlp=mlp, token=token) for token in (1.0, 0.7, 0.5) for mlp in (1.0, 1.4)
    ]
    """How fast the families leave beside each other; of several, what is best on validation after a short retraining at the
    smallest budget holds for all budgets."""
    recovery: int = Field(1, ge=1)
    """Epochs of that short retraining."""
    round_to: int | None = Field(None, ge=1)
    """Sizes of heads and MLPs, and tokens with the class token, are multiples of this; null takes 16 where heads are 64 wide
    or more, for speed, and 1 below."""

    @field_validator("paces")
    @classmethod
    def _proposals(cls, value: list[Pace]) -> list[Pace]:
        if not value:
            raise ValueError('must hold at least one pace, such as [{"mlp": 1.4, "token": 0.7}]; [{}] lets all leave alike')
        return _once(value)

    @field_validator("families")
    @classmethod
    def _some(cls, value: list[str] | None) -> list[str] | None:
        if value is None:
            return None
        if not value:
            raise ValueError("must name at least one of attention, mlp, token, or be null for all")
        return _once(value)


class Retrain(Recipe):
    """Training of each point after the cut, and of the dense model for comparison."""

    epochs: int = Field(300, ge=1)
    """Passes over the training images."""
    lr: float | list[float] = 5e-4  # type: ignore[assignment]  # one rate in what `at` returns, which is what trains
    """Highest learning rate, as it is for the batch size; of a list, the best on validation for each method and budget."""
    seeds: list[int] = [0]
    """Seeds of the retraining, a point each: a list, or how many (3 is 0,1,2)."""
    start: Literal["search", "larger"] = "search"
    """What a searched point starts from: the search's weights, or the trained model of the next larger budget, which it waits
    for; the largest budget's then starts from the dense point's. The structures of all budgets are cut from one another."""
    distill: Distill = Distill()
    """Learning from the dense model's answers."""
    workers_per_trial: int = Field(1, ge=1)
    """Workers that train one point together."""

    @field_validator("lr")
    @classmethod
    def _rates(cls, value: float | list[float]) -> float | list[float]:
        rates = value if isinstance(value, list) else [value]
        if not rates or min(rates) <= 0:
            raise ValueError("must be a rate above 0, such as 5e-4, or a list of some, such as [5e-4, 1e-3]")
        return _once(rates) if len(rates) > 1 else rates[0]

    @property
    def rates(self) -> list[float]:
        """The learning rates to try, as they were given; one where there is no choice."""
        return self.lr if isinstance(self.lr, list) else [self.lr]

    def at(self, lr: float, epochs: int) -> "Retrain":
        """The recipe with one learning rate and a number of epochs."""
        return self.model_copy(update={"lr": lr, "epochs": epochs})

    @field_validator("seeds", mode="before")
    @classmethod
    def _count(cls, value: Any) -> Any:
        if isinstance(value, str) and re.fullmatch(r"\d+", value):
            value = int(value)
        if isinstance(value, int) and not isinstance(value, bool):
            if value < 1:
                raise ValueError("must be at least one seed, such as 1 or [0]")
            return list(range(value))
        return value

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, value: list[int]) -> list[int]:
        if not value or min(value) < 0 or max(value) >= 2**32:
            raise ValueError("must be at least one seed, each from 0 to below 2**32, such as [0, 1, 2]")
        return _once(value)


class Resources(Section):
    """What of the cluster is used."""

    search_workers: int = Field(1, ge=1)
    """Workers that train the dense model and search together."""
    cpus_per_worker: float = Field(1.0, gt=0)
    """CPUs of each worker, in the search and in the sweep."""
    gpus_per_worker: float = Field(0.0, ge=0)
    """GPUs of each worker; a fraction lets workers share one."""
    max_concurrent_trials: int | None = Field(None, ge=1)
    """Points that train at the same time, at most; null fills the cluster."""
    max_workers: int | None = Field(None, ge=1)
    """Workers of this size that an autoscaling cluster may grow to hold; null is what its nodes hold at the start."""
    max_hours: float | None = Field(None, gt=0)
    """Hours after which the run ends with what it has, at the end of the epoch; the same command goes on. null is no limit."""
    max_failures: int = Field(2, ge=0)
    """Times that a lost worker or trial is started again."""

    @field_validator("gpus_per_worker")
    @classmethod
    def _whole_above_one(cls, value: float) -> float:
        if value > 1 and not value.is_integer():
            raise ValueError("must be a fraction of one GPU or a whole number of GPUs")
        return value


class Config(Section):
    """Everything that a sweep does.

    Raises:
        ConfigError: a value that cannot work; the text is one sentence.
    """

    name: str = "sweep"
    """Name of the run: its folder is output/name."""
    output: str = "runs"
    """Where run folders lie: a local path, s3://..., gs://... or hdfs://..."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Seed of dense training and search."""
    budgets: list[float | str] = [0.7, 0.5, 0.35]
    """MACs that are allowed: fractions of the dense model's, or absolute such as 2.3G or 350M; may be [] beside shares."""
    shares: list[dict[Family, float]] = []
    """Points that keep shares of each family's gates, whatever MACs that leaves: [{"attention": 0.7, "mlp": 0.7}]."""
    model: ModelConfig = ModelConfig()
    """The dense model, from timm; a list of models searches each and shows one frontier over all."""
    data: DataConfig = DataConfig()
    """The images."""
    dense: Dense = Dense()
    """Training of the dense model, before anything is cut."""
    search: Search = Search()
    """The one search, with learnable gates."""
    retrain: Retrain = Retrain()
    """Training of each point after the cut, and of the dense model for comparison."""
    baselines: list[Baseline] = []
    """Other ways to reach the same budgets, to compare with, cut and retrained alike."""
    baseline_terms: list[Terms] = ["retraining"]
    """Retrain them as long as searched points, or longer by the search's compute, spread over the budgets; or both."""
    resources: Resources = Resources()
    """What of the cluster is used."""

    def __init__(self, **data: Any) -> None:
        try:
            super().__init__(**data)
        except ValidationError as problem:
            raise ConfigError(_sentence(problem, {})) from problem

    @field_validator("name")
    @classmethod
    def _folder_name(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", value):
            raise ValueError(
                "must be a folder's name: letters, digits, '.', '_' and '-', up to 100; the folder above it is `output`"
            )
        return value

    @field_validator("output")
    @classmethod
    def _somewhere(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("must be a folder, such as runs or s3://bucket/sweeps")
        return value

    @field_validator("budgets", mode="before")
    @classmethod
    def _one_budget(cls, value: Any) -> Any:
        return [value] if isinstance(value, (int, float)) else value

    @field_validator("budgets")
    @classmethod
    def _budgets(cls, value: list[float | str]) -> list[float | str]:
        return _once([_budget(v) for v in value], key=_amount)

    @field_validator("shares", mode="before")
    @classmethod
    def _one_point(cls, value: Any) -> Any:
        points = _from_json(value)
        points = [points] if isinstance(points, Mapping) else points
        if not isinstance(points, list) or not all(isinstance(point, Mapping) for point in points):
            raise ValueError('must be points with the share that each family keeps, such as [{"attention": 0.7, "mlp": 0.7}]')
        return points

    @field_validator("shares")
    @classmethod
    def _shares(cls, value: list[dict[Family, float]]) -> list[dict[Family, float]]:
        for point in value:
            for family, share in point.items():
                if not 0 < share <= 1:
                    raise ValueError(f"must keep a share of {family} gates above 0 and at most 1, not {share:g}")
            if all(share == 1 for share in point.values()):
                raise ValueError(f'must name a family that loses gates, such as {{"mlp": 0.7}}, and {point} names none')
        # A family of which all is kept is as one that is not named.
        return _once(value, key=lambda point: frozenset((f, share) for f, share in point.items() if share < 1))

    @field_validator("baselines")
    @classmethod
    def _each_once(cls, value: list[str]) -> list[str]:
        return _once(value)

    @field_validator("baseline_terms")
    @classmethod
    def _some_terms(cls, value: list[str]) -> list[str]:
        if not value:
            raise ValueError("must name retraining, compute, or both")
        return _once(value)

    @model_validator(mode="before")
    @classmethod
    def _start_where_weights_are(cls, values: Any) -> Any:
        # Pretrained weights are the dense model unless the person asks to train them further.
        if isinstance(values, Mapping) and isinstance(model := values.get("model"), (Mapping, ModelConfig)):
            given = model if isinstance(model, Mapping) else model.model_dump()
            dense = values.get("dense") or {}
            starts = str(given.get("pretrained", False)).lower() in ("true", "1", "yes", "on") or given.get("checkpoint")
            if starts and isinstance(dense, Mapping) and "epochs" not in dense:
                return {**values, "dense": {**dense, "epochs": 0}}
        return values

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if not self.budgets and not self.shares:
            raise ValueError("budgets and shares are both empty: give at least one budget, such as [0.7, 0.5]")
        if self.dense.epochs == 0 and not (self.model.pretrained or self.model.checkpoint):
            raise ValueError(
                "dense.epochs is 0 without weights to start from: set model.pretrained, model.checkpoint or dense.epochs"
            )
        if self.search.ema_decay is not None:
            raise ValueError(f"search.ema_decay is {self.search.ema_decay:g}, but gates are not averaged: leave it out")
        for stage in ("dense", "search", "retrain"):
            recipe: Recipe = getattr(self, stage)
            if recipe.warmup_epochs and recipe.warmup_epochs >= recipe.epochs > 0:
                raise ValueError(
                    f"{stage}.warmup_epochs is {recipe.warmup_epochs}, not below {stage}.epochs, {recipe.epochs}: lower it"
                )
            lowest = min(recipe.rates) if isinstance(recipe, Retrain) else recipe.lr
            if recipe.min_lr > lowest:
                raise ValueError(f"{stage}.min_lr is {recipe.min_lr}, above {stage}.lr, which is {lowest}: lower it")
            parallel = "retrain.workers_per_trial" if stage == "retrain" else "resources.search_workers"
            workers = self.retrain.workers_per_trial if stage == "retrain" else self.resources.search_workers
            factors = {parallel: workers, f"{stage}.accumulate": recipe.accumulate}
            if self.data.augment.mixes:
                factors["2 for Mixup and CutMix, which take pairs"] = 2
            share = math.prod(factors.values())
            if self.data.batch_size % share:
                names = " x ".join(
                    f"{name} ({n})" if n != 2 or "Mixup" not in name else name for name, n in factors.items() if n > 1
                )
                near = max(1, round(self.data.batch_size / share)) * share
                raise ValueError(f"data.batch_size is {self.data.batch_size}, which does not divide by {names}: take {near}")
        return self

    @property
    def sorted_budgets(self) -> list[float | str]:
        """Fractions from large to small, then absolute budgets from large to small."""
        return sorted(self.budgets, key=lambda b: (isinstance(b, str), -_amount(b)))

    @property
    def frontier(self) -> int:
        """Searched points of one seed: one a budget, and one an entry of shares."""
        return len(self.budgets) + len(self.shares)

    def changed(self, **dotted: Any) -> "Config":
        """A copy with other values, checked: `config.changed(**{"search.epochs": 3, "budgets": [0.5]})`.

        Raises:
            ConfigError: as for a configuration file.
        """
        values = self.model_dump()
        for name, value in dotted.items():
            _put(values, name.split("."), value)
        return Config(**values)

    def smoke(self) -> "Config":
        """A copy that does everything in about a minute: the same model and stages, few images, one epoch or two."""
        pairs = 2 if self.data.augment.mixes else 1
        share = math.lcm(self.resources.search_workers * pairs, self.retrain.workers_per_trial * pairs)
        batch = min(self.data.batch_size, -(-16 // share) * share)
        budgets = self.sorted_budgets
        quick = {"warmup_epochs": 0, "accumulate": 1, "compile": False}
        stages = {"dense": min(self.dense.epochs, 1), "search": min(self.search.epochs, 2), "retrain": 1}
        return self.changed(
            **{
                "name": f"{self.name.removesuffix('-smoke')[:94]}-smoke",
                "budgets": _ends(budgets),
                "shares": _ends(self.shares),
                "search.paces": self.search.paces[:2],
                "search.recovery": 1,
                "baselines": self.baselines[:1],
                "data.limit": min(self.data.limit or 2**62, max(64, 2 * batch)),
                "data.batch_size": batch,
                "data.eval_batch_size": min(self.data.eval_batch_size or 64, 64),
                "retrain.seeds": self.retrain.seeds[:1],
                "retrain.lr": self.retrain.rates[:2],
                **{f"{stage}.{key}": v for stage, n in stages.items() for key, v in {"epochs": n, **quick}.items()},
            }
        )

    def pace_recipe(self) -> Retrain:
        """How a pace of the families is tried: a short retraining at the first learning rate, by one worker.

        In as many parts as workers would train a point together, a batch needs no more memory than theirs.
        """
        epochs, parts = self.search.recovery, self.retrain.accumulate * self.retrain.workers_per_trial
        # A moving average would still hold mostly the weights right after the cut.
        short = {"accumulate": parts, "warmup_epochs": min(self.retrain.warmup_epochs, epochs - 1), "ema_decay": None}
        return self.retrain.at(self.retrain.rates[0], epochs).model_copy(update=short)

    def identity(self, stage: Stage, checkpoint: str | None = None) -> dict[str, Any]:
        """All that changes the result of a stage, and nothing else: not budgets, shares, seeds, resources or output."""
        everything = self.model_dump(mode="json")
        for key in ("workers", "root", "eval_batch_size", "max_damaged"):
            everything["data"].pop(key)
        cut = {key: everything["search"].pop(key) for key in ("floors", "paces", "recovery", "round_to")}
        if checkpoint is not None:
            everything["model"]["checkpoint"] = checkpoint
        result = {key: everything[key] for key in ("seed", "model", "data", "dense")}
        if stage in ("search", "retrain"):
            result["search"] = everything["search"]
        if stage == "retrain":
            result["cut"] = cut
            result["retrain"] = {k: v for k, v in everything["retrain"].items() if k not in ("seeds", "workers_per_trial")}
        return result

    def fingerprint(self, stage: Stage, checkpoint: str | None = None) -> str:
        """Ten hex digits that stand for `identity(stage)`, the same on every machine."""
        return hashlib.sha256(json.dumps(self.identity(stage, checkpoint), sort_keys=True).encode()).hexdigest()[:10]

    def to_yaml(self) -> str:
        """The whole resolved configuration, which `--config` takes again; a comment names the versions."""
        versions = ", ".join(f"{package} {_version(package)}" for package in ("slimsweep", "torch", "timm", "ray"))
        return f"# {versions}\n" + yaml.safe_dump(
            self.model_dump(mode="json"), sort_keys=False, default_flow_style=None, width=120
        )


def changed_keys(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Dotted names of what differs between two nested dicts, such as two identities."""
    names: list[str] = []
    for key in [*a, *(k for k in b if k not in a)]:
        if isinstance(a.get(key), Mapping) and isinstance(b.get(key), Mapping):
            names += [f"{key}.{name}" for name in changed_keys(a[key], b[key])]
        elif key not in a or key not in b or a[key] != b[key]:
            names.append(key)
    return names


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the command line says beside the configuration."""

    smoke: bool = False  # the configuration that load_config returns is shrunk already
    verbose: bool = False


def load_config(argv: Sequence[str], *, prog: str = "python -m slimsweep.run") -> tuple[Config, Options]:
    """`load_configs` where one model is wanted.

    Raises:
        ConfigError: anything in it that cannot work, and a list of models; the text is one sentence.
    """
    configs, options = load_configs(argv, prog=prog)
    if len(configs) > 1:
        raise ConfigError(f"model is a list of {len(configs)}, but {prog} takes one: keep one of them in a file of its own")
    return configs[0], options


def load_configs(argv: Sequence[str], *, prog: str = "python -m slimsweep.run") -> tuple[list[Config], Options]:
    """The configuration that a command line asks for: file or preset < environment < command line.

    Where `model` is a list, there is a configuration for each of its models, all else alike: the run of each is named after
    its model, in the folder that is the run's otherwise.

    Args:
        argv: arguments after the program's name: `--config PATH_OR_PRESET` (default: digits), `--smoke`, `--verbose`,
            and `--FIELD VALUE` for every field. `--help` prints all of them and exits.
        prog: the program's name in the help.

    Raises:
        ConfigError: anything in it that cannot work; the text is one sentence.
    """
    if {"-h", "--help"} & set(argv):
        print(_help(prog))
        raise SystemExit(0)
    said, flags, source = _command_line(argv)
    layers = {**_read(source), "environment": _environment(), "command line": said}
    merged: dict[str, Any] = {}
    for layer in layers.values():
        merged = _merge(merged, layer, Config)
    try:
        configs = [Config(**values) for values in _bases(merged, "-smoke" if "smoke" in flags else "")]
    except ConfigError as refused:  # say it again, with the place where it was said
        cause = refused.__cause__
        raise (ConfigError(_sentence(cause, layers)) if isinstance(cause, ValidationError) else refused) from None
    options = Options(smoke="smoke" in flags, verbose="verbose" in flags)
    return ([config.smoke() for config in configs] if options.smoke else configs), options


def _bases(merged: dict[str, Any], ending: str) -> list[dict[str, Any]]:
    """A configuration's values for each of its models, whose runs lie in a folder of the run's name and this ending."""
    models = merged.get("model")
    if not isinstance(models, list):
        return [merged]
    if not models or not all(isinstance(model, Mapping) for model in models):
        raise ConfigError("model is a list, of which each entry must be a model, such as [{name: deit_small_patch16_224}]")
    group = Config(**{key: merged[key] for key in ("name", "output") if key in merged})
    names: list[str] = []
    for model in models:
        name = re.sub(r"[^A-Za-z0-9._-]", "-", str(model.get("name", ModelConfig().name)))
        numbered = (f"{name}-{number}" for number in itertools.count(2))
        names.append(name if name not in names else next(other for other in numbered if other not in names))
    output = joined(group.output, f"{group.name}{ending}")
    return [{**merged, "model": model, "output": output, "name": name} for model, name in zip(models, names, strict=True)]


def presets() -> list[str]:
    """Names of the configurations that come with slimsweep."""
    return sorted(f.name.removesuffix(".yaml") for f in files("slimsweep.config.presets").iterdir() if f.name.endswith(".yaml"))


# Layers.


def _read(source: str) -> dict[str, dict[str, Any]]:
    """A configuration's layers by name: what its `extends` names, where it has one, and itself."""
    content = _read_file(source)
    if "extends" not in content:
        return {source: content}
    base = content.pop("extends")
    if base not in presets():
        near = did_you_mean(str(base), presets(), f"name one of them: {', '.join(presets())}")
        raise ConfigError(f"extends is {base!r} (in {source}), which is no preset; {near}")
    below = _read_file(base)
    if "extends" in below:
        raise ConfigError(f"extends is {base!r} (in {source}), which extends {below['extends']!r} itself; extend that one")
    return {base: below, source: content}


def _read_file(source: str) -> dict[str, Any]:
    path = Path(source).expanduser()
    if source in presets():
        text = files("slimsweep.config.presets").joinpath(f"{source}.yaml").read_text()
    else:
        try:
            text = path.read_text()
        except (OSError, UnicodeDecodeError) as problem:
            mend = did_you_mean(source, presets(), f"give a YAML file, or one of the presets: {', '.join(presets())}")
            reason = "is not there" if isinstance(problem, FileNotFoundError) else f"cannot be read ({problem})"
            raise ConfigError(f"the configuration {source!r} {reason}; {mend}") from None
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as problem:
        mark = getattr(problem, "problem_mark", None)
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        what = getattr(problem, "problem", None) or str(problem).splitlines()[0]
        raise ConfigError(f"{source} is not valid YAML{where}: {what}; mend that line") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{source} must hold keys and values such as 'budgets: [0.5]', not a {type(content).__name__}")
    return {str(key): value for key, value in content.items()}


def _environment() -> dict[str, Any]:
    """SLIMSWEEP_SEARCH__EPOCHS=50 and the like; values stay text."""

    class Environment(Config, BaseSettings):
        model_config = SettingsConfigDict(
            env_prefix=ENV_PREFIX, env_nested_delimiter="__", enable_decoding=False, protected_namespaces=()
        )

    known = list(Config.model_fields)
    for variable in os.environ:
        if variable.upper().startswith(ENV_PREFIX):
            first, *rest = variable[len(ENV_PREFIX) :].lower().split("__")
            mend = did_you_mean(first, known)
            if first not in known and (rest or mend):  # other variables of this prefix may be someone else's
                mend = mend or f"the fields are {', '.join(known)}"
                raise ConfigError(f"the environment variable {variable} names no field; {mend}")
    return EnvSettingsSource(Environment)()


def _command_line(argv: Sequence[str]) -> tuple[dict[str, Any], set[str], str]:
    """(what it sets, nested; flags; the configuration's source)."""
    fields = {name: field for name, field, _ in _fields(Config)}
    said: dict[str, Any] = {}
    flags: set[str] = set()
    source = "digits"
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.removeprefix("--").partition("=")
        free = next((f for f in fields if name.startswith(f"{f}.") and dict in _kinds(fields[f].annotation)), None)
        if not word.startswith("--") or not (name in ("config", "smoke", "verbose") or name in fields or free):
            mend = did_you_mean(name, [*fields, "config", "smoke", "verbose"], "--help lists all")
            raise ConfigError(f"unknown argument {word!r}; {mend}")
        if name in ("smoke", "verbose"):
            if equals:
                raise ConfigError(f"--{name} takes no value, got {value!r}; leave it out")
            flags.add(name)
            continue
        if not equals:
            is_flag = name in fields and bool in _kinds(fields[name].annotation)
            if rest and not rest[0].startswith("--"):
                value = rest.pop(0)
            elif is_flag:
                value = "true"
            else:
                raise ConfigError(f"--{name} needs a value; write --{name} VALUE")
        if name == "config":
            source = value
        else:
            _put(said, name.split("."), value)
    return said, flags, source


def _put(tree: dict[str, Any], path: Sequence[str], value: Any) -> None:
    for index, key in enumerate(path[:-1]):
        if tree.get(key) is None:
            tree[key] = {}
        tree = tree[key]
        if not isinstance(tree, dict):
            raise ConfigError(f"{'.'.join(path[: index + 1])} and {'.'.join(path)} are both given; say one of them")
    tree[path[-1]] = value


def _merge(below: Mapping[str, Any], above: Mapping[str, Any], section: type[BaseModel]) -> dict[str, Any]:
    """`above` over `below`: sections key by key; any other value replaces what is below it."""
    merged = dict(below)
    for key, value in above.items():
        annotation = section.model_fields[key].annotation if key in section.model_fields else None
        inner, old = _section(annotation), merged.get(key)
        if inner:
            new = _from_json(value)
            if isinstance(old, list) and isinstance(new, Mapping):
                raise ConfigError(f"{key} is a list, and {', '.join(f'{key}.{k}' for k in new)} is of one: say it in the list")
            if new is None and type(None) not in _kinds(annotation):
                continue  # 'search:' with all its keys commented out
            merged[key] = _merge(old if isinstance(old, Mapping) else {}, new, inner) if isinstance(new, Mapping) else new
        elif dict in _kinds(annotation) and isinstance(value, Mapping) and isinstance(old, Mapping):
            # Single keys of a free mapping, from environment or command line: as a whole it would be text.
            merged[key] = {**old, **{k: yaml.safe_load(v) if isinstance(v, str) else v for k, v in value.items()}}
        else:
            merged[key] = value
    return merged


def _from_json(value: Any) -> Any:
    """A mapping or list given as JSON text; anything else as it is, for the field's own check to refuse."""
    if isinstance(value, str) and value.lstrip().startswith(("{", "[")):
        try:
            return json.loads(value)
        except json.JSONDecodeError:
            return value
    return value


# Fields.


def _kinds(annotation: Any) -> set[Any]:
    """The plain types that an annotation admits: tuple[float, float] | None -> {tuple, NoneType}."""
    if get_origin(annotation) in (Union, types.UnionType):
        return set().union(*(_kinds(a) for a in get_args(annotation)))
    return {get_origin(annotation) or annotation}


def _section(annotation: Any) -> type[BaseModel] | None:
    return next((k for k in _kinds(annotation) if isinstance(k, type) and issubclass(k, BaseModel)), None)


def _fields(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo, type[BaseModel]]]:
    """(dotted name, field, the section it is in) of every field, sections themselves before what is in them."""
    for name, field in section.model_fields.items():
        yield f"{prefix}{name}", field, section
        if inner := _section(field.annotation):
            yield from _fields(inner, f"{prefix}{name}.")


def _wanted(annotation: Any) -> str:
    """An annotation in words of the help."""
    parts = []
    for kind in get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,):
        if get_origin(kind) is Literal:
            parts += [str(v) for v in get_args(kind)]
        elif get_origin(kind) is list:
            parts.append("LIST")
        elif get_origin(kind) is tuple:
            parts.append("X,Y" if len(get_args(kind)) == 2 and Ellipsis not in get_args(kind) else "X,...")
        elif get_origin(kind) is dict or _section(kind):
            parts.append("JSON")
        else:
            names = {int: "N", float: "X", str: "TEXT", bool: "true|false", type(None): "null"}
            parts.append(names.get(kind, "VALUE"))
    return "|".join(parts)


def _help(prog: str) -> str:
    parser = argparse.ArgumentParser(
        prog=prog,
        usage=f"{prog} [--config FILE_OR_PRESET] [--smoke] [--verbose] [--FIELD VALUE ...]",
        description="Search a vision transformer once, cut and retrain it at every budget. "
        "Values come from the configuration file, then the environment (SLIMSWEEP_SEARCH__EPOCHS=50), then this command line.",
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=42, width=120),
    )
    parser.add_argument(
        "--config",
        metavar="FILE_OR_PRESET",
        help=f"YAML file, which may start from a preset (extends: NAME), or a preset: {', '.join(presets())} (default: digits)",
    )
    parser.add_argument("--smoke", action="store_true", help="shrink the run to about a minute")
    parser.add_argument("--verbose", action="store_true", help="show all that Ray says")
    groups: dict[str, Any] = {"": parser.add_argument_group("the run")}
    for name, field, _ in _fields(Config):
        text = (field.description or "").replace("%", "%%")
        if _section(field.annotation):
            groups[name] = parser.add_argument_group(name, text)
            if type(None) not in _kinds(field.annotation):
                continue
            groups[name].add_argument(f"--{name}", metavar="JSON|null", help="all of it at once, or null for off")
            continue
        default = field.get_default(call_default_factory=True)
        text += f" (default: {json.dumps(default, default=BaseModel.model_dump)})".replace("%", "%%")
        groups[name.rpartition(".")[0]].add_argument(f"--{name}", metavar=_wanted(field.annotation), help=text)
    return parser.format_help()


# Values.


def _budget(value: Any) -> float | str:
    mend = "must be a fraction between 0 and 1, such as 0.5, or MACs with a unit, such as '2.3G' or '350M'"
    if isinstance(value, str):
        text = value.strip()
        if re.fullmatch(r"[0-9]*\.?[0-9]+([eE][+-]?[0-9]+)?\s*[KMGTkmgt]", text):
            if _amount(text) < 1:
                raise ValueError(f"{value!r} {mend}")
            return text
        try:
            value = float(text)
        except ValueError:
            raise ValueError(f"{value!r} {mend}") from None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1:
        raise ValueError(f"{value!r} {mend}")
    return float(value)


def _amount(budget: float | str) -> float:
    """A fraction, or MACs."""
    if isinstance(budget, str):
        return float(budget[:-1]) * UNITS[budget[-1].upper()]
    return budget


def _once(values: list[T], key: Any = lambda value: value) -> list[T]:
    seen: dict[Any, T] = {}
    for value in values:
        if key(value) in seen:
            raise ValueError(f"must not hold {value!r} twice: leave one out")
        seen[key(value)] = value
    return values


def _ends(values: list[T]) -> list[T]:
    """The first and the last."""
    return values if len(values) <= 2 else [values[0], values[-1]]


def _range(value: tuple[float, float] | None) -> tuple[float, float] | None:
    if value is not None and not 0 < value[0] <= value[1]:
        raise ValueError("must be two numbers above 0, the smaller one first")
    return value


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "(not installed)"


# Sentences.

_WANTED = {
    "int": "must be a whole number",
    "float": "must be a number",
    "bool": "must be true or false",
    "string": "must be text (in quotes where it looks like a number)",
    "finite": "must be a finite number",
    "list": "must be a list",
    "tuple": "must be a list of numbers",
    "dict": 'must be a mapping, such as {"img_size": 160}',
    "model": "must be a mapping of its fields",
}
_LIMITS = {
    "greater_than": ("gt", "must be more than"),
    "greater_than_equal": ("ge", "must be at least"),
    "less_than": ("lt", "must be less than"),
    "less_than_equal": ("le", "must be at most"),
}


def _sentence(problem: ValidationError, layers: Mapping[str, Mapping[str, Any]]) -> str:
    """One sentence for the first thing that is wrong: the field, its value, where it was said, and the mend."""
    error = problem.errors(include_url=False)[0]
    section: type[BaseModel] = Config
    path: list[str] = []
    annotation: Any = Config
    for part in error["loc"]:
        if not isinstance(part, str):
            break  # an element of a list
        path.append(part)
        if part not in section.model_fields:
            break
        annotation = section.model_fields[part].annotation
        if (inner := _section(annotation)) is None:
            break  # what follows are pydantic's labels of a union's branches
        section = inner
    name, origin = ".".join(path), _origin(path, layers)
    if error["type"] == "extra_forbidden":
        above = ".".join(path[:-1])
        known = [n for n, _, _ in _fields(Config)]
        near = did_you_mean(path[-1], list(section.model_fields))
        near = near.replace("mean ", f"mean {above}.", 1) if near and above else near
        takes = f"{above or 'the configuration'} takes {', '.join(section.model_fields)}"
        return f"unknown key {name}{origin}; {near or did_you_mean(path[-1], known, takes)}"
    if error["type"] == "value_error" and _section(annotation) and isinstance(error["input"], (Mapping, BaseModel)):
        return error["msg"].removeprefix("Value error, ")  # about several fields: a sentence of its own
    return f"{name} is {_value(path, layers, error['input'])!r}{origin}: {_complaint(error, annotation)}"


def _complaint(error: Any, annotation: Any) -> str:
    kind: str = error["type"]
    if kind == "literal_error":
        choices = [str(v) for v in _choices(annotation)]
        near = did_you_mean(str(error["input"]), choices)
        return f"it must be one of {', '.join(choices)}" + (f"; {near}" if near else "")
    if kind in _LIMITS:
        limit, words = _LIMITS[kind]
        return f"it {words} {error['ctx'][limit]:g}"
    if kind in ("missing", "too_short", "too_long"):
        return f"it must be {len(get_args(next(a for a in _parts(annotation) if get_origin(a) is tuple)))} numbers"
    if kind != "value_error" and (base := kind.split("_", maxsplit=1)[0]) in _WANTED:
        return f"it {_WANTED[base]}"
    text = error["msg"].removeprefix("Value error, ")
    return f"it {text}" if text.startswith("must") else text


def _parts(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def _choices(annotation: Any) -> tuple[Any, ...]:
    """The values of the Literal somewhere in an annotation."""
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    return next((found for a in get_args(annotation) if (found := _choices(a))), ())


def _look(path: Sequence[str], layer: Any) -> tuple[bool, Any]:
    for key in path:
        if not isinstance(layer, Mapping) or key not in layer:
            return False, None
        layer = layer[key]
    return True, layer


def _origin(path: Sequence[str], layers: Mapping[str, Mapping[str, Any]]) -> str:
    for source, layer in reversed(list(layers.items())):
        if _look(path, layer)[0]:
            return f" (from the {source})" if source in ("environment", "command line") else f" (in {source})"
    return ""


def _value(path: Sequence[str], layers: Mapping[str, Mapping[str, Any]], otherwise: Any) -> Any:
    """The value as the person wrote it, where that is known."""
    for layer in reversed(list(layers.values())):
        found, value = _look(path, layer)
        if found:
            return value
    return otherwise
