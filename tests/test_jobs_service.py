"""The service on Kubernetes: rendered by kubectl, held to the schemas and to the rules of the jobs beside it."""

import copy
from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest
import test_jobs as jobs
import yaml

pytestmark = jobs.pytestmark

OVERLAYS = ("service", "service-bucket")
# The rules for RayJobs that speak of a Ray cluster, not of a job with workers.
RULES = (
    jobs.the_job_can_be_named_so,
    jobs.every_mount_has_its_volume,
    jobs.everything_that_is_named_exists,
    jobs.versions_are_the_pinned_ones,
    jobs.limits_are_requests,
    jobs.each_resource_is_said_once,
    jobs.the_head_does_no_work,
    jobs.ray_asks_for_a_token_and_reports_to_nobody,
    jobs.pods_pass_the_restricted_standard,
    jobs.what_runs_users_code_has_no_kubernetes_token,
    jobs.no_secret_is_written_down,
)


def rendered(name: str) -> list[jobs.Object]:
    return jobs.render(jobs.JOBS / "overlays" / name)


def as_job(objects: list[jobs.Object]) -> jobs.Object:
    """The RayService with its cluster where a RayJob has it, for the rules; it has no workers."""
    service = jobs.only(objects, "RayService")
    return {**service, "spec": {"rayClusterSpec": {"workerGroupSpecs": [], **service["spec"]["rayClusterConfig"]}}}


def broken_rules(objects: list[jobs.Object], setup: str = "cluster") -> list[str]:
    there = jobs.render(jobs.JOBS / "setup" / setup)
    return [problem for rule in RULES for problem in rule(as_job(objects), objects, there)]


def serve_config(objects: list[jobs.Object]) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(jobs.only(objects, "RayService")["spec"]["serveConfigV2"])
    return found


@pytest.mark.parametrize("setup", ["cluster", "kind"])
@pytest.mark.parametrize("name", OVERLAYS)
def test_the_service_keeps_to_the_rules_of_the_jobs(name: str, setup: str) -> None:
    assert broken_rules(rendered(name), setup) == []


@pytest.mark.parametrize("name", OVERLAYS)
def test_everything_that_is_applied_is_valid(name: str) -> None:
    for found in rendered(name):
        assert jobs.schema_problems(found) == []
    (pod,) = jobs.pods(as_job(rendered(name)))
    assert jobs.schema_problems({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": pod}) == []


@pytest.mark.parametrize("name", OVERLAYS)
def test_its_serve_config_names_the_service_and_what_it_takes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("fastapi", reason="fastapi is not installed (pip install 'slimsweep[serve]')")
    from ray.serve.schema import ServeDeploySchema

    config = ServeDeploySchema.model_validate(serve_config(rendered(name)))
    (application,) = config.applications
    assert application.args["reading"] == "token"  # whoever is in the namespace reaches the port
    module, _, function = application.import_path.partition(":")
    builder = getattr(import_module(module), function)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "as-kuberay-sets-it-0123456789")
    assert type(builder(dict(application.args))).__name__ == "Application"
    with pytest.raises(ValueError, match="reeding"):
        builder({"output": "/shared/runs", "reeding": "token"})


def test_the_operator_may_ask_whether_it_answers() -> None:
    objects = rendered("service")
    policy = jobs.only(objects, "NetworkPolicy")["spec"]
    labels = as_job(objects)["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["metadata"]["labels"]
    assert policy["podSelector"]["matchLabels"].items() <= labels.items()
    (rule,) = policy["ingress"]
    assert [port["port"] for port in rule["ports"]] == [serve_config(objects)["http_options"]["port"]]
    assert rule["from"][0]["podSelector"]["matchLabels"] == {"app.kubernetes.io/name": "kuberay-operator"}


def test_what_it_shows_is_where_the_jobs_write_and_it_cannot_write_there() -> None:
    objects = rendered("service")
    (container,) = jobs.ray_containers(as_job(objects))
    (mount,) = container["volumeMounts"]
    assert mount["readOnly"] is True
    output = serve_config(objects)["applications"][0]["args"]["output"]
    entrypoint = jobs.only(jobs.overlay("kind-cpu")[0], "RayJob")["spec"]["entrypoint"]
    assert f"--output {output}" in entrypoint
    bucket = serve_config(rendered("service-bucket"))["applications"][0]["args"]["output"]
    assert bucket in jobs.only(jobs.overlay("kueue")[0], "RayJob")["spec"]["entrypoint"]


def head(objects: list[jobs.Object]) -> jobs.Object:
    return jobs.only(objects, "RayService")["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]


BREAKS_A_RULE: dict[str, Callable[[list[jobs.Object]], Any]] = {
    "lets everybody in": lambda o: jobs.only(o, "RayService")["spec"]["rayClusterConfig"].pop("authOptions"),
    "may run as root": lambda o: head(o)["securityContext"].pop("runAsNonRoot"),
    "mounts its service account's token": lambda o: head(o).pop("automountServiceAccountToken"),
    "mounts shared, which its pod does not have": lambda o: head(o)["volumes"].pop(),
    "limits that are not its requests": lambda o: head(o)["containers"][0]["resources"]["requests"].pop("memory"),
}


@pytest.mark.parametrize("says", BREAKS_A_RULE)
def test_a_broken_service_is_caught(says: str) -> None:
    broken = copy.deepcopy(rendered("service"))
    BREAKS_A_RULE[says](broken)
    assert any(says in problem for problem in broken_rules(broken))


def test_a_misspelt_field_is_caught() -> None:
    broken = copy.deepcopy(jobs.only(rendered("service"), "RayService"))
    broken["spec"]["serveConfigV3"] = broken["spec"].pop("serveConfigV2")
    assert any("serveConfigV3" in problem for problem in jobs.schema_problems(broken))
