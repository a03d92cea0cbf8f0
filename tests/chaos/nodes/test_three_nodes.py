"""Three machines: workers spread over them, watched by a real Prometheus, scaled up and down; one machine dies.

    first: driver, learner, replica, workers, Prometheus ── switch ─┬─ second: workers
                                                                    └─ third: workers, and whoever steers

One run is played through once; each test looks at one thing of what was seen.
"""

import json
import re
import secrets
import shlex
import shutil
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest

from deploy.run_folder.address import read_address

pytestmark = [pytest.mark.ray, pytest.mark.slow]

UPDATES = 50
SETTINGS = (f"ppo.updates={UPDATES}", "ppo.checkpoint_every=10")
ROLL = '"roll": 2'
"""Room for two workers on each machine: six fill all three."""
METRICS_PORT = 8090
SLOTS = 'minichatgpt_calls_held{role="rollout"}'
TWO, SIX = ({f"worker-{index}" for index in range(number)} for number in (2, 6))
NODES = """
import json, sys
import ray
ray.init(address=sys.argv[1], log_to_driver=False)
print(json.dumps({node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}))
"""


@dataclass
class Seen:
    """What there was to see."""

    statuses: dict[str, Any] = field(default_factory=dict)
    """Of the run, by the moment."""
    slots: dict[str, set] = field(default_factory=dict)
    """Of workers that Prometheus has series of, by the moment."""
    nodes: dict[str, str] = field(default_factory=dict)
    """Addresses by node."""
    dead: str = ""
    """Node that died."""
    answers: dict[str, int] = field(default_factory=dict)
    """HTTP status, by who asks for what."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Other answers of Prometheus."""
    outcome: Any = None


class Prometheus:
    """On the head, as `minichatgpt watch` configures it, but looking every second."""

    def __init__(self, machines, remote, token_file):
        self.remote, self.poll = remote, machines.poll
        ray, runs = str(machines.folder / "h"), str(machines.folder)
        said = machines.ask(
            machines.head, "watch", "--no-start", "--ray-folder", ray, "--token-file", str(token_file), "--runs", runs
        )
        settings = machines.folder / ".watch" / "prometheus.yml"
        written = settings.read_text(encoding="utf-8")
        settings.write_text(re.sub(r"_interval: \d+s", "_interval: 1s", written), encoding="utf-8")
        command = said[: said.index("http://")].replace("\\\n", " ")
        with (machines.folder / "prometheus.log").open("wb") as log:
            machines.head.inside(*shlex.split(command), stdout=log, stderr=log)

    def ask(self, path, **parameters):
        answer = self.remote.do(httpx2.get, f"http://127.0.0.1:9090/api/v1/{path}", params=parameters, trust_env=False)
        return answer.json()["data"]

    def query(self, expr):
        return self.ask("query", query=expr)["result"]

    def labels(self, expr, name):
        return {series["metric"][name] for series in self.query(expr)}

    def tell(self, expr):
        """Print, for docs/cluster.md, what it answers."""
        print(expr)
        for series in self.query(expr):
            labels = ", ".join(f'{k}="{v}"' for k, v in sorted(series["metric"].items()) if k != "__name__")
            print(f"  {{{labels}}} {series['value'][1]}")

    def await_slots(self, wanted, why):
        self.poll(lambda: self.labels(SLOTS, "slot") == wanted, what=f"series of {sorted(wanted)}: {why}")
        return self.labels(SLOTS, "slot")


def play(machines, Remote, seen, Outcome, tokens):
    """The run from its beginning to its end."""
    head, _, third = machines.by_name.values()
    found, read_token = Seen(), tokens.read_text()
    prometheus = Prometheus(machines, Remote(head), tokens)
    run = machines.run(*SETTINGS, f"control.host={head.address}", "control.read_token_env=READ_TOKEN", is_calm=True)
    watched = seen(run, at=third)
    controls, url = watched.controls, read_address(run.folder).control_url
    found.slots["begin"] = prometheus.await_slots(TWO, "the run is found")
    found.nodes = nodes_of(machines)

    steer = ["--url", url, "--token-file", str(run.folder / "control.token")]
    machines.ask(third, "scale", *steer, "--rollout-workers", "6")
    controls.pause()
    found.statuses["six"] = watched.await_status(lambda s: s.pools["rollout"].active == 6, "six workers")
    found.slots["six"] = prometheus.await_slots(SIX, "scaled up")
    print(machines.ask(third, "status", *steer))
    prometheus.tell(SLOTS)
    addresses = {f"{address}:{METRICS_PORT}" for address in found.nodes.values()}
    machines.poll(lambda: addresses <= prometheus.labels('up{job="ray"} == 1', "instance"), what="Ray's targets")
    machines.poll(lambda: addresses <= prometheus.labels("ray_node_mem_used", "instance"), what="Ray's own metrics")
    prometheus.tell("up == 1")
    found.facts["rules"] = {group["name"]: group["rules"] for group in prometheus.ask("rules")["groups"]}
    found.answers = ask_with_tokens(Remote(third), url, read_token)
    controls.resume()
    watched.await_step(found.statuses["six"].step + 3)

    controls.scale(rollout_workers=2)
    found.statuses["two"] = watched.await_status(lambda s: len(s.pools["rollout"].members) == 2, "two are left")
    found.slots["two"] = prometheus.await_slots(TWO, "scaled down")

    member = next(m for m in watched.status().pools["rollout"].members if found.nodes[m.node] != head.address)
    found.dead = member.node
    watched.busy(member.slot)
    next(machine for machine in machines.by_name.values() if machine.address == found.nodes[found.dead]).die()
    watched.await_status(lambda s: watched.member(s, member.slot).restarts > 0, "the loss is noticed")
    controls.pause()
    found.statuses["lost"] = watched.await_status(lambda s: s.pools["rollout"].active == 2, "another takes its place")
    expr = "minichatgpt_heartbeat_age_seconds{role='rollout'} < 5"
    machines.poll(lambda: prometheus.labels(expr, "slot") == TWO, what="both workers give signs of life")
    found.slots["lost"] = prometheus.labels(SLOTS, "slot")
    machines.poll(lambda: prometheus.query('minichatgpt_restarts_total{role="rollout"} > 0'), what="restarts")
    dead = f"{found.nodes[found.dead]}:{METRICS_PORT}"
    machines.poll(lambda: dead not in prometheus.labels("up", "instance"), what="Ray's list without the dead node")
    controls.resume()
    run.end(0)
    found.outcome = Outcome(run.folder, None, watched, "")
    return found


