"""The manifests against the schemas of those who take them: KubeRay's, Kubernetes', and the restricted pod standard.

PodMonitor and PrometheusRule are kinds of the Prometheus Operator, whose schemas are not at hand: of them only what
`test_kubernetes_references.py` follows is checked, and the rules by promtool.
"""

import copy
import os
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml

RAY_KINDS = {"RayJob": "rayjobs", "RayCluster": "rayclusters"}
OPERATOR_KINDS = {"PodMonitor", "PrometheusRule"}
CLOSED = "additionalProperties"


def as_json_schema(node):
    """A structural schema of Kubernetes as a JSON schema that refuses unknown keys, as a strict API server does."""
    if isinstance(node, list):
        return [as_json_schema(item) for item in node]
    if not isinstance(node, dict):
        return node
    if node.get("x-kubernetes-int-or-string"):
        return {"anyOf": [{"type": "integer"}, {"type": "string"}]}
    converted = {key: as_json_schema(value) for key, value in node.items()}
    if isinstance(node.get("properties"), dict) and not node.get("x-kubernetes-preserve-unknown-fields"):
        converted.setdefault(CLOSED, False)
    return converted


@pytest.fixture(scope="session")
def kuberay():
    """Checkers by kind, of KubeRay v1.7."""
    folder = os.environ.get("KUBERAY_CRDS")
    if folder is None:
        pytest.skip("KUBERAY_CRDS names no folder with KubeRay's custom resource definitions (ray.io_rayjobs.yaml)")
    checkers = {}
    for kind, plural in RAY_KINDS.items():
        with open(Path(folder) / f"ray.io_{plural}.yaml", encoding="utf-8") as file:
            definition = yaml.load(file, Loader=yaml.CSafeLoader)
        (schema,) = (
            version["schema"]["openAPIV3Schema"]
            for version in definition["spec"]["versions"]
            if version["name"] == "v1"
        )
        checkers[kind] = jsonschema.Draft7Validator(as_json_schema(schema))
    return checkers


def ray_resource(manifests):
    (found,) = (manifest for manifest in manifests if manifest["kind"] in RAY_KINDS)
    return found


def errors(kuberay, manifest):
    return [f"{error.json_path}: {error.message}" for error in kuberay[manifest["kind"]].iter_errors(manifest)]


def test_kuberay_takes_every_build(kuberay, manifests):
    assert not errors(kuberay, ray_resource(manifests))


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("spec", "backofLimit"), 3),
        (("spec", "backoffLimit"), "three"),
        (("spec", "rayClusterSpec", "authOptions", "mode"), "tokens"),
        (("spec", "rayClusterSpec", "autoscalerOptions", "version"), "v3"),
        (("spec", "rayClusterSpec", "headGroupSpec", "template", "spec", "terminationGracePeriod"), 300),
    ],
    ids=lambda value: value[-1] if isinstance(value, tuple) else None,
)
def test_kuberay_would_refuse_a_misspelt_key_and_a_wrong_value(kuberay, built, place, value):
    broken = copy.deepcopy(ray_resource(built("base")))
    node = broken
    for key in place[:-1]:
        node = node[key]
    node[place[-1]] = value
    assert len(errors(kuberay, broken)) == 1


def test_kubernetes_takes_what_is_its_own(manifests):
    own = [manifest for manifest in manifests if manifest["kind"] not in RAY_KINDS.keys() | OPERATOR_KINDS]
    assert {"Namespace", "PersistentVolumeClaim", "Secret", "ConfigMap", "Service", "NetworkPolicy"} == {
        manifest["kind"] for manifest in own
    }
    for manifest in own:
        kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)


def test_kubernetes_takes_the_pods_in_rays_kinds(pods):
    for name, template in pods.items():
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, **template["metadata"]}}
        kubernetes_validate.validate(
            pod | {"spec": template["spec"]}, kubernetes_validate.latest_version(), strict=True
        )


def test_a_key_that_kubernetes_does_not_know_is_found(pods):
    template = copy.deepcopy(pods["head"])
    template["spec"]["containers"][0]["volumeMount"] = []
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "head"}, "spec": template["spec"]}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(pod, kubernetes_validate.latest_version(), strict=True)


def test_every_pod_keeps_the_restricted_standard_that_the_namespace_enforces(manifests, pods, cluster_spec):
    (namespace,) = (manifest for manifest in manifests if manifest["kind"] == "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    contexts = [cluster_spec["autoscalerOptions"]["securityContext"]]
    for template in pods.values():
        of_pod = template["spec"]["securityContext"]
        assert of_pod["runAsNonRoot"] is True
        assert of_pod["runAsUser"] > 0
        assert of_pod["seccompProfile"]["type"] == "RuntimeDefault"
        assert not {"hostNetwork", "hostPID", "hostIPC"} & template["spec"].keys()
        assert all(
            volume.keys() <= {"name", "persistentVolumeClaim", "configMap"}
            for volume in template["spec"].get("volumes", [])
        )
        contexts += [container["securityContext"] for container in template["spec"]["containers"]]
    for context in contexts:
        assert context == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def test_every_container_says_what_it_needs_and_memory_is_limited_to_it(pods, cluster_spec):
    for template in pods.values():
        for container in template["spec"]["containers"]:
            assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
            assert "memory" in container["resources"]["limits"]
    # Ray's share of memory follows the limit, so that it must be there from the start
    for role in pods.keys() - {"submitter"}:
        resources = pods[role]["spec"]["containers"][0]["resources"]
        assert resources["limits"]["memory"] == resources["requests"]["memory"]


def test_a_cluster_asks_for_tokens_and_scales_by_itself(cluster_spec):
    assert cluster_spec["authOptions"] == {"mode": "token"}
    assert cluster_spec["enableInTreeAutoscaling"] is True
    assert cluster_spec["autoscalerOptions"]["version"] == "v2"
    (rollout,) = (group for group in cluster_spec["workerGroupSpecs"] if group["groupName"] == "rollout")
    assert rollout["minReplicas"] <= rollout["replicas"] < rollout["maxReplicas"]
