"""What a Kubernetes cluster is given: rendered by kubectl, checked by the schemas and by the rules that no schema holds."""

import copy
import gzip
import json
import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from slimsweep.config import Config, load_config

ROOT = Path(__file__).parents[1]
JOBS = ROOT / "jobs"
SCHEMAS = ROOT.parent / "shared" / "schemas"
OVERLAYS = ("kind-cpu", "gpu", "kueue")
SETUPS = ("cluster", "kind", "kueue")
SETUP_OF = {"kind-cpu": "kind", "gpu": "cluster", "kueue": "kueue"}
CORE = ("v1", "networking.k8s.io/v1")

Object = dict[str, Any]

pytestmark = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed: nothing can be rendered")


def render(folder: Path) -> list[Object]:
    """The objects that `kubectl apply -k FOLDER` would send."""
    return list(yaml.safe_load_all(kept(folder) if folder.is_relative_to(JOBS) else kustomize(folder)))


def kustomize(folder: Path) -> str:
    done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


kept = cache(kustomize)  # of the project's own folders, which no test changes


def overlay(name: str, jobs: Path = JOBS) -> tuple[list[Object], list[Object]]:
    """(the objects of an overlay, those that its cluster was set up with)."""
    return render(jobs / "overlays" / name), render(jobs / "setup" / SETUP_OF[name])


def only(objects: list[Object], kind: str) -> Object:
    (found,) = (o for o in objects if o["kind"] == kind)
    return found


# What a RayJob is made of.


def groups(job: Object) -> list[Object]:
    spec = job["spec"]["rayClusterSpec"]
    return [spec["headGroupSpec"], *spec["workerGroupSpecs"]]


def pods(job: Object) -> list[Object]:
    return [group["template"]["spec"] for group in groups(job)]


def ray_containers(job: Object) -> list[Object]:
    return [pod["containers"][0] for pod in pods(job)]


def all_containers(job: Object) -> list[tuple[str, Object, Object]]:
    """(name, container, its pod), with the autoscaler that KubeRay adds to the head."""
    found = [
        (c["name"], c, pod)
        for pod in pods(job)
        for c in [*pod["containers"], *pod.get("initContainers", []), *pod.get("ephemeralContainers", [])]
    ]
    options = job["spec"]["rayClusterSpec"].get("autoscalerOptions")
    return [*found, ("autoscaler", options, pods(job)[0])] if options else found


def quantity(value: Any) -> float:
    """A Kubernetes quantity in its base unit: 500m -> 0.5, 4Gi -> 4294967296."""
    number, unit = re.fullmatch(r"([0-9.]+)(m|[KMGT]i?)?", str(value)).groups()  # type: ignore[union-attr]
    scale = {
        None: 1,
        "m": 1e-3,
        **{u: 1000**i for i, u in enumerate("KMGT", 1)},
        **{f"{u}i": 1024**i for i, u in enumerate("KMGT", 1)},
    }
    return float(number) * scale[unit]


def wanted(pod: Object) -> dict[str, float]:
    """What a pod's containers ask for together."""
    total: dict[str, float] = {}
    for container in pod["containers"]:
        for name, value in container["resources"]["requests"].items():
            total[name] = total.get(name, 0) + quantity(value)
    return total


def sweep_of(objects: list[Object], folder: Path) -> Config:
    """The configuration that the job's own command reads from its own ConfigMap and environment."""
    job = only(objects, "RayJob")
    words = shlex.split(job["spec"]["entrypoint"])
    assert words[:4] == ["python", "-m", "slimsweep.run", "--config"]
    mounts = {m["mountPath"]: m["name"] for m in ray_containers(job)[0]["volumeMounts"]}
    where, _, file = words[4].rpartition("/")
    (volume,) = (v for v in pods(job)[0]["volumes"] if v["name"] == mounts[where])
    (found,) = (o for o in objects if o["kind"] == "ConfigMap" and o["metadata"]["name"] == volume["configMap"]["name"])
    (folder / file).write_text(found["data"][file])
    with pytest.MonkeyPatch.context() as patch:
        for variable in ray_containers(job)[0]["env"]:
            patch.setenv(variable["name"], variable["value"])
        return load_config(["--config", str(folder / file), *words[5:]])[0]


