"""`slimsweep completion`: what bash offers after the script has been read."""

import subprocess
import sys

import pytest

from slimsweep.cli import main


def offered(script: str, words: str) -> list[str]:
    """What bash completes the last of some words to, once it has read the script."""
    parts = words.split(" ")
    array = " ".join(f"'{part}'" for part in parts)
    ask = f"""
COMP_WORDS=({array}); COMP_CWORD={len(parts) - 1}; COMPREPLY=()
_shtab_slimsweep slimsweep '{parts[-1]}' '{parts[-2]}'
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    done = subprocess.run(["bash", "-c", script + ask], capture_output=True, text=True, check=False)
    return done.stdout.split()


def test_bash_offers_commands_options_and_fields(capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip("shtab")
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    assert offered(script, "slimsweep li") == ["list"]
    assert offered(script, "slimsweep run --search.ep") == ["--search.epochs"]
    assert offered(script, "slimsweep pick --max-m") == ["--max-macs"]


def test_without_its_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "bash"]) == 2
    assert "pip install shtab" in " ".join(capsys.readouterr().out.split())
