"""Dashboards, rules and catalogue fit together, and the files are as they would be written now. Needs no program."""

import json
import re
from pathlib import Path

import promql_parser
import pytest
import yaml

from common.metric_catalogue import CATALOGUE, PREFIX
from deploy.dashboards.__main__ import DASHBOARDS, FOLDER, documents
from deploy.dashboards.panels import describe, metrics_of

RULES = Path(__file__).parents[3] / "deploy" / "prometheus" / "rules"
RULE_LIST = [
    rule
    for file in sorted(RULES.glob("*.yml"))
    for group in yaml.safe_load(file.read_text(encoding="utf-8"))["groups"]
    for rule in group["rules"]
]
RECORDED = {rule["record"] for rule in RULE_LIST if "record" in rule}
DOCUMENTS = {name: json.loads(text) for name, text in documents().items()}
PANELS = [panel for dashboard in DASHBOARDS for row in dashboard.rows for panel in row.panels]
QUERIES = [query.expr for panel in PANELS for query in panel.queries]
ANNOTATIONS = [each["expr"] for document in DOCUMENTS.values() for each in document["annotations"]["list"]]
NAMES = {metric.full_name for metric in CATALOGUE.values()}
HISTOGRAMS = {metric.full_name for metric in CATALOGUE.values() if metric.type == "histogram"}
OTHERS = {"up", "ALERTS", "ray_node_cpu_utilization", "ray_node_mem_used", "ray_node_mem_total",
          "ray_object_store_memory"}  # fmt: skip
"""Of Prometheus itself and of Ray."""


def legal_names():
    parts = {name + suffix for name in HISTOGRAMS for suffix in ("_bucket", "_sum", "_count")}
    return (NAMES - HISTOGRAMS) | parts | RECORDED | OTHERS


def filled(expr):
    return re.sub(r"\$__(rate_)?interval", "1m", expr.replace("$run", "demo"))


def names_asked_for(expr):
    """Metrics of an expression, by a parser that is not Prometheus' own."""
    found = []

    def visit(node):
        if isinstance(node, promql_parser.VectorSelector):
            found.append(node.name)
        return True

    promql_parser.walk(promql_parser.parse(filled(expr)), visit)
    return set(found)


def test_the_json_is_what_the_source_makes():
    there = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.json")}
    assert there == documents(), "write it anew: python -m deploy.dashboards"


@pytest.mark.parametrize("expr", sorted({*QUERIES, *ANNOTATIONS, *(rule["expr"] for rule in RULE_LIST)}))
def test_every_metric_that_is_asked_for_exists(expr):
    asked = names_asked_for(expr)
    assert asked
    assert asked <= legal_names()


def test_every_metric_of_the_catalogue_is_on_a_dashboard():
    shown = {name for expr in (*QUERIES, *ANNOTATIONS) for name in metrics_of(expr)}
    assert set(CATALOGUE) - shown == set()


def test_every_recording_rule_is_used():
    asked = set().union(*(names_asked_for(expr) for expr in (*QUERIES, *(rule["expr"] for rule in RULE_LIST))))
    assert asked >= RECORDED


def test_labels_of_legends_are_labels_of_the_metrics():
    for panel in PANELS:
        for query in panel.queries:
            labels = {label for name in metrics_of(query.expr) for label in CATALOGUE[name].labels}
            known = labels | {"run", "instance"} | ({"le"} if panel.kind == "heatmap" else set())
            if ":" in query.expr or "ALERTS" in query.expr:
                known |= {"phase", "role", "method", "alertname"}
            assert set(re.findall(r"{{(\w+)}}", query.legend)) <= known, panel.title


def test_a_panel_says_what_its_metrics_mean_and_when_to_worry():
    (panel,) = [panel for panel in PANELS if panel.title == "Repetition"]
    metric = CATALOGUE["repetition_ratio"]
    assert describe(panel) == f"minichatgpt_repetition_ratio: {metric.meaning} Worry: {metric.worry}"
    assert all(describe(panel) for panel in PANELS)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_panels_lie_side_by_side_and_have_their_own_numbers(name):
    panels = DOCUMENTS[name]["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken = set()
    for place in (panel["gridPos"] for panel in panels):
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"])
                 for y in range(place["y"], place["y"] + place["h"])}  # fmt: skip
        assert max(x for x, _ in cells) < 24
        assert not cells & taken
        taken |= cells


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_dashboard_can_be_provisioned(name):
    document = DOCUMENTS[name]
    assert (document["schemaVersion"], document["uid"]) == (36, f"mini-chatgpt-{name.removesuffix('.json')}")
    assert [variable["name"] for variable in document["templating"]["list"]] == ["datasource", "run"]
    sources = {target["datasource"]["uid"] for panel in document["panels"] for target in panel.get("targets", [])}
    assert sources == {"${datasource}"}
    assert PREFIX in json.dumps(document)
