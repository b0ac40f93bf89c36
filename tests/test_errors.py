"""How a command ends when something goes wrong: exit code, one line, and where the traceback is."""

import io
import subprocess
import sys
from pathlib import Path

import pytest
import ray.exceptions
import torch
from ray.train.v2.api.exceptions import WorkerGroupError
from rich.console import Console

from slimsweep import cli, run
from slimsweep.config import Config, ConfigError
from slimsweep.config.messages import SeveralRefused
from slimsweep.data.damaged import DamagedImage, TooManyDamaged
from slimsweep.errors import (
    REFUSED,
    ExportError,
    OutOfTime,
    RefusedInput,
    SlimsweepError,
    StageFailed,
    TrainingDiverged,
    exit_code,
    explain,
)
from slimsweep.ledger.lock import RunTaken
from slimsweep.slimming.budget import BudgetError
from slimsweep.tools.pick import NothingFits

OOM = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB of which 1.07 GiB is free."


def test_every_error_is_of_one_base_class_and_refusals_are_value_errors() -> None:
    for refused in (ConfigError, BudgetError, RunTaken, NothingFits, TooManyDamaged):
        assert issubclass(refused, RefusedInput)
    assert issubclass(RefusedInput, ValueError)
    for failed in (ExportError, StageFailed, TrainingDiverged):
        assert issubclass(failed, RuntimeError)
    for error in (RefusedInput, ExportError, StageFailed, TrainingDiverged, OutOfTime, DamagedImage):
        assert issubclass(error, SlimsweepError)


def ended(problem: BaseException, **options) -> tuple[int, str]:
    """(exit code, what was printed) of an action that raises."""

    def action() -> None:
        raise problem

    text = io.StringIO()
    code = exit_code(action, Console(file=text, width=300, highlight=False), **options)
    return code, text.getvalue()


def test_several_refusals_are_printed_in_a_numbered_line_each() -> None:
    code, said = ended(SeveralRefused(["dense.lr is 0: set it  above 0", "budgets is empty: name one"]))
    assert code == REFUSED
    assert said.splitlines() == [
        "slimsweep: 2 settings cannot work:",
        "1. dense.lr is 0: set it above 0",
        "2. budgets is empty: name one",
    ]


def test_an_action_s_own_exit_code_is_kept() -> None:
    console = Console(file=io.StringIO())
    assert exit_code(lambda: None, console) == 0
    assert exit_code(lambda: 1, console) == 1


def test_refused_input_is_its_sentence_and_exit_code_2() -> None:
    assert ended(ConfigError("budgets is 2: take a smaller one")) == (2, "slimsweep: budgets is 2: take a smaller one\n")


@pytest.mark.parametrize("problem", [StageFailed("the loss is NaN"), ExportError("it differs"), TrainingDiverged("it is inf")])
def test_what_fails_for_a_known_reason_is_its_sentence_and_exit_code_1(problem: SlimsweepError) -> None:
    assert ended(problem) == (1, f"slimsweep: {problem}\n")


@pytest.mark.parametrize(
    "problem", [ValueError("too many values"), KeyError("lr"), RuntimeError("shapes differ"), OSError("disk")]
)
def test_a_bug_is_one_line_that_says_where_the_traceback_is(problem: Exception) -> None:
    code, said = ended(problem)
    assert code == 1
    (line,) = said.splitlines()
    start, _, path = line.partition(" (the whole traceback is in ")
    assert start == f"slimsweep: {type(problem).__name__}: {problem}"
    log = Path(path.partition(";")[0])
    assert "in action" in log.read_text()
    assert log.read_text().strip().endswith(f"{type(problem).__name__}: {problem}")
    log.unlink()


def test_a_bug_s_traceback_goes_to_the_log_that_is_named_or_to_the_screen() -> None:
    kept: list[str] = []

    def log(text: str) -> str:
        kept.append(text)
        return "runs/digits/errors.log"

    code, said = ended(KeyError("lr"), log=log)
    assert code == 1
    assert "the whole traceback is in runs/digits/errors.log" in said
    assert "KeyError: 'lr'" in kept[0]
    code, said = ended(KeyError("lr"), log=log, verbose=True)
    assert code == 1
    assert "Traceback" in said
    assert "errors.log" not in said
    assert len(kept) == 1

    def full(text: str) -> str:
        raise OSError("no space left")

    code, said = ended(KeyError("lr"), log=full)
    assert "slimsweep-error-" in said
    Path(said.partition("traceback is in ")[2].partition(";")[0]).unlink()


def test_a_path_of_the_person_s_that_cannot_be_used_is_refused_input(tmp_path: Path) -> None:
    gone = FileNotFoundError(2, "No such file or directory", str(tmp_path / "page.html"))
    assert ended(gone, given=[str(tmp_path)])[0] == 2
    assert ended(gone, given=["/elsewhere"])[0] == 1
    assert ended(OSError(f"AWS Error ACCESS_DENIED for s3://bucket/run/{tmp_path.name}"), given=["s3://bucket/run"])[0] == 2


def test_no_bug_hides_behind_an_interrupt() -> None:
    with pytest.raises(KeyboardInterrupt):
        ended(KeyboardInterrupt())


