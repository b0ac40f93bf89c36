"""What README, docs/ and the other pages say: links lead somewhere, examples are read, and .ci/run finds its commands."""

import argparse
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

import slimsweep
from slimsweep.cli import parser
from slimsweep.config import Config, load_config
from slimsweep.config.fields import all_fields
from slimsweep.ledger.tables import RESULTS
from slimsweep.methods import baselines
from slimsweep.slimming.budget import Budget

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = sorted(
    [*ROOT.glob("*.md"), *(page for name in ("docs", "reports", "jobs", "docker") for page in (ROOT / name).rglob("*.md"))]
)
CI = (ROOT / ".ci" / "run").read_text()


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The headings of a page, as GitHub names them in addresses."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in link:
            continue
        name, _, heading = link.partition("#")
        there = page.parent / name if name else page
        assert there.exists(), link
        if heading:
            assert heading in anchors(there), link


def test_every_page_of_docs_is_linked_from_the_readme() -> None:
    assert {f"docs/{page.name}" for page in (ROOT / "docs").iterdir()} <= set(re.findall(r"\]\(([^)#]+)", README))


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 150


def test_ci_finds_the_two_commands_of_the_readme() -> None:
    (function,) = re.findall(r"^command_of\(\).*$", CI, re.MULTILINE)
    said = [
        subprocess.run(
            ["bash", "-c", f"{function}\ncommand_of {n}"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout
        for n in (1, 2)
    ]
    assert said == [f"./setup.sh && .venv/bin/python -m {what}\n" for what in ("slimsweep.run", "pytest -n 2")]


def test_examples_of_the_readme_are_configurations(tmp_path: Path) -> None:
    (example,) = blocks(README, "yaml")
    (tmp_path / "sweep.yaml").write_text(example)
    config, _ = load_config(["--config", str(tmp_path / "sweep.yaml")])
    assert config.name == "my-sweep"
    assert config.resources.gpus_per_worker == 1


def test_budgets_of_the_readme_are_budgets() -> None:
    part = README.partition("## Budgets")[2].partition("## ")[0]
    written = [text for row in re.findall(r"^\| (`.*?) \|", part, re.MULTILINE) for text in re.findall(r"`(.*?)`", row)]
    assert len(written) == 8
    assert {Budget.parse(text).unit for text in written} == {"macs", "params", "ms"}


def test_names_of_the_library_in_the_readme_are_there() -> None:
    (example,) = blocks(README, "python")
    (names,) = re.findall(r"^from slimsweep import (.*)$", example, re.MULTILINE)
    assert set(names.split(", ")) <= set(slimsweep.__all__)
    compile(example, "README.md", "exec")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_fields_and_options_that_pages_name_are_there(page: Path) -> None:
    fields = {name for name, _ in all_fields(Config)}
    commands = next(a for a in parser()._actions if isinstance(a, argparse._SubParsersAction)).choices
    options = {o for command in commands.values() for action in command._actions for o in action.option_strings}
    known = {f"--{name}" for name in fields} | options | {"--config", "--smoke", "--quick", "--help", "--verbose"}
    text = page.read_text()
    commands_shown = [line for line in text.replace("\\\n", " ").splitlines() if re.search(r"slimsweep(\.run)? ", line)]
    named = {option for line in commands_shown for option in re.findall(r"(?<=[\s`])--[\w.-]+", line) if option.islower()}
    assert named <= known | {"--working-dir", "--rm", "--shm-size", "--watch"}  # these are of ray, docker and kubectl
    sections = {name.partition(".")[0] for name in fields if "." in name}
    dotted = set(re.findall(rf"`((?:{'|'.join(sections)})\.[a-z_]+)`", text))
    assert dotted <= fields | {f"{s}.safetensors" for s in sections}


def test_every_column_and_baseline_is_explained() -> None:
    columns = (ROOT / "docs" / "run-folder.md").read_text()
    assert [name for name in RESULTS.names if f"`{name}`" not in columns] == []
    methods = (ROOT / "docs" / "baselines.md").read_text()
    assert [name for name in baselines() if f"| `{name}` |" not in methods] == []


WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yaml"))


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.stem)
def test_workflows_are_bounded_and_use_versions_of_actions(file: Path) -> None:
    workflow = yaml.safe_load(file.read_text())
    assert workflow["permissions"]["contents"] == "read"
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] <= 75
        used = [step["uses"] for step in job["steps"] if "uses" in step]
        assert used[0].startswith("actions/checkout@")
        assert all(re.fullmatch(r"actions/[a-z-]+@v\d+", action) for action in used)


def test_the_checks_workflow_runs_what_ci_runs_with_the_versions_that_it_needs() -> None:
    (job,) = yaml.safe_load((ROOT / ".github" / "workflows" / "checks.yaml").read_text())["jobs"].values()
    assert job["steps"][-1]["run"] == "bash .ci/run"
    given = {key: value for step in job["steps"] for key, value in step.get("with", {}).items()}
    assert f">={given['python-version']}" == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    (oldest,) = re.findall(r"^NODE=(\S+)", CI, re.MULTILINE)
    assert f'"node": ">={oldest}"' in (ROOT / "package.json").read_text()
    assert int(given["node-version"]) >= int(oldest.partition(".")[0])
    parts = re.findall(r'^echo "== (.*)"$', CI, re.MULTILINE)
    assert parts == [
        "the modules of the report page",
        "the first command",
        "style and types",
        "the second command",
        "slow",
        "faults",
    ]
