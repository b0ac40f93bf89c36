"""What the terminal says while paces are tried, and decimals that follow the number of images everywhere."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from slimsweep.cli import main
from slimsweep.cluster import tasks
from slimsweep.ledger.measures import R2, TOP1
from slimsweep.ledger.run import Run
from slimsweep.ledger.status import TrainingStatus
from slimsweep.tools.display import pace_tried
from slimsweep.tools.pick import describe

FINISHED = Path(__file__).parent / "data" / "finished-run"


@pytest.mark.parametrize(("images", "said"), [(27, "81 %"), (360, "81.5 %"), (10_000, "81.48 %"), (None, "81.48 %")])
def test_a_percentage_of_few_images_has_no_decimals_that_mean_nothing(images: int | None, said: str) -> None:
    assert TOP1.text(81.4815, images) == said
    assert R2.text(0.97312, images) == "0.9731"  # of features, which every image changes a little
    assert TrainingStatus(
        name="search", state="done", epochs=1, epochs_total=1, val_top1=81.4815, val_images=images
    ).quality == (f"val top-1 {said}")


def test_status_list_and_pick_of_few_images_show_no_decimals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run(shutil.copytree(FINISHED, tmp_path / "finished"))
    known: dict[str, Any] = run.known_data or {"version": 1, "splits": {"val": {}, "test": {}, "train": {}}}
    for split in known["splits"].values():
        split["images"] = 27
    run.write_known_data(known)
    for words in (["status", str(run.folder.uri)], ["list", str(tmp_path)]):
        assert main(words) == 0
    out = capsys.readouterr().out
    accuracies = run.rows.val_top1.dropna()
    assert not any(f"{value:.2f}" in out for value in accuracies)
    assert f"{accuracies.iloc[0]:.0f}" in out
    row = run.rows[run.rows.status == "ok"].iloc[0].copy()
    row["val_images"], row["val_top1"], row["latency_ms"] = 27, 81.4815, float("nan")
    assert "81 % on validation" in describe(row)
    row["val_images"] = float("nan")  # of an earlier version
    assert "81.48 % on validation" in describe(row)


def test_each_try_of_a_pace_is_a_line_with_how_many_are_left(tmp_path: Path) -> None:
    run = Run(shutil.copytree(FINISHED, tmp_path / "finished"))
    tried = {"pace": {"attention": 1.0, "mlp": 1.4}, "val_top1": 81.4815, "error": ""}
    assert "pace attention 1, mlp 1.4: val top-1 81" in pace_tried(run, tried, 2, 6)
    assert pace_tried(run, tried, 2, 6).endswith("; 2 of 6 tried")
    assert ": diverged; 3 of 6 tried" in pace_tried(run, {**tried, "error": "the loss is NaN"}, 3, 6)


def test_what_a_task_returned_is_told_when_it_ends_and_not_when_all_have(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's tasks are played by generators here: the first has answered before the second begins."""
    order: list[str] = []

    class Played:
        def __init__(self, argument: str) -> None:
            self.answers = iter(["begun", argument.upper()])

        def __next__(self) -> str:
            order.append("asked")
            return next(self.answers)

    class Remote:
        def remote(self, argument: str) -> Played:
            return Played(argument)

    monkeypatch.setattr(tasks.ray, "remote", lambda **given: lambda function: Remote())
    monkeypatch.setattr(tasks.ray, "wait", lambda left, num_returns: (left[:1], left[1:]))
    monkeypatch.setattr(tasks.ray, "get", lambda answers: answers)
    found = tasks.run_tasks(str.upper, ["a", "b"], {"CPU": 1}, ended=order.append)
    assert found == ["A", "B"]
    assert order == ["asked", "asked", "A", "asked", "asked", "B"]
