"""The run's folder: one module names its files, a version of a file is read once, and a status needs no model code."""

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import slimsweep
from slimsweep.ledger import files as names_of_files
from slimsweep.ledger import tables
from slimsweep.ledger.run import Run
from slimsweep.ledger.status import read_status
from slimsweep.storage import Folder, joined, parted

PACKAGE = Path(slimsweep.__file__).parent
FINISHED = Path(__file__).parent / "data" / "finished-run"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return shutil.copytree(FINISHED, tmp_path / "finished")


# Names.

# The names of a saved model's files are those of timm and of the hub, wherever the model lies.
OF_A_MODEL = {names_of_files.MODEL_CONFIG, names_of_files.MODEL_WEIGHTS, names_of_files.MODEL_CARD}
# Where a run's files are named: their names, and the tables of one file per point or benchmark.
OWNERS = {"ledger/files.py", "ledger/run.py", "ledger/run_products.py"}
# What is no path in a run's folder, by module and text.
ELSEWHERE = {
    ("report/page.py", "report.html.j2"),  # the page's template
    # Help, which is printed without loading the ledger.
    (
        "cli.py",
        "the page's file, or a folder to write report.html into (default: report.html in the run's or the table's folder; of "
        "several, in the current folder)",
    ),
    ("report/run_tables.py", ".parquet"),  # tables that lie outside of runs
}
# What help and messages tell people to give.
EXAMPLE = re.compile(r"(RUN|runs/digits)/models/POINT")


def defined_names() -> tuple[set[str], set[str]]:
    """(files, folders) that ledger/files.py names, as single names."""
    values = {value for name, value in vars(names_of_files).items() if name.isupper() and isinstance(value, str)}
    names = {part for value in values for part in value.split("/")} - OF_A_MODEL
    files = {name for name in names if "." in name} | {f"{names_of_files.REPORT}.{kind}" for kind in ("svg", "png")}
    return files, names - files - {names_of_files.REPORT}


def literals(tree: ast.Module) -> Iterator[tuple[ast.Constant, ast.AST]]:
    """Each text in a module's code and the node around it; docstrings are no code."""
    for node in ast.walk(tree):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Constant) and isinstance(child.value, str) and not isinstance(node, ast.Expr):
                yield child, node


def names_in_the_run_folder(source: str) -> list[str]:
    """The texts of a module that name a file or folder of a run.

    A file's name counts anywhere in a text. A folder's name, such as dense, is also a word: it counts before or after a slash
    (f"{folder}/curves", run.folder / "models"), and as an argument of a method of `Folder`.
    """
    files, folders = defined_names()
    a_file = re.compile(rf"(?<![\w-])({'|'.join(map(re.escape, sorted(files)))})(?![\w-])|\.parquet$")
    in_a_path = re.compile(rf"(^|/)({'|'.join(sorted(folders))})/|/({'|'.join(sorted(folders))})$")
    methods = {name for name, value in vars(Folder).items() if callable(value) and not name.startswith("_")}
    found = []
    for text, around in literals(ast.parse(source)):
        value = EXAMPLE.sub("", text.value)
        joins = isinstance(around, ast.BinOp) and isinstance(around.op, ast.Div)
        calls = isinstance(around, ast.Call) and isinstance(around.func, ast.Attribute) and around.func.attr in methods
        if a_file.search(value) or in_a_path.search(value) or ((joins or calls) and value in folders):
            found.append(text.value)
    return found


def test_only_the_run_and_its_parts_name_its_files() -> None:
    found = {
        (path.relative_to(PACKAGE).as_posix(), text)
        for path in PACKAGE.rglob("*.py")
        if path.relative_to(PACKAGE).as_posix() not in OWNERS
        for text in names_in_the_run_folder(path.read_text())
    }
    assert found == ELSEWHERE


@pytest.mark.parametrize(
    "code",
    [
        'run.folder / "models"',
        'path = f"{run.uri}/curves/{name}"',
        'run.folder.exists("search")',
        'open("config.yaml")',
        'write(folder, f"results/{point}.parquet")',
        'print("see damaged.log")',
    ],
)
def test_a_name_of_the_run_s_folder_is_found(code: str) -> None:
    """The test above can fail."""
    assert names_in_the_run_folder(code)