def nodes_of(machines):
    """Addresses by node, as Ray knows them."""
    printed = machines.folder / "nodes.json"
    with printed.open("wb") as file:
        asked = machines.head.inside(sys.executable, "-c", NODES, f"{machines.head.address}:6379", stdout=file)
        assert asked.wait(timeout=120) == 0
    return json.loads(printed.read_text())


def ask_with_tokens(remote, url, read_token):
    """What another machine is answered that shows no token, the reader's, or somebody else's."""
    tokens = {"nobody": None, "reader": read_token, "stranger": secrets.token_hex(32)}
    asked = {}
    for who, token in tokens.items():
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        for method, path in (("GET", "/v1/run"), ("GET", "/metrics"), ("POST", "/v1/run/scale")):
            body = {"rollout_workers": 9} if method == "POST" else None
            how = {"json": body, "headers": headers, "trust_env": False}
            asked[f"{who}: {method} {path}"] = remote.do(httpx2.request, method, url + path, **how).status_code
    return asked


@pytest.fixture(scope="module")
def found(machines_at, Remote, seen, Outcome):
    """What was to be seen of one run."""
    if shutil.which("prometheus") is None:
        pytest.skip("prometheus is not installed: apt-get install prometheus")
    with (
        tempfile.TemporaryDirectory(prefix="mc", dir="/tmp", ignore_cleanup_errors=True) as path,
        machines_at(Path(path), "other", "third") as machines,
    ):
        tokens = machines.folder / "read.token"
        tokens.write_text(secrets.token_hex(32), encoding="ascii")
        machines.head.environment["READ_TOKEN"] = tokens.read_text(encoding="ascii")
        exported = ("--metrics-export-port", str(METRICS_PORT))
        machines.start_head(f'{{"head": 2, {ROLL}}}', *exported, dashboard=True)  # without, Ray lists no targets
        for name in ("other", "third"):
            machines.start_other(f"{{{ROLL}}}", *exported, name=name)
        yield play(machines, Remote, seen, Outcome, tokens)


def nodes(status):
    return {member.node for member in status.pools["rollout"].members}


def test_six_workers_are_spread_over_all_three_nodes(found):
    members = found.statuses["six"].pools["rollout"].members
    assert sorted(found.nodes[member.node] for member in members) == sorted(2 * list(found.nodes.values()))


def test_prometheus_has_series_of_exactly_the_workers_that_are_there(found):
    assert found.slots == {"begin": TWO, "six": SIX, "two": TWO, "lost": TWO}


def test_prometheus_has_loaded_the_rules_and_none_fails(found):
    rules = [rule for rules in found.facts["rules"].values() for rule in rules]
    assert {rule["type"] for rule in rules} == {"alerting", "recording"}
    assert [rule for rule in rules if rule["health"] == "err"] == []


def test_from_another_machine_the_run_answers_no_one_without_its_token(found):
    asked = found.answers
    assert {status for who, status in asked.items() if not who.startswith("reader")} == {401}
    assert {who: status for who, status in asked.items() if who.startswith("reader")} == {
        "reader: GET /v1/run": 200,
        "reader: GET /metrics": 200,
        "reader: POST /v1/run/scale": 403,
    }
    assert found.statuses["two"].pools["rollout"].target == 2, "nobody of them has scaled it"


def test_scaled_down_the_first_two_are_left(found):
    assert {member.slot for member in found.statuses["two"].pools["rollout"].members} == TWO


def test_a_worker_whose_node_dies_is_replaced_on_a_node_that_lives(found):
    assert found.dead in nodes(found.statuses["two"])
    assert nodes(found.statuses["lost"]) <= found.nodes.keys() - {found.dead}


def test_growing_shrinking_and_losing_a_node_cost_no_sample_and_change_no_byte(found, undisturbed):
    found.outcome.assert_whole(UPDATES)
    found.outcome.assert_same_bytes(undisturbed(*SETTINGS), UPDATES)
