"""Sweeps asked for through the service: refused in the configuration's own sentences, or else the command line's arguments."""

import html
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("fastapi")
from fastapi.testclient import TestClient

from slimsweep.cluster.commands import Ended
from slimsweep.cluster.jobs import Job
from slimsweep.config import preset_config, presets
from slimsweep.errors import ClusterFailed
from slimsweep.service.app import make_app
from slimsweep.service.asked_sweep import LARGEST, AskedSweep, form_presets, look
from slimsweep.service.settings import Settings
from slimsweep.service.sweeps import Sweeps

FINISHED = Path(__file__).parent / "data" / "finished-run"
TOKEN = "a token of the test, long"
SIGNED = {"Authorization": f"Bearer {TOKEN}"}


class OfCluster:
    """In place of a cluster: keeps what it was asked for."""

    def __init__(self) -> None:
        self.found: list[Job] = []
        self.files: list[dict[str, str]] = []
        self.stopped: list[str] = []

    def submit(self, run, words, files):
        job = Job(id=f"job-{len(self.found)}", run=run, command=" ".join(words), state="running", message="", started=1.0)
        self.found.insert(0, job)
        self.files.insert(0, files)
        return job

    def all(self):
        return self.found

    def latest(self, run):
        return next((job for job in self.found if job.run == run), None)

    def stop(self, job):
        self.stopped.append(job.id)
        self.found = [replace(one, state="stopped") if one.id == job.id else one for one in self.found]

    def log(self, job):
        return f"what {job.run} prints"


@pytest.fixture
def cluster(monkeypatch):
    found = OfCluster()
    monkeypatch.setattr(Sweeps, "jobs", found)
    return found


@pytest.fixture
def service(tmp_path, cluster):
    with TestClient(make_app(Settings(output=str(tmp_path), token=TOKEN)), base_url="http://localhost") as found:
        yield found


def post(service, path, body=None):
    return service.post(path, json=body, headers=SIGNED)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/api/sweeps/check"),
        ("POST", "/api/sweeps/plan"),
        ("POST", "/api/sweeps"),
        ("GET", "/api/sweeps"),
        ("GET", "/api/sweeps/log?run=a"),
        ("POST", "/api/sweeps/stop?run=a"),
        ("POST", "/api/sweeps/go-on?run=a"),
    ],
)
def test_all_of_it_needs_the_token(service, cluster, method, path):
    body = {} if method == "POST" else None
    assert service.request(method, path, json=body).status_code == 401
    assert service.request(method, path, json=body, headers={"Authorization": "Bearer another"}).status_code == 403
    assert not cluster.found


def test_problems_are_said_at_their_fields_and_lines(service):
    text = "name: mine\nsearch:\n  lr: -1\n  foo: 3\nretrain: {epochs: x}\nbudgts: [0.5]\n"
    found = post(service, "/api/sweeps/check", {"text": text}).json()["problems"]
    at = {(problem["field"], problem["line"]) for problem in found}
    assert at == {("search.lr", 3), ("search.foo", 4), ("retrain.epochs", 5), ("budgts", 6)}
    assert "search.lr is -1 (in sweep.yaml): it must be more than 0" in [problem["sentence"] for problem in found]
    form = {"preset": "digits", "fields": {"budgets": "0.5,much", "retrain.epochs": "-3"}}
    found = post(service, "/api/sweeps/check", form).json()["problems"]
    assert {problem["field"] for problem in found} == {"budgets", "retrain.epochs"}
    refused = post(service, "/api/sweeps", form)
    assert refused.status_code == 422
    assert refused.json()["detail"]["problems"] == found


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"text": "a: [1, 2"}, "sweep.yaml is not valid YAML at line 1"),
        ({"text": "- 1\n"}, "must hold fields and values"),
        ({"text": "name: !!python/object/apply:os.system [ls]\n"}, "sweep.yaml is not valid YAML at line 1"),
        ({"text": "a: &x [1]\nb: [*x, *x]\n"}, "refers to *x, and references are not read here"),
        ({"text": "a: " + "[" * 200 + "]" * 200}, "nested more than"),
        ({"text": "a: " + "x" * LARGEST}, "characters: give at most"),
        ({"preset": "/etc/passwd"}, "is no preset"),
        ({"preset": "../digits"}, "is no preset"),
        ({"fields": {"output": "/tmp/elsewhere"}}, "output cannot be set here"),
        ({"fields": {"config": "/etc/passwd"}}, "unknown field config"),
        ({"fields": {"help": "", "verbose": ""}}, "unknown field help"),
        ({"fields": {"name": "a/../../b"}}, "name is 'a/../../b'"),
    ],
)
def test_what_is_not_read(service, cluster, asked, said):
    answer = post(service, "/api/sweeps", asked)
    assert answer.status_code == 422
    assert said in " ".join(problem["sentence"] for problem in answer.json()["detail"]["problems"])
    assert not cluster.found