def test_words_that_are_also_folders_are_allowed() -> None:
    code = '"""Reads results/."""\nstage = "dense"\nsay("the search: 3 of 5 models")\nfigures["bench"] = 1'
    assert not names_in_the_run_folder(code)


@pytest.mark.parametrize("uri", ["s3://bucket/runs/mine?endpoint_override=http://localhost:9000/", "/runs/mine", "runs/mine/"])
def test_a_folder_s_name_has_no_options_of_its_uri(uri: str) -> None:
    folder, name = parted(uri)
    assert name == "mine"
    assert joined(folder, name) == uri.removesuffix("/" if "://" not in uri else "")


# Reads.


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files of results that are read."""
    read, seen = tables.read_table, []

    def counted(folder, path, schema):
        if schema is tables.RESULTS:
            seen.append(path)
        return read(folder, path, schema)

    monkeypatch.setattr(tables, "read_table", counted)
    return seen


def look(run: Run) -> None:
    """What a driver and its display read of the results between two points."""
    from slimsweep.ledger.planning import forget_failed, make_plan, plan_points, points_to_do
    from slimsweep.report.run_tables import read_run
    from slimsweep.tools.display import final_table

    plan = make_plan(run, "start")
    points_to_do(run, plan_points(run))
    forget_failed(run, list(plan.points))
    status = read_status(run)
    read_run(run, status)
    final_table(run, run.rows, 1.0)


def test_each_version_of_a_row_is_read_once(folder: Path, reads: list[str]) -> None:
    run = Run(folder)
    look(run)
    assert sorted(reads) == sorted(f"results/{path.name}" for path in (folder / "results").iterdir())
    reads.clear()
    for _ in range(3):
        look(run.refresh())
    assert reads == []

    row = next(row for row in run.rows.to_dict("records") if row["method"] == "uniform")
    run.write_row({**row, "val_top1": 12.5})
    look(run)
    look(run.refresh())
    assert reads == [f"results/{row['point']}.parquet"]
    assert run.rows.set_index("point").val_top1[row["point"]] == 12.5

    reads.clear()
    run.delete_row(row["point"])
    look(run.refresh())
    assert reads == []
    assert row["point"] not in set(run.rows.point)


# Status.

STATUS = """
import sys
import slimsweep.ledger.status, slimsweep.tools.status
from slimsweep.ledger.run import Run
status = slimsweep.ledger.status.read_status(Run(sys.argv[1]))
assert status.count("done") == 7, status
slimsweep.tools.status.status_table(status)
"""
COMMAND = """
import sys
from slimsweep.cli import main
assert main(["status", sys.argv[1]]) == 0
"""
LOADED = """
heavy = {"torch", "timm", "ray", *(f"slimsweep.slimming.{name}" for name in ("removal_path", "removal_order", "gates", "cut"))}
print(sorted(heavy & set(sys.modules)))
"""


@pytest.mark.parametrize("code", [STATUS, COMMAND], ids=["read_status", "command"])
@pytest.mark.parametrize("planned", [False, True], ids=["without a plan", "with a plan"])
def test_a_status_imports_no_solver_and_no_model_code(code: str, planned: bool, folder: Path) -> None:
    if planned:
        from slimsweep.ledger.planning import make_plan

        run = Run(folder)
        run.write_plan(make_plan(run, "start"))
    words = [sys.executable, "-c", code + LOADED, str(folder)]
    done = subprocess.run(words, cwd=PACKAGE.parent, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_page_and_the_live_display_import_no_solver_and_no_model_code(folder: Path) -> None:
    """They decode the structures that stand in the rows, and ask no gates, no path and no torch."""
    code = """
import sys
from rich.console import Console
from slimsweep.ledger.run import Run
from slimsweep.ledger.status import read_status
from slimsweep.report.page import write_report
from slimsweep.tools.display import Progress
run = Run(sys.argv[1])
write_report(run, read_status(run))
with Progress(run, Console(), "Sweep", sweep=True):
    pass
rooms = ("structure", "removal_path", "removal_order", "gates", "cut", "hub", "architectures")
heavy = {"torch", "timm", "ray", *(f"slimsweep.slimming.{name}" for name in rooms)}
print(sorted(heavy & set(sys.modules)))
"""
    words = [sys.executable, "-c", code, str(folder)]
    done = subprocess.run(words, cwd=PACKAGE.parent, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
