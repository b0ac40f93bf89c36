"""Measures the service over a folder of 200 runs; writes the tables of README.md.

    python reports/service/measure.py readers  # 50 at once: how long a page takes, and the memory of the server
    python reports/service/measure.py reading  # what a look at the folder reads, also when nothing has changed

`readers` starts `slimsweep serve`, with a Ray of its own; readers are threads of this program on the same machine. Nothing else
may run there: where something does, the table says so.
"""

import http.client
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import ray

from slimsweep.ledger.run import Run
from slimsweep.service.shelf import Shelf
from slimsweep.storage import Folder

sys.path.append(str(Path(__file__).parents[1]))  # reports/, for the module that they share
sys.path.append(str(Path(__file__).parents[2] / "tests"))  # for their finished run
from conftest import free_port
from measured_parts import measure_parts
from service_runs import fail, make_run

HERE = Path(__file__).parent
RUNS, READERS, ROUNDS = 200, 50, 6
PAGES = {  # title: address
    "the shelf's page": "/",
    "the shelf's data": "/api/shelf",
    "a run": "/runs/run-007",
    "two runs compared": "/compare?run=run-007&run=run-008",
}


class Read(NamedTuple):
    """A file that was read."""

    path: str
    bytes: int


def many(output: Path, number: int) -> Path:
    """Make a folder of finished runs, run-000 and so on, of seven points each."""
    for i in range(number):
        make_run(output / f"run-{i:03}")
    return output


@contextmanager
def counted() -> Iterator[list[Read]]:
    """The files that this process reads through `Folder` while the block runs."""
    seen: list[Read] = []
    kept = {name: getattr(Folder, name) for name in ("read_bytes", "read_range")}

    def counting(read: Callable[..., bytes]) -> Callable[..., bytes]:
        def counted(folder: Folder, path: str, *more: int) -> bytes:
            content = read(folder, path, *more)
            seen.append(Read(f"{folder.uri}/{path}", len(content)))
            return content

        return counted

    for name, read in kept.items():
        setattr(Folder, name, counting(read))
    try:
        yield seen
    finally:
        for name, read in kept.items():
            setattr(Folder, name, read)


def read_at_once(get: Callable[[str], object], addresses: Sequence[str], readers: int) -> dict[str, list[float]]:
    """Seconds of each answer, by address, where readers that begin at the same moment each open the addresses in turn.

    Args:
        get: fetches an address, and raises where the answer is none.
    """
    seconds: dict[str, list[float]] = {address: [] for address in addresses}

    def read(_: int) -> None:
        for address in addresses:
            began = time.perf_counter()
            get(address)
            seconds[address].append(time.perf_counter() - began)

    with ThreadPoolExecutor(readers) as pool:
        list(pool.map(read, range(readers)))
    return seconds


# Readers.


@contextmanager
def served(output: Path) -> Iterator[tuple[int, int]]:
    """(port, process id of the server) of `slimsweep serve` while the block runs."""
    port = free_port()
    command = [sys.executable, "-m", "slimsweep.cli", "serve", str(output), "--port", str(port)]
    with (output.parent / "log").open("w+") as log:
        environment = {**os.environ, "RAY_ADDRESS": "local"}
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True)
        try:
            while "ends the service" not in (said := Path(log.name).read_text()):
                if process.poll() is not None:
                    raise RuntimeError(f"the service did not start:\n{said}")
                time.sleep(0.2)
            yield port, replica_of(process.pid)
        finally:
            process.terminate()
            process.wait(120)


def replica_of(ancestor: int) -> int:
    """The process that answers requests, among all that a process has started."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if not (entry / "cmdline").read_bytes().startswith(b"ray::ServeReplica"):
                continue
            pid = int(entry.name)
            while pid > 1 and pid != ancestor:
                pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):  # it has just ended
            continue
        if pid == ancestor:
            return int(entry.name)
    raise RuntimeError("no replica of the service was found")


def memory_of(pid: int, field: str) -> float:
    """MiB of a process: VmRSS, now; VmHWM, at most so far."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) / 1024


def fetch(port: int, address: str) -> int:
    """The bytes of an answer, as they come over the network."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    connection.request("GET", address, headers={"Accept-Encoding": "gzip"})
    answer = connection.getresponse()
    size = len(answer.read())
    connection.close()
    if answer.status != 200:
        raise RuntimeError(f"{address} was answered with {answer.status}")
    return size


def readers(folder: Path) -> str:
    with served(many(folder / "runs", RUNS)) as (port, replica):

        def get(address: str) -> int:
            return fetch(port, address)

        get("/api/shelf")  # which waits for the first look
        looked = memory_of(replica, "VmRSS")
        first = {address: read_at_once(get, [address], 1)[address][0] for address in PAGES.values()}
        sizes = {address: get(address) for address in PAGES.values()}
        one = [read_at_once(get, list(PAGES.values()), 1) for _ in range(5 * ROUNDS)]
        all_at_once = [read_at_once(get, list(PAGES.values()), READERS) for _ in range(ROUNDS)]
        most = memory_of(replica, "VmHWM")
    lines = [f"| page | KiB | first time, ms | one reader, ms | {READERS} readers at once: median, ms | 95 % within, ms |"]
    lines.append("| --- | ---: | ---: | ---: | ---: | ---: |")
    for title, address in PAGES.items():
        alone, together = (1e3 * np.concatenate([part[address] for part in parts]) for parts in (one, all_at_once))
        lines.append(
            f"| {title} | {sizes[address] / 1024:.0f} | {1e3 * first[address]:.0f} | {np.median(alone):.0f} "
            f"| {np.median(together):.0f} | {np.percentile(together, 95):.0f} |"
        )
    lines += [
        "",
        f"The server's process has {looked:.0f} MiB when it has read {RUNS} runs, and {most:.0f} MiB at most from then on.",
    ]
    return "\n".join(lines)


# Reading.


def reading(folder: Path) -> str:
    output = many(folder / "runs", RUNS)
    shelf = Shelf(str(output), look_every=0.0)
    lines = ["| | files read | KiB read | ms |", "| --- | ---: | ---: | ---: |"]

    def measure(title: str, act: Callable[[], object]) -> None:
        with counted() as seen:
            began = time.perf_counter()
            act()
            seconds = time.perf_counter() - began
        lines.append(f"| {title} | {len(seen):,} | {sum(one.bytes for one in seen) / 1024:,.0f} | {1e3 * seconds:,.0f} |")

    def page() -> object:
        return shelf.page(["run-007"], "../")

    measure(f"the first look at {RUNS} runs", shelf.look_again)
    measure("the first page of a run", page)
    measure("a look when nothing has changed", shelf.look_again)
    measure("the page when nothing has changed", page)
    fail(Run(output / "run-007"), "searched-0.4")
    measure("a look when a row of one run is new", shelf.look_again)
    measure("the page of that run", page)
    return "\n".join(lines)


PARTS: dict[str, Callable[[Path], str]] = {"readers": readers, "reading": reading}


if __name__ == "__main__":
    sys.exit(measure_parts(PARTS, sys.argv[1:], HERE / "README.md", f"ray {ray.__version__}"))
