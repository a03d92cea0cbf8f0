"""deploy/ray/cluster.yaml against Ray's own schema and checks. `ray up` itself was never run: it needs machines."""

import copy
import json
import re
from pathlib import Path

import jsonschema
import pytest
import yaml

FILE = Path(__file__).parents[3] / "deploy" / "ray" / "cluster.yaml"


@pytest.fixture(scope="module")
def cluster():
    return yaml.safe_load(FILE.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def schema():
    import ray.autoscaler

    return json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text(encoding="utf-8"))


def test_ray_takes_the_file(cluster):
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(cluster)
    validate_config(prepared)
    (kind,) = prepared["available_node_types"].values()
    assert kind["max_workers"] == cluster["max_workers"] == len(cluster["provider"]["worker_ips"])


@pytest.mark.parametrize(("key", "value"), [("idle_timeout_minute", 5), ("max_workers", "4"), ("provider", {})])
def test_ray_would_refuse_a_misspelt_key_and_a_wrong_value(cluster, schema, key, value):
    jsonschema.validate(cluster, schema)
    broken = copy.deepcopy(cluster) | {key: value}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(broken, schema)


def ray_start(commands):
    """Environment and options of the one `ray start`, as Ray's parser takes them."""
    from ray.scripts.scripts import start

    (line,) = (command for command in commands if "ray start" in command)
    before, _, words = line.partition(" ray start ")
    environment = dict(word.split("=", 1) for word in before.split())
    return environment, start.make_context("start", words.split()).params


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Ray's own, on import
def test_head_and_workers_say_the_mode_and_read_the_token_that_is_copied_there(cluster):
    head_environment, head = ray_start(cluster["head_start_ray_commands"])
    worker_environment, worker = ray_start(cluster["worker_start_ray_commands"])
    for environment in (head_environment, worker_environment):
        assert environment["RAY_AUTH_MODE"] == "token"
        assert environment["RAY_AUTH_TOKEN_PATH"] in cluster["file_mounts"]
        assert f"chmod 600 {environment['RAY_AUTH_TOKEN_PATH']}" in cluster["setup_commands"]
    assert head_environment["RAY_AUTH_TOKEN_PATH"] == "~/.ray/auth_token", "`ray exec` names none, and looks there"
    assert head["head"]
    assert head["dashboard_host"] == "127.0.0.1", "whoever reaches it may run code"
    assert worker["address"] == f"$RAY_HEAD_IP:{head['port']}"


def test_the_clouds_that_its_comments_speak_of_pass_the_schema(cluster, schema):
    text = FILE.read_text(encoding="utf-8")
    providers = [yaml.safe_load(found)["provider"] for found in re.findall(r"^#   (provider: \{.*?\})", text, re.M)]
    assert {provider["type"] for provider in providers} == {"aws", "gcp"}
    kinds = "\n".join(line[4:] for line in re.findall(r"^#   (?:head_node|avail|  ).*", text, re.M))
    for provider in providers:
        cloud = cluster | {"provider": provider} | yaml.safe_load(kinds)
        jsonschema.validate(cloud, schema)
        assert cloud["head_node_type"] in cloud["available_node_types"]