def test_a_request_of_another_form_or_size_is_refused(service, cluster):
    other = post(service, "/api/sweeps", {"words": ["rm"]})
    assert other.status_code == 422
    assert other.json()["detail"] == "the request is of another form (words: Extra inputs are not permitted)"
    assert post(service, "/api/sweeps", {"text": "#" * 300_000}).status_code == 422
    assert post(service, "/api/sweeps", {"text": "#" * 3_000_000}).status_code == 413
    assert not cluster.found


def test_a_sweep_is_the_command_lines_and_goes_to_the_served_folder(service, cluster, tmp_path):
    text = "name: mine\noutput: /elsewhere\nbudgets: [0.5]\n"
    begun = post(service, "/api/sweeps", {"text": text, "quick": True})
    assert begun.status_code == 201, begun.text
    assert begun.json()["run"] == "mine"
    assert cluster.found[0].command == f"--config sweep.yaml --quick --output={tmp_path}"
    assert cluster.files == [{"sweep.yaml": text}]
    assert look(AskedSweep(text=text), str(tmp_path)).configs[0].output == str(tmp_path)
    again = post(service, "/api/sweeps", {"text": text})
    assert again.status_code == 409
    assert "stop it first" in again.json()["detail"]
    form = {"preset": "digits", "fields": {"name": "other", "budgets": "0.5, 60% params"}, "smoke": True}
    assert post(service, "/api/sweeps", form).json()["run"] == "other-smoke"
    assert cluster.found[0].command == f"--config digits --name=other --budgets=0.5, 60% params --smoke --output={tmp_path}"


def test_several_models_are_one_job(service, cluster):
    text = "name: both\ndata: {name: digits}\nmodel: [{name: vit_tiny_patch16_224}, {name: deit_tiny_patch16_224}]\n"
    assert post(service, "/api/sweeps", {"text": text}).json()["run"] == "both"


def test_stop_log_and_go_on_with_more_budgets(service, cluster, tmp_path):
    shutil.copytree(FINISHED, tmp_path / "old")
    assert service.get("/api/sweeps/log?run=old", headers=SIGNED).status_code == 404
    assert "was not started from here" in post(service, "/api/sweeps/stop?run=old").json()["detail"]
    answer = post(service, "/api/sweeps/go-on?run=old", {"budgets": ["0.3", "0.6"]})
    assert answer.status_code == 201, answer.text
    assert cluster.found[0].command == f"--config sweep.yaml --name=old --budgets=0.6,0.4,0.3 --output={tmp_path}"
    assert service.get("/api/sweeps/log?run=old", headers=SIGNED).json()["log"] == "what old prints"
    assert post(service, "/api/sweeps/go-on?run=old", {}).status_code == 409
    assert post(service, "/api/sweeps/stop?run=old").status_code == 202
    assert cluster.stopped == ["job-0"]
    assert post(service, "/api/sweeps/stop?run=old").status_code == 409
    listed = service.get("/api/sweeps", headers=SIGNED).json()
    assert listed["runs"] == ["old"]
    assert [(job["run"], job["state"], job["alive"]) for job in listed["jobs"]] == [("old", "stopped", False)]
    bad = post(service, "/api/sweeps/go-on?run=old", {"budgets": ["much"]})
    assert bad.status_code == 422
    assert "budget 'much'" in bad.json()["detail"]["problems"][0]["sentence"]
    assert post(service, "/api/sweeps/go-on?run=..", {}).status_code == 404
    assert len(cluster.found) == 1


def test_a_group_and_a_run_in_it_are_not_started_together(service, cluster, tmp_path):
    shutil.copytree(FINISHED, tmp_path / "sizes" / "small")
    (tmp_path / "sizes" / "small" / "config.yaml").write_text(
        (FINISHED / "config.yaml").read_text().replace("name: ", "name: small # ", 1)
    )
    group = {"text": "name: sizes\nmodel: [{name: small}, {name: base}]"}
    assert post(service, "/api/sweeps", group).json()["run"] == "sizes"
    refused = post(service, "/api/sweeps/go-on?run=sizes/small", {})
    assert refused.status_code == 409
    assert "sizes is running already" in refused.json()["detail"]
    cluster.stop(cluster.found[0])
    assert post(service, "/api/sweeps/go-on?run=sizes/small", {}).status_code == 201
    assert post(service, "/api/sweeps", group).status_code == 409
    # A name that only begins alike is another run.
    assert post(service, "/api/sweeps", {"fields": {"name": "sizes-2"}}).status_code == 201


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"budgets: [{'1' * 5000}]", "this is no int"),
        ("dense:\n  epochs: 0x" + "f" * 5000, "a whole number has more than 64 bits"),
        ("name: 2001-99-99", "this is no timestamp"),
        ("name: !!int abc", "this is no int"),
        ("name: !!bool abc", "this is no bool"),
        ("name: !!timestamp abc", "this is no timestamp"),
        (f"%YAML 1.{'9' * 5000}\n---\nname: a", "is not valid YAML"),
        ("retrain:\n  seeds: 1000000000", "must be a number of seeds up to 1,000, or a list of them, such as [1000000000]"),
        (f"model: [{','.join(['{name: a}'] * 3000)}]", "model is a list of 3,000 models: give at most 100"),
    ],
)
def test_values_that_no_configuration_can_hold_are_problems(service, text, said):
    (problem,) = post(service, "/api/sweeps/check", {"text": text}).json()["problems"]
    assert said in problem["sentence"]


