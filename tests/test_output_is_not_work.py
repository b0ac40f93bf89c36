"""Output is not work: a run goes on, and ends with its own exit code, whatever becomes of what it prints.

Real processes print through `slimsweep.terminal.outlive_output`, as `slimsweep run` does, into streams that fail.
"""

import io
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from slimsweep.cli import main
from slimsweep.ledger.planning import make_plan
from slimsweep.ledger.run import Run
from slimsweep.ledger.status import read_status
from slimsweep.terminal import plain_console, show_whole
from slimsweep.tools.bench import table
from slimsweep.tools.display import Progress, show_end

DATA = Path(__file__).parent / "data"
ROOT = Path(__file__).parent.parent
COMMAND = [sys.executable, "-m", "slimsweep.cli"]

# What a driver prints, and by which ways: its own lines, a live table, log, warnings, and the flush at its end.
WORK = """
import logging, os, subprocess, sys, time, warnings
from pathlib import Path
from rich.live import Live
from slimsweep.terminal import outlive_output, plain_console, plain_table, say
outlive_output(work_goes_on=True)
console, begun = plain_console(), Path(sys.argv[1])
begun.write_text("begun")
deadline = time.monotonic() + 60
while not Path(sys.argv[2]).exists():  # the test takes the stream away
    assert time.monotonic() < deadline
    time.sleep(0.01)
with Live(console=console, auto_refresh=False) as live:
    for step in range(3):
        say(console, f"step {step}")
        table = plain_table("title", [("point", "left")])
        table.add_row("x" * 100)
        live.update(table, refresh=True)
        logging.getLogger("slimsweep").warning("a warning of a log")
        warnings.warn(f"a warning {step}")
        print("print", "\\u2501 \\udcff")
        print("print", file=sys.stderr, flush=True)
        os.system("echo from a process of its own")
begun.write_text("done")
sys.exit(7)
"""


def start_work(tmp_path: Path, *before: str, **streams: object) -> tuple[subprocess.Popen, Callable[[], None]]:
    """The driver, once it waits, and what lets it go on."""
    begun, gone = tmp_path / "begun", tmp_path / "gone"
    words = [*before, sys.executable, *(["-u"] if streams.pop("unbuffered", False) else []), "-c", WORK, str(begun), str(gone)]
    process = subprocess.Popen(words, cwd=ROOT, **streams)  # type: ignore[call-overload]
    deadline = time.monotonic() + 60
    while not begun.exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return process, gone.touch


def ended(process: subprocess.Popen, tmp_path: Path, seconds: float = 30) -> int:
    code = process.wait(seconds)
    assert (tmp_path / "begun").read_text() == "done"
    return code


@pytest.mark.parametrize("unbuffered", [False, True])
def test_a_closed_pipe_ends_no_work(tmp_path: Path, unbuffered: bool) -> None:
    """`slimsweep run | head`, with standard error in the same pipe, or on a terminal of its own, which then says so."""
    process, go_on = start_work(tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, unbuffered=unbuffered)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    go_on()
    said = process.stderr.read().decode()
    assert ended(process, tmp_path) == 7
    assert said.count("standard output cannot be written (Broken pipe); the run goes on") == 1
    assert "a warning of a log" in said
    assert "Traceback" not in said


