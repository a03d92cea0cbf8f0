"""The documentation holds: links lead somewhere, configurations load, and the guide's example runs as it is written."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from common.config_file import parse_config

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
GUIDE = ROOT / "docs" / "guide.md"

BLOCK = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
SAVED = re.compile(r"[Ss]ave as `([^`]+)`:\n\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def text_of(page):
    return page.read_text(encoding="utf-8")


def blocks(page, language):
    return [body for name, body in BLOCK.findall(text_of(page)) if name == language]


def prose(page):
    return BLOCK.sub("", text_of(page))


TOMLS = [
    pytest.param(body, id=f"{page.name}-{number}")
    for page in PAGES
    for number, body in enumerate(blocks(page, "toml"), start=1)
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_lead_to_files(page):
    targets = [target.partition("#")[0] for target in LINK.findall(prose(page)) if "://" not in target]
    missing = {target for target in targets if target and not (page.parent / target).exists()}
    assert not missing


@pytest.mark.parametrize("body", TOMLS)
def test_settings_in_the_documentation_are_toml_and_whole_configurations_load(body):
    document = tomllib.loads(body)
    if "name" in document:
        parse_config(document, where="the documentation")


def test_the_guide_leads_to_every_page():
    linked = set(LINK.findall(text_of(GUIDE)))
    assert {page.name for page in PAGES if page.parent.name == "docs"} - linked == {"guide.md"}


@pytest.mark.slow
def test_the_example_of_the_guide_runs_as_it_is_written(tmp_path):
    files = dict(SAVED.findall(text_of(GUIDE)))
    assert files.keys() == {"replies.csv", "my_rewards.py", "mine.toml"}
    folder, programs = tmp_path / "empty", tmp_path / "bin"
    folder.mkdir()
    programs.mkdir()
    for name, body in files.items():
        (folder / name).write_text(body, encoding="utf-8")
    command = programs / "minichatgpt"
    command.write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}:$PYTHONPATH" exec {sys.executable} -m deploy "$@"\n', "utf-8")
    command.chmod(0o755)
    (console,) = blocks(GUIDE, "console")
    lines = [line.removeprefix("$ ") for line in console.splitlines()]
    environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "COLUMNS": "100", "NO_COLOR": "1"}
    done = subprocess.run(
        ["bash", "-e", "-c", "\n".join(lines)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())
    for line in (line for body in blocks(GUIDE, "") for line in body.splitlines() if "÷" in line or "×" in line):
        assert " ".join(line.split()) in said
    summary = json.loads((folder / "runs" / "mine" / "summary.json").read_text(encoding="utf-8"))
    assert summary["updates"] == 6
    assert summary["judge_p_positive_after"] > summary["judge_p_positive_before"]
    assert (folder / "runs" / "mine" / "report.html").is_file()
