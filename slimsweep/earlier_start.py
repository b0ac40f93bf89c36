"""An earlier start of a run: what is taken from it, and what is refused because old and new results would not compare."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from slimsweep.cluster.worker import data_for, drawn_once
from slimsweep.config import Config, ConfigError, Fitted, changed_keys, checkpoint_token
from slimsweep.data import check_classes, difference, title
from slimsweep.errors import DamagedFile
from slimsweep.ledger.damage import look_over
from slimsweep.ledger.files import (
    CONFIG,
    DENSE,
    DERIVED,
    IDENTITY,
    MODEL_CONFIG,
    MODEL_WEIGHTS,
    SEARCH_GATES,
    SEARCH_MODEL,
    SEARCH_SHAPE,
)
from slimsweep.ledger.planning import expected_points, plan_points, point_hash, recipe_fingerprints
from slimsweep.ledger.run import Run
from slimsweep.ledger.searched_model import restore_search
from slimsweep.training.dense_model import check_model

log = logging.getLogger(__name__)


def start_or_continue(run: Run, quick: bool = False, fitted: Mapping[str, Fitted] | None = None) -> None:
    """Check that earlier results in the run's folder compare with new ones, and write the configuration there.

    Args:
        quick: whether --quick was given: a search that the run's folder has is then taken as it is, with its pace.
        fitted: the values that follow the data (`slimsweep.fit_to_data`), which the first start records.

    Raises:
        ConfigError: the configuration changed so that earlier and new results would not compare.
        DamagedFile: a file without which that cannot be said is damaged.
    """
    old = earlier_config(run)
    if old is not None:
        go_on_from(run, old, quick)
    if run.damaged:
        make_again(run, old)
    checkpoints = [one.checkpoint for one in run.config.teachers if one.checkpoint is not None]
    run.known_teachers = {path: checkpoint_token(path, "teacher.checkpoint") for path in checkpoints}
    run.known_checkpoint = known_checkpoint(run, old)
    if old is not None:
        refuse_incomparable(old, run)
    elif run.is_begun:
        take_what_fits(run)
    # The model decides only what images are turned into; its checkpoint may be one that is refused later.
    plain = run.config.model_copy(update={"model": run.config.model.model_copy(update={"checkpoint": None})})
    data = data_for(run.config, check_model(plain))
    if not run.is_begun:
        check_classes(data)
    if run.dense_done and f"{DENSE}/{MODEL_CONFIG}" not in run.damaged:
        known, found = run.dense_description.get("label_names"), data.class_names
        if known and found and known != found:
            raise ConfigError(
                f"{run.uri} was begun on other classes ({_few(known)}) than {title(run.config)} now has ({_few(found)}): "
                "set data.root back, or take another --name"
            )
    fingerprint = known_data(run, data.fingerprint)
    run.write_known_checkpoint()
    run.write_known_data(fingerprint)
    if not run.is_begun or DERIVED in run.damaged:
        run.write_fitted(fitted or {})
    run.write_config()
    for path in (CONFIG, IDENTITY):
        run.damaged.pop(path, None)


def go_on_from(run: Run, old: Config, quick: bool = False) -> None:
    """Take the run's configuration as its next start does, with what an earlier start decided.

    Args:
        old: the configuration of the earlier start.
        quick: as in `start_or_continue`.

    Raises:
        ConfigError: it does not fit together so.
    """
    asked = run.config
    run.take_config(asked.going_on_from(old))
    kept = {name: run.config.value(name) for name in asked.unsaid if run.config.value(name) != asked.value(name)}
    if kept:
        log.warning(
            "%s was begun by an earlier version and goes on as that did, with %s, so that its results compare; "
            "take another --name for today's defaults",
            run.uri,
            ", ".join(f"{name} {str(value).lower()}" for name, value in kept.items()),
        )
    if quick and run.search_done and old.search.epochs:
        kept = {f"search.{key}": getattr(old.search, key) for key in ("epochs", "recovery")}
        run.take_config(run.config.changed(**kept, **{"search.rank": run.config.search.rank or old.search.rank}))


def known_data(run: Run, found: dict[str, Any]) -> dict[str, Any]:
    """The fingerprint of the splits that all processes of this start must have.

    Until something was made from a split, another may take its place, such as one without a damaged image. Runs of earlier
    versions have no fingerprint: the splits of this start count for them from now on.

    Args:
        found: the fingerprint of the splits in this process.

    Raises:
        ConfigError: they are not those that the run was begun with.
    """
    known = run.known_data
    trained = run.dense_done or any(row["epoch"] > 0 for row in run.curve("dense"))
    if known is None or not trained:
        return found
    used = known if run.dense_done else {**known, "splits": {s: k for s, k in known["splits"].items() if s != "test"}}
    changed = difference(used, found)
    if changed is not None:
        raise ConfigError(
            f"{title(run.config)} is not as it was when {run.uri} was begun: {changed}{drawn_once(run.config)}, so its results "
            "would not compare with new ones; set the data back, or take another --name"
        )
    return known if run.dense_done and known.get("version") == found["version"] else found


def earlier_config(run: Run) -> Config | None:
    """The configuration of the run's earlier start; None where there was none, or where its file is damaged.

    Raises:
        ConfigError: another version of slimsweep wrote it.
    """
    try:
        return run.stored_config() if run.is_begun else None
    except DamagedFile as problem:
        run.damaged[CONFIG] = str(problem)
        return None


def make_again(run: Run, old: Config | None) -> None:
    """Make what was damaged again, as far as no done point depends on it: gates and sizes from the searched model, or all anew.

    Args:
        old: the configuration of the earlier start, where it is known.
    """
    restore_search(run if old is None else Run(run.folder, old, run.holder, run.damaged))
    if (run.rows.status == "ok").any():
        return  # `refuse_lost_sources`, where something is still to be trained
    dense = any(path in run.damaged for path in (f"{DENSE}/{MODEL_CONFIG}", f"{DENSE}/{MODEL_WEIGHTS}"))
    if dense or any(path in run.damaged for path in (SEARCH_MODEL, SEARCH_SHAPE, SEARCH_GATES)):
        run.forget_sources(dense)
        run.damaged.clear()
        look_over(run)


def take_what_fits(run: Run) -> None:
    """Where the configuration of the earlier start is lost: take this one, or as an earlier version would have meant it.

    Raises:
        DamagedFile: the points that are done were made with other settings.
    """
    asked = run.config
    if is_same_sweep(run):
        return
    try:
        run.take_config(asked.in_earlier_ways())
    except ConfigError:  # what is asked for needs what earlier versions did not have
        fits = False
    else:
        fits = is_same_sweep(run)
    if fits:
        return
    raise DamagedFile(
        f"{(run.folder / CONFIG).uri} is damaged, and no result shows that the run was begun with these settings: restore "
        "it from a copy, or take another --name"
    )


def is_same_sweep(run: Run) -> bool:
    """Whether the points that are done are among those that the configuration asks for, or nothing was made yet.

    The hash of a point stands for all settings that it depends on.
    """
    done = run.rows[run.rows.status == "ok"]
    if done.empty:
        return not (run.dense_done or run.search_done or run.curve_names() or run.checkpoint_names())
    if not run.search_done:
        return False
    configs = [run.config]
    if not (done.epochs != 0).any():  # points of any recipe of retraining may be added
        untrained = run.config.untrained()
        configs = [untrained, untrained.changed(**{"search.recovery": 0})]
    for config in configs:
        candidate = Run(run.folder, config)
        candidate.known_checkpoint, candidate.known_teachers = run.known_checkpoint, run.known_teachers
        if {point.hash for point in plan_points(candidate)} & set(done.point_hash):
            return True
    return False


def known_checkpoint(run: Run, old: Config | None) -> dict[str, str]:
    """What identifies `model.checkpoint` in the run: a hash of its content, so that the file may move.

    Runs of earlier versions were named by the file's path instead: in them the path goes on standing for that content.

    Args:
        old: the configuration of the earlier start, where it is known.

    Returns:
        `token` (in names) and `content` (hash), as `Run.known_checkpoint`; empty without a checkpoint.

    Raises:
        ConfigError: the file holds other weights than those that the run was begun with.
        DamagedFile: identity.json is damaged, and the points that are done do not show what stood in it.
    """
    path = run.config.model.checkpoint
    if path is None:
        return {}
    content = checkpoint_token(path)
    used = run.dense_done or run.has_curve("dense")  # until something was made from it, another file may take its place
    known = run.known_checkpoint if used else {}
    before = old.model.checkpoint if used and old is not None else None
    if used and IDENTITY in run.damaged:
        for token in dict.fromkeys(name for name in (content, before, path) if name):
            candidate = Run(run.folder, run.config)
            candidate.known_checkpoint = {"token": token, "content": content}
            candidate.known_teachers = run.known_teachers
            if is_same_sweep(candidate):
                return candidate.known_checkpoint
        raise DamagedFile(
            f"{(run.folder / IDENTITY).uri} is damaged, and no result shows that the run was begun with "
            f"model.checkpoint {path}: restore it from a copy, or take another --name"
        )
    if not known:
        if before is not None:
            there = Path(before).expanduser()
            if there.is_file() and checkpoint_token(there) != content:
                raise _other_weights(run, path, before)
            if not there.is_file() and there.name != Path(path).name:  # its name is all that can be compared
                raise ConfigError(
                    f"model.checkpoint is {path}, but {run.uri} was begun with {before}, which is gone, so the two cannot be "
                    f"compared: if it is the same file, name it {there.name} again, or else take another --name"
                )
        return {"token": before or content, "content": content}
    if known["content"] != content:
        raise _other_weights(run, path, "the file of the first start")
    return known


def _other_weights(run: Run, path: str, before: str) -> ConfigError:
    return ConfigError(
        f"model.checkpoint is {path}, which holds other weights than {before}, with which {run.uri} was begun, so its "
        "results would not compare with new ones: take another --name, or set it back"
    )


def refuse_incomparable(old: Config, run: Run) -> None:
    """Refuse a change of the configuration after which earlier and new results would not compare.

    Budgets, shares, seeds and resources may change. With retrain.start "larger", the points that done points started from may
    not. Points of 0 epochs depend on the search, the cut and its repair alone: they stay beside trained points of any recipe.

    Args:
        old: the configuration of the run's earlier start.

    Raises:
        ConfigError: names the fields that changed.
    """
    new = run.config
    begun = [stage for stage, done in (("dense", run.dense_done), ("search", run.search_done)) if done or run.has_curve(stage)]
    # Failed points have no results to compare, so that their recipe may be corrected.
    done = run.rows[run.rows.status == "ok"]
    trained = done[done.epochs != 0]
    # Whether trained points were made, and are to be made by the recipe that the last start had.
    of_recipe = len(trained) > 0 and old.retrain.epochs > 0 and new.retrain.epochs > 0
    stage: Any = "retrain" if len(done) else begun[-1] if begun else None
    changed = []
    if stage is not None:
        before, now = (old, new) if of_recipe or stage != "retrain" else (old.untrained(), new.untrained())
        changed = changed_keys(Run(run.folder, old).identity_of(before, stage), run.identity_of(now, stage))
        if not of_recipe:  # the pace is chosen anew then
            changed = [key for key in changed if key != "search.recovery"]
    if of_recipe:
        if len(old.retrain.rates) > 1 and len(new.retrain.rates) > 1 and set(trained.lr) <= set(new.retrain.rates):
            changed = [key for key in changed if key != "retrain.lr"]  # a list of rates may grow, and lose those that failed
        if (trained.terms == "compute").any() and old.target_count != new.target_count:
            changed.append("budgets and shares (over which the search's compute is spread)")
        if new.retrain.start == "larger" and (trained.method == "searched").any():
            changed += starts_changed(old, run, trained)
    elif len(trained) and new.retrain.epochs and not changed:
        changed = recipe_changed(run, trained)
    if changed:
        names = ", ".join(dict.fromkeys(changed))
        ranked = "search.epochs" in changed and not old.search.epochs
        raise ConfigError(
            f"{names} changed since {run.uri} was begun, so its results would not compare with new ones: "
            "take another --name, or set it back"
            + (" (--search.epochs 0, as --quick sets it: then the points that it ranked are trained)" if ranked else "")
        )


def recipe_changed(run: Run, trained: pd.DataFrame) -> list[str]:
    """The changes after which new trained points would not compare with those that are done.

    For a run whose last start trained nothing, so that its configuration does not say how the trained points were made: the
    hash of each stands for all settings that it depends on.

    Args:
        trained: the rows of the trained points that are done.
    """
    retrain, rows = run.config.retrain, trained.to_dict("records")
    if {row["epochs"] for row in rows if row["terms"] == "retraining"} - {retrain.epochs}:
        return ["retrain.epochs"]
    if not set(trained.lr) <= set(retrain.rates):
        return ["retrain.lr"]
    fingerprints = recipe_fingerprints(run)
    asked = ("method", "budget", "seed", "unit", "terms", "epochs", "shares")
    # One that started from no other point tells the recipe: the dense point always is one.
    hashes = (point_hash(fingerprints[row["lr"]], **{name: row[name] for name in asked}, start="") for row in rows)
    if not any(found == row["point_hash"] for found, row in zip(hashes, rows, strict=True)):
        return ["the recipe of retrain, or search.recovery,"]
    planned = {(*point.rate_group, point.lr): point.hash for point in plan_points(run)}
    for row in rows:
        group = (row["method"], row["terms"], f"{row['budget']:.9f}", row["unit"], row["shares"], row["seed"], row["lr"])
        if planned.get(group, row["point_hash"]) != row["point_hash"]:
            return [
                "budgets, shares or retrain.seeds (which decide what points start from, and the share of the search's compute)"
            ]
    return []


def starts_changed(old: Config, run: Run, done: pd.DataFrame) -> list[str]:
    """The changes after which searched points would start from other models than the done points did.

    Args:
        done: the rows of the points that are done.
    """
    new, searched = run.config, done[done.method == "searched"]
    before, after = (starts_of(config, run) for config in (old, new))
    columns = ("method", "terms", "budget", "unit", "shares", "seed")
    made = {(m, t, f"{b:.9f}", u, s, seed) for m, t, b, u, s, seed in searched[list(columns)].itertuples(index=False)}
    changed = []
    if any(before[group] != after[group] for group in made & before.keys() & after.keys()):
        least = searched.budget.min()
        changed.append(f"budgets (each point starts from the next larger one: new budgets must be below {least:g})")
    if old.shares != new.shares:
        changed.append("shares (whose models others may start from)")
    if len(new.retrain.rates) > 1 and old.retrain.seeds[0] != new.retrain.seeds[0]:
        changed.append("the first of retrain.seeds (which chooses the learning rate of the models that others start from)")
    if not set(new.retrain.rates) <= set(old.retrain.rates):
        changed.append("retrain.lr (whose best model others start from)")
    return changed


def starts_of(config: Config, run: Run) -> dict[tuple[Any, ...], list[tuple[Any, ...]]]:
    """For each searched point that a configuration asks for, by its `Point.rate_group`, those that it starts from in turn."""
    points = {point.name: point for point in expected_points(config, run.shape, run.scores, run.pace, run)}
    starts: dict[tuple[Any, ...], list[tuple[Any, ...]]] = {}
    for point in points.values():  # larger ones, which others start from, come first
        start = points.get(point.start)
        starts[point.rate_group] = [] if start is None else [start.rate_group, *starts[start.rate_group]]
    return starts


def _few(names: list[str]) -> str:
    return f"{', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"