def wraps_of_gpu_memory() -> list[BaseException | str]:
    torch_s = torch.OutOfMemoryError(OOM)
    chained = RuntimeError("the step failed")
    chained.__cause__ = torch_s
    return [
        torch_s,
        chained,
        ray.exceptions.RayTaskError("train", "Traceback ...", torch_s),
        ray.exceptions.RayTaskError("train", "Traceback ...", torch_s).as_instanceof_cause(),
        WorkerGroupError("1 worker failed", {0: torch_s}),
        f"OutOfMemoryError: {OOM}",
    ]


@pytest.mark.parametrize("problem", wraps_of_gpu_memory(), ids=lambda problem: type(problem).__name__)
def test_too_little_gpu_memory_says_what_to_change(problem: BaseException | str) -> None:
    said = explain(problem, "retrain")
    assert said.startswith("out of GPU memory (Tried to allocate 2.00 GiB): ")
    assert "\n" not in said
    for field in ("data.batch_size", "retrain.accumulate", "retrain.amp", "retrain.grad_checkpointing", "gpus_per_worker"):
        assert field in said
    for field in ("data.batch_size", "search.accumulate", "search.amp", "search.grad_checkpointing"):
        assert field in explain(problem, "search")


def test_each_named_setting_exists() -> None:
    names = {name for section in ("dense", "search", "retrain") for name in getattr(Config(), section).model_dump()}
    assert {"accumulate", "amp", "grad_checkpointing"} <= names


def test_other_reasons_are_the_worker_s_own_words() -> None:
    assert explain("disk full") == "disk full"
    assert explain(StageFailed("one\n  two\nthree")) == "one two three"
    # What nobody foresaw begins with its type, on one line.
    assert explain(ValueError("one\n  two\nthree")) == "ValueError: one two three"
    assert explain(KeyError("lr")) == "KeyError: 'lr'"
    noted = KeyError("lr")
    noted.add_note("a note")
    assert explain(noted) == "KeyError: 'lr'"
    assert explain(ZeroDivisionError()) == "ZeroDivisionError"
    assert explain(ray.exceptions.RayTaskError("f", "Traceback ...", KeyError("lr"))) == "KeyError: 'lr'"
    assert explain(WorkerGroupError("1 worker failed", {1: RuntimeError("a link is down")})) == "RuntimeError: a link is down"
    assert explain(ray.exceptions.OutOfMemoryError("the node ran out of memory")) == "the node ran out of memory"
    assert explain(RuntimeError()) == "RuntimeError"


def test_too_little_gpu_memory_in_a_command_needs_no_traceback() -> None:
    code, said = ended(torch.OutOfMemoryError(OOM))
    assert (code, said) == (
        1,
        "slimsweep: out of GPU memory (Tried to allocate 2.00 GiB): take smaller batches, or a GPU with more memory\n",
    )


# In the commands.


def test_a_bug_in_a_sweep_is_written_to_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def sweep(*_: object) -> int:
        raise ZeroDivisionError("float division by zero")

    monkeypatch.setattr(run, "sweep", sweep)
    arguments = ["--output", str(tmp_path), "--name", "broken", "--data.limit", "64"]
    assert run.main(arguments) == 1
    out = capsys.readouterr().out.replace("\n", "")
    assert f"ZeroDivisionError: float division by zero (the whole traceback is in {tmp_path}/broken/errors.log" in out
    assert "Traceback" not in out
    assert "in sweep" in (tmp_path / "broken" / "errors.log").read_text()
    assert run.main([*arguments, "--verbose"]) == 1
    assert "Traceback" in capsys.readouterr().out


def test_a_bug_in_a_command_is_no_refusal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    def status(*_: object) -> None:
        raise ValueError("not enough values to unpack")

    monkeypatch.setattr(cli, "status", status)
    assert cli.main(["status", "runs/digits"]) == 1
    assert "ValueError: not enough values to unpack (the whole traceback is in" in " ".join(capsys.readouterr().out.split())
    assert cli.main(["status", "runs/digits", "--verbose"]) == 1
    assert "Traceback" in capsys.readouterr().out


HEAVY = ("torch", "timm", "ray", "pandas")
LIGHT = f"""
import runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
except SystemExit as end:
    code = end.code
loaded = [name for name in {HEAVY} if name in sys.modules]
print("CODE", code, "LOADED", *loaded)
"""


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["slimsweep.run", "--help"], 0),
        (["slimsweep.run", "--serch.epochs", "3"], 2),
        (["slimsweep.run", "--budgets", "5 apples"], 2),
        (["slimsweep.run", "--baselines", "unifrom"], 2),
        (["slimsweep.cli", "--help"], 0),
        (["slimsweep.cli", "run", "--help"], 0),
        (["slimsweep.cli", "plan", "--serch.epochs", "3"], 2),
        (["slimsweep.cli", "bench"], 2),
        (["slimsweep.cli", "latency", "time", "nowhere"], 2),
    ],
)
def test_help_and_refusals_load_neither_torch_nor_timm_nor_ray_nor_pandas(words: list[str], code: int) -> None:
    done = subprocess.run([sys.executable, "-c", LIGHT, *words], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.splitlines()[-1] == f"CODE {code} LOADED", done.stdout[-500:] + done.stderr[-2000:]