def test_a_full_disk_ends_no_work_and_what_is_lost_is_said_later(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        process, go_on = start_work(tmp_path, stdout=full, stderr=full)
        go_on()
        assert ended(process, tmp_path) == 7
    code = """
import os, sys
from slimsweep.terminal import outlive_output
log, full = (os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT) for path in (sys.argv[1], "/dev/full"))
os.dup2(log, 1)
outlive_output(work_goes_on=True)
for stream, line in ((log, "one"), (full, "two"), (full, "three"), (log, "four")):  # the disk is full for a while
    os.dup2(stream, 1)
    print(line, flush=True)
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "log")], cwd=ROOT, stderr=subprocess.PIPE, check=True)
    said = (tmp_path / "log").read_text().splitlines()
    assert [line for line in said if line] == ["one", "[10 bytes of output were lost here: No space left on device]", "four"]
    assert done.stderr.decode().count("No space left on device") == 1


def test_a_file_that_may_not_grow_and_descriptors_that_are_closed_end_no_work(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("x" * 1000)
    with open(tmp_path / "log", "a") as log:
        process, go_on = start_work(tmp_path, "bash", "-c", 'ulimit -f 1; exec "$@"', "bash", stdout=log, stderr=log)
        go_on()
        assert ended(process, tmp_path) == 7
    assert (tmp_path / "log").stat().st_size == 1024
    for name in ("begun", "gone"):
        (tmp_path / name).unlink(missing_ok=True)
    process, go_on = start_work(tmp_path, "bash", "-c", 'exec "$@" >&- 2>&- <&-', "bash")
    go_on()
    assert ended(process, tmp_path) == 7
    assert (tmp_path / "begun").read_text() == "done"  # nothing that was printed went into a file that got the descriptor


def test_a_terminal_that_is_gone_ends_no_work(tmp_path: Path) -> None:
    """SIGHUP is ignored, as by nohup or disown; all later writes fail with EIO."""
    terminal, own = pty.openpty()
    process, go_on = start_work(
        tmp_path,
        *("bash", "-c", 'trap "" HUP; exec "$@"', "bash"),
        stdin=own,
        stdout=own,
        stderr=own,
        start_new_session=True,
    )
    os.close(own)
    os.close(terminal)
    go_on()
    assert ended(process, tmp_path) == 7


@pytest.mark.parametrize("kind", ["pipe", "terminal"])
def test_a_reader_who_does_not_read_holds_up_no_work(tmp_path: Path, kind: str) -> None:
    """Ctrl-S, `| less` that nobody scrolls, a `tee` that was stopped."""
    reader, own = pty.openpty() if kind == "terminal" else os.pipe()
    code = """
import sys, time
from pathlib import Path
from slimsweep import terminal
terminal.PATIENCE_SECONDS = 0.3
terminal.outlive_output(work_goes_on=True)
for _ in range(3000):
    print("x" * 100, flush=True)
Path(sys.argv[1]).write_text("done")
"""
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "begun")], cwd=ROOT, stdout=own, stderr=own)
    os.close(own)
    assert ended(process, tmp_path) == 0
    os.close(reader)


def test_a_command_whose_output_is_its_result_says_that_it_was_lost(tmp_path: Path) -> None:
    run = str(DATA / "finished-run")
    with open("/dev/full", "w") as full:
        lost = subprocess.run(
            [*COMMAND, "pick", run, "--max-macs", "0.5"], cwd=ROOT, stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert lost.returncode == 1
    assert b"the output cannot be written (No space left on device)" in lost.stderr
    closed = ["bash", "-c", 'exec "$@" >&-', "bash", *COMMAND, "status", run]
    nowhere = subprocess.run(closed, cwd=ROOT, stderr=subprocess.PIPE, check=False)
    assert nowhere.returncode == 1
    assert b"the output cannot be written (Bad file descriptor)" in nowhere.stderr
    # A reader who has seen enough is no failure, and nothing is said about it.
    reader, own = os.pipe()
    os.close(reader)
    quiet = subprocess.run([*COMMAND, "status", run], cwd=ROOT, stdout=own, stderr=subprocess.PIPE, check=False)
    os.close(own)
    assert (quiet.returncode, quiet.stderr) == (0, b"")


# A terminal that is closed without nohup: SIGHUP.

HUNG_UP = """
import signal, sys, time
from pathlib import Path
import slimsweep.run
def run_all(words, console, at_end):
    try:
        Path(sys.argv[1]).write_text("begun")
        time.sleep(60)
    finally:  # the shell sends it a second time while the first one ends the run
        time.sleep(0.5)
        Path(sys.argv[1]).write_text("done")
slimsweep.run.run_all = run_all
signal.signal(signal.SIGHUP, getattr(signal, sys.argv[2]))  # whatever nohup did to the tests
sys.exit(slimsweep.run.main([]))
"""


@pytest.mark.parametrize("ignored", [False, True])
def test_a_closed_terminal_stops_a_run_cleanly_unless_it_is_to_be_ignored(tmp_path: Path, ignored: bool) -> None:
    begun = tmp_path / "begun"
    words = [sys.executable, "-c", HUNG_UP, str(begun), "SIG_IGN" if ignored else "SIG_DFL"]
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE)
    while not begun.exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGHUP)
    time.sleep(0.2)
    process.send_signal(signal.SIGHUP)
    if ignored:
        time.sleep(0.5)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=30)[0].decode()
    assert ended(process, tmp_path) == 130
    assert "stopped; what is done is kept" in said


# Names and paths are whole, however narrow the output is.


@pytest.fixture
def named(tmp_path: Path) -> Path:
    """A run in a folder whose name is long, and holds what rich would read as markup and as an emoji."""
    return shutil.copytree(DATA / "finished-run", tmp_path / ("long-" * 12) / "a [b] :fire: run" / "finished")


@pytest.mark.parametrize("columns", ["20", "80"])
def test_names_and_paths_are_found_by_grep(
    named: Path, columns: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    points = [file.stem for file in (named / "results").glob("*.parquet")]
    assert main(["status", str(named)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert all(sum(line.startswith(f"{point} ") for line in said) == 1 for point in points)
    assert main(["report", str(named)]) == 0
    assert capsys.readouterr().out.startswith(str(named / "report.html"))
    assert main(["pick", str(named), "--max-macs", "0.5"]) == 0
    printed = capsys.readouterr()
    assert Path(printed.out.strip()).is_dir()
    assert len(printed.err.splitlines()) == 1
    row = {"batch_size": 1, "macs": 1, "latency_p50_ms": 1.0, "latency_p90_ms": 1.0, "images_per_second": 1.0}
    setting = {"device": "cpu", "hardware": "a CPU", "threads": 1, "dtype": "float32", "compile": False}
    rows = [{**row, **setting, "point": point, "peak_memory_bytes": None} for point in points]
    show_whole(plain_console(), table(rows))
    said = capsys.readouterr().out.splitlines()
    assert all(sum(point in line for line in said) == 1 for point in points)
    run = Run(named)
    show_end(run, make_plan(run, "start"), [], plain_console(), 1.0)
    said = capsys.readouterr().out.splitlines()
    assert f"Report: {named / 'report.html'}" in said
    assert f"Models: {named / 'models'}/" in said


@pytest.mark.parametrize(("width", "columns"), [(26, 1), (30, 2), (120, 5)])
def test_the_live_table_shows_whole_names_and_fewer_columns(width: int, columns: int) -> None:
    console = Console(width=width, force_terminal=True, color_system=None, record=True, file=io.StringIO())
    run = Run(DATA / "finished-run")
    live = Progress(run, console, "Sweep", sweep=True)
    console.print(live._picture(read_status(run)))
    said = console.export_text().splitlines()
    assert any(line.startswith("searched-0.4000-s0-1eef") for line in said)
    assert sum(word in " ".join(said) for word in ("state", "epoch", "val top-1")) == min(columns - 1, 3)


def test_the_version(capsys: pytest.CaptureFixture) -> None:
    from slimsweep import __version__
    from slimsweep.run import main as run

    for words in (["--version"], ["plan", "--version"], ["run", "--version"]):
        assert main(words) == 0
        assert capsys.readouterr().out == f"slimsweep {__version__}\n"
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"slimsweep {__version__}\n"


def test_output_goes_into_a_folder_that_is_there(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run = DATA / "finished-run"
    (tmp_path / "pages").mkdir()
    assert main(["report", str(run), "--output", str(tmp_path / "pages")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "pages" / "report.html")
    assert (tmp_path / "pages" / "report.html").stat().st_size > 1_000_000
    assert main(["report", str(run), "--output", f"{tmp_path}/new/"]) == 0
    assert (tmp_path / "new" / "report.html").is_file()
    (tmp_path / "file").touch()
    assert main(["report", str(run), "--output", str(tmp_path / "file" / "page.html")]) == 2
    assert "give another path" in capsys.readouterr().out
    model = run / "models" / "searched-0.4000-s0-1eef"
    assert main(["export", str(model), "--format", "pt2", "--output", str(tmp_path / "pages")]) == 0
    assert (tmp_path / "pages" / "model.pt2").is_file()


def test_every_command_says_that_a_folder_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "file").write_text(json.dumps({}))
    for folder in (tmp_path, tmp_path / "nothing", tmp_path / "file"):
        for command in ("status", "report", "bench", "pick", "export"):
            more = {"pick": ["--max-macs", "0.5"], "export": ["--format", "pt2"]}.get(command, [])
            assert main([command, str(folder), *more]) == 2, command
            said = capsys.readouterr().out.splitlines()
            assert len(said) == 1
            assert str(folder) in said[0]
            assert "give" in said[0]
