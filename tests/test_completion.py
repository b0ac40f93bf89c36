"""`slimsweep completion`: what bash offers after the script has been read, and that both shells can read their script."""

import shutil
import subprocess
import sys
from pathlib import Path

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
    assert offered(script, "slimsweep pick --max-ma") == ["--max-macs"]


def test_without_its_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "bash"]) == 2
    assert "pip install shtab" in " ".join(capsys.readouterr().out.split())


def script_of(shell: str, capsys: pytest.CaptureFixture, folder: Path) -> Path:
    pytest.importorskip("shtab")
    assert main(["completion", shell]) == 0
    file = folder / f"completion.{shell}"
    file.write_text(capsys.readouterr().out)
    return file


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_a_shell_can_read_its_script(shell: str, capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} on PATH")
    file = script_of(shell, capsys, tmp_path)
    done = subprocess.run([shell, "-n", str(file)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_script_for_zsh_completes_this_command_and_names_every_subcommand(
    capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    script = script_of("zsh", capsys, tmp_path).read_text()
    assert script.startswith("#compdef slimsweep\n")  # by which zsh finds it in a folder of $fpath
    for name in ("new", "plan", "status", "pick", "export"):
        assert f"_shtab_slimsweep_{name}_options" in script


# What a shell does at the Tab key: it looks up the function that is registered for the command, and calls it.
TAB = """
source "$1"
[[ $(complete -p slimsweep) =~ -F" "([^ ]+) ]] || exit 3
COMP_WORDS=("${@:2}"); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); COMP_LINE="${COMP_WORDS[*]}"; COMP_POINT=${#COMP_LINE}
COMPREPLY=()
"${BASH_REMATCH[1]}" slimsweep "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
printf '%s\n' "${COMPREPLY[@]}"
"""


def test_tab_in_bash_completes_by_what_is_registered_for_the_command(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    file = script_of("bash", capsys, tmp_path)
    (tmp_path / "my-run").mkdir()

    def tab(*words: str) -> list[str]:
        done = subprocess.run(
            ["bash", "-c", TAB, "bash", str(file), *words], capture_output=True, text=True, check=True, cwd=tmp_path
        )
        return done.stdout.split()

    assert tab("slimsweep", "sta") == ["status"]
    assert tab("slimsweep", "run", "--retrain.sta") == ["--retrain.start"]
    assert tab("slimsweep", "run", "--retrain.start", "la") == ["larger"]
    assert tab("slimsweep", "status", "my") == ["my-run"]
    assert tab("slimsweep", "export", "--format", "on") == ["onnx"]