# The rules that no schema holds; each yields a sentence for what is wrong.

Rule = Callable[[Object, list[Object], list[Object]], Iterator[str]]


def the_job_can_be_named_so(job: Object, objects: list[Object], setup: list[Object]) -> Iterator[str]:
    name = job["metadata"]["name"]
    if len(name) > 47 or not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name):
        yield f"the name {name} is not a DNS label of at most 47 characters"


def the_job_is_submitted_in_a_way_that_exists(job: Object, objects: list[Object], setup: list[Object]) -> Iterator[str]:
    mode = job["spec"].get("submissionMode", "K8sJobMode")
    if mode not in ("K8sJobMode", "HTTPMode", "SidecarMode"):
        yield f"submissionMode {mode} does not exist, or waits for a person"
    template = job["spec"].get("submitterPodTemplate")
    if (mode == "K8sJobMode") != (template is not None):
        yield f"submissionMode {mode} goes {'with' if mode == 'K8sJobMode' else 'without'} a submitterPodTemplate"


def the_job_ends_and_is_tried_again(job: Object, objects: list[Object], setup: list[Object]) -> Iterator[str]:
    spec = job["spec"]
    if spec.get("ttlSecondsAfterFinished") and not spec.get("shutdownAfterJobFinishes"):
        yield "ttlSecondsAfterFinished does nothing without shutdownAfterJobFinishes"
    for field in ("activeDeadlineSeconds", "backoffLimit", "ttlSecondsAfterFinished"):
        if spec.get(field, 0) <= 0:
            yield f"{field} is missing"


def every_mount_has_its_volume(job: Object, objects: list[Object], setup: list[Object]) -> Iterator[str]:
    for name, container, pod in all_containers(job):
        volumes = {v["name"] for v in pod.get("volumes", [])}
        for mount in container.get("volumeMounts", []):
            if mount["name"] not in volumes:
                yield f"{name} mounts {mount['name']}, which its pod does not have"


def everything_that_is_named_exists(job: Object, objects: list[Object], setup: list[Object]) -> Iterator[str]:
    there = {(o["kind"], o["metadata"].get("namespace"), o["metadata"]["name"]) for o in [*objects, *setup]}
    namespace = job["metadata"].get("namespace")
    if ("Namespace", None, namespace) not in there:
        yield f"the namespace {namespace} is not set up"
    names = [("ServiceAccount", pod.get("serviceAccountName")) for pod in pods(job)]
    for volume in (v for pod in pods(job) for v in pod.get("volumes", [])):
        names += [("PersistentVolumeClaim", v["claimName"]) for k, v in volume.items() if k == "persistentVolumeClaim"]
        names += [("ConfigMap", v["name"]) for k, v in volume.items() if k == "configMap"]
        if "hostPath" in volume:
            yield f"volume {volume['name']} is a folder of the node"
    if queue := job["metadata"].get("labels", {}).get("kueue.x-k8s.io/queue-name"):
        names.append(("LocalQueue", queue))
    for kind, name in names:
        if (kind, namespace, name) not in there:
            yield f"there is no {kind} {name}"


def a_changed_sweep_is_a_changed_job(job: Object, objects: list[Object], setup: list[Object]) -> Iterator[str]:
    for volume in (v for pod in pods(job) for v in pod.get("volumes", []) if "configMap" in v):
        if not re.search(r"-[a-z0-9]{10}$", volume["configMap"]["name"]):
            yield f"the hash of ConfigMap {volume['configMap']['name']} does not reach the job"


