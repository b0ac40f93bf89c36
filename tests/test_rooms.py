"""The ladder of rooms: imports run one way down, as the contracts in pyproject.toml say."""

import subprocess
import sys
import tomllib
from pathlib import Path

import slimsweep

PACKAGE = Path(slimsweep.__file__).parent
ROOT = PACKAGE.parent
LINT = "from importlinter.cli import lint_imports; raise SystemExit(lint_imports(no_cache=True))"


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    """Check the contracts of a folder's pyproject.toml against its own slimsweep."""
    words = [sys.executable, "-c", f"import sys; sys.path.insert(0, '.'); {LINT}"]
    return subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=120, check=False)


def test_imports_run_one_way_down_the_ladder() -> None:
    done = lint(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_contracts_name_every_room() -> None:
    """A new module at the top level has its place on the ladder, and may not import Ray."""
    here = {f"slimsweep.{path.stem}" for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    here.discard("slimsweep.__init__")
    ladder, ray, *_ = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = {name.strip(" ()") for layer in ladder["layers"] for name in layer.split(":")}
    assert here <= layers
    assert here - set(ray["source_modules"]) == {"slimsweep.cluster"}


def test_a_step_up_the_ladder_is_found(tmp_path: Path) -> None:
    """The contracts can fail: a small slimsweep of two rooms, of which the lower one imports the upper one and Ray."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    for name in settings["contracts"][1]["source_modules"] + ["slimsweep.cluster"]:
        room = tmp_path / Path(*name.split("."))
        room.mkdir(parents=True)
        (room / "__init__.py").touch()
    (tmp_path / "slimsweep" / "__init__.py").touch()
    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    assert lint(tmp_path).returncode == 0
    (tmp_path / "slimsweep" / "slimming" / "__init__.py").write_text("def cut():\n    from slimsweep.config import Config\n")
    (tmp_path / "slimsweep" / "ledger" / "__init__.py").write_text("import ray\n")
    done = lint(tmp_path)
    assert done.returncode == 1
    said = " ".join(done.stdout.split())
    assert "slimsweep.slimming is not allowed to import slimsweep.config" in said
    assert "slimsweep.ledger is not allowed to import ray" in said
