"""Configuration: where values come from, what is refused and how, and what makes two runs comparable."""

import hashlib
import json
import os
import pickle
import re
from importlib.resources import files
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from slimsweep.config import (
    L1,
    Affine,
    Augment,
    Config,
    ConfigError,
    DataConfig,
    Pace,
    Search,
    changed_keys,
    checkpoint_token,
    fields,
    identity,
    load_config,
    load_configs,
)
from slimsweep.config.fields import Section, all_fields, descriptions
from slimsweep.methods import METHODS
from slimsweep.slimming.budget import Budget

STAGES = ("dense", "search", "retrain")


@pytest.fixture(autouse=True)
def _no_variables_of_the_machine(monkeypatch):
    for name in list(os.environ):
        if name.startswith("SLIMSWEEP_"):
            monkeypatch.delenv(name)


@pytest.fixture
def write(tmp_path):
    def write(text: str) -> str:
        path = tmp_path / "sweep.yaml"
        path.write_text(text)
        return str(path)

    return write


def refusal(*argv: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(list(argv))
    text = str(caught.value)
    assert "\n" not in text, "a refusal is one sentence"
    return text


# Where values come from.


def test_no_argument_is_the_digits_recipe():
    config, options = load_config([])
    assert config.name == "digits"
    assert config.data.name == "digits"
    assert len(config.budgets) == 5
    assert not options.smoke
    assert not options.verbose


def test_command_line_over_environment_over_file(write, monkeypatch):
    path = write("search: {epochs: 1, lr: 0.1}\ndense: {epochs: 1}\nretrain: {epochs: 1}")
    monkeypatch.setenv("SLIMSWEEP_SEARCH__EPOCHS", "2")
    monkeypatch.setenv("SLIMSWEEP_DENSE__EPOCHS", "2")
    config, _ = load_config(["--config", path, "--search.epochs", "3"])
    assert (config.search.epochs, config.dense.epochs, config.retrain.epochs, config.search.lr) == (3, 2, 1, 0.1)


def test_lists_and_mappings_from_the_command_line_and_the_environment(monkeypatch):
    monkeypatch.setenv("SLIMSWEEP_BUDGETS", "0.3,0.5,2.3G")
    config, _ = load_config(
        ["--search.families=mlp,token", "--search.betas", "[0.8, 0.9]", "--retrain.seeds", "3", "--search.l1", '{"mlp": 0.2}']
    )
    assert config.budgets == [0.3, 0.5, "2.3G"]
    assert config.search.families == ["mlp", "token"]
    assert config.search.betas == (0.8, 0.9)
    assert config.retrain.seeds == [0, 1, 2]
    assert (config.search.l1.mlp, config.search.l1.attention) == (0.2, 0.05)


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ("teacher", "{name: regnety_160.deit_in1k, pretrained: true}"),
        ("teacher", "[{checkpoint: /a}, {checkpoint: /b, weight: 0.2}]"),
        ("baselines", "[taylor, uniform]"),
        ("shares", "{mlp: 0.5}"),
        ("budgets", "[0.5, 2.3G]"),
        ("search", "{paces: [{mlp: 1.4}], betas: [0.8, 0.9]}"),
        ("model", "{name: deit_tiny_patch16_224, kwargs: {img_size: 70}}"),
        ("model", '{name: deit_tiny_patch16_224, kwargs: {global_pool: "off"}}'),  # text, where off without quotes is false
    ],
)
def test_text_in_brackets_means_on_the_command_line_what_it_means_in_a_file(write, field, text):
    learns = ["--retrain.distill.alpha", "0.5"]  # from the teacher, where there is one
    from_file, _ = load_config(["--config", write(f"{field}: {text}"), *learns])
    from_command_line, _ = load_config(["--config", write(""), f"--{field}", text, *learns])
    assert from_command_line == from_file


