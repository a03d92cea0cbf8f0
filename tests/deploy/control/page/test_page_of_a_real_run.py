"""The page, in a browser, over a real run in a process of its own."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from deploy.control.tokens import read_token
from deploy.exit_codes import TERMINATED
from deploy.run_folder.address import read_address

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = playwright.expect

ROOT = Path(__file__).parents[4]


@pytest.fixture
def endless(tmp_path):
    """`tiny` that does not end by itself, with two workers; yields process, URL and token once it can be asked."""
    folder = tmp_path / "runs" / "tiny"
    process = subprocess.Popen(
        [sys.executable, "-m", "deploy", "run", "tiny", "--local", "--set", "ppo.updates=1000000"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not folder.is_dir() or (address := read_address(folder)) is None or address.control_url is None:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    yield SimpleNamespace(process=process, url=address.control_url, token=read_token(folder))
    process.kill()
    process.wait(60)


@pytest.mark.slow
def test_a_run_is_watched_paused_resized_and_changed_from_the_page(endless, open_page):
    expect.set_options(timeout=60_000)
    page = open_page(endless)
    expect(page.locator("#progress-text")).to_contain_text(re.compile(r"update ([3-9]|\d[\d,]+) of 1,000,000"))
    expect(page.locator("#curve-reward path.line")).to_have_attribute("d", re.compile("L"))
    expect(page.locator("#texts .best article").first).to_contain_text("score")
    expect(page.locator("#advice")).to_contain_text("The learner waits")

    page.get_by_role("button", name="Pause", exact=True).click()
    expect(page.locator("#state")).to_have_text("paused")
    page.get_by_role("spinbutton", name="Rollout workers").fill("3")
    page.locator("#scale-rollout button").click()
    expect(page.locator("#pool-rollout tbody td.state.active")).to_have_count(3)
    page.get_by_label("temperature").fill("0.9")
    page.get_by_role("button", name="Apply").click()
    expect(page.locator("#events")).to_contain_text("temperature 1 to 0.9")
    standing = page.locator("#progress-text").text_content()
    page.get_by_role("button", name="Resume").click()
    expect(page.locator("#state")).to_have_text("running")
    expect(page.locator("#progress-text")).not_to_have_text(standing)
    expect(page.locator("#curve-kl line.mark.steered").first).to_be_attached()

    endless.process.send_signal(signal.SIGTERM)
    assert endless.process.wait(60) == TERMINATED
    expect(page.locator("#state")).to_have_text(re.compile("ended|no answer"))
    expect.set_options(timeout=60_000)