@pytest.mark.timeout(60)
def test_thousands_of_problems_are_said_in_part(service):
    text = "\n".join(f"zzz{number}: 1" for number in range(1000))
    problems = post(service, "/api/sweeps/check", {"text": text}).json()["problems"]
    assert len(problems) == 101
    assert problems[-1]["sentence"] == "900 more are wrong, which are said once these are right"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"model.kwargs.a": "[" * 4000}, "model.kwargs.a is nested more than 32 levels deep"),
        ({"model.kwargs.a": "[&a [x], *a]"}, "model.kwargs.a refers to *a"),
        ({"model.kwargs.a": "2001-99-99"}, "this is no timestamp"),
        ({"search": "[" * 4000}, "search is '[[[["),
        ({"budgets": "[" * 4000}, "budgets is "),
    ],
)
def test_single_fields_are_limited_as_the_text_is(service, fields, said):
    problems = post(service, "/api/sweeps/check", {"fields": fields}).json()["problems"]
    assert any(said in problem["sentence"] for problem in problems), problems


def test_a_plan_is_what_the_command_prints(service, monkeypatch, tmp_path):
    ran = []

    def run_command(words, *, seconds, files):
        ran.append((words, files))
        return answers.pop(0)

    monkeypatch.setattr("slimsweep.cluster.commands.run_command", run_command)
    answers = [
        Ended(code=0, output="In all: 3 min\n", errors=""),
        Ended(code=2, output="slimsweep: 2 settings cannot work:\n1. a is wrong\n2. b is wrong\n", errors=""),
        Ended(code=2, output="slimsweep: model.name is 'vit', which timm does not have\n", errors=""),
        Ended(code=1, output="slimsweep: KeyError: 'x' (the whole traceback is in f)\n", errors=""),
    ]
    asked = {"text": "budgets: [0.5]\nmodel:\n  name: vit\n", "fields": {"name": "mine"}}
    found = post(service, "/api/sweeps/plan", asked).json()
    assert found["text"] == "In all: 3 min\n"
    arguments = ["--config", "sweep.yaml", "--name=mine", f"--output={tmp_path}"]
    assert ran == [(["-m", "slimsweep.cli", "plan", *arguments], {"sweep.yaml": asked["text"]})]
    assert found["command"] == f"python -m slimsweep.run --config ./sweep.yaml --name=mine --output={tmp_path}"
    problems = post(service, "/api/sweeps/plan", asked).json()["detail"]["problems"]
    assert [problem["sentence"] for problem in problems] == ["a is wrong", "b is wrong"]
    [problem] = post(service, "/api/sweeps/plan", asked).json()["detail"]["problems"]
    assert (problem["field"], problem["line"]) == ("model.name", 3)  # what only the plan finds is said at its field too
    failed = post(service, "/api/sweeps/plan", asked)
    assert failed.status_code == 500
    assert failed.json()["detail"] == "the plan could not be made: KeyError: 'x' (the whole traceback is in f)"


def test_no_cluster_is_said_in_a_sentence(service, cluster, monkeypatch):
    def gone(*_):
        raise ClusterFailed("no Ray cluster takes jobs here")

    monkeypatch.setattr(cluster, "latest", gone)
    monkeypatch.setattr(cluster, "all", gone)
    for answer in (post(service, "/api/sweeps", {}), service.get("/api/sweeps", headers=SIGNED)):
        assert answer.status_code == 503
        assert answer.json()["detail"] == "no Ray cluster takes jobs here"


def test_the_form_shows_what_each_preset_says(monkeypatch):
    monkeypatch.setenv("SLIMSWEEP_RETRAIN__EPOCHS", "7")  # of the service: not of the preset
    found = {preset["name"]: preset for preset in form_presets.__wrapped__()}
    assert set(found) == set(presets())
    digits = found["digits"]["values"]
    assert (digits["dense.epochs"], digits["retrain.epochs"]) == ("40", "20")
    assert (digits["model.pretrained"], digits["data.root"], digits["baselines"]) == ("false", "null", "")
    assert digits["budgets"] == "0.7, 0.5, 0.35, 0.25, 0.15"
    for name, preset in found.items():  # each value is one that the field takes, and changes nothing
        same = look(AskedSweep(preset=name, fields=preset["values"]), "/runs")
        assert same.problems == []
        assert same.configs[0] == preset_config(name).changed(output="/runs")


def test_the_page_names_all_presets_and_loads_nothing_from_elsewhere(service):
    text = html.unescape(service.get("/sweeps").text)
    assert all(f'"{name}"' in text for name in presets())
    assert "connect-src 'self'" in text
    assert "src=" not in text.split("<body")[1]