def test_shares_are_a_list_of_points_or_one_of_them(write, monkeypatch):
    both = {"attention": 0.7, "mlp": 0.7}
    assert load_config(["--shares", '[{"attention":0.7,"mlp":0.7}]'])[0].shares == [both]
    assert load_config(["--shares", '{"attention": "0.7", "mlp": 0.7}'])[0].shares == [both]
    only, _ = load_config(["--config", write("budgets: []\nshares: [{attention: 0.7, mlp: 0.7}, {mlp: 0.5}]")])
    assert (only.budgets, only.shares, only.target_count) == ([], [both, {"mlp": 0.5}], 2)
    monkeypatch.setenv("SLIMSWEEP_SHARES", '[{"mlp": 0.5}]')
    beside, _ = load_config([])
    assert beside.shares == [{"mlp": 0.5}]
    assert beside.target_count == len(beside.budgets) + 1


def test_model_kwargs_as_a_whole_replace_and_one_by_one_change(monkeypatch):
    whole, _ = load_config(["--model.kwargs", '{"img_size": 8}'])
    assert whole.model.kwargs == {"img_size": 8}
    monkeypatch.setenv("SLIMSWEEP_MODEL__KWARGS__DEPTH", "3")
    one, _ = load_config(["--model.kwargs.num_heads", "2", "--model.kwargs.qk_norm", "true"])
    assert one.model.kwargs == {**load_config([])[0].model.kwargs, "depth": 3, "num_heads": 2, "qk_norm": True}


def test_null_switches_a_section_off_and_a_field_switches_it_on(write):
    assert load_config(["--data.augment.affine", "null"])[0].data.augment.affine is None
    on, _ = load_config(["--config", write("name: plain"), "--data.augment.affine.degrees", "5"])
    assert on.data.augment.affine is not None
    assert on.data.augment.affine.degrees == 5


def test_yaml_off_and_empty_sections_mean_what_they_look_like(write):
    config, _ = load_config(["--config", write("search:\nretrain: {amp: off, compile: on}")])
    assert config.retrain.amp == "off"
    assert config.retrain.compile is True


def test_flags_of_the_program_are_given_back():
    config, options = load_config(["--verbose", "--search.compile"])
    assert options.verbose
    assert config.search.compile is True


def test_variables_of_others_are_left_alone(monkeypatch):
    monkeypatch.setenv("SLIMSWEEP_DEBUG", "1")
    load_config([])


