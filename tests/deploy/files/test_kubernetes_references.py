"""Whatever a manifest names is there, and what each part is told fits what the others are told."""

import shutil
import subprocess
import tomllib

import pytest
import yaml

from common.config_file import load_config, parse_config
from deploy.jobs.submission import announce_driver
from deploy.monitoring.kubernetes_rules import RULES, as_text

OUTSIDE = {8265: "the operator", 9464: "Prometheus", 8080: "Prometheus", 44217: "Prometheus", 44227: "Prometheus"}
"""Ports that somebody beside the pods themselves may reach."""
RUNS = {"base": "tiny", "overlays/cpu-demo": "demo", "overlays/gpu": "imdb-smollm2"}
ON_CLUSTERS = [*((folder, folder) for folder in RUNS), ("cluster", "overlays/cpu-demo")]
"""Builds, and the folders of configurations that run there; docs/cluster.md sends the last to the one that stays."""
DEPARTURES = {
    "base": set(),
    "overlays/cpu-demo": {"ppo.checkpoint_every", "rollout.num_cpus", "reward_service.num_cpus", "learner.num_cpus"},
    "overlays/gpu": {
        "ppo.checkpoint_every", "rollout.num_cpus", "rollout.num_gpus", "reward_service.num_cpus", "learner.num_cpus",
        "learner.num_gpus",
    },
}  # fmt: skip
"""Settings that differ from the packaged configuration of that name, beside [control] and the resources of roles."""
ALWAYS = {
    "cluster.autoscaling",
    "control.host",
    "control.port",
    "control.token_env",
    "control.read_token_env",
    "control.allowed_hosts",
}
ALWAYS |= {f"{role}.resources" for role in ("rollout", "reward_service", "learner")}


def of_kind(manifests, kind):
    return [manifest for manifest in manifests if manifest["kind"] == kind]


def named(manifests, kind, name):
    (found,) = (manifest for manifest in of_kind(manifests, kind) if manifest["metadata"]["name"] == name)
    return found


def ray_cluster(manifests):
    """What a build says of its one cluster."""
    (resource,) = (*of_kind(manifests, "RayJob"), *of_kind(manifests, "RayCluster"))
    return resource["spec"].get("rayClusterSpec", resource["spec"])


def walk(node):
    yield node
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    for child in children:
        yield from walk(child)


def selects(selector, labels):
    for key, value in selector.get("matchLabels", {}).items():
        if labels.get(key) != value:
            return False
    for rule in selector.get("matchExpressions", []):
        held = {
            "Exists": rule["key"] in labels,
            "DoesNotExist": rule["key"] not in labels,
            "In": labels.get(rule["key"]) in rule.get("values", []),
        }[rule["operator"]]
        if not held:
            return False
    return True


def labels(template):
    return template["metadata"]["labels"]


def ports(template):
    return {port["name"]: port["containerPort"] for port in template["spec"]["containers"][0].get("ports", [])}


def settings(config):
    flat = {}
    for table, value in config.model_dump(mode="json").items():
        if isinstance(value, dict) and table not in ("data", "model"):
            flat |= {f"{table}.{key}": setting for key, setting in value.items()}
        else:
            flat[table] = value
    return flat


def test_everything_is_in_one_namespace(manifests):
    (namespace,) = of_kind(manifests, "Namespace")
    others = [manifest for manifest in manifests if manifest is not namespace]
    assert {manifest["metadata"]["namespace"] for manifest in others} == {namespace["metadata"]["name"]}


def test_every_key_of_a_secret_that_is_asked_for_exists(manifests):
    asked = [
        (node["secretKeyRef"]["name"], node["secretKeyRef"]["key"])
        for node in walk(manifests)
        if isinstance(node, dict) and "secretKeyRef" in node
    ]
    for monitor in of_kind(manifests, "PodMonitor"):
        for endpoint in monitor["spec"]["podMetricsEndpoints"]:
            if "authorization" in endpoint:
                credentials = endpoint["authorization"]["credentials"]
                asked.append((credentials["name"], credentials["key"]))
    assert len(asked) == 4
    for name, key in asked:
        assert named(manifests, "Secret", name)["data"][key]


