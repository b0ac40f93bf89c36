"""The page's modules: their unit tests, lint, format and types. What they do in a browser is in test_report_browser.py."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
NODE, NPM = shutil.which("node"), shutil.which("npm")


@pytest.mark.skipif(NODE is None, reason="no node on PATH (apt-get install nodejs)")
def test_unit_tests_of_the_page():
    tests = sorted((HERE / "page").glob("*.test.js"))
    assert len(tests) >= 4
    done = subprocess.run([NODE, "--test", *tests], capture_output=True, text=True, timeout=300, cwd=HERE.parent, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert int(re.search(r"^\S+ pass (\d+)$", done.stdout, re.MULTILINE)[1]) > 200


@pytest.mark.skipif(
    NPM is None or not (HERE.parent / "node_modules").exists(),
    reason="no npm, or no node_modules (npm install)",
)
@pytest.mark.parametrize("script", ["lint", "format-check", "types"])
def test_the_pages_modules_are_clean(script: str):
    done = subprocess.run(
        [NPM, "run", "--silent", script], capture_output=True, text=True, timeout=300, cwd=HERE.parent, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


def test_versions_of_the_tools_are_exact_and_no_registry_is_named():
    package = json.loads((HERE.parent / "package.json").read_text())
    assert all(re.fullmatch(r"\d+\.\d+\.\d+", version) for version in package["devDependencies"].values())
    assert "dependencies" not in package  # the page itself needs none
    for name in ("package.json", ".npmrc"):
        assert "http" not in (HERE.parent / name).read_text()
    assert not list((HERE.parent / "slimsweep").rglob("package*.json"))  # nothing of node's is in the wheel or the image
