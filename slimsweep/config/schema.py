"""The whole configuration: what the sections add up to, what must fit together, and copies with other values."""

import functools
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from slimsweep.config import identity
from slimsweep.config.backbones import check_backbone, with_no_classes
from slimsweep.config.fields import OneOf, Section, from_brackets, once
from slimsweep.config.identity import Stage
from slimsweep.config.latency import BRANCH_COST, Latency
from slimsweep.config.messages import ConfigError, sentence
from slimsweep.config.sections import (
    DataConfig,
    Dense,
    Distill,
    Family,
    ModelConfig,
    Probe,
    Recipe,
    Resources,
    Retrain,
    Search,
    TeacherModel,
)
from slimsweep.config.tracking import TrackerName, Tracking
from slimsweep.latency.setting import LatencySetting
from slimsweep.methods import METHODS
from slimsweep.methods import baselines as known_baselines
from slimsweep.slimming.budget import Budget

Terms = Literal["retraining", "compute"]
OF_GATE_TRAINING = ("lr", "gate_lr", "gate_optimizer", "penalty", "l1", "token_gate", "token_anneal")  # fields of search


class Config(Section):
    """Everything that a sweep does.

    Raises:
        ConfigError: values that cannot work; the text is one sentence, or a numbered line for each of several.
    """

    name: str = "sweep"
    """Name of the run: its folder is output/name."""
    output: str = "runs"
    """Where run folders lie: a local path, s3://..., gs://... or hdfs://..."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Seed of dense training and search."""
    budgets: list[float | str] = [0.7, 0.5, 0.35]
    """What a cut model may cost: a fraction of the dense model's MACs (0.5, 50%), MACs (2.3G, 350M), the same of its
    parameters (60% params, 11.5M params), or latency (12ms, 40% ms); [] where only shares are given."""
    shares: list[dict[Family, float]] = []
    """Instead of a cost, the share of gates to keep in each family (attention, mlp, token), one cut model per entry:
    [{"attention": 0.7, "mlp": 0.7}]."""
    model: ModelConfig = ModelConfig()
    """The dense model, from timm; a list of models searches each and shows all on one page."""
    data: DataConfig = DataConfig()
    """The images."""
    probe: Probe | None = None
    """Labelled images on which the features of a backbone are evaluated, by k-NN and a linear probe; it changes no model."""
    dense: Dense = Dense()
    """Training of the dense model, before anything is cut."""
    search: Search = Search()
    """The search, once per model: learnable gates find out which attention dims, MLP units and tokens can be removed."""
    retrain: Retrain = Retrain()
    """Training of each cut model, and of the dense model again for comparison."""
    teacher: TeacherModel | list[TeacherModel] | None = None
    """What search.distill and retrain.distill learn from; null is the dense model. A list of models, each with its weight,
    answers by the average of their probabilities."""
    baselines: list[Annotated[str, OneOf(known_baselines)]] = []
    """Other methods at the same budgets, to compare with. uniform: the same share of every layer. taylor: gate x gradient on
    the dense model. taylor-repaired: the same on principal axes, and repaired. random: drawn by the seed. scratch: what the
    search keeps, with fresh weights. small: a smaller timm model with fresh weights. torch-pruning: what that package keeps.
    docs/baselines.md says more."""
    baseline_terms: list[Terms] = ["retraining"]
    """What is held equal between the search and the baselines. retraining: every model is retrained for the same number of
    epochs. compute: baselines without a search train longer, so that each method costs as much in total as the search and the
    retraining of its models. Both may be named."""
    resources: Resources = Resources()
    """Which resources of the cluster are used."""
    latency: Latency | None = None
    """In which setting models are timed, for budgets in ms and for the latency of each point; null times nothing where no
    budget is in ms."""
    trackers: list[TrackerName] = []
    """Experiment trackers that are told how the run goes: mlflow, wandb, tensorboard. They change no result
    (docs/trackers.md)."""
    tracking: Tracking = Tracking()
    """Where trackers log to."""

    def __init__(self, **data: Any) -> None:
        try:
            super().__init__(**identity.with_current_names(data))
        except ValidationError as problem:
            raise ConfigError(sentence(problem, type(self), {})) from problem

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
        values = value if isinstance(value, list) else [value]
        if any(isinstance(one, bool) for one in values):
            raise ValueError("must be budgets, such as 0.5 or 2.3G, not true or false")  # pydantic would read true as 1
        return [value] if isinstance(value, (int, float)) else value

    @field_validator("budgets")
    @classmethod
    def _budgets(cls, value: list[float | str]) -> list[float | str]:
        written = [_plain_number(budget) for budget in value]
        for budget in written:
            if _key(budget)[1:] == (True, 1.0):
                raise ValueError(f"budget {budget!r} is the whole dense model: take a fraction between 0 and 1, such as 0.5")
        return once(written, key=_key)

    @field_validator("shares", mode="before")
    @classmethod
    def _one_point(cls, value: Any) -> Any:
        points = from_brackets(value)
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
        return once(value, key=lambda point: frozenset((f, share) for f, share in point.items() if share < 1))

    @field_validator("teacher")
    @classmethod
    def _one_or_several(cls, value: TeacherModel | list[TeacherModel] | None) -> TeacherModel | list[TeacherModel] | None:
        # One teacher is the same, as an entry of a list and alone, whatever its weight.
        members = [value] if isinstance(value, TeacherModel) else value
        if members is None:
            return None
        if not members:
            raise ValueError("must name at least one model, or be null for the dense model")
        return members[0].model_copy(update={"weight": 1.0}) if len(members) == 1 else members

    @field_validator("baselines", "trackers")
    @classmethod
    def _eachonce(cls, value: list[str]) -> list[str]:
        return once(value)

    @field_validator("baseline_terms")
    @classmethod
    def _some_terms(cls, value: list[str]) -> list[str]:
        if not value:
            raise ValueError("must name retraining, compute, or both")
        return once(value)

    @model_validator(mode="before")
    @classmethod
    def _one_way_to_have_no_head(cls, values: Any) -> Any:
        return with_no_classes(values) if isinstance(values, Mapping) else values

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
        if problems := list(self._misfits()):
            raise ValueError("\n".join(problems))
        return self

    def _misfits(self) -> Iterator[str]:
        """A sentence for each setting that does not go with others."""
        if not self.budgets and not self.shares:
            yield "budgets and shares are both empty: give at least one budget, such as [0.7, 0.5]"
        try:
            check_backbone(self)
        except ValueError as problem:
            yield str(problem)
        timed = self.latency
        if timed is not None and timed.table is None and timed.device == "cuda" and not self.resources.gpus_per_worker:
            yield "latency.device is cuda, but resources.gpus_per_worker is 0: set it to 1, or take cpu"
        if timed is not None and timed.table is not None and self.budgets_in_ms:
            own = [name for name in self.baselines if METHODS[name].chooses]
            if own:
                yield (
                    f"latency.table is {timed.table!r}, which has times of what the search keeps alone, but baselines names "
                    f"{' and '.join(own)}: leave them out, or take a budget of MACs"
                )
        if self.dense.epochs == 0 and not (self.model.pretrained or self.model.checkpoint):
            yield ("dense.epochs is 0 without weights to start from: set model.pretrained, model.checkpoint or dense.epochs")
        if self.search.rank == "gates" and not self.search.epochs:
            yield (
                "search.rank is gates, but search.epochs is 0, so all gates are still 1: take activation or taylor, or set "
                "search.epochs"
            )
        if self.teacher is not None and not any(self.distills(stage).alpha for stage in ("search", "retrain")):
            yield (
                "teacher is given, but search.distill.alpha and retrain.distill.alpha are both 0, so nothing learns from it: "
                "set one of them, such as 0.5, or leave teacher out"
            )
        if self.retrain.stopping is not None:
            if self.retrain.compare_rates == "all seeds":
                yield (
                    "retrain.stopping is asha, but retrain.compare_rates is all seeds, which needs each rate with each seed to "
                    "its end: leave one of the two out"
                )
            if self.retrain.workers_per_trial > 1:
                yield (
                    f"retrain.stopping is asha, but retrain.workers_per_trial is {self.retrain.workers_per_trial}, and only "
                    "points that one worker trains can be stopped: leave one of the two out"
                )
        if self.retrain.epochs == 0:
            fresh = [name for name in self.baselines if METHODS[name].fresh]
            if fresh:
                yield (
                    f"baselines names {' and '.join(fresh)}, whose weights are fresh, but retrain.epochs is 0, which trains "
                    "nothing: leave them out, or set retrain.epochs"
                )
            if "compute" in self.baseline_terms and self.baselines:
                yield (
                    "baseline_terms names compute, which trains baselines longer, but retrain.epochs is 0, which trains "
                    "nothing: leave it out, or set retrain.epochs"
                )
        if not self.search.axes and not self.retrain.repair:
            for name in self.baselines:
                method = METHODS[name]
                same = next(
                    (m.name for m in METHODS.values() if m.chooses and m.choose == method.choose and not m.repaired), ""
                )
                if method.repaired and same:
                    yield (
                        f"baselines names {name}, but search.axes and retrain.repair are both false, so it would be the same "
                        f"as {same}: take {same}, or set one of them (runs that an earlier version began go on without both)"
                    )
        if self.search.ema_decay is not None:
            yield f"search.ema_decay is {self.search.ema_decay:g}, but gates are not averaged: leave it out"
        undivided = False
        for stage in ("dense", "search", "retrain"):
            recipe: Recipe = getattr(self, stage)
            if recipe.warmup_epochs and recipe.warmup_epochs >= recipe.epochs > 0:
                yield (f"{stage}.warmup_epochs is {recipe.warmup_epochs}, not below {stage}.epochs, {recipe.epochs}: lower it")
            lowest = min(recipe.rates) if isinstance(recipe, Retrain) else recipe.lr
            if recipe.min_lr > lowest:
                yield f"{stage}.min_lr is {recipe.min_lr}, above {stage}.lr, which is {lowest}: lower it"
            parallel = "retrain.workers_per_trial" if stage == "retrain" else "resources.search_workers"
            workers = self.retrain.workers_per_trial if stage == "retrain" else self.resources.search_workers
            factors = {parallel: workers, f"{stage}.accumulate": recipe.accumulate}
            if self.data.augment.mixes:
                factors["2 for Mixup and CutMix, which take pairs"] = 2
            share = math.prod(factors.values())
            if self.data.batch_size % share and not undivided:
                undivided = True  # once, as each stage may ask for another size
                names = " x ".join(
                    f"{name} ({n})" if n != 2 or "Mixup" not in name else name for name, n in factors.items() if n > 1
                )
                near = max(1, round(self.data.batch_size / share)) * share
                yield f"data.batch_size is {self.data.batch_size}, which does not divide by {names}: take {near}"

    @property
    def sorted_budgets(self) -> list[float | str]:
        """Of MACs first, then of parameters, then of ms: fractions from large to small, then absolute ones likewise."""

        def order(budget: float | str) -> tuple[bool, bool, bool, float]:
            unit, relative, amount = _key(budget)
            return unit == "ms", unit != "macs", not relative, -amount

        return sorted(self.budgets, key=order)

    @property
    def budgets_in_ms(self) -> list[Budget]:
        """The budgets that are latencies, in the order of `sorted_budgets`."""
        return [budget for budget in map(Budget.parse, self.sorted_budgets) if budget.is_latency]

    @property
    def times_models(self) -> bool:
        """Whether models are timed: where the section `latency` is given or a budget is in ms, and no table has the times."""
        return (self.latency is not None or bool(self.budgets_in_ms)) and self.timing.table is None

    @property
    def timing(self) -> Latency:
        """The section `latency`, or its defaults."""
        return self.latency or Latency()

    @property
    def latency_setting(self) -> LatencySetting:
        """The setting that models are timed in."""
        return self.timing.setting(self.resources.cpus_per_worker, self.resources.gpus_per_worker)

    @property
    def depth_in_ms(self) -> bool:
        """Whether a layer's whole attention or MLP may leave under a budget in ms."""
        return self.search.depth or self.timing.depth

    def branch_cost(self, measured: float | None = None) -> bool | float:
        """The `depth` of the removal path of budgets in ms.

        Args:
            measured: what a branch costs by itself, where that was measured.
        """
        if not self.depth_in_ms:
            return False
        given = self.timing.branch_cost if self.timing.branch_cost is not None else measured
        return BRANCH_COST if given is None else given

    @property
    def teachers(self) -> list[TeacherModel]:
        """The models of `teacher`; empty where the dense model teaches."""
        return [self.teacher] if isinstance(self.teacher, TeacherModel) else self.teacher or []

    def distills(self, stage: Stage) -> Distill:
        """How the search or the retraining learns from a teacher. A backbone has nothing to learn from but features."""
        if self.backbone:
            return Distill(alpha=1.0, answers="features")
        found: Distill = getattr(self, stage).distill
        return found

    @property
    def backbone(self) -> bool:
        """Whether the model has no head: it learns from features, and is compared with the dense model by them."""
        return self.data.num_classes == 0

    @property
    def quality(self) -> Literal["val_r2", "val_top1"]:
        """The column of curves and results by which all choices are made; more is better."""
        return "val_r2" if self.backbone else "val_top1"

    def teaches_anew(self, stage: Stage) -> bool:
        """Whether a stage learns from `teacher`, or from the dense model in another way than by soft answers.

        Only then the teacher's MACs count as compute, and the two heads of a distilled model learn apart: soft answers of the
        dense model are older than both, and points that learned from them keep their names and what these stand for.
        """
        distill = self.distills(stage)
        return distill.alpha > 0 and (self.teacher is not None or distill.answers != "soft")

    def teacher_in_words(self, stage: Stage) -> str:
        """Who teaches a stage, and how, for tables: "dense, soft, alpha 0.5"; empty where nobody does."""
        distill, members = self.distills(stage), self.teachers
        if not distill.alpha:
            return ""
        names = [one.label if len(members) == 1 else f"{one.weight:g} x {one.label}" for one in members] or ["dense"]
        warm = f", temperature {distill.temperature:g}" if distill.answers == "soft" and distill.temperature != 1 else ""
        return f"{' + '.join(names)}, {distill.answers}, alpha {distill.alpha:g}{warm}"

    @property
    def target_count(self) -> int:
        """Searched points per seed: one per budget, and one per entry of shares."""
        return len(self.budgets) + len(self.shares)

    def changed(self, **dotted: Any) -> Self:
        """A copy with other values, checked: `config.changed(**{"search.epochs": 3, "budgets": [0.5]})`.

        Raises:
            ConfigError: as for a configuration file.
        """
        values = self.model_dump()
        for section, key in (name.split(".") for name in self.unsaid):
            del values[section][key]  # at its default, it stays unsaid
        for name, value in dotted.items():
            put(values, name.split("."), value)
        return type(self)(**values)

    @property
    def unsaid(self) -> list[str]:
        """The fields of `identity.EARLIER_DEFAULTS` that nobody set: dotted names."""
        fields = (name.split(".") for name in identity.EARLIER_DEFAULTS)
        return [f"{section}.{key}" for section, key in fields if key not in getattr(self, section).model_fields_set]

    def without_effect(self) -> str:
        """One sentence on settings of the gates' training where the gates are not trained; empty where there are none."""
        if self.search.epochs or "search.epochs" not in self.unsaid:
            return ""
        usual = type(self.search)()
        changed = [f"search.{name}" for name in OF_GATE_TRAINING if getattr(self.search, name) != getattr(usual, name)]
        if not changed:
            return ""
        are = "is" if len(changed) == 1 else "are"
        return (
            f"{' and '.join(changed)} {are} set, but search.epochs is 0, its default, so no gates are trained: set "
            "search.epochs, such as 50, to train them"
        )

    def wants_bf16(self) -> bool:
        """Whether any stage asks for mixed precision."""
        return any(recipe.amp == "bf16" for recipe in (self.dense, self.search, self.retrain))

    def nothing_to_stop(self) -> str:
        """One sentence where `retrain.stopping` has nothing to compare; empty elsewhere."""
        retrain = self.retrain
        if retrain.stopping is None or not retrain.epochs:
            return ""
        if len(retrain.rates) == 1:
            return f"retrain.stopping is {retrain.stopping}, but retrain.lr is a single rate, so nothing is stopped"
        if retrain.first_comparison(retrain.epochs) >= retrain.epochs:
            return (
                f"retrain.stopping is {retrain.stopping}, but rates are first compared after epoch "
                f"{retrain.first_comparison(retrain.epochs)} of {retrain.epochs}, so nothing is stopped: lower "
                "retrain.grace_epochs"
            )
        return ""

    def going_on_from(self, earlier: Self) -> Self:
        """The configuration for a run that an earlier start began: what nobody set, and what its version did not know yet,
        stays as that version did it.

        Args:
            earlier: the configuration of that start.
        """
        before = identity.EARLIER_DEFAULTS
        return self._with_earlier_ways(name for name in self.unsaid if earlier.value(name) == before[name])

    def in_earlier_ways(self) -> Self:
        """`going_on_from` a start whose version knew none of these fields."""
        return self._with_earlier_ways(self.unsaid)

    def _with_earlier_ways(self, names: Iterable[str]) -> Self:
        kept = {name: identity.EARLIER_DEFAULTS[name] for name in names}
        return self.changed(**kept) if kept else self

    def value(self, name: str) -> Any:
        """The value of a field by its dotted name."""
        return functools.reduce(getattr, name.split("."), self)

    def smoke(self) -> Self:
        """A copy that does everything in about a minute: the same model and stages, few images, one epoch or two."""
        pairs = 2 if self.data.augment.mixes else 1
        share = math.lcm(self.resources.search_workers * pairs, self.retrain.workers_per_trial * pairs)
        batch = min(self.data.batch_size, -(-16 // share) * share)
        budgets = self.sorted_budgets
        quick = {"warmup_epochs": 0, "accumulate": 1, "compile": False}
        stages = {"dense": min(self.dense.epochs, 1), "search": min(self.search.epochs, 2)}
        stages["retrain"] = min(self.retrain.epochs, 1)
        return self.changed(
            **{
                "name": f"{self.name.removesuffix('-smoke')[:94]}-smoke",
                "budgets": _ends(budgets),
                "shares": _ends(self.shares),
                "search.paces": self.search.paces[:2],
                "search.recovery": min(self.search.recovery, 1),
                "baselines": self.baselines[:1],
                "data.limit": min(self.data.limit or 2**62, max(64, 2 * batch)),
                "data.batch_size": batch,
                "data.eval_batch_size": min(self.data.eval_batch_size or 64, 64),
                "retrain.seeds": self.retrain.seeds[:1],
                "retrain.lr": self.retrain.rates[:2],
                **{f"{stage}.{key}": v for stage, n in stages.items() for key, v in {"epochs": n, **quick}.items()},
            }
        )

    def quick(self) -> Self:
        """A copy whose points are cut and repaired, and not trained: gates are ranked without a search, budgets and data stay.

        It has the same name, so that the run takes trained points later.
        """
        return self.changed(
            **{
                "search.epochs": 0,
                "search.recovery": 0,
                "search.rank": None if self.search.rank == "gates" else self.search.rank,  # which needs a search
                "retrain.epochs": 0,
                "retrain.lr": self.retrain.rates[0],
                "retrain.seeds": self.retrain.seeds[:1],
                "baselines": [name for name in self.baselines if not METHODS[name].fresh],
                "baseline_terms": ["retraining"],
            }
        )

    def untrained(self) -> Self:
        """A copy with 0 epochs of retraining, in which all that only matters to a training is at its default.

        Its identity is that of an untrained point: a change of the recipe of retraining, or of a teacher that only the
        retraining learns from, leaves such points as they are.
        """
        return self.changed(
            **{
                "teacher": self.teacher if self.distills("search").alpha else None,
                "retrain": {"epochs": 0, "repair": self.retrain.repair},
                "baselines": [],
                "baseline_terms": ["retraining"],
            }
        )

    def pace_recipe(self) -> Retrain:
        """How a pace of the families is tried: a short retraining at the first learning rate, by one worker; or none.

        In as many parts as workers would train a point together, a batch needs no more memory than theirs.
        """
        epochs, parts = self.search.recovery, self.retrain.accumulate * self.retrain.workers_per_trial
        # A moving average would still hold mostly the weights right after the cut.
        short = {"accumulate": parts, "warmup_epochs": min(self.retrain.warmup_epochs, max(epochs - 1, 0)), "ema_decay": None}
        return self.retrain.at(self.retrain.rates[0], epochs).model_copy(update=short)

    def identity(
        self, stage: Stage, checkpoint: str | None = None, teachers: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        """All that changes the result of a stage, and nothing else: not budgets, shares, seeds, resources or output.

        The same in every version of slimsweep that gives the same result: fields that a later version adds count only where
        they are not at their default (`slimsweep.config.identity`).

        Args:
            checkpoint: what stands for the file of model.checkpoint: its `checkpoint_token`; its path where not given.
            teachers: the same by the path of each teacher.checkpoint.
        """
        return identity.identity(self, stage, checkpoint, teachers)

    def fingerprint(self, stage: Stage, checkpoint: str | None = None, teachers: Mapping[str, str] | None = None) -> str:
        """A hash of `identity(stage, checkpoint, teachers)`: ten hex digits, the same on every machine."""
        return identity.fingerprint(self, stage, checkpoint, teachers)

    def to_yaml(self) -> str:
        """The whole resolved configuration, which `--config` takes again; a comment names the versions."""
        versions = ", ".join(f"{package} {_version(package)}" for package in ("slimsweep", "torch", "timm", "ray"))
        return f"# {versions}\n" + yaml.safe_dump(
            self.model_dump(mode="json"), sort_keys=False, default_flow_style=None, width=120
        )


def put(tree: dict[str, Any], path: list[str], value: Any) -> None:
    """Set a value deep in nested dicts, which are made where they are missing.

    Raises:
        ConfigError: something on the way is a value itself.
    """
    for index, key in enumerate(path[:-1]):
        if tree.get(key) is None:
            tree[key] = {}
        tree = tree[key]
        if not isinstance(tree, dict):
            raise ConfigError(f"{'.'.join(path[: index + 1])} and {'.'.join(path)} are both given; say one of them")
    tree[path[-1]] = value


def _plain_number(budget: float | str) -> float | str:
    """A budget as it was written; a plain number that came as text is a number."""
    if isinstance(budget, str):
        try:
            return float(budget)
        except ValueError:
            return budget.strip()
    return budget


def _key(budget: float | str) -> tuple[str, bool, float]:
    """Equal for equal budgets: (unit, whether it is a fraction of the dense model, amount).

    Raises:
        BudgetError: the value is no budget.
    """
    parsed = Budget.parse(budget)
    return parsed.unit, parsed.relative, parsed.amount


def _ends(values: list[Any]) -> list[Any]:
    """The first and the last."""
    return values if len(values) <= 2 else [values[0], values[-1]]


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "(not installed)"
