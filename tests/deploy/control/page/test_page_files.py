"""The files of the page, without a browser."""

import re
from itertools import product
from pathlib import Path

import httpx2
import pytest

import deploy.page
from deploy.control.page_routes import FILES, PATHS
from deploy.control.run_status import WaitStatus
from deploy.control.waiting import advice
from deploy.history.view import EVENT_STYLES
from deploy.top.view import WORRYING

FOLDER = Path(deploy.page.__file__).parent
SCHEMES = re.findall(r":root \{(.*?)\}", (FOLDER / "style.css").read_text(), re.DOTALL)


def test_every_file_is_served_to_everybody_and_may_do_nothing_but_what_the_page_needs(served):
    assert {path.name for path in FOLDER.iterdir() if path.suffix != ".py" and path.is_file()} == set(FILES)
    for path, name in PATHS.items():
        answer = httpx2.get(served.url + path, trust_env=False)
        assert answer.status_code == 200
        assert answer.content == (FOLDER / name).read_bytes()
        policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == policy["connect-src"] == "'self'"
        assert policy["frame-ancestors"] == policy["form-action"] == policy["base-uri"] == "'none'"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert served.token not in answer.text


def test_the_page_asks_nobody_else_and_never_makes_markup_of_text():
    for name in FILES:
        text = (FOLDER / name).read_text().replace("http://www.w3.org/2000/svg", "")
        assert "//" not in re.sub(r"^\s*//.*$|(?<=\s)// .*$", "", text, flags=re.MULTILINE), name
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b|new Function| style=", text
        ), name
    assert not re.search(r"<script(?![^>]*src=)|\son\w+=|<style", (FOLDER / "index.html").read_text())


def test_kinds_of_events_that_are_picked_out_are_kinds_that_a_run_writes_down():
    python = [path for part in ("common", "deploy") for path in (FOLDER.parents[1] / part).glob("*.py")]
    written = "".join(path.read_text() for path in python if not re.search("report|_view", path.name))
    script = "".join(re.findall(r"new Set\(\[(.*?)\]\)", (FOLDER / "history.js").read_text()))
    [styled] = re.findall(r"\.kind:is\((.*?guard_alarm.*?)\)", (FOLDER / "style.css").read_text())
    picked = {*WORRYING, *EVENT_STYLES, *re.findall(r'"(\w+)"', script), *re.findall(r"\.(\w+)", styled)}
    assert {kind for kind in picked if not re.search(rf'"{kind}"[,)\]]', written)} == set()


def luminance(colour: str) -> float:
    """WCAG 2.1, relative luminance of #rgb or #rrggbb."""
    digits = colour if len(colour) == 6 else "".join(2 * digit for digit in colour)
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", range(len(SCHEMES)), ids=["light", "dark"])
def test_text_stands_out_from_every_ground(scheme):
    colours = dict(re.findall(r"--([\w-]+): #(\w+)", SCHEMES[scheme]))
    texts = ("ink", "soft", "good", "bad", "warn", "accent", "series-1", "series-2", "series-3", "series-4")
    for text, ground in [
        *product(texts, ("card",)),
        *product(("ink", "soft", "good", "bad", "warn"), ("ground", "well")),
    ]:
        assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    assert contrast(colours["on-accent"], colours["accent"]) >= 4.5


@pytest.mark.parametrize(
    ("learner", "workers", "reward", "said"),
    [
        (0.1, 0.9, 0.95, "it is what limits the run"),
        (0.62, 0.4, 0.8, "waits 62 % of the time, and the workers work for 97 % of that: add rollout workers"),
        (0.4, 0.6, 0.8, "the run is balanced"),
        (0.8, 0.8, 0.22, "the reward replicas work for 98 % of that: add reward replicas"),
        (0.36, 0.81, 0.81, "the run is balanced"),
        (0.8, 0.8, 0.8, "they wait for one another"),
    ],
)  # fmt: skip
def test_the_advice_follows_who_is_busy_while_the_learner_waits(learner, workers, reward, said):
    waits = WaitStatus(
        update_s=6.0, learner_wait_fraction=learner, worker_idle_fraction=workers, reward_idle_fraction=reward
    )
    assert said in advice(waits)
