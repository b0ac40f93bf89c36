"""The image and what travels to a cluster: versions agree, nothing large and nothing private goes along."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WORKFLOW = yaml.safe_load((ROOT / ".github" / "workflows" / "image.yaml").read_text())
LARGE_OR_PRIVATE = ("runs/digits/report.html", ".venv/bin/python", ".git/config", "data/train/0.bin", "weights.safetensors")


def argument(name: str) -> str:
    """The default of a build argument."""
    return re.search(rf"^ARG {name}=(.*)$", DOCKERFILE, re.MULTILINE).group(1)  # type: ignore[union-attr]


def locked(package: str) -> str:
    return re.search(rf"^{package}==(\S+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE).group(1)  # type: ignore[union-attr]


def hadolint() -> str:
    found = shutil.which("hadolint", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    return found or pytest.skip("hadolint is not installed: the Dockerfile is not linted")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """The repository's files, as a person has them: with runs, an environment, data and weights beside the sources."""
    ours = ("slimsweep", "tests", "jobs", "docker", "reports", ".gitignore", ".rayignore", ".dockerignore", "pyproject.toml")
    for name in ours:
        source = ROOT / name
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(source, tmp_path / name, ignore=ignore) if source.is_dir() else shutil.copy(source, tmp_path / name)
    for name in (*LARGE_OR_PRIVATE, "slimsweep/__pycache__/run.cpython-311.pyc"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(os.urandom(1024))
    return tmp_path


def test_the_dockerfile_is_clean() -> None:
    done = subprocess.run(
        [hadolint(), "--format", "json", ROOT / "docker" / "Dockerfile"], capture_output=True, text=True, check=False
    )
    assert json.loads(done.stdout) == []


def test_the_lint_can_fail(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text(DOCKERFILE.replace("# hadolint ignore=DL3008\n", ""))
    done = subprocess.run(
        [hadolint(), "--format", "json", tmp_path / "Dockerfile"], capture_output=True, text=True, check=False
    )
    assert "DL3008" in done.stdout


def test_python_is_one_that_slimsweep_and_its_lock_are_for() -> None:
    python = argument("PYTHON")
    assert python == PROJECT["requires-python"].removeprefix(">=")
    assert argument("BASE") == f"python:{python}-slim-bookworm"


def test_the_tag_names_the_versions_that_the_image_holds() -> None:
    tag = subprocess.run([ROOT / "docker" / "tag.sh"], capture_output=True, text=True, check=True).stdout.strip()
    assert tag == f"{PROJECT['version']}-ray{locked('ray')}"
    job = (ROOT / "jobs" / "base" / "rayjob.yaml").read_text()
    assert set(re.findall(r"image: (\S+)", job)) == {f"slimsweep:{tag}"}
    assert re.search(r'rayVersion: "(.*)"', job).group(1) == locked("ray")  # type: ignore[union-attr]


def test_every_dependency_is_in_the_lock() -> None:
    names = [re.match(r"[\w.-]+", d).group() for d in PROJECT["dependencies"]]  # type: ignore[union-attr]
    assert all(locked(name) for name in names)


def test_the_image_s_user_is_not_root() -> None:
    last = DOCKERFILE.rpartition("\nFROM ")[2]
    assert re.findall(r"^USER (.*)$", last, re.MULTILINE) == ["1000:1000"]
    job = yaml.safe_load((ROOT / "jobs" / "base" / "rayjob.yaml").read_text())
    head = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    assert head["securityContext"]["runAsUser"] == 1000


def test_the_build_sees_nothing_but_what_it_copies(tree: Path) -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]

    def sent(path: str) -> bool:
        """By Docker's rules for these patterns: the last line that matches the path, or a folder above it, decides."""
        decided = True
        above = [path, *(str(p) for p in Path(path).parents if str(p) != ".")]
        for line in lines:
            pattern = line.removeprefix("!").removeprefix("**/")
            names = [Path(p).name for p in above] if "**/" in line else above
            if any(fnmatchcase(n, pattern) for n in names):
                decided = line.startswith("!")
        return decided

    files = {str(f.relative_to(tree)) for f in tree.rglob("*") if f.is_file()}
    kept = {f for f in files if sent(f)}
    assert {f.partition("/")[0] for f in kept} == {"slimsweep", "pyproject.toml"}
    assert "slimsweep/report/web/report.html.j2" in kept
    assert not any("__pycache__" in f for f in kept)
    copied = re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, re.MULTILINE)
    assert {name for words in copied for name in words.split()} == {line[1:] for line in lines if line.startswith("!")}


def test_a_submitted_folder_is_small_and_holds_what_a_sweep_needs(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Packed by Ray's own code, which `ray job submit --working-dir .` uses."""
    from ray._private.ray_constants import get_runtime_env_default_excludes
    from ray._private.runtime_env.packaging import create_package

    package = tmp_path_factory.mktemp("package") / "working_dir.zip"
    create_package(str(tree), package, include_gitignore=True, excludes=get_runtime_env_default_excludes())
    files = [name for name in zipfile.ZipFile(package).namelist() if not name.endswith("/")]
    sizes = {entry.filename: entry.file_size for entry in zipfile.ZipFile(package).infolist()}
    sources = {str(file.relative_to(tree)) for file in (tree / "slimsweep").rglob("*.py")}
    assert sources | {"slimsweep/config/presets/digits.yaml", "reports/digits/sweep.yaml"} <= set(files)
    assert not set(files) & set(LARGE_OR_PRIVATE)
    assert not [f for f in files if f.endswith((".png", ".parquet", ".pyc"))]
    # The package itself, stored as it is, and little else. Ray takes 100 MiB.
    assert sum(size for name, size in sizes.items() if not name.startswith("slimsweep/")) < 2**15
    assert package.stat().st_size < 1.1 * sum(size for name, size in sizes.items() if name.startswith("slimsweep/"))
    assert package.stat().st_size < 3 * 2**20


def test_the_workflow_builds_what_the_jobs_name(tmp_path: Path) -> None:
    (job,) = WORKFLOW["jobs"].values()
    steps = {step.get("name", step.get("uses")): step for step in job["steps"]}
    output = tmp_path / "output"
    environment = {**os.environ, "GITHUB_REPOSITORY_OWNER": "Someone", "GITHUB_OUTPUT": str(output)}
    subprocess.run(["bash", "-euo", "pipefail", "-c", steps["Name it"]["run"]], cwd=ROOT, env=environment, check=True)
    (image,) = set(re.findall(r"image: (\S+)", (ROOT / "jobs" / "base" / "rayjob.yaml").read_text()))
    assert output.read_text() == f"image=ghcr.io/someone/{image}\n"
    order = list(steps)
    assert order.index("Build") < order.index("Run the digits job") < order.index("Publish")
    assert steps["Publish"]["if"] == "github.event_name == 'push'"


def test_scripts_are_valid_shell() -> None:
    for name in ("tag.sh", "build-without-engine.sh"):
        path = ROOT / "docker" / name
        assert os.access(path, os.X_OK)
        assert subprocess.run(["bash", "-n", path], check=False).returncode == 0