def test_every_volume_is_there_and_every_mount_has_one(manifests, pods):
    for template in pods.values():
        volumes = {volume["name"]: volume for volume in template["spec"].get("volumes", [])}
        mounted = {mount["name"] for mount in template["spec"]["containers"][0].get("volumeMounts", [])}
        assert mounted == volumes.keys()
        for volume in volumes.values():
            if "configMap" in volume:
                assert named(manifests, "ConfigMap", volume["configMap"]["name"])
            else:
                assert named(manifests, "PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"])


def test_scripts_that_are_called_are_in_the_config_map_that_is_mounted_there(manifests, pods):
    (mount,) = (m for m in pods["head"]["spec"]["containers"][0]["volumeMounts"] if m["name"] == "scripts")
    called = [pods["head"]["spec"]["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][1]]
    called += [job["spec"]["entrypoint"].split()[1] for job in of_kind(manifests, "RayJob")]
    for path in called:
        folder, _, name = path.rpartition("/")
        assert folder == mount["mountPath"]
        assert name in named(manifests, "ConfigMap", "minichatgpt-scripts")["data"]


def test_the_service_leads_to_the_control_port_of_the_head_and_to_no_other_pod(manifests, pods):
    service = named(manifests, "Service", "minichatgpt-control")["spec"]
    (port,) = service["ports"]
    led = {role for role, template in pods.items() if selects({"matchLabels": service["selector"]}, labels(template))}
    assert led == {"head"}
    assert ports(pods["head"])[port["targetPort"]] == port["port"] == 9464


def test_every_port_with_metrics_is_scraped_once_by_a_monitor_that_finds_it(manifests, pods):
    scraped = [
        (role, endpoint["port"])
        for monitor in of_kind(manifests, "PodMonitor")
        for role, template in pods.items()
        if selects(monitor["spec"]["selector"], labels(template))
        for endpoint in monitor["spec"]["podMetricsEndpoints"]
    ]
    workers = [(role, "metrics") for role in pods if role not in ("head", "submitter")]
    head = [("head", port) for port in ("control", "metrics", "as-metrics", "dash-metrics")]
    assert sorted(scraped) == sorted(head + workers)
    assert all(port in ports(pods[role]) for role, port in scraped)


def test_a_run_is_scraped_under_the_labels_that_rules_ask_for(built):
    manifests = built("base")
    head = named(manifests, "RayJob", "minichatgpt")["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]
    (monitor,) = (
        monitor
        for monitor in of_kind(manifests, "PodMonitor")
        if selects(monitor["spec"]["selector"], labels(head))
        and monitor["spec"]["podMetricsEndpoints"][0]["port"] == "control"
    )
    job, run = monitor["spec"]["podMetricsEndpoints"][0]["relabelings"]
    assert job == {"targetLabel": "job", "replacement": "minichatgpt"}
    assert run == {"sourceLabels": ["__meta_kubernetes_pod_label_minichatgpt_run"], "targetLabel": "run"}
    assert 'up{job="minichatgpt"}' in as_text()


def test_what_a_launched_run_says_has_the_job_of_the_dashboards_and_silence_sets_off_no_alert(built):
    manifests = built("cluster")
    head = labels(ray_cluster(manifests)["headGroupSpec"]["template"])
    (monitor,) = (
        monitor
        for monitor in of_kind(manifests, "PodMonitor")
        if selects(monitor["spec"]["selector"], head) and monitor["spec"]["podMetricsEndpoints"][0]["port"] == "control"
    )
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert endpoint["metricRelabelings"] == [{"targetLabel": "job", "replacement": "minichatgpt"}]
    assert endpoint["honorLabels"] is True
    assert "relabelings" not in endpoint, "those would name `up` too, on which ScrapeDown looks"


def test_the_image_is_named_in_one_place_of_what_is_applied(built, kubernetes, tool, tmp_path):
    shutil.copytree(kubernetes.parent, tmp_path / "deploy")
    folder = tmp_path / "deploy" / "kubernetes"
    for build in ("cluster", "overlays/cpu-demo", "overlays/gpu"):
        file = folder / build / "kustomization.yaml"
        file.write_text(file.read_text().replace("newName: registry.example.org/minichatgpt", "newName: mine/chat"))
        done = subprocess.run(
            [tool("kubectl"), "kustomize", folder / build], capture_output=True, text=True, timeout=60, check=True
        )
        images = {node["image"].rpartition(":")[0] for node in walk(list(yaml.safe_load_all(done.stdout)))
                  if isinstance(node, dict) and isinstance(node.get("image"), str)}  # fmt: skip
        assert images == {"mine/chat"}


def test_scripts_and_launched_runs_are_told_where_drivers_leave_their_numbers(pods):
    found = [
        variable["value"]
        for variable in pods["head"]["spec"]["containers"][0]["env"]
        if variable["name"] == "MINICHATGPT_DRIVERS"
    ]
    assert found == ["/tmp/minichatgpt-drivers"]
    assert announce_driver("tiny").count('"$MINICHATGPT_DRIVERS"') == 3


def test_nobody_from_outside_reaches_a_port_but_those_that_are_meant(manifests, pods):
    policies = [policy["spec"] for policy in of_kind(manifests, "NetworkPolicy")]
    for role, template in pods.items():
        mine = [policy for policy in policies if selects(policy["podSelector"], labels(template))]
        assert any(policy["policyTypes"] == ["Ingress"] and "ingress" not in policy for policy in mine), "refuse first"
        open_to_others = set()
        for rule in (rule for policy in mine for rule in policy.get("ingress", [])):
            assert rule["from"], "a rule without `from` lets everybody in"
            among_us = all("namespaceSelector" not in peer for peer in rule["from"])
            if not among_us:
                assert rule["ports"]
                for peer in rule["from"]:
                    assert peer.keys() == {"namespaceSelector", "podSelector"}, f"lets a whole namespace in: {peer}"
                    assert all(selector.get("matchLabels") for selector in peer.values()), f"lets everybody in: {peer}"
                open_to_others |= {port["port"] for port in rule["ports"]}
        listens = set(ports(template).values())
        assert (open_to_others & listens) == (OUTSIDE.keys() & listens), role
        assert 6379 not in open_to_others
        assert 10001 not in open_to_others


@pytest.mark.parametrize("name", ["kuberay-operator", "kuberay"], ids=["by Helm", "by kustomize"])
def test_the_operator_reaches_the_head_however_it_was_installed(manifests, name):
    operator = {"app.kubernetes.io/name": name, "app.kubernetes.io/component": "kuberay-operator"}
    (rule,) = named(manifests, "NetworkPolicy", "minichatgpt-operator")["spec"]["ingress"]
    (peer,) = rule["from"]
    assert selects(peer["podSelector"], operator)


def test_prometheus_is_let_in_as_its_operator_labels_it_and_its_neighbours_are_not(manifests):
    (rule,) = named(manifests, "NetworkPolicy", "minichatgpt-prometheus")["spec"]["ingress"]
    (peer,) = rule["from"]
    assert selects(peer["podSelector"], {"app.kubernetes.io/name": "prometheus", "app.kubernetes.io/instance": "k8s"})
    assert not selects(peer["podSelector"], {"app.kubernetes.io/name": "grafana"})


def test_all_pods_of_a_cluster_reach_each_other(manifests, pods):
    policies = [policy["spec"] for policy in of_kind(manifests, "NetworkPolicy")]
    (inner,) = (
        policy
        for policy in policies
        if any("ports" not in rule and "from" in rule for rule in policy.get("ingress", []))
    )
    (rule,) = inner["ingress"]
    (peer,) = rule["from"]
    for template in pods.values():
        assert selects(inner["podSelector"], labels(template))
        assert selects(peer["podSelector"], labels(template))


@pytest.mark.parametrize("folder", RUNS)
def test_the_configuration_in_the_config_map_loads_and_its_name_is_the_label_of_the_pod(built, folder):
    manifests = built(folder)
    text = named(manifests, "ConfigMap", "minichatgpt-config")["data"]["run.toml"]
    config = parse_config(tomllib.loads(text), where="run.toml")
    head = named(manifests, "RayJob", "minichatgpt")["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]
    assert config.name == RUNS[folder] == labels(head)["minichatgpt/run"]


@pytest.mark.parametrize("folder", RUNS)
def test_a_configuration_differs_from_the_packaged_one_where_it_says_so(kubernetes, folder):
    here = settings(load_config(kubernetes / folder / "run.toml"))
    packaged = settings(load_config(RULES.parents[1] / "configs" / f"{RUNS[folder]}.toml"))
    assert {key for key in here if here[key] != packaged[key]} == DEPARTURES[folder] | ALWAYS


@pytest.mark.parametrize(("folder", "run"), ON_CLUSTERS)
def test_the_control_channel_is_where_the_pods_say_it_is(built, kubernetes, folder, run):
    manifests, control = built(folder), load_config(kubernetes / run / "run.toml").control
    head = ray_cluster(manifests)["headGroupSpec"]["template"]
    (container,) = head["spec"]["containers"]
    assert ports(head)["control"] == control.port
    assert {control.token_env, control.read_token_env} <= {variable["name"] for variable in container["env"]}
    service = named(manifests, "Service", "minichatgpt-control")["metadata"]
    name, space = service["name"], service["namespace"]
    assert set(control.allowed_hosts) == {
        name, f"{name}.{space}", f"{name}.{space}.svc", f"{name}.{space}.svc.cluster.local",
    }  # fmt: skip


@pytest.mark.parametrize(("folder", "run"), ON_CLUSTERS)
def test_what_each_role_asks_for_is_offered_by_one_group_and_fits_it(built, kubernetes, folder, run):
    config = load_config(kubernetes / run / "run.toml")
    cluster = ray_cluster(built(folder))
    groups = [(cluster["headGroupSpec"]["resources"], 1)]
    groups += [(group["resources"], group["replicas"]) for group in cluster["workerGroupSpecs"]]
    for wanted, offered, count in [
        ([config.rollout] * config.rollout.workers, "rollout", None),
        ([config.learner, *[config.reward_service] * config.reward_service.replicas], "steady", 1),
    ]:
        ((resources, replicas),) = [group for group in groups if float(group[0].get(offered, 0)) > 0]
        assert count in (None, replicas)
        for key, of_role in (("CPU", "num_cpus"), ("GPU", "num_gpus")):
            total = sum(getattr(role, of_role) for role in wanted)
            assert total <= float(resources.get(key, 0)) * replicas
            assert max(getattr(role, of_role) for role in wanted) <= float(resources.get(key, 0))
        assert all(role.resources == {offered: 1} for role in wanted)


def test_ray_gives_away_no_more_than_a_pod_has(cluster_spec):
    for group in (cluster_spec["headGroupSpec"], *cluster_spec["workerGroupSpecs"]):
        requests = group["template"]["spec"]["containers"][0]["resources"]["requests"]
        assert float(group["resources"]["CPU"]) <= float(requests["cpu"])
        assert group["resources"].get("GPU", "0") == requests.get("nvidia.com/gpu", "0")


def test_pods_with_gpus_go_to_nodes_with_gpus(built):
    (job,) = of_kind(built("overlays/gpu"), "RayJob")
    for group in job["spec"]["rayClusterSpec"]["workerGroupSpecs"]:
        spec = group["template"]["spec"]
        assert spec["nodeSelector"]
        assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in spec["tolerations"]
        assert group["resources"]["GPU"] == spec["containers"][0]["resources"]["limits"]["nvidia.com/gpu"]


def test_the_cluster_of_a_job_is_the_one_that_stays_plus_its_configuration(built):
    (job,), (cluster,) = of_kind(built("base"), "RayJob"), of_kind(built("cluster"), "RayCluster")
    spec, staying = (yaml.safe_load(yaml.safe_dump(each)) for each in (job["spec"]["rayClusterSpec"], cluster["spec"]))
    for each in (spec, staying):
        for group in (each["headGroupSpec"], *each["workerGroupSpecs"]):
            image = group["template"]["spec"]["containers"][0].pop("image")  # base leaves it to its overlays
            assert image == ("minichatgpt" if each is spec else "registry.example.org/minichatgpt:cpu")
    head = spec["headGroupSpec"]["template"]
    assert head["metadata"]["labels"].pop("minichatgpt/run") == "tiny"
    for items in (head["spec"]["volumes"], head["spec"]["containers"][0]["volumeMounts"]):
        items[:] = [item for item in items if item["name"] != "config"]
    assert spec == staying


def test_a_try_that_failed_is_made_again_and_a_cluster_does_not_outlive_its_run(built):
    (job,) = of_kind(built("base"), "RayJob")
    assert job["spec"]["backoffLimit"] > 0
    assert job["spec"]["shutdownAfterJobFinishes"] is True


def test_a_checkpoint_has_time_before_the_head_is_killed(pods):
    spec = pods["head"]["spec"]
    (wait,) = (e["value"] for e in spec["containers"][0]["env"] if e["name"] == "RAY_JOB_STOP_WAIT_TIME_S")
    assert spec["terminationGracePeriodSeconds"] >= int(wait) > 3


def test_rules_are_those_of_prometheus(built, kubernetes, tool, tmp_path):
    assert (kubernetes / "monitoring" / "rules.yaml").read_text(encoding="utf-8") == as_text()
    (rules,) = of_kind(built("base"), "PrometheusRule")
    files = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in sorted(RULES.glob("*.yml"))]
    assert rules["spec"]["groups"] == [group for file in files for group in file["groups"]]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(rules["spec"]), encoding="utf-8")
    subprocess.run([tool("promtool"), "check", "rules", tmp_path / "rules.yml"], check=True, timeout=60)


def test_dashboards_are_those_of_grafana_one_config_map_each(built, kubernetes):
    found = {}
    for config_map in of_kind(built("base"), "ConfigMap"):
        if config_map["metadata"].get("labels", {}).get("grafana_dashboard") == "1":
            assert len(str(config_map)) < 256 * 1024, "kubectl apply keeps a copy in an annotation of this size"
            found |= config_map["data"]
    folder = kubernetes.parent / "grafana" / "dashboards"
    assert found == {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.json")}


def test_without_secrets_the_build_stops_and_names_them(kubernetes, tool, tmp_path):
    shutil.copytree(kubernetes, tmp_path / "kubernetes", ignore=shutil.ignore_patterns("secrets"))
    done = subprocess.run(
        [tool("kubectl"), "kustomize", tmp_path / "kubernetes" / "shared"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode != 0
    assert "secrets/control_token" in done.stderr


def test_secrets_are_made_once_for_their_owner_only(kubernetes):
    folder = kubernetes / "shared" / "secrets"
    before = {path.name: path.read_text() for path in folder.iterdir()}
    subprocess.run([kubernetes / "make-secrets"], check=True, stdout=subprocess.DEVNULL)
    assert {path.name: path.read_text() for path in folder.iterdir()} == before
    assert before.keys() == {"control_token", "read_token"}
    assert len(set(before.values())) == 2
    assert all(len(token) == 64 for token in before.values())
    assert {path.stat().st_mode & 0o777 for path in (folder, *folder.iterdir())} == {0o700, 0o600}


def test_rays_autoscaler_reads_the_groups_as_they_are_meant(manifests, cluster_spec):
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    derived = _derive_autoscaling_config_from_ray_cr(
        {"metadata": {"name": "minichatgpt", "namespace": "minichatgpt"}, "spec": cluster_spec}
    )
    groups = {group["groupName"]: group for group in cluster_spec["workerGroupSpecs"]}
    assert derived["idle_timeout_minutes"] == cluster_spec["autoscalerOptions"]["idleTimeoutSeconds"] / 60
    kinds = derived["available_node_types"]
    assert kinds.keys() == groups.keys() | {"headgroup"}
    for name, group in (*groups.items(), ("headgroup", cluster_spec["headGroupSpec"])):
        told = {key: int(value) for key, value in group["resources"].items()}
        assert {key: kinds[name]["resources"].get(key) for key in told} == told
    for name, group in groups.items():
        assert (kinds[name]["min_workers"], kinds[name]["max_workers"]) == (group["minReplicas"], group["maxReplicas"])
