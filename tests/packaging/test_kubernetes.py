"""The Kubernetes manifests, rendered: valid, restricted, and of one mind about names, ports, volumes and times.

They were never applied to a cluster here; what can be seen without one is seen here.
"""

from __future__ import annotations

import inspect
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from hermes_deploy.cli.serve import serve
from hermes_deploy.serving.settings import Settings
from hermes_deploy.serving.supervisor import LONGEST_PAUSE
from tests.packaging.environments import ROOT

OVERLAYS = ("cpu", "gpu")
BIN = Path(sys.executable).parent
# after the drain: ending what still runs 5 s, delivering 8 s, Triton's exit 10 s, and 2 s for the processes to go
EXIT_SECONDS = 25

Document = dict[str, Any]


@cache
def rendered(overlay: str) -> str:
    return subprocess.run(
        [BIN / "kubectl", "kustomize", ROOT / "k8s" / "overlays" / overlay], check=True, capture_output=True, text=True
    ).stdout


def documents(overlay: str, kind: str) -> list[Document]:
    return [document for document in yaml.safe_load_all(rendered(overlay)) if document["kind"] == kind]


def one(overlay: str, kind: str) -> Document:
    (document,) = documents(overlay, kind)
    return document


def pod(overlay: str) -> Document:
    spec: Document = one(overlay, "Deployment")["spec"]["template"]["spec"]
    return spec


def containers(overlay: str) -> list[Document]:
    return [*pod(overlay)["initContainers"], *pod(overlay)["containers"]]


def server(overlay: str) -> Document:
    (container,) = pod(overlay)["containers"]
    assert isinstance(container, dict)
    return container


def flags(overlay: str) -> dict[str, str]:
    """--name=value of serve's command line."""
    return dict(argument.removeprefix("--").split("=", 1) for argument in server(overlay)["args"] if "=" in argument)


def selects(selector: dict[str, str], labels: dict[str, str]) -> bool:
    return selector.items() <= labels.items() and bool(selector)


