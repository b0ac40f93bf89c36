"""A head's rows are put into the order of the data's classes wherever both are known by name."""

import json
import logging

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from slimsweep import save
from slimsweep.checks import check
from slimsweep.config import ConfigError, load_config
from slimsweep.training.dense_model import build_dense, start_of
from slimsweep.training.label_order import also_called, imagenet_names, rows_by_name

NAMES = [f"class{number}" for number in range(12)]  # as people count
OF_TORCHVISION = sorted(NAMES)  # class0, class1, class10, class11, class2, ...
ARGUMENTS = {"patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2, "img_size": 8}


@pytest.fixture(scope="module")
def config():
    model = {"model.name": "vit_tiny_patch16_224", "model.kwargs": ARGUMENTS}
    return load_config([])[0].changed(**model)


@pytest.fixture(scope="module")
def trained(config):
    """A model that was trained on torchvision's order of the classes."""
    torch.manual_seed(0)
    model = build_dense(config, len(NAMES)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    return model


def by_name(model, names):
    with torch.no_grad():
        return dict(zip(names, model.eval()(torch.ones(1, 3, 8, 8))[0].tolist(), strict=True))


CARRIERS = {
    "class_to_idx": lambda: {name: row for row, name in enumerate(OF_TORCHVISION)},
    "classes": lambda: OF_TORCHVISION,
    "label_names": lambda: tuple(OF_TORCHVISION),
    "class_names": lambda: np.array(OF_TORCHVISION),
    "idx_to_class": lambda: dict(enumerate(OF_TORCHVISION)),
    "id2label": lambda: {str(row): name for row, name in enumerate(OF_TORCHVISION)},
    "hyper_parameters": lambda: {"class_to_idx": {name: np.int64(row) for row, name in enumerate(OF_TORCHVISION)}},
    "meta": lambda: {"CLASSES": OF_TORCHVISION},
}


@pytest.mark.parametrize("key", CARRIERS)
def test_a_file_that_carries_names_is_put_into_the_datas_order(config, trained, tmp_path, caplog, key):
    torch.save({"state_dict": trained.state_dict(), key: CARRIERS[key]()}, tmp_path / "weights.pth")
    asked = config.changed(**{"model.checkpoint": str(tmp_path / "weights.pth")})
    assert not start_of(asked, 12, NAMES).new_head
    with caplog.at_level(logging.WARNING):
        model = build_dense(asked, 12, NAMES)
    assert by_name(model, NAMES) == by_name(trained, OF_TORCHVISION)
    assert [record.getMessage().count("order of the data's classes, by their names") for record in caplog.records] == [1]


def test_so_is_a_folder_and_a_file_with_metadata(config, trained, tmp_path):
    save(trained, tmp_path / "folder", labels=OF_TORCHVISION)
    save_file(trained.state_dict(), tmp_path / "w.safetensors", metadata={"classes": json.dumps(OF_TORCHVISION)})
    for path in (tmp_path / "folder", tmp_path / "folder" / "model.safetensors", tmp_path / "w.safetensors"):
        model = build_dense(config.changed(**{"model.checkpoint": str(path)}), 12, NAMES)
        assert by_name(model, NAMES) == by_name(trained, OF_TORCHVISION)


def test_both_heads_of_a_distilled_model_are_put_into_order(config, tmp_path):
    asked = config.changed(**{"model.name": "deit_tiny_distilled_patch16_224"})
    model = build_dense(asked, 12)
    with torch.no_grad():
        for head in (model.head, model.head_dist):
            head.weight.normal_()
    save(model, tmp_path, labels=OF_TORCHVISION)
    found = build_dense(asked.changed(**{"model.checkpoint": str(tmp_path)}), 12, NAMES)
    rows = [OF_TORCHVISION.index(name) for name in NAMES]
    assert torch.equal(found.head.weight, model.head.weight[rows])
    assert torch.equal(found.head_dist.weight, model.head_dist.weight[rows])


def test_the_same_order_and_unknown_names_change_nothing_and_say_nothing(config, trained, tmp_path, caplog):
    save(trained, tmp_path / "named", labels=OF_TORCHVISION)
    torch.save({"model": trained.state_dict(), "names": ["too", "few"]}, tmp_path / "other.pth")
    torch.save({"model": trained.state_dict(), "classes": [str(n) for n in range(12)]}, tmp_path / "numbers.pth")
    for path, names in (
        (tmp_path / "named", OF_TORCHVISION),
        (tmp_path / "named", None),
        (tmp_path / "other.pth", NAMES),
        (tmp_path / "numbers.pth", NAMES),
    ):
        model = build_dense(config.changed(**{"model.checkpoint": str(path)}), 12, names)
        assert torch.equal(model.head.weight, trained.head.weight)
    assert not caplog.records


def test_numbers_in_the_order_of_their_digits_are_put_into_order_too(config, trained, tmp_path):
    numbers = [str(number) for number in range(12)]
    torch.save({"model": trained.state_dict(), "classes": sorted(numbers)}, tmp_path / "weights.pth")
    model = build_dense(config.changed(**{"model.checkpoint": str(tmp_path / "weights.pth")}), 12, numbers)
    assert by_name(model, numbers) == by_name(trained, sorted(numbers))


def test_other_classes_get_a_fresh_head_where_it_is_trained(config, trained, tmp_path, caplog):
    save(trained, tmp_path, labels=OF_TORCHVISION)
    asked = config.changed(**{"model.checkpoint": str(tmp_path)})
    others = [*NAMES[:11], "something else"]
    assert start_of(asked, 12, others).new_head
    assert "it has 'class11'; only data has 'something else'" in start_of(asked, 12, others).new_head
    with caplog.at_level(logging.WARNING):
        model = build_dense(asked, 12, others)
    assert not torch.equal(model.head.weight, trained.head.weight)
    assert torch.equal(model.blocks[0].mlp.fc1.weight, trained.blocks[0].mlp.fc1.weight)
    assert "other classes than the data's: training starts from a new head" in caplog.text


@pytest.mark.parametrize(
    ("names", "refused"), [(NAMES, ""), (["no class of the weights", *NAMES[1:]], "are for other classes")]
)
def test_without_dense_training_names_decide_before_a_run(config, trained, tmp_path, names, refused):
    for split in ("train", "test"):
        for name in names:
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for number in range(2):
                Image.new("RGB", (8, 8)).save(tmp_path / "data" / split / name / f"{number}.png")
    save(trained, tmp_path / "weights", labels=OF_TORCHVISION)
    asked = config.changed(
        **{
            "model.checkpoint": str(tmp_path / "weights"),
            "data.name": "folder",
            "data.root": str(tmp_path / "data"),
            "data.batch_size": 2,
            "dense.epochs": 0,
            "dense.warmup_epochs": 0,
            "budgets": ["0.8"],
        }
    )
    if not refused:
        check(asked)
        return
    with pytest.raises(
        ConfigError, match=rf"dense\.epochs is 0, but the weights of model\.checkpoint {refused}.*set dense"
    ) as caught:
        check(asked)
    assert "'class0'" in str(caught.value)
    check(asked.changed(**{"dense.epochs": 1}))


def test_names_count_as_equal_but_for_case_and_punctuation_where_that_tells_them_apart():
    assert rows_by_name(["Golden_retriever", "tabby cat"], [["Tabby-Cat"], ["golden retriever"]]) == [1, 0]
    assert rows_by_name(["A", "a"], [["a"], ["A"]]) == [1, 0]
    assert rows_by_name(["a", "B"], [["A"], ["a"]]) is None
    assert rows_by_name(["+", "-"], [["-"], ["+"]]) == [1, 0]
    assert rows_by_name(["0", "1", "10", "2"], [["x"]] * 4) is None
    assert rows_by_name(["0", "2", "1"], [["x"], ["y"], ["z"]]) == [0, 2, 1]  # names that are numbers say the row


def test_rows_of_imagenet_are_known_by_synset_and_by_description():
    known = imagenet_names(1000)
    synsets, described = [names[0] for names in known], [names[1] for names in known]
    assert rows_by_name(synsets, known) == list(range(1000))
    shuffled = sorted(synsets, reverse=True)
    assert [synsets[row] for row in rows_by_name(shuffled, known)] == shuffled
    assert imagenet_names(12) is None
    assert also_called(synsets) == list(known)  # so of a file that carries synsets
    assert also_called(NAMES) == [(name,) for name in NAMES]
    unique = [name for name in described if described.count(name) == 1]
    assert len(unique) > 990


def test_pretrained_heads_follow_the_datas_names(config):
    """The check knows without weights what the build will do with them."""
    asked = config.changed(**{"model.pretrained": True, "model.kwargs": {}})
    synsets = [names[0] for names in imagenet_names(1000)]
    by_word = sorted(names[1].split(",")[0] for names in imagenet_names(1000))
    assert start_of(asked, 1000, synsets).rows is None
    backwards = start_of(asked, 1000, synsets[::-1])
    assert backwards.rows == list(range(999, -1, -1))
    assert "by their names" in backwards.notes[0]
    assert start_of(asked, 1000, [names[1] for names in imagenet_names(1000)]).new_head == ""
    assert "another order" in start_of(asked, 1000, by_word).new_head  # two are called crane
    assert "are not those of the pretrained head" in start_of(asked, 1000, [f"own {n}" for n in range(1000)]).notes[0]
    assert start_of(asked, 1000).notes == ()
    assert start_of(asked, 12, NAMES).new_head