def versions_are_the_pinned_ones(job: Object, objects: list[Object], setup: list[Object]) -> Iterator[str]:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    ray = re.search(r"^ray==(\S+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE).group(1)  # type: ignore[union-attr]
    if job["spec"]["rayClusterSpec"].get("rayVersion") != ray:
        yield f"rayVersion is not {ray}, which requirements.lock pins"
    for container in ray_containers(job):
        if not container["image"].endswith(f"slimsweep:{version}-ray{ray}"):
            yield f"{container['name']} has image {container['image']}, not slimsweep:{version}-ray{ray}"


def limits_are_requests(job: Object, objects: list[Object], setup: list[Object]) -> Iterator[str]:
    for name, container, _ in all_containers(job):
        resources = container.get("resources", {})
        if not {"cpu", "memory"} <= set(resources.get("limits", {})) or resources["limits"] != resources.get("requests"):
            yield f"{name} has limits that are not its requests"


def each_resource_is_said_once(job: Object, objects: list[Object], setup: list[Object]) -> Iterator[str]:
    for group in groups(job):
        said = {"num-cpus", "num-gpus", "memory", "resources"} & set(group.get("rayStartParams", {}))
        if said and group.get("resources"):
            yield f"both rayStartParams ({', '.join(said)}) and resources say what {group.get('groupName', 'the head')} holds"


def the_head_does_no_work(job: Object, objects: list[Object], setup: list[Object]) -> Iterator[str]:
    head = job["spec"]["rayClusterSpec"]["headGroupSpec"]
    if head.get("rayStartParams", {}).get("num-cpus") != "0":
        yield "the head offers CPUs for training"
    if quantity(ray_containers(job)[0]["resources"]["limits"]["memory"]) < quantity("4Gi"):
        yield "the head has less than 4 Gi of memory"
    if any(job["spec"].get(f"entrypoint{what}") for what in ("NumCpus", "NumGpus", "Resources")):
        yield "the driver asks for what the head does not offer"


def workers_come_and_go(job: Object, objects: list[Object], setup: list[Object]) -> Iterator[str]:
    spec = job["spec"]["rayClusterSpec"]
    queued = "kueue.x-k8s.io/queue-name" in job["metadata"].get("labels", {})
    if queued and (spec.get("enableInTreeAutoscaling") or job["spec"].get("clusterSelector")):
        yield "Kueue takes no job that scales itself or names a cluster"
    if queued and not job["spec"].get("shutdownAfterJobFinishes"):
        yield "Kueue takes no job that keeps its cluster"
    if not queued and not spec.get("enableInTreeAutoscaling"):
        yield "nothing starts workers"
    for group in spec["workerGroupSpecs"]:
        counts = [group.get(k) for k in ("minReplicas", "replicas", "maxReplicas")]
        if not queued and (counts[:2] != [0, 0] or not counts[2]):
            yield f"{group['groupName']} does not start from 0 workers: {counts}"
        if queued and (len(set(counts)) != 1 or not counts[0]):
            yield f"{group['groupName']} is queued without a fixed number of workers: {counts}"
    if spec.get("enableInTreeAutoscaling") and any(pod.get("restartPolicy") != "Never" for pod in pods(job)):
        yield "the autoscaler's v2 needs restartPolicy Never"


def ray_asks_for_a_token_and_reports_to_nobody(job: Object, objects: list[Object], setup: list[Object]) -> Iterator[str]:
    if job["spec"]["rayClusterSpec"].get("authOptions", {}).get("mode") != "token":
        yield "Ray lets everybody in"
    for container in ray_containers(job):
        if {"name": "RAY_USAGE_STATS_ENABLED", "value": "0"} not in container.get("env", []):
            yield f"{container['name']} sends usage statistics"


def pods_pass_the_restricted_standard(job: Object, objects: list[Object], setup: list[Object]) -> Iterator[str]:
    for name, container, pod in all_containers(job):
        own, shared = container.get("securityContext", {}), pod.get("securityContext", {})
        both = {**shared, **own}
        if both.get("runAsNonRoot") is not True or both.get("runAsUser") == 0:
            yield f"{name} may run as root"
        if own.get("allowPrivilegeEscalation") is not False or own.get("privileged"):
            yield f"{name} may gain privileges"
        if own.get("capabilities") != {"drop": ["ALL"]}:
            yield f"{name} has capabilities"
        if both.get("seccompProfile") != {"type": "RuntimeDefault"}:
            yield f"{name} has no seccomp profile"
    for pod in pods(job):
        if any(pod.get(k) for k in ("hostNetwork", "hostPID", "hostIPC")):
            yield "a pod shares the node's namespaces"


def what_runs_users_code_has_no_kubernetes_token(job: Object, objects: list[Object], setup: list[Object]) -> Iterator[str]:
    for pod in pods(job):
        if pod.get("automountServiceAccountToken") is not False:
            yield "a pod mounts its service account's token"
        tokens = {
            v["name"]
            for v in pod.get("volumes", [])
            for s in v.get("projected", {}).get("sources", [])
            if "serviceAccountToken" in s
        }
        for container in pod["containers"]:
            if any(m["name"] in tokens for m in container.get("volumeMounts", [])):
                yield f"{container['name']} has a service account's token"


def no_secret_is_written_down(job: Object, objects: list[Object], setup: list[Object]) -> Iterator[str]:
    for found in (o for o in [*objects, *setup] if o["kind"] == "Secret"):
        yield f"Secret {found['metadata']['name']} is written down"
    for name, container, _ in all_containers(job):
        for variable in container.get("env", []):
            if "value" in variable and re.search(r"TOKEN|SECRET|PASSWORD|KEY|CREDENTIAL", variable["name"], re.IGNORECASE):
                yield f"{name} has {variable['name']} written down"
    if re.search(r"AKIA[0-9A-Z]{16}|-----BEGIN|[?&](access_key|secret_key)=|://[^/\s]+:[^/\s]+@", json.dumps(objects)):
        yield "something looks like a key"


RULES: tuple[Rule, ...] = (
    the_job_can_be_named_so,
    the_job_is_submitted_in_a_way_that_exists,
    the_job_ends_and_is_tried_again,
    every_mount_has_its_volume,
    everything_that_is_named_exists,
    a_changed_sweep_is_a_changed_job,
    versions_are_the_pinned_ones,
    limits_are_requests,
    each_resource_is_said_once,
    the_head_does_no_work,
    workers_come_and_go,
    ray_asks_for_a_token_and_reports_to_nobody,
    pods_pass_the_restricted_standard,
    what_runs_users_code_has_no_kubernetes_token,
    no_secret_is_written_down,
)


def broken_rules(objects: list[Object], setup: list[Object]) -> list[str]:
    return [problem for rule in RULES for problem in rule(only(objects, "RayJob"), objects, setup)]


# The schemas.


def strict_schema(kind: str) -> Object:
    path = SCHEMAS / f"{kind.lower()}.json.gz"
    if not path.exists():
        pytest.skip(f"no schema of {kind} in {SCHEMAS}")
    return json.loads(gzip.decompress(path.read_bytes()))


def schema_problems(document: Object) -> list[str]:
    """What the schema of KubeRay, Kueue or Kubernetes itself says against an object; fields it does not know among it."""
    if document["apiVersion"] not in CORE:
        validator = jsonschema.Draft202012Validator(strict_schema(document["kind"]))
        return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(document)]
    try:
        kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)
    except kubernetes_validate.ValidationError as problem:
        return [str(problem)]
    return []