@pytest.fixture(params=OVERLAYS)
def overlay(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_every_document_passes_the_schemas_without_a_warning(overlay: str, tmp_path: Path) -> None:
    file = tmp_path / "rendered.yaml"
    file.write_text(rendered(overlay))
    command = [sys.executable, "-m", "kubernetes_validate", "--strict", file]
    result = subprocess.run(command, capture_output=True, text=True)
    told = (result.stdout + result.stderr).strip().splitlines()
    assert result.returncode == 0, told
    assert [line for line in told if not line.startswith("INFO ")] == []
    assert len(told) == len(list(yaml.safe_load_all(rendered(overlay))))


def test_the_base_is_what_both_overlays_have_but_for_the_deployment() -> None:
    rest = [[d for d in yaml.safe_load_all(rendered(name)) if d["kind"] != "Deployment"] for name in OVERLAYS]
    assert rest[0] == rest[1]


def test_everything_lives_in_one_namespace_that_enforces_the_restricted_standard(overlay: str) -> None:
    namespace = one(overlay, "Namespace")["metadata"]
    assert namespace["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    others = [d for d in yaml.safe_load_all(rendered(overlay)) if d["kind"] != "Namespace"]
    assert {d["metadata"]["namespace"] for d in others} == {namespace["name"]}


def test_the_pods_meet_the_restricted_standard_and_more(overlay: str) -> None:
    """https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted"""
    spec = pod(overlay)
    assert not {"hostNetwork", "hostPID", "hostIPC", "hostUsers"} & spec.keys()
    assert spec["securityContext"]["runAsNonRoot"] and spec["securityContext"]["runAsUser"] > 0
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert all(volume.keys() <= {"name", "persistentVolumeClaim", "emptyDir"} for volume in spec["volumes"])
    for container in containers(overlay):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
    # more: no way to the API server
    assert spec["automountServiceAccountToken"] is False
    assert one(overlay, "ServiceAccount")["automountServiceAccountToken"] is False
    assert spec["serviceAccountName"] == one(overlay, "ServiceAccount")["metadata"]["name"]


def test_every_selector_takes_the_pods(overlay: str) -> None:
    deployment = one(overlay, "Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert selects(deployment["spec"]["selector"]["matchLabels"], labels)
    assert selects(one(overlay, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"], labels)
    assert selects(one(overlay, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"], labels)
    assert all(selects(service["spec"]["selector"], labels) for service in documents(overlay, "Service"))
    assert all(
        selects(spread["labelSelector"]["matchLabels"], labels) for spread in pod(overlay)["topologySpreadConstraints"]
    )


def test_ports_are_those_that_serve_listens_on(overlay: str) -> None:
    ports = {port["name"]: port["containerPort"] for port in server(overlay)["ports"]}
    assert ports == {name: int(flags(overlay)[f"{name}-port"]) for name in ports}
    assert flags(overlay)["host"] == "0.0.0.0"
    for service in documents(overlay, "Service"):
        for port in service["spec"]["ports"]:
            assert (port["targetPort"], port["port"]) == (port["name"], ports[port["name"]])


def test_one_service_balances_and_one_gives_every_pod(overlay: str) -> None:
    balanced, headless = sorted(documents(overlay, "Service"), key=lambda service: "clusterIP" in service["spec"])
    assert {port["name"] for port in balanced["spec"]["ports"]} == {"grpc", "http"}
    assert headless["spec"]["clusterIP"] == "None"
    assert {port["name"] for port in headless["spec"]["ports"]} == {"grpc", "metrics"}
    # a pod that drains gets no new clients
    assert "publishNotReadyAddresses" not in headless["spec"]


def test_the_network_policy_opens_exactly_the_ports_of_the_services(overlay: str) -> None:
    policy = one(overlay, "NetworkPolicy")["spec"]
    opened = {port["port"] for rule in policy["ingress"] for port in rule["ports"]}
    assert opened == {
        port["targetPort"] for service in documents(overlay, "Service") for port in service["spec"]["ports"]
    }
    assert "health" not in opened
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert not policy.get("egress")
    # nobody without a label
    for rule in policy["ingress"]:
        assert rule["from"]
        assert all(peer["namespaceSelector"]["matchLabels"] for peer in rule["from"])


def test_metrics_are_for_namespaces_with_the_label_only(overlay: str) -> None:
    rules = [rule for rule in one(overlay, "NetworkPolicy")["spec"]["ingress"] if {"port": "metrics"} in rule["ports"]]
    assert rules == [
        {"from": [{"namespaceSelector": {"matchLabels": {"hermes-access": "metrics"}}}], "ports": [{"port": "metrics"}]}
    ]


def test_probes_ask_the_health_port(overlay: str) -> None:
    asked = {name: server(overlay)[name]["httpGet"] for name in ("startupProbe", "readinessProbe", "livenessProbe")}
    assert asked == {
        "startupProbe": {"path": "/readyz", "port": "health"},
        "readinessProbe": {"path": "/readyz", "port": "health"},
        "livenessProbe": {"path": "/livez", "port": "health"},
    }


def test_times_fit_into_each_other(overlay: str) -> None:
    spec, container = pod(overlay), server(overlay)
    pause = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    drain = float(flags(overlay)["drain-timeout"])
    assert spec["terminationGracePeriodSeconds"] >= pause + drain + EXIT_SECONDS
    startup, live = container["startupProbe"], container["livenessProbe"]
    # serve itself gives a start 300 s and pauses up to 30 s between two: Kubernetes comes after it
    load = startup["periodSeconds"] * startup["failureThreshold"]
    assert load >= 300 + 2 * 60
    # a call that hangs is given up after engine_timeout, and the next start waits up to 30 s
    assert live["periodSeconds"] * live["failureThreshold"] > Settings().engine_timeout + LONGEST_PAUSE
    assert one(overlay, "Deployment")["spec"]["progressDeadlineSeconds"] > load + pause + drain
    readiness = container["readinessProbe"]
    # longer than the pods that stop are still in the Services after readiness went off
    assert readiness["periodSeconds"] * readiness["failureThreshold"] < pause


def test_the_artifact_is_one_volume_that_nobody_writes_to(overlay: str) -> None:
    (volume,) = [volume for volume in pod(overlay)["volumes"] if "persistentVolumeClaim" in volume]
    claim = one(overlay, "PersistentVolumeClaim")["metadata"]["name"]
    assert volume["persistentVolumeClaim"] == {"claimName": claim, "readOnly": True}
    mounts = [m for container in containers(overlay) for m in container["volumeMounts"] if m["name"] == volume["name"]]
    assert mounts == [{"name": volume["name"], "mountPath": "/artifact", "readOnly": True}] * 2


def test_the_artifact_is_verified_before_the_server_starts(overlay: str) -> None:
    (first,) = pod(overlay)["initContainers"]
    assert first["args"] == ["validate", "/artifact"]
    assert server(overlay)["args"][:2] == ["serve", "/artifact"]
    assert first["image"] == server(overlay)["image"]


def test_images_are_set_by_the_overlay(overlay: str) -> None:
    assert all(container["image"].startswith("registry.example/hermes-deploy:") for container in containers(overlay))
    assert (pod(overlay)["containers"][0]["image"].endswith("-cuda")) == (overlay == "gpu")


def test_what_is_written_goes_to_volumes_of_bounded_size(overlay: str) -> None:
    volumes = {volume["name"]: volume for volume in pod(overlay)["volumes"]}
    for container in containers(overlay):
        mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
        assert {"name": "TMPDIR", "value": "/tmp"} in container["env"]
        assert mounts["/tmp"]["emptyDir"]["sizeLimit"]
    shm = {mount["mountPath"]: volumes[mount["name"]] for mount in server(overlay)["volumeMounts"]}["/dev/shm"]
    assert shm["emptyDir"] == {"medium": "Memory", "sizeLimit": "512Mi"}


def test_every_container_says_what_it_needs(overlay: str) -> None:
    for container in containers(overlay):
        assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
        assert "memory" in container["resources"]["limits"]
    gpus = [container["resources"]["limits"].get("nvidia.com/gpu") for container in containers(overlay)]
    assert gpus == ([1, 1] if overlay == "gpu" else [None, None])


def test_on_a_cpu_node_the_pod_can_get_cores_of_its_own() -> None:
    """https://kubernetes.io/docs/tasks/administer-cluster/cpu-management-policies/#static-policy"""
    for container in containers("cpu"):
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert container["resources"]["limits"]["cpu"].isdigit()


def test_a_rollout_needs_no_gpu_to_spare() -> None:
    assert one("gpu", "Deployment")["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}
    assert one("cpu", "Deployment")["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}


def test_no_variable_of_kubernetes_is_taken_for_a_setting(overlay: str) -> None:
    # a Service named hermes gives HERMES_PORT and HERMES_SERVICE_HOST to every pod of its namespace
    assert any(service["metadata"]["name"].startswith("hermes") for service in documents(overlay, "Service"))
    assert pod(overlay)["enableServiceLinks"] is False


def test_serve_knows_every_flag(overlay: str) -> None:
    known = {name.replace("_", "-") for name in inspect.signature(serve).parameters}
    assert flags(overlay).keys() <= known
