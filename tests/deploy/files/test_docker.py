"""Dockerfile and compose.yaml without an engine: linted, against the schema of Compose, and each reference followed.

No image was ever built from this file by these tests: that needs an engine, and base images.
"""

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[3]
DOCKER = ROOT / "deploy" / "docker"
VARIABLE = re.compile(r"\$\{(\w+):-([^}]*)\}")
OF_RAY = {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH", "RAY_JOB_STOP_WAIT_TIME_S"}
OF_GRAFANA = {"GF_SECURITY_ADMIN_PASSWORD__FILE", "GF_ANALYTICS_REPORTING_ENABLED", "GF_ANALYTICS_CHECK_FOR_UPDATES"}


@pytest.fixture(scope="module")
def compose():
    return yaml.safe_load((DOCKER / "compose.yaml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def services(compose):
    return compose["services"]


def mounts(service):
    return [mount.split(":") for mount in service.get("volumes", [])]


def test_hadolint_finds_nothing(tool):
    done = subprocess.run([tool("hadolint"), DOCKER / "Dockerfile"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout


def test_hadolint_would_find_something(tool):
    broken = (DOCKER / "Dockerfile").read_text(encoding="utf-8").replace("USER 1000:1000", "USER root")
    done = subprocess.run([tool("hadolint"), "-"], input=broken, capture_output=True, text=True, timeout=60)
    assert "DL3002" in done.stdout


def test_compose_takes_the_file(tool):
    command = [tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", DOCKER / "compose.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_compose_would_refuse_a_misspelt_key(tool, tmp_path):
    broken = (DOCKER / "compose.yaml").read_text(encoding="utf-8").replace("hostname: head", "hostnam: head")
    (tmp_path / "compose.yaml").write_text(broken, encoding="utf-8")
    command = [tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", tmp_path / "compose.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert "hostnam" in done.stdout


def test_every_file_that_is_mounted_or_built_from_exists(compose, services):
    for service in services.values():
        for source, *_ in mounts(service):
            assert (DOCKER / source).exists() if source.startswith(".") else source in compose["volumes"]
    build = services["head"]["build"]
    assert (DOCKER / build["context"]).resolve() == ROOT
    assert (ROOT / build["dockerfile"]) == DOCKER / "Dockerfile"
    assert (DOCKER / "Dockerfile.dockerignore").is_file(), "named after the file, so that it is found with this context"


def test_make_secrets_makes_every_secret_and_each_is_used(compose, services, tmp_path):
    script = tmp_path / "make-secrets"
    script.write_text((DOCKER / "make-secrets").read_text())
    subprocess.run(["sh", script], check=True, stdout=subprocess.DEVNULL)
    made = {f"./secrets/{path.name}" for path in (tmp_path / "secrets").iterdir()}
    assert made == {secret["file"] for secret in compose["secrets"].values()}
    assert {name for service in services.values() for name in service.get("secrets", [])} == compose["secrets"].keys()
    assert (tmp_path / "secrets").stat().st_mode & 0o777 == 0o700
    assert len({path.read_text() for path in (tmp_path / "secrets").iterdir()}) == len(made)


def test_a_secret_that_is_read_is_given_to_that_service(services):
    for name, service in services.items():
        text = yaml.safe_dump(service)
        if name == "prometheus":
            text += (DOCKER / "prometheus.yml").read_text(encoding="utf-8")
        assert set(re.findall(r"/run/secrets/(\w+)", text)) == set(service.get("secrets", [])), name


def test_only_what_people_look_at_is_published_and_on_loopback_only(services):
    published = [port for service in services.values() for port in service.get("ports", [])]
    assert sorted(published) == [f"127.0.0.1:{port}:{port}" for port in (3000, 8265, 9090, 9464)]


def test_no_service_has_more_rights_than_it_needs(services):
    for service in services.values():
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert "privileged" not in service
        assert "user" not in service, "the image's own, which is not root"


def test_every_service_says_how_it_is(services):
    for service in services.values():
        assert service["healthcheck"]["test"][0] == "CMD"
    assert services["worker"]["depends_on"] == {"head": {"condition": "service_healthy"}}


def test_workers_can_be_many(services):
    assert not {"container_name", "ports", "hostname"} & services["worker"].keys()


def test_every_variable_is_one_of_the_file_or_has_a_default_and_is_known(services):
    text = (DOCKER / "compose.yaml").read_text(encoding="utf-8")
    assert set(re.findall(r"\$\{?(\w+)", text)) == {name for name, _ in VARIABLE.findall(text)}, "each with a default"
    documented = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
    for name, _ in VARIABLE.findall(text):
        assert f"`{name}`" in documented, f"{name} is not in docs/cluster.md"
    entry = (DOCKER / "minichatgpt-entrypoint").read_text(encoding="utf-8")
    for service in services.values():
        for name in service.get("environment", {}):
            assert name in OF_RAY | OF_GRAFANA or name.removesuffix("_FILE") in entry


def test_the_mode_of_authentication_is_said_wherever_ray_starts(services):
    for name in ("head", "worker"):
        assert services[name]["environment"]["RAY_AUTH_MODE"] == "token"
    assert "ENV RAY_AUTH_MODE=token" in (DOCKER / "Dockerfile").read_text(encoding="utf-8")


def ray_start(service):
    """Options of `ray start`, as Ray's own parser takes them."""
    from ray.scripts.scripts import start

    words = [VARIABLE.sub(lambda found: found[2], word) for word in service["command"]]
    assert words[:2] == ["ray", "start"]
    return start.make_context("start", words[2:]).params


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Ray's own, on import
def test_ray_takes_the_command_lines_of_head_and_worker(services):
    head, worker = ray_start(services["head"]), ray_start(services["worker"])
    assert head["head"]
    assert worker["address"] == f"{services['head']['hostname']}:{head['port']}"
    assert head["block"] is worker["block"] is True
    assert head["dashboard_host"] == "0.0.0.0", "Prometheus asks it where the nodes are"
    for service, of in ((services["head"], head), (services["worker"], worker)):
        url = service["healthcheck"]["test"][-1]
        port = int(re.search(r":(\d+)/", url)[1])
        assert port == (of["dashboard_port"] if service is services["head"] else of["dashboard_agent_listen_port"])
    assert "http://127.0.0.1:52365/" in (DOCKER / "Dockerfile").read_text(encoding="utf-8")


def test_prometheus_asks_what_the_services_serve(services, tool):
    file = DOCKER / "prometheus.yml"
    config = yaml.safe_load(file.read_text(encoding="utf-8"))
    runs, ray = config["scrape_configs"]
    (targets,) = runs["file_sd_configs"][0]["files"]
    mounted = {where for _, where, *_ in mounts(services["prometheus"])}
    assert "/runs" in mounted
    assert targets == "/runs/.targets/*.json"
    assert config["rule_files"] == ["/etc/prometheus/rules/*.yml"]
    assert "/etc/prometheus/rules" in mounted
    head = ray_start(services["head"])
    url = f"http://{services['head']['hostname']}:{head['dashboard_port']}/api/prometheus/sd"
    assert ray["http_sd_configs"][0]["url"] == url
    done = subprocess.run(
        [tool("promtool"), "check", "config", "--syntax-only", file], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_scrapes_as_it_does_everywhere(services):
    here, there = (
        yaml.safe_load(path.read_text(encoding="utf-8"))
        for path in (DOCKER / "prometheus.yml", ROOT / "deploy" / "prometheus" / "prometheus.yml")
    )
    assert here["global"] == there["global"]
    assert [
        (job["job_name"], job.get("honor_labels")) for job in here["scrape_configs"]
    ] == [(job["job_name"], job.get("honor_labels")) for job in there["scrape_configs"]]  # fmt: skip


def test_grafana_finds_prometheus_and_the_dashboards_where_its_provisioning_says(services):
    grafana = services["grafana"]
    provisioning = ROOT / "deploy" / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())["datasources"]
    assert source["url"] == "http://127.0.0.1:9090"
    assert grafana["network_mode"] == "service:prometheus"
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "minichatgpt.yml").read_text())["providers"]
    assert provider["options"]["path"] in {where for _, where, *_ in mounts(grafana)}


# --- the image


def test_the_image_is_not_root_and_every_package_is_pinned():
    text = (DOCKER / "Dockerfile").read_text(encoding="utf-8")
    assert re.findall(r"^USER (.*)$", text, re.MULTILINE) == ["1000:1000"]
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert re.search(r"^setuptools==", constraints, re.MULTILINE), "builds the wheel"
    installs = re.findall(r"pip install [^\n]*", text)
    assert len(installs) == 3
    assert "torch==$(" in installs[0]
    assert "--constraint" in installs[1]
    assert "--no-deps" in installs[2]


def test_the_kind_of_accelerator_is_checked_before_anything_is_downloaded(tmp_path):
    text = (DOCKER / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    (step,) = re.findall(r"^RUN (case .*)$", text, re.MULTILINE)
    (tmp_path / "pip").write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / "pip").chmod(0o755)
    step = step.replace("/opt/minichatgpt/constraints.txt", str(ROOT / "constraints.txt"))
    indexes = {}
    for kind in ("cpu", "cuda", "tpu"):
        environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "ACCELERATOR": kind}
        done = subprocess.run(["sh", "-c", step], env=environment, capture_output=True, text=True, timeout=60)
        indexes[kind] = re.findall(r"--index-url (\S+) torch==[0-9.]+$", done.stdout.strip())
        assert (done.returncode == 0) == (kind != "tpu")
    assert indexes == {"cpu": ["https://download.pytorch.org/whl/cpu"], "cuda": ["https://pypi.org/simple"], "tpu": []}
    assert done.stderr == "ACCELERATOR=tpu; legal are cpu and cuda\n"


def test_the_image_is_built_from_the_packages_and_nothing_that_is_secret():
    lines = (DOCKER / "Dockerfile.dockerignore").read_text(encoding="utf-8").split("\n")
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    kept = {rule[1:] for rule in rules if rule.startswith("!")}
    copied = {"pyproject.toml", "README.md", "LICENSE", "constraints.txt"}
    assert kept == copied | {"actors", "common", "deploy", "learner", "reward_service"}
    assert all((ROOT / name).exists() for name in kept)
    assert rules.index("**/secrets") > rules.index("!deploy"), "the last rule that fits decides"


WHEEL = """
import sys
from setuptools import build_meta
print(build_meta.build_wheel(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Names in the wheel of a copy of this tree, in which somebody has made secrets."""
    copy = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for name in ("actors", "common", "deploy", "learner", "reward_service"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "secrets"))
    for script in ("docker/make-secrets", "kubernetes/make-secrets"):
        subprocess.run(["sh", copy / "deploy" / script], check=True, stdout=subprocess.DEVNULL)
    command = [sys.executable, "-c", WHEEL, str(copy)]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(copy / done.stdout.split()[-1]) as archive:
        return set(archive.namelist())


def test_the_wheel_holds_what_a_run_needs(wheel):
    assert {"deploy/cli.py", "deploy/page/index.html", "deploy/configs/demo.toml"} <= wheel
    assert {"deploy/prometheus/rules/alerts.yml", "deploy/grafana/dashboards/learning.json"} <= wheel


def test_the_wheel_holds_no_secret_and_none_of_the_files_that_launch_clusters(wheel):
    for name in wheel:
        assert "secrets" not in Path(name).parts
        assert not name.startswith(("deploy/docker/", "deploy/kubernetes/", "deploy/ray/", "deploy/slurm/"))
    assert not any("token" in Path(name).name and not name.endswith(".py") for name in wheel)


def test_nothing_in_the_repository_holds_a_token():
    tracked = subprocess.run(
        ["git", "ls-files", "deploy"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.split()
    for name in tracked:
        if name.startswith(("deploy/docker", "deploy/kubernetes", "deploy/ray", "deploy/slurm")):
            text = (ROOT / name).read_text(encoding="utf-8")
            assert not re.search(r"\b[0-9a-f]{32,}\b", text), name