def test_help_lists_every_field(capsys):
    with pytest.raises(SystemExit) as caught:
        load_config(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert "--baselines LIST of uniform|random|taylor|taylor-repaired|scratch|small|torch-pruning" in text
    for gates in ("On attention dims. (default: 0.05)", "Of MLP units. (default: 0.1)"):
        assert gates in text
    for field in ("--config", "--smoke", "--budgets", "--search.l1.mlp", "--data.augment.affine.degrees", "--retrain.seeds"):
        assert field in text


# What is refused.


@pytest.mark.parametrize(
    ("argv", "wanted"),
    [
        (["--search.epohcs", "5"], ["search.epohcs", "search.epochs"]),
        (["--epochs", "5"], ["--epochs", "dense.epochs"]),
        (["stray"], ["stray", "--help"]),
        (["--budgets"], ["--budgets", "VALUE"]),
        (["--budgets", "0"], ["budgets", "'0'", "between 0 and 1"]),
        (["--budgets", "1.5"], ["1.5", "between 0 and 1"]),
        (["--budgets", "1.0"], ["1.0", "between 0 and 1"]),
        (["--budgets", "-0.5"], ["-0.5", "between 0 and 1"]),
        (["--budgets", "abc"], ["abc", "2.3G"]),
        (["--budgets", "0.0G"], ["0.0G"]),
        (["--budgets", "nan"], ["nan"]),
        (["--budgets", "0.5,0.50"], ["0.5", "twice"]),
        (["--budgets", "2G,2000M"], ["2000M", "twice"]),
        (["--budgets", "0.5,50%"], ["50%", "twice"]),
        (["--budgets", "60% params,0.6 params"], ["0.6 params", "twice"]),
        (["--budgets", "100%"], ["'100%'", "between 0 and 1"]),
        (["--budgets", "1.0 params"], ["'1.0 params'", "between 0 and 1"]),
        (["--budgets", "2.3G apples"], ["2.3G apples", "11.5M params"]),
        (["--budgets", "[]"], ["at least one"]),
        (["--shares", "0.7"], ["shares", "'0.7'", '{"attention": 0.7, "mlp": 0.7}']),
        (["--shares", "[0.7]"], ["shares", "points with the share that each family keeps"]),
        (["--shares", '[{"atention": 0.7}]'], ["shares", "attention, mlp, token"]),
        (["--shares", '{"mlp": 0}'], ["shares", "mlp", "above 0 and at most 1"]),
        (["--shares", '{"mlp": 1.1}'], ["shares", "mlp", "above 0 and at most 1"]),
        (["--shares", '{"mlp": "most"}'], ["shares", "number"]),
        (["--shares", '{"mlp": 1.0}'], ["shares", "loses gates"]),
        (["--shares", "{}"], ["shares", "loses gates"]),
        (["--shares", '[{"mlp": 0.5}, {"mlp": 0.5, "token": 1}]'], ["shares", "twice"]),
        (["--shares", "[{"], ["shares", "points with"]),
        (["--name", "a/b"], ["name", "a/b", "output"]),
        (["--name", ".."], ["name"]),
        (["--search.epochs", "ten"], ["search.epochs", "'ten'", "whole number", "command line"]),
        (["--search.epochs", "1.5"], ["search.epochs", "whole number"]),
        (["--search.epochs", "-1"], ["search.epochs", "at least 0"]),
        (["--search.epochs", "0", "--search.rank", "gates"], ["search.rank", "activation", "search.epochs"]),
        (["--search.lr", "nan"], ["search.lr", "finite"]),
        (["--search.penalty", "mac"], ["search.penalty", "l1, macs", "did you mean macs"]),
        (["--search.families", "attention,mpl"], ["search.families", "did you mean mlp"]),
        (
            ["--baselines", "unifrom"],
            ["baselines", "'unifrom'", "command line", "taylor-repaired, scratch", "did you mean uniform?"],
        ),
        (["--baselines", "searched"], ["baselines", "'searched'", "uniform, random, taylor"]),
        (["--baselines", "taylor,taylor"], ["baselines", "'taylor' twice"]),
        (["--search.paces", '[{"mpl": 1.4}]'], ["search.paces", "'mpl'", "did you mean mlp?"]),
        (["--search.families", "mlp,mlp"], ["mlp", "twice"]),
        (["--search.betas", "0.9"], ["search.betas", "2 numbers"]),
        (["--data.augment.scale", "1,0.5"], ["data.augment.scale", "smaller one first"]),
        (["--data.augment.auto_augment", "magic"], ["auto_augment", "magic", "rand-m9"]),
        (["--model.kwargs", "{x"], ["model.kwargs", "'{x'", "YAML or JSON", "expected ','", "column 3"]),
        (["--model.kwargs", "{img_size:70}"], ["model.kwargs", "'img_size:70' has no value: put a space after the colon"]),
        (["--search.paces", "[{mpl: 1.4}]"], ["search.paces", "'mpl'", "did you mean mlp?"]),
        (["--model.kwargs.num_classes", "3"], ["num_classes", "data.num_classes"]),
        (["--model.kwargs.drop_path_rate", "0.1"], ["drop_path_rate", "retrain.drop_path"]),
        (["--retrain.seeds", "0"], ["retrain.seeds"]),
        (["--retrain.seeds", "1,1"], ["retrain.seeds", "twice"]),
        (["--retrain.warmup_epochs", "20"], ["retrain.warmup_epochs", "20"]),
        (["--resources.gpus_per_worker", "1.5"], ["gpus_per_worker", "fraction"]),
        (["--resources.search_workers", "3"], ["batch_size is 64", "search_workers (3)", "take 63"]),
        (["--search.accumulate", "5"], ["batch_size is 64", "search.accumulate (5)", "take 65"]),
        (["--dense.epochs", "0"], ["dense.epochs", "model.checkpoint"]),
        (["--data.mean", "0.5,0.5", "--data.std", "1"], ["data.mean", "data.std"]),
        (["--config", "digit"], ["digit", "did you mean digits"]),
        (["--config", "no/such.yaml"], ["no/such.yaml", "digits"]),
    ],
)
def test_bad_arguments_are_refused_in_one_sentence(argv, wanted):
    text = refusal(*argv)
    for part in wanted:
        assert part in text


@pytest.mark.parametrize(
    ("yaml", "wanted"),
    [
        ("search: {epohcs: 3}", ["search.epohcs", "sweep.yaml", "did you mean search.epochs"]),
        ("lr: 3", ["lr", "search"]),
        ("data: {augment: {affine: {degree: 3}}}", ["data.augment.affine.degree", "degrees"]),
        ("budgets: [0.5, 1.0]", ["budgets", "1.0"]),
        ("search: 3", ["search", "mapping"]),
        ("model: {kwargs: {img_size:70}}", ["'img_size:70' has no value: put a space after the colon", "line 1"]),
        ("seed: true", ["seed"]),
        ("model: {name: 3}", ["model.name", "text"]),
        ("- a", ["list"]),
        ("a: [", ["YAML", "line 1"]),
        ("name: !!python/object/apply:os.system ['true']", ["YAML"]),
        ("1: 2", ["unknown field 1"]),
    ],
)
def test_bad_files_are_refused_in_one_sentence(write, yaml, wanted):
    text = refusal("--config", write(yaml))
    for part in wanted:
        assert part in text


def test_bad_variables_are_refused_and_named(monkeypatch):
    monkeypatch.setenv("SLIMSWEEP_SEARCH__EPOCHZ", "3")
    assert "search.epochz" in refusal()
    monkeypatch.delenv("SLIMSWEEP_SEARCH__EPOCHZ")
    monkeypatch.setenv("SLIMSWEEP_SERCH__EPOCHS", "3")
    assert "did you mean search" in refusal()


TWO_SIZES = """
name: sizes
output: /there
model:
- {name: vit_tiny_patch16_224, kwargs: {depth: 6}}
- {name: vit_tiny_patch16_224}
- {name: deit_small_patch16_224, pretrained: true}
"""


def test_a_list_of_models_is_a_run_of_each_in_one_folder(write):
    configs, _ = load_configs(["--config", write(TWO_SIZES), "--search.epochs", "7"])
    assert [c.name for c in configs] == ["vit_tiny_patch16_224", "vit_tiny_patch16_224-2", "deit_small_patch16_224"]
    assert {c.output for c in configs} == {"/there/sizes"}
    assert [c.model.kwargs for c in configs] == [{"depth": 6}, {}, {}]
    assert [c.dense.epochs for c in configs] == [300, 300, 0]  # pretrained weights are taken as they are, for that one alone
    assert {c.search.epochs for c in configs} == {7}
    pretrained, _ = load_configs(["--config", write("dense: {epochs: 0}\nmodel: [{pretrained: true}]")])
    assert [c.dense.epochs for c in pretrained] == [0]
    smoke, _ = load_configs(["--config", write(TWO_SIZES), "--smoke"])
    assert {c.output for c in smoke} == {"/there/sizes-smoke"}  # the page over all is another than the run's
    store, _ = load_configs(["--config", write(TWO_SIZES), "--output", "s3://bucket/x?scheme=http"])
    assert {c.output for c in store} == {"s3://bucket/x/sizes?scheme=http"}
    again, _ = load_configs(["--config", write(configs[1].to_yaml())])
    assert again == [configs[1]]


def test_a_list_of_models_is_refused_where_one_is_wanted(write):
    path = write(TWO_SIZES)
    assert "model is a list of 3" in refusal("--config", path)
    assert "model.pretrained does not say of which entry: write it in the list" in refusal(
        "--config", path, "--model.pretrained", "true"
    )
    for wrong in ("[]", "[vit_tiny_patch16_224]"):
        assert "each entry must be a model" in refusal("--config", write(f"model: {wrong}"))
    assert "model.kwarg" in refusal("--config", write("model: [{name: vit_tiny_patch16_224}, {kwarg: 1}]"))


def test_python_callers_get_the_same_refusals():
    with pytest.raises(ConfigError, match="budgets"):
        Config(budgets=[1.5])
    with pytest.raises(ConfigError, match=r"search\.lr"):
        Config().changed(**{"search.lr": -1})


def test_a_configuration_cannot_be_changed_in_place():
    with pytest.raises(ValueError, match="frozen"):
        Config().search.epochs = 3


@given(st.text(max_size=12))
def test_any_text_is_a_budget_or_refused(text):
    try:
        (budget,) = Config(budgets=[text]).budgets
    except ConfigError:
        return
    if isinstance(budget, str):
        assert re.fullmatch(r"[0-9.eE+-]+\s*([KMGT%]\s*)?(macs|params)?", budget, re.IGNORECASE)
        parsed = Budget.parse(budget)
        assert 0 < parsed.amount < 1 if parsed.relative else parsed.amount >= 1
    else:
        assert 0 < budget < 1


# Defaults that depend on each other.


def test_pretrained_weights_are_taken_as_they_are_unless_asked_otherwise(write):
    assert Config(model={"pretrained": True}).dense.epochs == 0
    assert Config(model={"checkpoint": "x.safetensors"}, dense={"lr": 0.1}).dense.epochs == 0
    assert Config(model={"pretrained": True}, dense={"epochs": 5}).dense.epochs == 5
    assert load_config(["--config", write("name: a"), "--model.pretrained"])[0].dense.epochs == 0
    assert Config().dense.epochs > 0


def test_budgets_sort_from_large_to_small_fractions_first():
    assert Config(budgets=["350M", 0.3, "2.3G", 0.7]).sorted_budgets == [0.7, 0.3, "2.3G", "350M"]
    mixed = Config(budgets=["11M params", "40%", "350M", "60% params", 0.5])
    assert mixed.sorted_budgets == [0.5, "40%", "350M", "60% params", "11M params"]


def test_budgets_stay_as_they_were_written(write):
    config, _ = load_config(["--config", write("budgets: [0.5, 40%, 2.3G, 60% params]"), "--name", "a"])
    assert config.budgets == [0.5, "40%", "2.3G", "60% params"]
    assert load_config(["--budgets", "0.5,40%, 11.5M params"])[0].budgets == [0.5, "40%", "11.5M params"]
    assert load_config(["--config", write(config.to_yaml())])[0] == config


def test_baselines_are_the_table_s_also_where_it_grew(monkeypatch):
    with pytest.raises(ConfigError, match="did you mean"):
        Config(baselines=["taylor2"])
    monkeypatch.setitem(METHODS, "taylor2", METHODS["taylor"])
    assert Config(baselines=["taylor2"]).baselines == ["taylor2"]


# What makes runs comparable.


def test_what_does_not_change_a_result_does_not_change_its_fingerprint():
    config, _ = load_config([])
    other = config.changed(
        **{
            "name": "other",
            "output": "elsewhere",
            "budgets": [0.1],
            "shares": [{"mlp": 0.5}],
            "baselines": ["random"],
            "retrain.seeds": [1, 2],
            "retrain.workers_per_trial": 2,
            "resources.search_workers": 2,
            "resources.gpus_per_worker": 0.5,
            "data.workers": 4,
            "data.root": "/data",
            "data.eval_batch_size": 7,
            "data.max_damaged": 3,
        }
    )
    for stage in ("dense", "search", "retrain"):
        assert config.fingerprint(stage) == other.fingerprint(stage)


@pytest.mark.parametrize(
    ("field", "value", "changes"),
    [
        ("seed", 1, {"dense", "search", "retrain"}),
        ("model.kwargs", {"depth": 3}, {"dense", "search", "retrain"}),
        ("data.augment.hflip", 0.5, {"dense", "search", "retrain"}),
        ("dense.lr", 0.1, {"dense", "search", "retrain"}),
        ("search.lr", 0.1, {"search", "retrain"}),
        ("search.l1.mlp", 0.1, {"search", "retrain"}),
        ("search.floors.mlp", 0.2, {"retrain"}),
        ("search.round_to", 8, {"retrain"}),
        ("retrain.lr", 0.1, {"retrain"}),
    ],
)
def test_what_changes_a_stage_changes_its_fingerprint_and_those_after_it(field, value, changes):
    config, _ = load_config([])
    other = config.changed(**{field: value})
    assert {s for s in ("dense", "search", "retrain") if config.fingerprint(s) != other.fingerprint(s)} == changes


def test_changed_keys_names_what_differs():
    config, _ = load_config([])
    other = config.changed(**{"search.l1.mlp": 0.1, "data.limit": 9, "model.kwargs": {**config.model.kwargs, "qk_norm": True}})
    names = changed_keys(config.identity("search"), other.identity("search"))
    assert names == ["model.kwargs.qk_norm", "data.limit", "search.l1.mlp"]
    assert changed_keys(config.identity("search"), config.identity("search")) == []


def test_a_written_configuration_is_read_back_whole(write):
    config = load_config([])[0].changed(
        **{"budgets": [0.5, "2.3G"], "shares": [{"mlp": 0.5}], "data.mean": [0.1], "search.lr": 1e-5}
    )
    text = config.to_yaml()
    assert "torch" in text.splitlines()[0]
    again, _ = load_config(["--config", write(text)])
    assert again == config
    assert again.fingerprint("retrain") == config.fingerprint("retrain")
    assert pickle.loads(pickle.dumps(config)) == config
    assert Config(**config.model_dump(mode="json")) == config


# Names that a new version keeps.


RECORDED = json.loads(Path(__file__).with_name("data").joinpath("fingerprints.json").read_text())


def in_the_first_version(argv):
    """The configuration of a command, with what came later and is on by default as it was then."""
    config, _ = load_config(argv)
    return config.changed(**identity.AS_BEFORE)


@pytest.mark.parametrize("case", RECORDED, ids=lambda case: " ".join(case["argv"]))
def test_fingerprints_are_those_of_the_first_version(case):
    config = in_the_first_version(case["argv"])
    assert {stage: config.fingerprint(stage) for stage in STAGES} == {stage: case[stage] for stage in STAGES}


def test_the_frozen_table_is_what_the_fingerprints_were_recorded_with():
    """Each field of it is one that was there, and changing what any of them is at changes the name of a point."""
    text = files("slimsweep.config").joinpath("identity_v1.yaml").read_bytes()
    assert hashlib.sha256(text).hexdigest()[:16] == "6c105d9de72d116a"
    assert set(identity.frozen()) <= {name for name, _ in all_fields(Config)} | {
        f"search.paces.{family}" for family in ("attention", "mlp", "token")
    }


class WiderL1(L1):
    registers: float = 0.05


class Repair(Section):
    images: int = 0
    ridge: float = 1e-3


class WiderPaces(Pace):
    registers: float = 1.0


class WiderAffine(Affine):
    perspective: float = 0.0


class WiderAugment(Augment):
    affine: WiderAffine | None = None


class WiderData(DataConfig):
    augment: WiderAugment = WiderAugment()


class WiderSearch(Search):
    l1: WiderL1 = WiderL1()
    paces: list[WiderPaces] = Field([WiderPaces(mlp=m, token=t) for t in (1.0, 0.7, 0.5) for m in (1.0, 1.4)])
    merge: bool = False


class Wider(Config):
    """The configuration of a later version: more fields, also in sections and in a list of sections, and one more section."""

    data: WiderData = WiderData()
    search: WiderSearch = WiderSearch()
    repair: Repair = Repair()
    tutor: str | None = None


@pytest.mark.parametrize("case", RECORDED, ids=lambda case: " ".join(case["argv"]))
def test_fields_of_a_later_version_rename_nothing_while_they_are_at_their_defaults(case):
    config = in_the_first_version(case["argv"])
    wider = Wider(**config.model_dump(mode="json"))
    for stage in STAGES:
        assert wider.fingerprint(stage) == case[stage]
        assert changed_keys(config.identity(stage), wider.identity(stage)) == []


@pytest.mark.parametrize(
    ("field", "value", "named", "stages"),
    [
        ("tutor", "regnety_160", "tutor", STAGES),
        ("repair", {"images": 2048}, "repair.images", STAGES),
        ("search.merge", True, "search.merge", ("search", "retrain")),
        ("search.axes", False, "search.axes", ("search", "retrain")),
        ("retrain.repair", False, "retrain.repair", ("retrain",)),
        ("search.l1.registers", 0.1, "search.l1.registers", ("search", "retrain")),
        ("search.paces", [{"registers": 0.5}], "search.paces", ("retrain",)),
        ("data.augment.affine.perspective", 0.5, "data.augment.affine.perspective", STAGES),
    ],
)
def test_a_field_of_a_later_version_counts_once_it_is_set(field, value, named, stages):
    before = Wider(data={"augment": {"affine": {}}}, search={"paces": [{}]})
    after = before.changed(**{field: value})
    for stage in STAGES:
        changed = changed_keys(before.identity(stage), after.identity(stage))
        assert changed == ([named] if stage in stages else [])
        assert (before.fingerprint(stage) != after.fingerprint(stage)) == (stage in stages)


def test_runs_of_earlier_versions_go_on_without_what_is_on_by_default_now():
    digits, _ = load_config(["--name", "old"])
    stored = yaml.safe_load(digits.changed(**identity.AS_BEFORE).to_yaml())
    for name in identity.AS_BEFORE:
        section, key = name.split(".")
        del stored[section][key]  # that version did not know it
    earlier = Config(**identity.with_earlier_ways(stored))
    same, _ = load_config(["--name", "old"])
    asked, _ = load_config(["--name", "old", "--search.axes", "true"])
    assert same.value("search.axes") is True  # of a new run
    assert not same.going_on_from(earlier).value("search.axes")
    assert not same.changed(budgets=[0.5]).going_on_from(earlier).value("retrain.repair")
    assert changed_keys(earlier.identity("retrain"), same.going_on_from(earlier).identity("retrain")) == []
    assert changed_keys(earlier.identity("retrain"), asked.going_on_from(earlier).identity("retrain")) == ["search.axes"]
    assert same.going_on_from(digits) == digits


def test_a_run_that_was_begun_when_gates_were_trained_by_default_goes_on_so():
    earlier = Config(name="old", search={"epochs": 50})  # as its folder says
    now = Config(name="old")
    assert now.search.epochs == 0  # of a new run
    assert now.going_on_from(earlier).fingerprint("retrain") == earlier.fingerprint("retrain")
    assert Config(name="old", search={"epochs": 0}).going_on_from(earlier).search.epochs == 0  # said, and so refused later
    assert now.going_on_from(Config(name="old", search={"epochs": 30})).search.epochs == 0  # somebody had said 30


def test_a_renamed_field_and_one_that_is_gone_keep_the_names_of_points(monkeypatch):
    class Renamed(DataConfig):
        images_per_step: int = 256

    class Later(Config):
        data: Renamed = Renamed()

    before, after = (config.fingerprint("dense") for config in (Config(), Config().changed(**{"data.batch_size": 32})))
    monkeypatch.setitem(identity.RENAMED, "data.images_per_step", "data.batch_size")
    del Renamed.model_fields["batch_size"]
    assert identity.fingerprint(Later(), "dense") == before
    later = Later(data={"images_per_step": 32})
    assert identity.fingerprint(later, "dense") == after
    assert changed_keys(identity.identity(Later(), "dense"), identity.identity(later, "dense")) == ["data.images_per_step"]
    # Files and runs of before say it by its first name.
    stored = {"data": {"batch_size": 32, "name": "digits"}}
    assert Later(**stored) == later
    assert stored == {"data": {"batch_size": 32, "name": "digits"}}


def test_a_checkpoint_counts_by_its_content_and_not_by_its_path(tmp_path):
    one, other, copy = (tmp_path / name for name in ("one.safetensors", "other.safetensors", "copy.safetensors"))
    one.write_bytes(b"weights")
    copy.write_bytes(b"weights")
    other.write_bytes(b"others")
    token = checkpoint_token(one)
    assert token == f"sha256:{hashlib.sha256(b'weights').hexdigest()[:16]}"
    assert checkpoint_token(str(copy)) == token
    assert checkpoint_token(other) != token
    here, there = (Config(model={"checkpoint": str(path)}) for path in (one, copy))
    for stage in STAGES:
        assert here.fingerprint(stage, token) == there.fingerprint(stage, token)
        assert here.fingerprint(stage, checkpoint_token(other)) != here.fingerprint(stage, token)
        # The path itself stands for it in runs that were begun so.
        assert here.fingerprint(stage, str(one)) == here.fingerprint(stage) != there.fingerprint(stage)
        assert Config().fingerprint(stage, token) == Config().fingerprint(stage)  # there is no checkpoint to stand for
    assert changed_keys(here.identity("dense", token), here.identity("dense", "sha256:0")) == ["model.checkpoint"]
    one.write_bytes(b"trained further")
    assert checkpoint_token(one) != token
    with pytest.raises(ConfigError, match=r"model\.checkpoint is .*/gone\.pt'.*fix the path"):
        checkpoint_token(tmp_path / "gone.pt")


# Smoke.


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["--data.batch_size", "4096", "--resources.search_workers", "8", "--retrain.workers_per_trial", "4"],
        ["--data.augment.mixup", "0.8", "--search.accumulate", "8", "--retrain.seeds", "5", "--baselines", "random,uniform"],
        ["--model.pretrained", "--dense.epochs", "0"],
    ],
)
def test_smoke_shrinks_any_configuration_to_a_valid_small_one(argv):
    full, _ = load_config(argv)
    small, options = load_config([*argv, "--smoke"])
    assert options.smoke
    assert small.name == f"{full.name}-smoke"
    assert len(small.budgets) <= 2
    assert small.dense.epochs <= 1
    assert small.search.epochs <= 2
    assert small.retrain.epochs == 1
    assert len(small.retrain.seeds) == 1
    assert small.data.limit <= 128
    assert small.data.batch_size <= small.data.limit
    assert small.model == full.model
    assert small.resources == full.resources
    assert small.smoke().name == small.name


def test_every_field_says_what_it_is_for():
    said = descriptions(Config)
    assert list(said) == [name for name, _ in all_fields(Config)]
    assert not [name for name, text in said.items() if not text]
    assert said["search.floors.mlp"] == "Of MLP units."
    assert said["teacher.weight"] == "Weight of its answers if there are several teachers, relative to the others."


def test_without_its_source_help_has_names_alone(monkeypatch):
    """As in an image that keeps compiled files only."""

    def missing(module):
        raise OSError("could not get source code")

    monkeypatch.setattr(fields.inspect, "getsource", missing)
    fields._texts_after_fields.cache_clear()
    said = descriptions(Config)
    fields._texts_after_fields.cache_clear()
    assert (said["retrain.lr"], said["search.floors.mlp"]) == ("", "Of MLP units.")
