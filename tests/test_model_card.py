"""The card of a saved model says what it is, whatever its names contain, and leaves the model as it is."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import yaml
from zoo import difference, small_vit

from slimsweep import load, macs, save
from slimsweep.config import Config
from slimsweep.ledger.model_card import Origin, card_of_folder, is_unchanged, literal, origin_of_saved
from slimsweep.ledger.model_card import _pretrained as pretrained

FINISHED = Path(__file__).parent / "data" / "finished-run"
POINT = "searched-0.4000-s0-1eef"
ORIGIN = Origin(data="digits", start="random weights", images={"train": 1078, "val": 359, "test": 360})


def card(folder: Path, **more) -> str:
    about = {"name": "half", "source": "local-dir:PATH", "of_run": ORIGIN, **more}
    return card_of_folder(load(folder), folder, **about)


def front(text: str) -> dict:
    assert text.startswith("---\n")
    return yaml.safe_load(text.split("---\n")[1])


def test_the_card_of_a_runs_model_has_its_facts():
    folder = FINISHED / "models" / POINT
    text = card(folder, of_run=origin_of_saved(str(folder)))
    model = load(folder)
    assert f"{macs(model) / 1e6:,.2f} | {model.structure.shape.full().macs() / 1e6:,.2f} |" in text
    assert "vit_tiny_patch16_224, cut by slimsweep" in text
    assert "| test top-1, % | 47.50 |" in text
    assert "method searched, at a budget of 40 % of the dense model's multiply-accumulates" in text
    for row in model.structure.summary():
        assert f"| {row['layer']} | {row['heads']} of {row['heads_dense']} |" in text
    about = front(text)
    assert about["library_name"] == "timm"
    assert {"timm", "slimsweep", "image-classification"} <= set(about["tags"])
    assert about["metrics"] == ["accuracy"]
    result = about["model-index"][0]["results"][0]
    assert result["metrics"][0]["value"] == 0.475
    # Its weights are not timm's, so neither are base and license.
    assert "base_model" not in about
    assert "license" not in about


def test_base_model_and_license_are_those_of_timms_weights():
    config = Config(name="a", model={"name": "deit_small_patch16_224", "pretrained": True})
    assert pretrained(config) == ("timm/deit_small_patch16_224.fb_in1k", "apache-2.0")
    assert pretrained(Config(name="a", model={"name": "deit_small_patch16_224"})) == ("", "")
    own = Config(name="a", model={"name": "deit_small_patch16_224", "pretrained": True, "checkpoint": "/x.safetensors"})
    assert pretrained(own) == ("", "")


@pytest.mark.parametrize(
    "name",
    [
        "<script>alert(1)</script>",
        "a\n---\nlicense: mit\n---\n",
        "[x](http://evil) `code` ``",
        "![](http://evil)|",
        "# h: 'q' \"r\"",
    ],
)
def test_names_from_data_are_no_markup(name, tmp_path):
    save(small_vit(), tmp_path, metrics={"test_top1": 50.0})
    plain = card(tmp_path)
    text = card(tmp_path, of_run=replace(ORIGIN, data=name, hub_data=name, base_model=name))
    about = front(text)
    line = " ".join(name.split())
    assert about["datasets"] == [line]
    assert about["base_model"] == line
    assert about.get("license") is None
    assert text.count("\n## ") == plain.count("\n## ")  # no line of its own
    shown = next(line for line in text.splitlines() if line.startswith("- Data set: "))
    span = literal(name)
    fence = span[: len(span) - len(span.lstrip("`"))]
    assert fence
    assert fence not in span.strip("`")  # it ends where the name ends
    assert span in shown


def test_a_card_that_somebody_changed_stays_and_an_unchanged_one_is_renewed(tmp_path):
    save(small_vit(), tmp_path)
    old = card(tmp_path)
    (tmp_path / "README.md").write_text(old)
    assert is_unchanged(old)
    assert "hf-hub:me/half" in card(tmp_path, source="hf-hub:me/half")
    changed = old.replace("# half", "# My model")
    (tmp_path / "README.md").write_text(changed)
    assert not is_unchanged(changed)
    assert card(tmp_path, source="hf-hub:me/half") == changed


def test_a_card_in_the_folder_changes_nothing_for_load_and_save(tmp_path):
    model = small_vit()
    save(model, tmp_path)
    (tmp_path / "README.md").write_text(card(tmp_path))
    assert difference(model, load(tmp_path)) == 0
    assert difference(model, timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()) == 0


def test_the_timings_of_a_run_are_in_the_card(tmp_path):
    from slimsweep.ledger.run import Run

    shutil.copytree(FINISHED, tmp_path / "run")
    run = Run(tmp_path / "run")
    setting = {"device": "cpu", "hardware": "A|CPU", "threads": 2, "batch_size": 1, "dtype": "float32", "compile": False}
    for name, ms, busy in ((POINT, 3.21, ""), ("dense", 6.54, ""), ("uniform-0.4000-s0-af58", 9.87, "others worked")):
        row = {"run": "r", "point": name, **setting, "runtime": "torch", "latency_p50_ms": ms, "busy": busy}
        run.products.write_bench([row])
    folder = tmp_path / "run" / "models" / POINT
    text = card(folder, of_run=origin_of_saved(str(folder)))
    assert "| ms per call (`A\\|CPU, 2 threads, torch, batch 1, float32`) | 3.21 | 6.54 |" in text
    busy = tmp_path / "run" / "models" / "uniform-0.4000-s0-af58"
    assert "9.87" not in card(busy, of_run=origin_of_saved(str(busy)))


def test_each_model_of_a_sweep_has_its_card(small_run):
    for folder in (small_run / "dense", *(small_run / "models").iterdir()):
        text = (folder / "README.md").read_text()
        assert is_unchanged(text)
        assert "- Data set: digits (" in text
        assert f"\n# {folder.name}\n" in text


@pytest.mark.slow
def test_a_point_that_a_sweep_makes_has_its_card_beside_it(tmp_path):
    import torch

    from slimsweep.cluster.retrain_job import retrain
    from slimsweep.ledger import planning
    from slimsweep.ledger.run import Run

    shutil.copytree(FINISHED, tmp_path / "run")
    run = Run(tmp_path / "run")
    point = next(one for one in planning.make_plan(run, "again").points if one.name == POINT)
    run.delete_row(POINT)
    retrain(run, point, torch.device("cpu"), 0)
    text = (tmp_path / "run" / "models" / POINT / "README.md").read_text()
    row, dense = run.row(POINT), run.dense_description["metrics"]["test_top1"]
    assert is_unchanged(text)
    assert f"| test top-1, % | {row['test_top1']:.2f} | {dense:.2f} |" in text
    assert f"Retrained for {row['epochs']} epochs after the cut" in text
    assert "before any cut, and before the retraining that this model got" in text
    assert front(text)["model-index"][0]["name"] == POINT
