"""How a command's process ends: as `sys.exit` ends one, but without the seconds in which Python takes torch's modules apart."""

import signal
import subprocess
import sys

import pytest

SCRIPT = """
import atexit, signal, sys, threading, time
from slimsweep.terminal import end_command

class Module:
    def __del__(self):
        print("taken apart")

if "heavy" in sys.argv:
    sys.modules["torch"] = Module()
else:
    sys.modules["light"] = Module()
atexit.register(print, "registered")
threading.Thread(target=lambda: (time.sleep(0.3), print("thread"))).start()
if "interrupted" in sys.argv:
    threading.Timer(0.1, lambda: signal.raise_signal(signal.SIGINT)).start()
print("said", end="")
end_command(3)
"""


@pytest.mark.parametrize(("kind", "left"), [("heavy", ""), ("light", "taken apart\n")])
def test_what_was_printed_threads_and_registered_functions_are_not_lost(kind: str, left: str) -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT, kind], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (3, f"saidthread\nregistered\n{left}", "")


def test_a_signal_at_the_end_changes_neither_the_exit_code_nor_what_is_registered() -> None:
    words = [sys.executable, "-c", SCRIPT, "heavy", "interrupted"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 3
    assert "registered" in done.stdout
    assert done.stderr == ""


SIGNALS = """
import os, signal, sys
from slimsweep.run import _interrupt
from slimsweep.terminal import plain_console

interrupt = _interrupt(plain_console())

def handle(number, frame):
    try:
        interrupt(number, frame)
    except KeyboardInterrupt:
        pass

signal.signal(signal.SIGINT, handle)
signal.signal(signal.SIGTERM, lambda *_: os._exit(7))
print("ready", flush=True)
while True:
    pass
"""


def test_a_second_signal_in_the_middle_of_the_first_holds_nothing_up() -> None:
    """As a supervisor sends one to the process and one to its group."""
    with subprocess.Popen([sys.executable, "-u", "-c", SIGNALS], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        for _ in range(20000):
            process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGTERM)
        try:
            assert process.wait(20) == 7
        finally:
            process.kill()
        assert process.stdout.read().count("stopping") == 1
