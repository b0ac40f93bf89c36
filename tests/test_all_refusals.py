"""All that is wrong with a configuration is said at once, so that one more try is enough."""

import pytest

from slimsweep.checks import check
from slimsweep.config import Config, ConfigError, load_config


def refusal(*words: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(list(words))
    return str(caught.value).splitlines()


def test_every_wrong_value_and_unknown_field_is_named_with_its_source() -> None:
    said = refusal("--search.epochs", "-1", "--dense.lr", "fast", "--data.split", "0.5,0.5", "--retrain.lr", "-1")
    assert said[0] == "4 settings cannot work:"
    assert [line.partition(" is ")[0] for line in said[1:]] == [
        "1. data.split",
        "2. dense.lr",
        "3. search.epochs",
        "4. retrain.lr",
    ]
    assert all("from the command line" in line for line in said[1:])


def test_settings_that_do_not_go_together_are_said_together() -> None:
    said = refusal("--search.ema_decay", "0.9", "--dense.warmup_epochs", "99", "--retrain.min_lr", "1", "--search.min_lr", "1")
    assert said[0] == "4 settings cannot work:"
    for line, field in zip(
        said[1:], ("search.ema_decay", "dense.warmup_epochs", "search.min_lr", "retrain.min_lr"), strict=True
    ):
        assert field in line


def test_a_batch_that_several_stages_cannot_divide_is_said_once() -> None:
    (said,) = refusal("--data.batch_size", "64", "--resources.search_workers", "3", "--retrain.workers_per_trial", "5")
    assert said.startswith("data.batch_size is 64, which does not divide by")


def test_one_wrong_value_stays_one_sentence_also_where_a_field_takes_several_kinds() -> None:
    (said,) = refusal("--teacher", '{"name": "vit_tiny_patch16_224", "weight": 0}')
    assert "teacher.weight" in said
    (said,) = refusal("--budgets", "1.0")
    assert "1.0 is the whole dense model" in said


def test_what_is_wrong_with_the_images_and_with_the_budgets_is_said_together() -> None:
    config = load_config(["--data.batch_size", "4096", "--budgets", "900G"])[0]
    assert isinstance(config, Config)
    with pytest.raises(ConfigError) as caught:
        check(config)
    first, *said = str(caught.value).splitlines()
    assert first == "2 settings cannot work:"
    assert "data.batch_size is 4096" in said[0]
    assert "900G" in said[1]
