"""Configuration: where values come from, what is refused and how, and what makes two runs comparable."""

import os
import pickle
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slimsweep.config.schema import Config, ConfigError, changed_keys, load_config, load_configs


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


def test_shares_are_a_list_of_points_or_one_of_them(write, monkeypatch):
    both = {"attention": 0.7, "mlp": 0.7}
    assert load_config(["--shares", '[{"attention":0.7,"mlp":0.7}]'])[0].shares == [both]
    assert load_config(["--shares", '{"attention": "0.7", "mlp": 0.7}'])[0].shares == [both]
    only, _ = load_config(["--config", write("budgets: []\nshares: [{attention: 0.7, mlp: 0.7}, {mlp: 0.5}]")])
    assert (only.budgets, only.shares, only.frontier) == ([], [both, {"mlp": 0.5}], 2)
    monkeypatch.setenv("SLIMSWEEP_SHARES", '[{"mlp": 0.5}]')
    beside, _ = load_config([])
    assert beside.shares == [{"mlp": 0.5}]
    assert beside.frontier == len(beside.budgets) + 1


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
        (["--search.epochs", "0"], ["search.epochs", "at least 1"]),
        (["--search.lr", "nan"], ["search.lr", "finite"]),
        (["--search.penalty", "mac"], ["search.penalty", "l1, macs", "did you mean macs"]),
        (["--search.families", "attention,mpl"], ["search.families", "did you mean mlp"]),
        (["--search.families", "mlp,mlp"], ["mlp", "twice"]),
        (["--search.betas", "0.9"], ["search.betas", "2 numbers"]),
        (["--data.augment.scale", "1,0.5"], ["data.augment.scale", "smaller one first"]),
        (["--data.augment.auto_augment", "magic"], ["auto_augment", "magic", "rand-m9"]),
        (["--model.kwargs", "{x"], ["model.kwargs", "JSON"]),
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
        ("seed: true", ["seed"]),
        ("model: {name: 3}", ["model.name", "text"]),
        ("- a", ["list"]),
        ("a: [", ["YAML", "line 1"]),
        ("name: !!python/object/apply:os.system ['true']", ["YAML"]),
        ("1: 2", ["unknown key 1"]),
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
    assert "model.pretrained is of one" in refusal("--config", path, "--model.pretrained", "true")
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
    assert re.fullmatch(r"[0-9.eE+-]+\s*[KMGTkmgt]", budget) if isinstance(budget, str) else 0 < budget < 1


# Defaults that depend on each other.


def test_pretrained_weights_are_taken_as_they_are_unless_asked_otherwise(write):
    assert Config(model={"pretrained": True}).dense.epochs == 0
    assert Config(model={"checkpoint": "x.safetensors"}, dense={"lr": 0.1}).dense.epochs == 0
    assert Config(model={"pretrained": True}, dense={"epochs": 5}).dense.epochs == 5
    assert load_config(["--config", write("name: a"), "--model.pretrained"])[0].dense.epochs == 0
    assert Config().dense.epochs > 0


def test_budgets_sort_from_large_to_small_fractions_first():
    assert Config(budgets=["350M", 0.3, "2.3G", 0.7]).sorted_budgets == [0.7, 0.3, "2.3G", "350M"]


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
