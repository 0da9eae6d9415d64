"""deploy/kubernetes by the published schemas, and what it says in two places. No cluster."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from bundles.home import DEFAULT_PORT
from manager.pools_file.reading import load

DEPLOY = Path(__file__).parents[3] / "deploy"
MANIFESTS = DEPLOY / "kubernetes"
VERSIONS = ("1.28", "1.37")
KUSTOMIZATION = yaml.safe_load((MANIFESTS / "kustomization.yaml").read_text())
DOCUMENTS: list[dict[str, Any]] = [
    document
    for name in KUSTOMIZATION["resources"]
    for document in yaml.safe_load_all((MANIFESTS / name).read_text())
]


def document(kind: str, name: str) -> dict[str, Any]:
    (found,) = (d for d in DOCUMENTS if (d["kind"], d["metadata"]["name"]) == (kind, name))
    return found


def pod(name: str) -> dict[str, Any]:
    spec: dict[str, Any] = document("StatefulSet", name)["spec"]["template"]["spec"]
    return spec


def container(name: str) -> dict[str, Any]:
    (found,) = pod(name)["containers"]
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    "manifest", DOCUMENTS, ids=lambda d: f"{d['kind']} {d['metadata']['name']}"
)
def test_every_manifest_is_one_that_kubernetes_takes(
    manifest: dict[str, Any], version: str
) -> None:
    kubernetes_validate.validate(manifest, version, strict=True)


def test_every_manifest_is_in_the_kustomization() -> None:
    others = {"kustomization.yaml", "pools.toml", "postgresql.yaml"}
    assert {path.name for path in MANIFESTS.iterdir()} == {*KUSTOMIZATION["resources"], *others}


def test_postgresql_is_a_patch_of_what_the_server_is_started_with() -> None:
    """All else of the server stays, and no password is in it."""
    patch = yaml.safe_load((MANIFESTS / "postgresql.yaml").read_text())
    (patched,) = patch["spec"]["template"]["spec"]["containers"]
    served = container("server")
    assert (patch["kind"], patch["metadata"]["name"]) == ("StatefulSet", "server")
    assert patched.keys() == {"name", "args", "env"}
    assert patched["name"] == served["name"]
    assert "env" not in served
    assert patched["args"][: len(served["args"])] == served["args"]
    (variable,) = patched["env"]
    assert {*variable} == {"name", "valueFrom"}
    commented = (MANIFESTS / "kustomization.yaml").read_text().replace("# ", "")
    assert "patches:\n  - path: postgresql.yaml\n" in commented


def test_nobody_speaks_to_a_pod_but_at_the_port_that_it_offers() -> None:
    policies = {d["metadata"]["name"]: d["spec"] for d in DOCUMENTS if d["kind"] == "NetworkPolicy"}
    everybody = policies.pop("nobody-else")
    assert everybody == {"podSelector": {}, "policyTypes": ["Ingress"]}
    for name, policy in policies.items():
        labels = document("StatefulSet", name)["spec"]["template"]["metadata"]["labels"]
        assert policy["podSelector"]["matchLabels"] == labels
        (offered,) = container(name)["ports"]
        assert policy["ingress"] == [{"ports": [{"protocol": "TCP", "port": offered["name"]}]}]


@pytest.mark.parametrize("name", ["server", "manager"])
def test_a_pod_is_nobody_special_and_has_one_place_to_write_to_that_stays(name: str) -> None:
    """What the namespace enforces: Kubernetes' pod security standard `restricted`."""
    assert document("StatefulSet", name)["spec"]["replicas"] == 1
    assert pod(name)["automountServiceAccountToken"] is False
    account = document("ServiceAccount", pod(name)["serviceAccountName"])
    assert account["automountServiceAccountToken"] is False
    assert pod(name)["securityContext"]["runAsNonRoot"] is True
    assert pod(name)["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container(name)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    (claim,) = document("StatefulSet", name)["spec"]["volumeClaimTemplates"]
    volumes = {volume["name"] for volume in pod(name)["volumes"]} | {claim["metadata"]["name"]}
    mounts = {mount["name"]: mount["mountPath"] for mount in container(name)["volumeMounts"]}
    assert {*mounts} == volumes
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    assert f"WORKER_MANAGER_HOME={mounts['home']}\n" in dockerfile


@pytest.mark.parametrize(
    ("name", "port", "ready"), [("manager", "metrics", "/readyz"), ("server", "http", "/healthz")]
)
def test_the_probes_ask_where_it_answers(name: str, port: str, ready: str) -> None:
    probed = container(name)
    (offered,) = probed["ports"]
    if name == "manager":
        number = probed["args"][probed["args"].index("--metrics-port") + 1]
        assert offered == {"name": port, "containerPort": int(number)}
    else:
        assert offered == {"name": port, "containerPort": DEFAULT_PORT}
    asked = {
        probe: probed[probe]["httpGet"] for probe in probed if re.fullmatch("[a-z]+Probe", probe)
    }
    assert asked == {
        "startupProbe": {"path": "/healthz", "port": port},
        "livenessProbe": {"path": "/healthz", "port": port},
        "readinessProbe": {"path": ready, "port": port},
    }


def test_the_manager_is_given_the_file_of_pools_which_is_one() -> None:
    (generated,) = KUSTOMIZATION["configMapGenerator"]
    assert generated == {"name": "pools", "files": ["pools.toml"]}
    sources = {volume["name"]: volume for volume in pod("manager")["volumes"]}
    assert sources["pools"]["configMap"]["name"] == generated["name"]
    (mount,) = (m for m in container("manager")["volumeMounts"] if m["name"] == "pools")
    assert container("manager")["args"][-1] == f"{mount['mountPath']}/pools.toml"
    (pool,) = load(MANIFESTS / "pools.toml").pools
    assert pool.name == "spot"