@pytest.mark.parametrize("name", OVERLAYS)
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_every_overlay_keeps_to_the_rules(name: str, rule: Rule) -> None:
    objects, setup = overlay(name)
    assert list(rule(only(objects, "RayJob"), objects, setup)) == []


@pytest.mark.parametrize("folder", [*(f"overlays/{n}" for n in OVERLAYS), *(f"setup/{n}" for n in SETUPS)])
def test_everything_that_is_applied_is_valid(folder: str) -> None:
    problems = {f"{o['kind']} {o['metadata']['name']}": schema_problems(o) for o in render(JOBS / folder)}
    assert problems
    assert not any(problems.values()), problems


@pytest.mark.parametrize("name", OVERLAYS)
def test_every_pod_is_one_that_kubernetes_knows(name: str) -> None:
    job = only(overlay(name)[0], "RayJob")
    for pod in pods(job):
        assert schema_problems({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": pod}) == []


@pytest.mark.parametrize("name", OVERLAYS)
def test_the_job_s_own_command_accepts_its_sweep_and_its_workers_hold_it(name: str, tmp_path: Path) -> None:
    objects, _ = overlay(name)
    config = sweep_of(objects, tmp_path)
    assert config.output.startswith(("/shared/", "s3://"))
    (group,) = only(objects, "RayJob")["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    fit = quantity(limits["cpu"]) // config.resources.cpus_per_worker
    if config.resources.gpus_per_worker:
        fit = min(fit, quantity(limits.get("nvidia.com/gpu", 0)) // config.resources.gpus_per_worker)
    assert fit * group["maxReplicas"] >= max(config.resources.search_workers, config.retrain.workers_per_trial)
    # A driver that starts before any worker must be told how many may come; one whose workers are there need not.
    assert config.resources.max_workers == (None if group["minReplicas"] else fit * group["maxReplicas"])


def test_the_base_s_sweep_is_the_default_one(tmp_path: Path) -> None:
    config = sweep_of(overlay("kind-cpu")[0], tmp_path)
    assert config.changed(**{"resources.max_workers": None}) == load_config(["--output", config.output])[0]
    # It is the preset itself, not a copy that has to be kept alike.
    assert yaml.safe_load((JOBS / "base" / "sweep.yaml").read_text()) == {"extends": "digits"}
    assert config.resources.max_workers == 2


@pytest.mark.parametrize("name", OVERLAYS)
def test_what_users_read_and_write_lies_where_all_pods_see_it(name: str, tmp_path: Path) -> None:
    objects, _ = overlay(name)
    config = sweep_of(objects, tmp_path)
    for container in ray_containers(only(objects, "RayJob")):
        mounted = [m["mountPath"] for m in container["volumeMounts"]]
        for path in (config.output, config.data.root):
            assert path is None or "://" in path or any(path.startswith(f"{m}/") for m in mounted)


def test_the_queue_can_admit_the_queued_job() -> None:
    objects, setup = overlay("kueue")
    job, queue = only(objects, "RayJob"), only(setup, "ClusterQueue")
    (resources,) = queue["spec"]["resourceGroups"]
    quota = {f["name"]: {r["name"]: quantity(r["nominalQuota"]) for r in f["resources"]} for f in resources["flavors"]}
    assert set(quota) == {o["metadata"]["name"] for o in setup if o["kind"] == "ResourceFlavor"}
    assert queue["metadata"]["name"] == only(setup, "LocalQueue")["spec"]["clusterQueue"]
    head, worker = pods(job)
    for flavor, pod, count in (("slimsweep-cpu", head, 1), ("slimsweep-gpu", worker, groups(job)[1]["replicas"])):
        for name, value in wanted(pod).items():
            assert name in resources["coveredResources"]
            assert value * count <= quota[flavor][name]
    (labels,) = (o["spec"]["nodeLabels"] for o in setup if o["metadata"]["name"] == "slimsweep-gpu")
    assert worker["nodeSelector"] == labels


def test_gpu_workers_go_to_gpu_nodes() -> None:
    worker = pods(only(overlay("gpu")[0], "RayJob"))[1]
    assert worker["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert worker["nodeSelector"]
    assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in worker["tolerations"]
    assert "nvidia.com/gpu" not in wanted(pods(only(overlay("gpu")[0], "RayJob"))[0])


def test_the_namespace_refuses_pods_that_could_become_root() -> None:
    for name in SETUPS:
        setup = render(JOBS / "setup" / name)
        assert only(setup, "Namespace")["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
        assert only(setup, "ServiceAccount")["automountServiceAccountToken"] is False


def test_nobody_outside_can_talk_to_ray_but_the_operator() -> None:
    policy = only(render(JOBS / "setup" / "cluster"), "NetworkPolicy")["spec"]
    assert policy["podSelector"] == {}
    assert policy["policyTypes"] == ["Ingress"]
    same, operator = policy["ingress"]
    assert same == {"from": [{"podSelector": {}}]}
    assert operator["from"][0]["podSelector"]["matchLabels"] == {"app.kubernetes.io/name": "kuberay-operator"}
    assert [p["port"] for p in operator["ports"]] == [8265]


def test_a_deleted_job_leaves_its_results() -> None:
    for name in OVERLAYS:
        assert {o["kind"] for o in overlay(name)[0]} == {"RayJob", "ConfigMap"}


def test_a_changed_sweep_has_another_name_in_the_job(tmp_path: Path) -> None:
    jobs = shutil.copytree(JOBS, tmp_path / "jobs")
    before, _ = overlay("gpu", jobs)
    with (jobs / "overlays" / "gpu" / "sweep.yaml").open("a") as file:
        file.write("seed: 7\n")
    after, _ = overlay("gpu", jobs)
    names = [only(o, "ConfigMap")["metadata"]["name"] for o in (before, after)]
    assert names[0] != names[1]
    assert [v["configMap"]["name"] for v in pods(only(after, "RayJob"))[0]["volumes"] if "configMap" in v] == [names[1]]


@pytest.mark.parametrize("name", ["kind-cpu", "gpu"])
def test_the_results_of_any_overlay_can_go_to_an_object_store(name: str, tmp_path: Path) -> None:
    jobs = shutil.copytree(JOBS, tmp_path / "jobs")
    file = jobs / "overlays" / name / "kustomization.yaml"
    kustomization = yaml.safe_load(file.read_text())
    kustomization["components"].append("../../components/object-store")
    file.write_text(yaml.safe_dump(kustomization))
    objects, setup = overlay(name, jobs)
    assert broken_rules(objects, setup) == []
    assert sweep_of(objects, tmp_path).output.startswith("s3://")


def test_the_readme_s_way_to_a_report_is_short_and_names_what_is_there() -> None:
    text = (JOBS / "README.md").read_text()
    first, again, *_ = re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert len([*first.splitlines(), *again.splitlines()]) < 10
    folders = re.findall(r"-k (\S+)", text)
    assert folders
    assert all((ROOT / folder / "kustomization.yaml").exists() for folder in folders)
    for folder in re.findall(r"^\| `(\S+)` \|", text, re.MULTILINE):
        assert (JOBS / folder / "kustomization.yaml").exists()
    name = only(overlay("kind-cpu")[0], "RayJob")["metadata"]["namespace"]
    assert set(re.findall(r"-n (\S+)", text)) == {name}


# That the checks can fail: each breaks one thing in a rendered overlay.


def job_spec(objects: list[Object]) -> Object:
    return only(objects, "RayJob")["spec"]


def head_pod(objects: list[Object]) -> Object:
    return pods(only(objects, "RayJob"))[0]


def worker_pod(objects: list[Object]) -> Object:
    return pods(only(objects, "RayJob"))[1]


def set_in(place: Object, key: str, value: Any) -> None:
    place[key] = value


BREAKS_A_RULE: dict[str, Callable[[list[Object]], Any]] = {
    "submissionMode HTTPmode does not exist": lambda o: set_in(job_spec(o), "submissionMode", "HTTPmode"),
    "without a submitterPodTemplate": lambda o: set_in(job_spec(o), "submitterPodTemplate", {"spec": {"containers": []}}),
    "does nothing without shutdownAfterJobFinishes": lambda o: job_spec(o).pop("shutdownAfterJobFinishes"),
    "activeDeadlineSeconds is missing": lambda o: job_spec(o).pop("activeDeadlineSeconds"),
    "backoffLimit is missing": lambda o: job_spec(o).pop("backoffLimit"),
    "ray-head mounts shared, which its pod does not have": lambda o: head_pod(o)["volumes"].pop(),
    "ray-worker mounts shared, which its pod does not have": lambda o: worker_pod(o).pop("volumes"),
    "autoscaler mounts autoscaler-token": lambda o: head_pod(o)["volumes"].pop(0),
    "at most 47 characters": lambda o: set_in(only(o, "RayJob")["metadata"], "name", "slimsweep-" + "x" * 38),
    "both rayStartParams (num-cpus) and resources": lambda o: set_in(groups(only(o, "RayJob"))[0], "resources", {"CPU": "0"}),
    "the head offers CPUs": lambda o: groups(only(o, "RayJob"))[0]["rayStartParams"].pop("num-cpus"),
    "less than 4 Gi": lambda o: set_in(head_pod(o)["containers"][0]["resources"]["limits"], "memory", "2Gi"),
    "limits that are not its requests": lambda o: worker_pod(o)["containers"][0]["resources"]["requests"].pop("memory"),
    "rayVersion is not": lambda o: set_in(job_spec(o)["rayClusterSpec"], "rayVersion", "2.9.0"),
    "has image slimsweep:latest": lambda o: set_in(worker_pod(o)["containers"][0], "image", "slimsweep:latest"),
    "lets everybody in": lambda o: job_spec(o)["rayClusterSpec"].pop("authOptions"),
    "sends usage statistics": lambda o: worker_pod(o)["containers"][0].pop("env"),
    "ray-worker may run as root": lambda o: worker_pod(o)["securityContext"].pop("runAsNonRoot"),
    "autoscaler may gain privileges": lambda o: job_spec(o)["rayClusterSpec"]["autoscalerOptions"].pop("securityContext"),
    "ray-head has capabilities": lambda o: head_pod(o)["containers"][0]["securityContext"].pop("capabilities"),
    "has no seccomp profile": lambda o: head_pod(o)["securityContext"].pop("seccompProfile"),
    "mounts its service account's token": lambda o: worker_pod(o).pop("automountServiceAccountToken"),
    "ray-head has a service account's token": lambda o: head_pod(o)["containers"][0]["volumeMounts"].append(
        {"name": "autoscaler-token", "mountPath": "/token"}
    ),
    "there is no PersistentVolumeClaim slimsweep-shared-gpu": lambda o: set_in(
        worker_pod(o)["volumes"][0]["persistentVolumeClaim"], "claimName", "slimsweep-shared-gpu"
    ),
    "there is no ServiceAccount default": lambda o: set_in(head_pod(o), "serviceAccountName", "default"),
    "the namespace default is not set up": lambda o: set_in(only(o, "RayJob")["metadata"], "namespace", "default"),
    "a folder of the node": lambda o: worker_pod(o)["volumes"].append({"name": "node", "hostPath": {"path": "/"}}),
    "does not reach the job": lambda o: set_in(
        next(v for v in head_pod(o)["volumes"] if "configMap" in v)["configMap"], "name", "slimsweep-sweep"
    ),
    "does not start from 0 workers": lambda o: set_in(groups(only(o, "RayJob"))[1], "minReplicas", 1),
    "nothing starts workers": lambda o: job_spec(o)["rayClusterSpec"].pop("enableInTreeAutoscaling"),
    "needs restartPolicy Never": lambda o: head_pod(o).pop("restartPolicy"),
    "Kueue takes no job that scales itself": lambda o: set_in(
        only(o, "RayJob")["metadata"], "labels", {"kueue.x-k8s.io/queue-name": "slimsweep"}
    ),
    "RAY_AUTH_TOKEN written down": lambda o: worker_pod(o)["containers"][0]["env"].append(
        {"name": "RAY_AUTH_TOKEN", "value": "x"}
    ),
    "Secret keys is written down": lambda o: o.append({"kind": "Secret", "metadata": {"name": "keys"}}),
    "looks like a key": lambda o: set_in(
        job_spec(o), "entrypoint", "python x.py --output s3://AKIAABCDEFGHIJKLMNOP:abc@bucket/runs"
    ),
}


@pytest.mark.parametrize("says", BREAKS_A_RULE)
def test_a_broken_job_is_caught(says: str) -> None:
    objects, setup = overlay("kind-cpu")
    assert broken_rules(objects, setup) == []
    broken = copy.deepcopy(objects)
    BREAKS_A_RULE[says](broken)
    assert any(says in problem for problem in broken_rules(broken, setup)), broken_rules(broken, setup)


BREAKS_THE_SCHEMA: dict[str, Callable[[list[Object]], Any]] = {
    "shutDownAfterJobFinishes": lambda o: set_in(job_spec(o), "shutDownAfterJobFinishes", True),
    "toleration": lambda o: set_in(worker_pod(o), "toleration", []),
    "maxReplica": lambda o: set_in(groups(only(o, "RayJob"))[1], "maxReplica", 4),
    "8GB": lambda o: set_in(worker_pod(o)["containers"][0]["resources"]["limits"], "memory", "8GB"),
    "tokens": lambda o: set_in(job_spec(o)["rayClusterSpec"]["authOptions"], "mode", "tokens"),
}


@pytest.mark.parametrize("says", BREAKS_THE_SCHEMA)
def test_a_misspelt_field_is_caught(says: str) -> None:
    objects, _ = overlay("kind-cpu")
    BREAKS_THE_SCHEMA[says](objects)
    assert any(says in problem for problem in schema_problems(only(objects, "RayJob")))


def test_a_misspelt_field_of_a_core_object_is_caught() -> None:
    claim = only(render(JOBS / "setup" / "cluster"), "PersistentVolumeClaim")
    claim["spec"]["accessMode"] = claim["spec"].pop("accessModes")
    assert any("accessMode" in problem for problem in schema_problems(claim))
