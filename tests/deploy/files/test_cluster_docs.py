"""What docs/cluster.md tells people to type is what the command line takes, and what the files are called."""

import re
import shlex
from pathlib import Path

import pytest
import typer.main
import yaml

from common.config_file import load_config
from deploy.cli import app

ROOT = Path(__file__).parents[3]
DOCS = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")


def commands(of):
    """Words of each `minichatgpt VERB …` in the blocks of a section."""
    (section,) = re.findall(rf"^## {of}$(.*?)(?=^## |\Z)", DOCS, re.MULTILINE | re.DOTALL)
    blocks = "".join(re.findall(r"^```\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)).replace("\\\n", " ")
    return [shlex.split(line, comments=True)[1:] for line in re.findall(r"^minichatgpt .*$", blocks, re.MULTILINE)]


@pytest.mark.parametrize("section", ["Kubernetes", "Docker Compose", "ray up"])
def test_every_command_is_one_of_the_command_line(section):
    found = commands(section)
    assert "launch" in [words[0] for words in found]
    for verb, *words in found:
        typer.main.get_command(app).commands[verb].make_context(verb, words)


def test_runs_are_launched_where_the_pods_have_their_volume_with_a_name_that_is_stopped():
    found = {words[0]: words[1:] for words in commands("Kubernetes")}
    cluster = yaml.safe_load((ROOT / "deploy/kubernetes/cluster/cluster.yaml").read_text(encoding="utf-8"))
    name = cluster["metadata"]["name"]
    (head,) = cluster["spec"]["headGroupSpec"]["template"]["spec"]["containers"]
    assert {"name": "runs", "mountPath": found["launch"][found["launch"].index("--runs") + 1]} in head["volumeMounts"]
    assert load_config(ROOT / found["launch"][0]).name == found["stop"][0]
    assert f"service/{name}-head-svc 8265" in DOCS, "as KubeRay calls it"
    assert f"get secret {name} " in DOCS, "as KubeRay calls it"
