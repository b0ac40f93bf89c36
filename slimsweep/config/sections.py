"""The configuration's sections: every field with its type, default, limits and help, and each check beside its field."""

import re
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from slimsweep.config.fields import Section, once, rising

Family = Literal["attention", "mlp", "token"]
MOST_SEEDS = 1000  # that a number stands for


def none_or_two(classes: int | None) -> int | None:
    """A number of classes, itself.

    Raises:
        ValueError: it is 1, or below 0.
    """
    if classes is not None and classes != 0 and classes < 2:
        raise ValueError("must be at least 2 classes, or 0 for a model without a head")
    return classes


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
        return rising(value)


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
    """timm's name of an augmentation policy, such as rand-m9-mstd0.5-inc1; null is off."""
    reprob: float = Field(0.0, ge=0, le=1)
    """Probability of random erasing."""
    remode: Literal["const", "rand", "pixel"] = "pixel"
    """What erased areas are filled with."""
    recount: int = Field(1, ge=1)
    """Most areas that are erased in an image."""
    mixup: float = Field(0.0, ge=0)
    """Mixup's alpha; 0 is off."""
    cutmix: float = Field(0.0, ge=0)
    """CutMix's alpha; 0 is off."""
    mixup_prob: float = Field(1.0, ge=0, le=1)
    """Probability that a batch is mixed at all."""
    mixup_switch_prob: float = Field(0.5, ge=0, le=1)
    """Probability of CutMix instead of Mixup, if both are on."""
    affine: Affine | None = None
    """Random rotation, shift, zoom and shear."""
    repeated: int = Field(1, ge=1)
    """How often an image is in a batch, augmented differently each time (DeiT used 3); epochs do not get longer."""

    @field_validator("scale", "ratio")
    @classmethod
    def _ordered(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        return rising(value)

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
    """Folder of the data set (of wds/NAME also a URL); for hfds/NAME and hfids/NAME where downloads are kept, or null."""
    train_split: str = "train"
    """Name of the training split."""
    val_split: str | None = None
    """Name of the validation split, on which all choices are made; null is that of an image folder which has a test split too,
    otherwise val_share of the training images."""
    val_share: float = Field(0.1, gt=0, lt=1)
    """Share of the training images kept for validation: the same ones in every run."""
    split: tuple[float, float, float] = (0.7, 0.15, 0.15)
    """Shares of training, validation and test images, for an image folder, a tar file or a list of files without splits: the
    same images in every run, with the same shares of each class."""
    test_split: str | None = None
    """Name of the split that is read once, at the end of each point. null is test for an image folder that has it, for CIFAR
    and the MNIST kinds of torch/NAME, and for hfds, hfids and wds if val_split is val, valid, validation, eval or evaluation;
    otherwise validation."""
    num_classes: int | None = None
    """Number of classes; null takes it from the data. 0 is a model without a head, which is slimmed without labels
    (docs/models.md, Backbones)."""
    image_key: str | None = Field(None, min_length=1)
    """Column of the images in hfds/NAME and hfids/NAME (null takes image), such as img, of their paths in a list of files (null
    takes path), or the ending of their files in wds/NAME (null takes the types that Pillow reads)."""
    label_key: str | None = Field(None, min_length=1)
    """Column of the labels in hfds/NAME, hfids/NAME and lists of files (null takes label), such as fine_label; in wds/NAME the
    ending of their files, or a field of the sample's JSON (null takes cls, or what _info.json says)."""
    batch_size: int = Field(256, ge=1)
    """Images per step over all workers together: results do not depend on the number of workers."""
    eval_batch_size: int | None = Field(None, ge=1)
    """Images per evaluation step of one worker; null is as many as in a training step."""
    workers: int = Field(0, ge=0)
    """Loading processes of each training worker; 0 loads in the worker itself."""
    limit: int | None = Field(None, ge=1)
    """At most this many images per split, for quick tries."""
    max_damaged: int = Field(0, ge=0)
    """Unreadable images per split that are skipped, each with a warning that names it; one more stops the run. They are counted
    over all epochs and workers of a training. The default 0 stops at the first one, because skipping images changes the
    results."""
    image_size: int | None = Field(None, ge=1)
    """Side of the images in pixels; null takes the model's."""
    mean: tuple[float, ...] | None = None
    """Mean per channel, of values from 0 to 1; null takes the model's."""
    std: tuple[float, ...] | None = None
    """Standard deviation per channel; null takes the model's."""
    normalized: bool = False
    """For a function that returns float tensors: they are normalised already, so mean and std are not applied."""
    interpolation: Literal["bilinear", "bicubic", "nearest"] | None = None
    """How images are resized; null takes the model's way."""
    crop_pct: float | None = Field(None, gt=0, le=1)
    """Share of the image's side that the central crop of evaluation keeps; null takes the model's, or all if image_size is not
    the model's own."""
    augment: Augment = Augment()
    """What happens to training images."""

    @field_validator("num_classes")
    @classmethod
    def _none_or_two(cls, value: int | None) -> int | None:
        return none_or_two(value)

    @field_validator("split")
    @classmethod
    def _all_of_it(cls, value: tuple[float, float, float]) -> tuple[float, float, float]:
        if min(value) <= 0 or abs(sum(value) - 1) > 1e-6:
            raise ValueError("must be three shares above 0 that sum to 1, such as 0.7,0.15,0.15")
        return value

    @field_validator("std")
    @classmethod
    def _positive(cls, value: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if value is not None and min(value, default=0.0) <= 0:
            raise ValueError("must be numbers above 0, one per channel")
        return value

    @model_validator(mode="after")
    def _normalized_once(self) -> Self:
        # Both work on values from 0 to 1: others would be cut off.
        wrong = [name for name in ("mean", "std") if getattr(self, name) is not None]
        wrong += [f"augment.{name}" for name in ("color_jitter", "auto_augment") if getattr(self.augment, name)]
        if self.normalized and wrong:
            raise ValueError(f"data.normalized is true, but data.{wrong[0]} needs values from 0 to 1: leave one of the two out")
        return self

    @model_validator(mode="after")
    def _channels_agree(self) -> Self:
        if self.mean is not None and self.std is not None and len(self.mean) != len(self.std):
            raise ValueError(
                f"data.mean has {len(self.mean)} channels and data.std has {len(self.std)}: give both one number per channel"
            )
        return self


class Probe(Section):
    """Images with labels on which the features of a backbone are evaluated. All other settings are those of data."""

    name: str = "folder"
    """folder, or another data set, as data.name."""
    root: str
    """Its folder, as data.root."""
    train_split: str = "train"
    """Split in which nearest neighbours are searched, and to which the linear probe is fitted."""
    val_split: str | None = None
    """Split on which val_knn_top1 and val_probe_top1 are measured, as data.val_split."""
    test_split: str | None = None
    """Split on which test_knn_top1 and test_probe_top1 are measured, as data.test_split."""
    num_classes: int | None = Field(None, ge=2)
    """Number of classes; null takes it from the data."""
    image_key: str | None = Field(None, min_length=1)
    """As data.image_key."""
    label_key: str | None = Field(None, min_length=1)
    """As data.label_key."""
    limit: int | None = Field(None, ge=1)
    """At most this many images per split."""


class ModelConfig(Section):
    """The dense model, from timm."""

    name: str = "deit_small_patch16_224"
    """timm's name of a vision transformer."""
    pretrained: bool = False
    """Start from timm's pretrained weights (downloads them)."""
    checkpoint: str | None = None
    """Start from these weights: a .safetensors file, a file of torch.save, or a folder that slimsweep or timm saved."""
    kwargs: dict[str, Any] = {}
    """Arguments of timm.create_model, such as {"img_size": 160}; --model.kwargs.depth 6 changes a single one of those in the
    file. num_classes: 0 takes the model without its head, a backbone."""

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
                none = ", or set it to 0 for a model without a head" if key == "num_classes" else ""
                raise ValueError(f"must not set {key}: say it in {taken[key]}{none}")
        return value


class TeacherModel(Section):
    """A model whose answers search and retraining learn from, of any architecture of timm."""

    name: str | None = None
    """timm's name of the model, such as regnety_160.deit_in1k; null takes the model that the checkpoint, a folder,
    describes."""
    pretrained: bool = False
    """Take timm's pretrained weights (downloads them)."""
    checkpoint: str | None = None
    """Take these weights: a .safetensors file, a file of torch.save, or a folder that slimsweep or timm saved."""
    kwargs: dict[str, Any] = {}
    """Arguments of timm.create_model, such as {"img_size": 160}."""
    weight: float = Field(1.0, gt=0)
    """Weight of its answers if there are several teachers, relative to the others."""

    @field_validator("kwargs")
    @classmethod
    def _own_keys(cls, value: dict[str, Any]) -> dict[str, Any]:
        taken = {
            "pretrained": "say it in teacher.pretrained",
            "num_classes": "a teacher has the classes of the data",
            "checkpoint_path": "say it in teacher.checkpoint",
            "features_only": "say it in distill.answers, features",
        }
        for key in value:
            if key in taken:
                raise ValueError(f"must not set {key}: {taken[key]}")
        return value

    @model_validator(mode="after")
    def _has_weights(self) -> Self:
        if self.name is None and self.checkpoint is None:
            raise ValueError(
                "teacher names no model: set teacher.name and teacher.pretrained, or teacher.checkpoint, a folder that "
                "slimsweep or timm saved"
            )
        if self.name is None and (self.pretrained or self.kwargs):
            field = "pretrained" if self.pretrained else "kwargs"
            raise ValueError(f"teacher.{field} is set without teacher.name: give the name, or leave {field} out")
        if self.checkpoint is not None and self.pretrained:
            raise ValueError(
                f"teacher.pretrained is set, and teacher.checkpoint is {self.checkpoint!r}: leave one of the two out"
            )
        if self.checkpoint is None and not self.pretrained:
            raise ValueError(
                f"teacher.name is {self.name!r} without weights, so its answers would mean nothing: set teacher.pretrained or "
                "teacher.checkpoint"
            )
        return self

    @property
    def label(self) -> str:
        """The model in a few words: timm's name, or the end of the folder's path; a sweep's with the name of its run."""
        if self.name is not None:
            return self.name
        parts = str(self.checkpoint).rstrip("/").split("/")
        return "/".join(parts[-3:] if parts[-2:-1] == ["models"] else parts[-2:])


class Recipe(Section):
    """One training."""

    epochs: int = Field(ge=1)
    """Passes over the training images."""
    lr: float = Field(5e-4, gt=0)
    """Highest learning rate of the weights; it is not scaled by the batch size."""
    optimizer: str = "adamw"
    """timm's name of an optimizer."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of the two moments, for optimizers that have two; the default keeps the optimizer's own."""
    weight_decay: float = Field(0.05, ge=0)
    """Weight decay, on matrices only."""
    scheduler: Literal["cosine", "constant"] = "cosine"
    """How the learning rate changes after the warm-up."""
    warmup_epochs: int = Field(0, ge=0)
    """Epochs over which the learning rate rises."""
    min_lr: float = Field(1e-6, ge=0)
    """Learning rate at which the warm-up starts and the cosine ends."""
    label_smoothing: float = Field(0.1, ge=0, lt=1)
    """Share of each label that is spread over all classes."""
    drop_path: float = Field(0.0, ge=0, lt=1)
    """Probability that a training step skips a branch of the last layer; it is lower for earlier layers."""
    ema_decay: float | None = Field(None, gt=0, lt=1)
    """Decay of a moving average of the weights, which is then evaluated and saved instead of them; null is off."""
    clip_grad: float | None = Field(None, gt=0)
    """Largest norm of the gradient; a larger gradient is scaled down to it. null is off."""
    accumulate: int = Field(1, ge=1)
    """Parts in which a batch is computed, one after another, to save memory; the batch size stays data.batch_size."""
    amp: Literal["off", "bf16"] = "off"
    """Mixed precision. x86 processors without AVX-512 compute in float32 all the same, which is many times as fast there."""
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
    """Passes over the training images; 0, the default with pretrained weights, uses these as they are."""
    warmup_epochs: int = Field(0, ge=0)
    """Epochs over which the learning rate rises."""


class Distill(Section):
    """Learning from the answers of the dense model, or of teacher."""

    alpha: float = Field(0.0, ge=0, le=1)
    """Share of the loss that the teacher's answers make up; 0 is off."""
    temperature: float = Field(1.0, gt=0)
    """Temperature of the softmax over both models' logits: higher makes the answers softer. For soft answers, and for the
    average of several teachers."""
    answers: Literal["soft", "hard", "features"] = "soft"
    """What is learned from the teacher. soft: the probabilities of all classes. hard: the class it finds most probable, as in
    DeiT. features: its features before the head, which must be as many as the model's own."""


class PerFamily(Section):
    """One number per family of gates; a section of this kind says its default, its limits and what the number is of.

    Args:
        of: the word before the family in the help: "Of" attention dims.
        default: the number of every family where nothing is said.
        limits: what pydantic's Field takes, such as ge and lt.
    """

    attention: float = 0.0
    mlp: float = 0.0
    token: float = 0.0

    def __init_subclass__(cls, *, default: float | None = None, of: str = "Of", **limits: float) -> None:
        if default is not None:
            for family, gates in (("attention", "attention dims"), ("mlp", "MLP units"), ("token", "tokens")):
                setattr(cls, family, Field(default, description=f"{of} {gates}.", **limits))  # type: ignore[call-overload]


class L1(PerFamily, of="On", default=0.05, ge=0):
    """L1 penalty on the gates of each family."""


class Floors(PerFamily, default=0.1, ge=0, lt=1):
    """Share of each layer's gates that is never removed, per family."""


class Pace(PerFamily, default=1.0, gt=0, le=10):
    """How fast the gates of each family are removed: where pace 1 keeps a share s of them, pace p keeps s to the power of p."""


class Search(Recipe):
    """The search, once per model: which attention dims, MLP units and tokens can be removed.

    Either by gates that are trained, or without training, by what each part does on some training images.
    """

    epochs: int = Field(0, ge=0)
    """Passes over the training images that train the gates, with the weights; 0 ranks the dense model's gates without training
    them, in seconds (search.rank)."""
    weight_decay: float = Field(1e-3, ge=0)
    """Weight decay, on matrices only; never on gates."""
    scheduler: Literal["cosine", "constant"] = "constant"
    """How the learning rate changes after the warm-up."""
    gate_lr: float = Field(0.02, gt=0)
    """Learning rate of the gates."""
    gate_optimizer: Literal["proximal", "adam"] = "proximal"
    """How gates are updated: by proximal steps (soft threshold), or by Adam with the gradient of the l1 penalty."""
    penalty: Literal["l1", "macs"] = "l1"
    """How a gate is penalised: like all others of its family (l1), or in proportion to its multiply-accumulates (macs)."""
    l1: L1 = L1()
    """L1 penalty on the gates of each family. With gate_optimizer proximal it is relative to the rms of the gradients of the
    family's gates: at 0.05 a gate shrinks towards 0 unless the gradient of the loss holds it with at least a twentieth of that
    rms. With adam, the paper's way, it is the factor of the sum of |gate| in the loss: the paper has 2e-4, 5e-5 and 1e-4 for
    attention, mlp and token."""
    granularity: Literal["dim", "head", "uniform"] = "dim"
    """Attention gates: one per head and dim (dim), one per head (head), or one per dim that all heads share (uniform)."""
    families: list[Family] | None = None
    """Families of gates: which parts of the model may be cut. attention, mlp, token or some of them; null is all that can be
    cut exactly from this model, and for a backbone attention and mlp, so that its patches stay a whole grid."""
    token_gate: Literal["linear", "tanh"] = "linear"
    """Whether a token gate is a parameter itself (linear), or the tanh of one (tanh)."""
    token_anneal: float = Field(0.3, ge=0, le=1)
    """Last part of the search (0.3 is the last 30 %), in which the token gates that are kept move to 1."""
    axes: bool = True
    """Change each attention head to its principal axes, found on some training images, before gates are added: its output stays
    the same, and its last dims matter least. Runs that an earlier version started continue without this."""
    rank: Literal["gates", "activation", "taylor"] | None = None
    """What gates are ranked by after the search. gates: their values. activation: the energy that each adds to its branch, on
    some training images, without labels. taylor: squared gate x gradient of the loss. null takes gates after a search, and
    activation where search.epochs is 0."""
    distill: Distill = Distill()
    """Learning from the answers of the dense model, or of teacher."""
    floors: Floors = Floors()
    """Share of each layer's gates that is never removed, per family."""
    depth: bool = False
    """Allow the whole attention or MLP of a layer to be removed, including what search.floors would keep: the model may get
    fewer layers."""
    paces: list[Pace] = [
        Pace.model_construct(attention=1.0, mlp=mlp, token=token) for token in (1.0, 0.7, 0.5) for mlp in (1.0, 1.4)
    ]
    """How cuts are divided among attention, mlp and token: per family, how fast its gates are removed (above 1 faster, below 1
    slower). After the search each entry is tried at the smallest budget by a short retraining (search.recovery epochs); the
    one with the best validation accuracy is used for all budgets."""
    recovery: int = Field(1, ge=0)
    """Epochs of the short retraining that tries each entry of search.paces; 0 compares them right after the cut and repair."""
    round_to: int | None = Field(None, ge=1)
    """Sizes of heads and MLPs, and numbers of tokens with the class token, are multiples of this; null is 16 if heads have at
    least 64 dims, for speed, and otherwise 1."""

    @field_validator("paces")
    @classmethod
    def _proposals(cls, value: list[Pace]) -> list[Pace]:
        if not value:
            raise ValueError(
                'must hold at least one pace, such as [{"mlp": 1.4, "token": 0.7}]; [{}] is the same pace for all families'
            )
        return once(value)

    @property
    def ranked_by(self) -> str:
        """gates, activation or taylor."""
        return self.rank or ("gates" if self.epochs else "activation")

    @field_validator("families")
    @classmethod
    def _some(cls, value: list[str] | None) -> list[str] | None:
        if value is None:
            return None
        if not value:
            raise ValueError("must name at least one of attention, mlp, token, or be null for all")
        return once(value)


class Retrain(Recipe):
    """Training of each cut model, and of the dense model again for comparison."""

    epochs: int = Field(300, ge=0)
    """Passes over the training images; 0 cuts and repairs the models without training them: one per method and budget,
    regardless of lr and seeds. Trained models can be added to the same run later."""
    lr: float | list[float] = 5e-4  # type: ignore[assignment]  # one rate in what `at` returns, which is what trains
    """Highest learning rate, not scaled by the batch size; with a list, each method and budget uses the rate that is best on
    validation."""
    compare_rates: Literal["first seed", "all seeds"] = "first seed"
    """How several learning rates are compared. first seed: with the first seed only; the other seeds train at the best rate.
    all seeds: by the mean over all seeds, which depends less on luck but trains each point at each rate with each seed."""
    stopping: Literal["asha"] | None = None
    """Whether learning rates that are behind are stopped before their last epoch. asha: by successive halving, among the rates
    of one method, budget and seed at equal epochs; needs several rates. Stopped points are never chosen. null trains all."""
    grace_epochs: int | None = Field(None, ge=1)
    """Epochs after which stopping compares for the first time; null is a quarter of the epochs, and past the warm-up."""
    reduction_factor: float = Field(2.0, gt=1, allow_inf_nan=False)
    """At each comparison of stopping about one in this many rates goes on; the next one comes after that many times as many
    epochs."""
    seeds: list[int] = [0]
    """Random seeds of the retraining; each cut model is trained once per seed. A list, or how many (3 is 0,1,2)."""
    start: Literal["search", "larger"] = "search"
    """What the retraining of a searched model starts from. search: the search's weights. larger: the trained model of the next
    larger budget, for which it waits; the largest budget starts from the retrained dense model. What a budget keeps is then
    part of what the next larger budget keeps."""
    repair: bool = True
    """Right after a searched model was cut, fit the last layer of each branch by least squares to what the model gave before
    the cut, on some training images. Runs that an earlier version started continue without this."""
    repair_target: Literal["stream", "branch"] = "stream"
    """What repair fits the last layer of a branch to. stream: the tokens after the branch, so that it also corrects what the
    branches before it lack. branch: the branch's own output, as in runs that an earlier version started."""
    distill: Distill = Distill()
    """Learning from the answers of the dense model, or of teacher."""
    workers_per_trial: int = Field(1, ge=1)
    """Workers that train one point together."""

    @field_validator("lr")
    @classmethod
    def _rates(cls, value: float | list[float]) -> float | list[float]:
        rates = value if isinstance(value, list) else [value]
        if not rates or min(rates) <= 0:
            raise ValueError("must be a rate above 0, such as 5e-4, or a list of some, such as [5e-4, 1e-3]")
        return once(rates) if len(rates) > 1 else rates[0]

    @property
    def rates(self) -> list[float]:
        """The learning rates to try, as they were given; one where there is no choice, and where nothing is trained."""
        rates = self.lr if isinstance(self.lr, list) else [self.lr]
        return rates if self.epochs else rates[:1]

    def first_comparison(self, epochs: int) -> int:
        """The epoch after which `stopping` compares the rates of points with so many epochs for the first time."""
        return self.grace_epochs or max(self.warmup_epochs + 1, -(-epochs // 4))

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
            if value > MOST_SEEDS:  # a seed that is meant stands in brackets
                raise ValueError(f"must be a number of seeds up to {MOST_SEEDS:,}, or a list of them, such as [{value}]")
            return list(range(value))
        return value

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, value: list[int]) -> list[int]:
        if not value or min(value) < 0 or max(value) >= 2**32:
            raise ValueError("must be at least one seed, each from 0 to below 2**32, such as [0, 1, 2]")
        return once(value)


class Resources(Section):
    """Which resources of the cluster are used."""

    search_workers: int = Field(1, ge=1)
    """Workers that train the dense model and search together."""
    cpus_per_worker: float = Field(1.0, gt=0)
    """CPUs of each worker, in the search and in the sweep."""
    gpus_per_worker: float = Field(0.0, ge=0)
    """GPUs of each worker; a fraction lets workers share one."""
    max_concurrent_trials: int | None = Field(None, ge=1)
    """Most models that are retrained at the same time; null fills the cluster."""
    max_workers: int | None = Field(None, ge=1)
    """Maximum number of workers that the cluster may scale up to; trainings are queued for that many even if no worker is
    running yet. null is the number that its nodes can hold at the start."""
    max_hours: float | None = Field(None, gt=0)
    """Hours after which the run stops, at the end of the epoch; the same command continues it. null is no limit."""
    max_failures: int = Field(2, ge=0)
    """How often a lost worker or trial is started again."""
    takeover_seconds: float = Field(15.0, ge=1, allow_inf_nan=False)
    """Seconds without a heartbeat after which another start takes the run over from its driver; a driver whose process has
    ended on the same machine is replaced at once. Raise this if the storage of the output is slow."""

    @field_validator("gpus_per_worker")
    @classmethod
    def _whole_above_one(cls, value: float) -> float:
        if value > 1 and not value.is_integer():
            raise ValueError("must be a fraction of one GPU or a whole number of GPUs")
        return value
