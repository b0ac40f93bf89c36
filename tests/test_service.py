"""The service over a folder of runs: what it shows, how little it reads for that, and whom it refuses."""

import gzip
import itertools
import json
import os
import re
import runpy
import statistics
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="fastapi is not installed (pip install 'slimsweep[serve]')")
pytest.importorskip("httpx", reason="httpx is not installed, which starlette's test client needs")

from fastapi import Request
from service_runs import TOKEN, WHY, at_work, fail, make_run, make_shelf, refuse_folder, stop_in_search
from starlette.testclient import TestClient
from test_report import data_of

from slimsweep.cli import main
from slimsweep.errors import RefusedInput
from slimsweep.ledger.pulse import Pulse
from slimsweep.ledger.run import Run
from slimsweep.report.page import figure_library
from slimsweep.service.access import COOKIE, Actor
from slimsweep.service.app import make_app
from slimsweep.service.settings import Settings, found_token, settings_from
from slimsweep.service.shelf import Shelf
from slimsweep.storage import Folder

LOAD = runpy.run_path(str(Path(__file__).parents[1] / "reports" / "service" / "measure.py"))
BASE = "http://127.0.0.1:8266"
BEARER = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs of all states, that no test changes."""
    return make_shelf(tmp_path_factory.mktemp("service") / "runs")


@pytest.fixture
def few(tmp_path: Path) -> Path:
    """A folder with two runs, for a test to change."""
    for name in ("one", "two"):
        make_run(tmp_path / "runs" / name)
    return tmp_path / "runs"


def client(output: Path | str, **settings: Any) -> TestClient:
    """A reader of a service that looks at its folder at each request."""
    given = {"token": TOKEN, "look_every": 0.0, **settings}
    app = make_app(Settings(output=str(output), **given))

    @app.post("/api/test-act")
    async def act(request: Request, _: Actor) -> int:  # stands for whatever acts
        return len(await request.body())

    return TestClient(app, base_url=BASE)


def shown(reader: TestClient) -> dict[str, dict[str, Any]]:
    """What the shelf says of each run, by name, looked at now."""
    reader.app.state.shelf.look_again()  # type: ignore[attr-defined]
    return {run["name"]: run for run in reader.get("/api/shelf").json()["runs"]}


# What is shown.


def test_the_shelf_says_of_each_run_how_far_it_is_and_how_good(output: Path) -> None:
    runs = shown(client(output))
    states = {name: run["state"] for name, run in runs.items()}
    assert states == {
        "digits": "finished",
        "flowers-deit-s": "finished",
        "scans-vit-b": "failed",
        "birds-swin": "running",
        "leaves": "stopped",
        "sizes/small": "finished",
        "sizes/base": "finished",
        "cut-short": "unreadable",
    }
    digits = runs["digits"]
    assert (digits["done"], digits["planned"], digits["failed"]) == (7, 7, 0)
    # Dense has 96.1 %, searched 97.6 % and 93.4 %: a cut to 60 % is the smallest within a point.
    assert digits["near"]["quality_text"] == "97.61 %"
    assert digits["near"]["difference_text"] == "+1.50"
    assert digits["near"]["share"] == pytest.approx(74324 / 124128)
    assert digits["smallest"]["macs"] == 48264
    assert (runs["flowers-deit-s"]["model"], runs["flowers-deit-s"]["data"]) == ("deit_small_patch16_224", "flowers")
    assert runs["birds-swin"]["stage"].startswith("search ")


def test_a_run_that_failed_says_why(output: Path) -> None:
    runs = shown(client(output))
    assert runs["scans-vit-b"]["why"] == WHY
    assert runs["scans-vit-b"]["failed"] == 1
    assert runs["leaves"]["why"] == "RuntimeError: DataLoader worker (pid 4711) was killed"
    assert "config.yaml is damaged" in runs["cut-short"]["why"]
    assert runs["digits"]["why"] == ""


def test_a_page_is_the_report_with_a_way_back(output: Path) -> None:
    reader = client(output)
    for address, back, name in (("/runs/digits", "../", "digits"), ("/runs/sizes/small", "../../", "small")):
        page = reader.get(address)
        assert page.status_code == 200
        assert f'<a href="{back}">All runs</a>' in page.text
        assert f"<title>{name}</title>" in page.text
    both = reader.get("/compare?run=digits&run=sizes/small")
    assert both.status_code == 200
    assert "<title>digits, small</title>" in both.text
    assert reader.get("/runs/leaves").status_code == 200  # also of a run without results
    assert "cut-short cannot be shown" in reader.get("/runs/cut-short").json()["detail"]
    assert reader.get("/compare").status_code == 400
    assert reader.get("/compare?" + "&".join(f"run=r{i}" for i in range(13))).status_code == 400


def test_pages_share_one_figure_library_that_browsers_keep(output: Path) -> None:
    reader = client(output)
    found = {}
    for address in ("/runs/digits", "/runs/sizes/small", "/compare?run=digits&run=sizes/small"):
        page = reader.get(address).text
        assert len(page) < 700_000
        found[address] = re.search(r'data-at="((?:\.\./)+|\./)(plotly-\w+\.js)"', page)[2]
    (name,) = set(found.values())
    library = reader.get(f"/{name}")
    assert library.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert library.headers["content-encoding"] == "gzip"
    assert library.text == figure_library().text
    assert reader.get("/plotly-0.js").status_code == 404


def test_a_page_can_be_saved_as_one_file(output: Path) -> None:
    reader = client(output)
    for address in ("/runs/digits?whole=true", "/compare?run=digits&run=sizes/small&whole=true"):
        page = reader.get(address).text
        assert len(page) > 1_500_000
        assert "data-at=" not in page
        assert "All runs</a>" not in page
        assert "loads nothing from the network" in page


def test_what_happens_in_the_folder_is_shown_at_the_next_look(few: Path) -> None:
    reader = client(few)
    assert {run["state"] for run in shown(reader).values()} == {"finished"}
    page = reader.get("/runs/one").headers["etag"]
    fail(Run(few / "one"), "searched-0.4")
    make_run(few / "group" / "three")
    assert {name: run["state"] for name, run in shown(reader).items()} == {
        "one": "failed",
        "two": "finished",
        "group/three": "finished",
    }
    assert reader.get("/runs/one").headers["etag"] != page
    (few / "two" / "config.yaml").write_text("name: [")
    assert shown(reader)["two"]["state"] == "unreadable"
    (few / "two").rename(few.parent / "gone")
    assert "two" not in shown(reader)
    assert reader.get("/runs/two").status_code == 404


def test_a_driver_counts_as_dead_when_its_heartbeat_stands_still(few: Path) -> None:
    run = Run(few / "one")
    stop_in_search(run)
    at_work(run)
    for name in ("holder.json", "driver.json"):  # of another machine, where no process can be looked up
        record = json.loads((few / "one" / name).read_text())
        (few / "one" / name).write_text(json.dumps({**record, "boot": "elsewhere"}))
    pulse, now = Pulse(), 1000.0
    assert pulse.alive(run, run.listing().heartbeat, now)
    assert pulse.alive(run, run.listing().heartbeat, now + 14)
    assert not pulse.alive(run, run.listing().heartbeat, now + 16)
    record["count"] = 2
    (few / "one" / "driver.json").write_text(json.dumps({**record, "boot": "elsewhere"}))
    assert pulse.alive(run, run.listing().heartbeat, now + 17)
    (few / "one" / "driver.json").unlink()
    assert not pulse.alive(run, run.listing().heartbeat, now + 18)


def test_a_driver_of_this_machine_that_was_killed_is_dead_at_once(few: Path) -> None:
    run = Run(few / "one")
    stop_in_search(run)
    at_work(run)
    assert shown(client(few))["one"]["state"] == "running"
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    record = json.loads((few / "one" / "driver.json").read_text())
    from slimsweep.ledger import process

    identity = process.identity(child.pid)
    child.communicate()
    for name in ("holder.json", "driver.json"):
        (few / "one" / name).write_text(json.dumps({**record, **identity}))
    assert shown(client(few))["one"]["state"] == "stopped"


# How little is read.


@pytest.fixture
def reads() -> Iterator[list[tuple[str, int]]]:
    """The files that are read from here on."""
    with LOAD["counted"]() as seen:
        yield seen


def test_nothing_is_read_again_while_nothing_changes(output: Path, reads: list[tuple[str, int]]) -> None:
    reader = client(output)
    shown(reader)
    first = reader.get("/runs/digits")
    reader.get("/compare?run=digits&run=sizes/base")
    assert len(reads) > 50
    reads.clear()
    for _ in range(3):
        shown(reader)
        assert reader.get("/runs/digits").content == first.content
        reader.get("/compare?run=digits&run=sizes/base")
    assert reads == []


def test_a_new_row_is_read_and_no_other(few: Path, reads: list[tuple[str, int]]) -> None:
    reader = client(few)
    shown(reader)
    run = Run(few / "two")
    fail(run, "searched-0.4")
    reads.clear()
    assert shown(reader)["two"]["failed"] == 1
    assert not [path for path, _ in reads if "/one/" in path]
    assert len([path for path, _ in reads if "/results/" in path]) == 1


def test_a_browser_that_has_the_answer_gets_none(output: Path) -> None:
    reader = client(output)
    for address in ("/", "/api/shelf", "/runs/digits"):
        tag = reader.get(address).headers["etag"]
        again = reader.get(address, headers={"If-None-Match": tag})
        assert (again.status_code, again.content) == (304, b"")


def test_a_page_is_compressed_once_for_all_readers(few: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compressed: list[bytes] = []
    pack = gzip.compress
    monkeypatch.setattr(gzip, "compress", lambda body, level: compressed.append(body) or pack(body, level))
    reader = client(few)
    for address in ("/runs/one", "/compare?run=one&run=two"):
        packed = [reader.get(address, headers={"Accept-Encoding": "gzip"}) for _ in range(3)]
        plain = reader.get(address, headers={"Accept-Encoding": "identity"})
        assert "content-encoding" not in plain.headers
        assert {answer.headers["content-encoding"] for answer in packed} == {"gzip"}
        assert {answer.content for answer in packed} == {plain.content}
    assert len([body for body in compressed if body.lower().startswith(b"<!doctype html")]) == 2


def test_many_readers_at_once_cost_one_look(few: Path, reads: list[tuple[str, int]]) -> None:
    reader = client(few, look_every=60.0)
    ready = threading.Barrier(8)

    def read(_: int) -> int:
        ready.wait()
        return len(reader.get("/api/shelf").json()["runs"])

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(read, range(8))) == [2] * 8
    assert len([path for path, _ in reads if path.endswith("/one/config.yaml")]) == 1


@pytest.mark.slow
def test_fifty_readers_of_two_hundred_runs(tmp_path: Path) -> None:
    """Half of the answers come within 300 ms on two cores: in one of three rounds, for they may have other work too."""
    reader = client(LOAD["many"](tmp_path / "runs", 200), look_every=2.0)
    assert len(shown(reader)) == 200  # which reads all once
    reader.get("/runs/run-007")

    def get(address: str) -> None:
        assert reader.get(address).status_code == 200

    rounds = [LOAD["read_at_once"](get, ("/", "/api/shelf", "/runs/run-007"), 50) for _ in range(3)]
    assert min(statistics.median(itertools.chain(*seconds.values())) for seconds in rounds) < 0.3


# Whom it refuses.


def test_no_name_leads_out_of_the_folder(output: Path) -> None:
    reader = client(output)
    make_run(output.parent / "outside")
    names = ("../outside", "..%2foutside", "%2e%2e/outside", "%2e%2e%2foutside", "digits%2f..%2f..%2foutside", "digits/results")
    for name in (*names, str(output.parent / "outside"), f"%2f{output.parent}/outside", "digits%00", "s3:%2f%2fbucket"):
        assert reader.get(f"/runs/{name}").status_code in (404, 421), name
    assert reader.get("/compare", params={"run": "../outside"}).status_code == 404


def test_no_symbolic_link_leads_out_of_the_folder(few: Path) -> None:
    outside = make_run(few.parent / "outside")
    secret = few.parent / "secret.yaml"
    secret.write_text("password: hunter2\n")
    (few / "linked").symlink_to(few.parent / "outside")
    (few / "group").mkdir()
    (few / "group" / "linked").symlink_to(few.parent / "outside")
    (few / "two" / "config.yaml").unlink()
    (few / "two" / "config.yaml").symlink_to(secret)
    inside = few / "beside"
    inside.symlink_to(few / "one")
    reader = client(few)
    runs = shown(reader)
    assert runs["one"]["state"] == runs["beside"]["state"] == "finished"  # a link that stays inside is no harm
    for name in ("linked", "group/linked", "two"):
        assert runs[name]["state"] == "unreadable"
        assert "by a symbolic link" in runs[name]["why"]
        assert reader.get(f"/runs/{name}").status_code in (404, 409)
    assert "hunter2" not in json.dumps(runs)
    assert outside.is_begun


def test_what_is_no_run_and_cannot_be_read_hides_no_run(few: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (few / "lost+found").mkdir()  # as on a volume, where only root may look into it
    os.mkdir(os.fsencode(few) + b"/not-utf-8-\xff")
    refuse_folder(monkeypatch, "lost+found")
    runs = shown(client(few))
    assert runs["one"]["state"] == runs["two"]["state"] == "finished"
    assert runs["lost+found"] == {
        "name": "lost+found",
        "state": "unreadable",
        "why": "it cannot be read (Permission denied)",
    }
    assert runs.keys() == {"one", "two", "lost+found"}


def test_a_run_that_cannot_be_read_for_a_moment_is_read_again(few: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = client(few)
    with monkeypatch.context() as failing:

        def fail_to_read(*_: Any) -> bytes:
            raise OSError(5, "Input/output error")

        failing.setattr(Folder, "read_bytes", fail_to_read)
        failing.setattr(Folder, "read_range", fail_to_read)
        runs = shown(reader)
        assert {run["why"] for run in runs.values()} == {"it cannot be read (Input/output error)"}
        assert reader.get("/runs/one").status_code == 409
    # No file has changed since.
    assert {run["state"] for run in shown(reader).values()} == {"finished"}
    assert reader.get("/runs/one").status_code == 200


def test_a_store_that_fails_is_said_in_a_sentence(few: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = client(few)
    assert reader.get("/runs/one").status_code == 200

    def failing(*_: Any, **__: Any) -> Any:
        raise OSError(5, "AWS Error NETWORK_CONNECTION")

    monkeypatch.setattr(Folder, "_inside", failing)
    reader.app.state.shelf._next_look = 0.0  # type: ignore[attr-defined]
    answer = reader.get("/api/shelf")
    assert (answer.status_code, answer.json()["detail"]) == (
        503,
        "the files of this folder cannot be read just now (Input/output error): try again",
    )
    page = reader.get("/runs/one", headers={"Accept": "text/html"})
    assert page.status_code == 503
    assert "cannot be read just now" in page.text


def test_tables_that_fit_no_page_are_said_in_a_sentence(few: Path) -> None:
    run = Run(few / "two")
    for row in run.rows.to_dict("records"):  # of another measure than the pace was chosen by
        run.write_row({**run.row(row["point"]), "val_r2": 0.5, "test_r2": 0.5, "val_top1": None, "test_top1": None})
    reader = client(few)
    for address in ("/runs/two", "/compare?run=one&run=two", "/runs/two"):
        answer = reader.get(address)
        assert answer.status_code == 409
        assert "two cannot be shown (" in answer.json()["detail"]
    assert reader.get("/runs/one").status_code == 200


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", ["config.yaml", "splits.json", "dense/config.json", "holder.json"])
def test_a_pipe_in_place_of_a_file_stops_nobody(few: Path, name: str) -> None:
    file = few / "two" / name
    file.unlink(missing_ok=True)
    os.mkfifo(file)
    runs = shown(client(few))
    assert runs["one"]["state"] == "finished"
    assert "two" not in runs or runs["two"]["state"] in ("finished", "stopped") or "is no file" in runs["two"]["why"]


def test_passwords_in_addresses_are_not_shown(few: Path) -> None:
    fail(Run(few / "one"), "searched-0.4")
    next((few / "one" / "results").glob("uniform-*")).write_bytes(b"damaged")
    (few / "two" / "config.yaml").write_text("name: [")
    reader = client(few)
    reader.app.state.shelf.folder.uri = "s3://KEY:SECRET@bucket/runs"  # type: ignore[attr-defined]
    found = reader.get("/api/shelf")
    assert found.json()["output"] == "s3://***@bucket/runs"
    assert {run["state"] for run in found.json()["runs"]} == {"stopped", "unreadable"}
    for run, status in (("one", 200), ("two", 409)):
        answer = reader.get(f"/runs/{run}")
        assert answer.status_code == status
        page = json.dumps(data_of(answer.text)) if status == 200 else answer.text
        assert "bucket/runs" in page
        assert "SECRET" not in page


def test_names_of_no_run_cost_no_look_each(few: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []
    look = Shelf._look

    def counted(shelf: Shelf) -> Any:
        looks.append(1)
        return look(shelf)

    monkeypatch.setattr(Shelf, "_look", counted)
    reader = client(few, look_every=600.0)
    for _ in range(20):
        assert reader.get("/runs/none").status_code == 404
    assert len(looks) == 2  # the first, and one for a run that may have begun since


def test_a_configuration_that_is_too_large_is_not_parsed(few: Path) -> None:
    (few / "two" / "config.yaml").write_text("name: two\n" + "# more\n" * 200_000)
    runs = shown(client(few))
    assert runs["two"]["state"] == "unreadable"
    assert "larger than 1,048,576 bytes" in runs["two"]["why"]
    assert runs["one"]["state"] == "finished"


def test_requests_are_limited_in_size(output: Path) -> None:
    reader = client(output, largest_request=1000)
    assert reader.post("/api/test-act", content=b"x" * 1000, headers=BEARER).json() == 1000
    refused = reader.post("/api/test-act", content=b"x" * 1001, headers=BEARER)
    assert (refused.status_code, refused.json()["detail"]) == (
        413,
        "the request is larger than the 1,000 bytes that this service reads",
    )

    def endless() -> Iterator[bytes]:  # without a length that would tell before
        for _ in range(50):
            yield b"y" * 100

    assert reader.post("/api/test-act", content=endless(), headers=BEARER).status_code == 413


def test_names_and_errors_never_become_markup(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script><img src=x onerror=alert(1)>"
    run = make_run(tmp_path / "runs" / evil.replace("/", "\N{DIVISION SLASH}"))
    fail(run, "searched-0.4", evil)
    reader = client(tmp_path / "runs")
    answer = reader.get("/api/shelf")
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["runs"][0]["why"] == evil
    assert "alert(1)" not in reader.get("/").text
    page = reader.get(f"/runs/{answer.json()['runs'][0]['name']}")
    assert page.status_code == 200
    assert "<img src=x" not in page.text
    missing = reader.get("/runs/<img src=x onerror=alert(1)>", headers={"Accept": "text/html"})
    assert missing.status_code == 404
    assert "<img src=x" not in missing.text
    assert "&lt;img src=x" in missing.text


def test_pages_run_their_own_scripts_only(output: Path) -> None:
    reader = client(output)
    for address in ("/", "/runs/digits", "/runs/nothing"):
        answer = reader.get(address, headers={"Accept": "text/html"})
        policy = answer.text.partition('Content-Security-Policy" content="')[2].partition('"')[0].replace("&#39;", "'")
        rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
        assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
        assert all(source.startswith("'sha256-") or source == "'none'" for source in rules["script-src"].split())
        assert rules.get("connect-src", "'self'") == "'self'"
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "http://" not in answer.text.replace("http://www.w3.org/", "")[:4000]
    assert "default-src 'none'" in reader.get("/api/shelf").headers["content-security-policy"]


def test_a_name_that_may_lead_elsewhere_is_refused(output: Path) -> None:
    reader = client(output, names=("runs.example.org",))
    for host in ("127.0.0.1:8266", "localhost:9000", "[::1]:8266", "10.1.2.3", "runs.example.org", "RUNS.example.org."):
        assert reader.get("/api/shelf", headers={"Host": host}).status_code == 200, host
    for host in ("evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "evil.example:8266", "", "a b", "[::1"):
        assert reader.get("/api/shelf", headers={"Host": host}).status_code == 421, host


def test_acting_asks_for_the_token_in_a_header(output: Path) -> None:
    reader = client(output)
    assert reader.post("/api/test-act", headers=BEARER).status_code == 200
    nothing = reader.post("/api/test-act")
    assert nothing.status_code == 401
    assert "Authorization: Bearer TOKEN" in nothing.json()["detail"]
    assert reader.post("/api/test-act", headers={"Authorization": f"Bearer {TOKEN}x"}).status_code == 403
    assert reader.post("/api/test-act", headers={"Authorization": f"Basic {TOKEN}"}).status_code == 401
    # What a browser sends by itself is not enough.
    assert reader.post("/api/sign-in", headers=BEARER).status_code == 204
    assert COOKIE in reader.cookies
    assert reader.post("/api/test-act").status_code == 401
    reader.cookies.set(COOKIE, TOKEN)
    assert reader.post("/api/test-act").status_code == 401


def test_pages_of_other_sites_may_not_act(output: Path) -> None:
    reader = client(output)
    for headers in (
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:9999"},  # another service of the same machine
        {"Origin": "http://[::1"},  # no address
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ):
        assert reader.post("/api/test-act", headers={**BEARER, **headers}).status_code == 403, headers
    assert reader.post("/api/test-act", headers={**BEARER, "Origin": BASE, "Sec-Fetch-Site": "same-origin"}).status_code == 200
    assert not {name for name in reader.get("/api/shelf").headers if name.startswith("access-control")}


def test_nobody_acts_where_there_is_no_token(output: Path) -> None:
    reader = client(output, token="")
    assert reader.get("/api/shelf").status_code == 200
    for headers in ({}, {"Authorization": "Bearer "}, {"Authorization": "Bearer x"}):
        assert reader.post("/api/test-act", headers=headers).status_code == 403
        assert reader.post("/api/sign-in", headers=headers).status_code in (401, 403)


def test_reading_by_token(output: Path) -> None:
    reader = client(output, reading="token")
    for address in ("/", "/api/shelf", "/runs/digits", "/runs/nothing", "/compare?run=digits"):
        refused = reader.get(address)
        assert refused.status_code == 401, address
        assert "reading needs the token" in refused.json()["detail"]
        assert reader.get(address, headers={"Authorization": "Bearer wrong-wrong-wrong-wrong"}).status_code == 403
    page = reader.get("/runs/digits", headers={"Accept": "text/html"})
    assert page.status_code == 401
    assert "<h1>Sign in</h1>" in page.text
    assert "digits" not in page.text
    assert reader.get("/api/shelf", headers=BEARER).status_code == 200
    assert reader.post("/api/sign-in", headers={"Authorization": "Bearer wrong-wrong-wrong-wrong"}).status_code == 403
    said = reader.post("/api/sign-in", headers=BEARER).headers["set-cookie"]
    assert {"httponly", "samesite=strict"} <= {part.strip().lower() for part in said.split(";")}
    assert TOKEN not in said
    assert reader.get("/runs/digits").status_code == 200
    # The cookie of a service with another token lets nobody in.
    other = client(output, reading="token", token="another-token-of-the-tests")
    other.cookies.set(COOKIE, reader.cookies[COOKIE])
    assert other.get("/api/shelf").status_code == 401


# How it starts.


@pytest.fixture
def no_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A person without any token."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)


def test_it_listens_elsewhere_only_with_a_token(
    few: Path, no_token: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    for host in ("0.0.0.0", "::", "192.168.1.5", "runs.example.org"):
        with pytest.raises(RefusedInput, match="other machines reach, and there is no token"):
            settings_from(str(few), host=host)
    assert main(["serve", str(few), "--host", "0.0.0.0"]) == 2
    assert "slimsweep: --host is 0.0.0.0" in capsys.readouterr().out
    for host in ("127.0.0.1", "localhost", "::1", "127.1.2.3"):
        assert settings_from(str(few), host=host).reading == "open"
    with pytest.raises(RefusedInput, match="--reading is token, and there is no token"):
        settings_from(str(few), reading="token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    assert settings_from(str(few), host="0.0.0.0").reading == "token"
    assert settings_from(str(few), host="0.0.0.0", reading="open").reading == "open"


def test_the_token_is_rays_unless_a_file_is_given(no_token: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert found_token() == ""
    for path, token in (
        (tmp_path / "home" / ".ray" / "auth_token", "of-the-home-folder-1"),
        (tmp_path / "own", "of-a-file-01234567"),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{token}\n")
    assert found_token() == "of-the-home-folder-1"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "of-the-environment")
    assert found_token() == "of-the-environment"
    assert found_token(str(tmp_path / "own")) == "of-a-file-01234567"
    assert "of-a-file" not in repr(settings_from(str(tmp_path), token_file=str(tmp_path / "own")))
    with pytest.raises(RefusedInput, match=r"--token-file names .*missing, which cannot be read"):
        found_token(str(tmp_path / "missing"))
    (tmp_path / "own").write_text("short")
    with pytest.raises(RefusedInput, match="has 5 characters: give one of at least 16"):
        found_token(str(tmp_path / "own"))


def test_a_folder_that_is_not_there_is_refused(no_token: None, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["serve", str(tmp_path / "nothing")]) == 2
    assert "nothing is no folder: give the folder that --output of a sweep names" in " ".join(capsys.readouterr().out.split())
    assert main(["serve", str(tmp_path), "--port", "0"]) == 2


def test_an_empty_folder_is_an_empty_shelf(tmp_path: Path) -> None:
    assert shown(client(tmp_path)) == {}


def test_the_application_knows_no_ray_and_no_torch(few: Path) -> None:
    code = f"""
import sys
from slimsweep.service.app import make_app
from slimsweep.service.settings import Settings
app = make_app(Settings(output={str(few)!r}))
assert b'"one"' in app.state.shelf.look().body
print(*(name for name in ("ray", "timm") if name in sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == ""
