"""Every setting is documented where it is declared, and docs/configuration.md says the same."""

import importlib
import re
from pathlib import Path

import pytest

import common
from common.config_base import Config
from deploy.config_docs import COMMAND, page
from deploy.config_fields import sections, settings

ROOT = Path(__file__).parents[2]


def every_class():
    for path in sorted(Path(common.__file__).parent.glob("*_config.py")):
        importlib.import_module(f"common.{path.stem}")
    found, waiting = [], [Config]
    while waiting:
        some = [c for c in waiting.pop().__subclasses__() if c.__module__.startswith("common.") and c not in found]
        found += some
        waiting += some
    return found


@pytest.mark.parametrize("table", every_class(), ids=lambda c: c.__name__)
def test_every_setting_has_a_meaning(table):
    assert table.__doc__
    assert not [name for name, field in table.model_fields.items() if not field.description]


def test_the_page_says_what_is_declared():
    there = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert there == page(), f"docs/configuration.md is not what the declarations say; run: {COMMAND}"


def test_every_table_that_a_run_can_have_is_on_the_page():
    reached = {section.meaning for section in sections()}
    ends = [c for c in every_class() if not c.__subclasses__()]
    missing = [c.__name__ for c in ends if " ".join((c.__doc__ or "").split()) not in reached]
    assert not missing, f"no field of RunConfig leads to {missing}"


def test_links_of_the_contents_lead_to_sections():
    there = page()
    contents = re.findall(r"^\* .*\]\(#([^)]+)\)", there, re.MULTILINE)
    assert len(contents) == len(set(contents)) == len(sections())
    assert set(contents) == set(re.findall(r'<a id="([^"]+)">', there))


def test_a_setting_that_is_a_table_links_to_it():
    there = page()
    assert "| `kl` | table, by `type`: [`fixed`](#ppo-kl-fixed), [`adaptive`](#ppo-kl-adaptive) |" in there
    assert "| `rollout` | [table](#rollout) |" in there
    assert "| `scorers` | list of: table, by `type`: [`model`](#reward_service-scorers-model)," in there
    targets = set(re.findall(r"\]\(#([^)]+)\)", there))
    assert targets == set(re.findall(r'<a id="([^"]+)">', there))


def row(path, tag=""):
    (found,) = [s.field for s in settings() if (s.path, s.tag) == (path, tag)]
    return found


@pytest.mark.parametrize(
    ("path", "tag", "kind", "default", "may_change"),
    [
        ("seed", "", "whole number, ≥ 0, < 2147483648", "0", False),
        ("rollout.workers", "", "whole number, ≥ 1", "2", True),
        ("ppo.score_clip", "", "number, > 0", "none", False),
        ("ppo.updates", "", "whole number, ≥ 1", "required", False),
        ("ppo.reference", "", "`service` or `shared_trunk` or `none`", '"service"', False),
        ("ppo.kl", "", "table, by `type`: `fixed`, `adaptive`", '{ type = "fixed" }', False),
        ("ppo.kl.target", "adaptive", "number, > 0", "6.0", False),
        ("ppo.prompt_tokens", "", "table", "{ max = 8, min = 2 }", False),
        ("ppo.optimizer.betas", "adamw", "list of 2, each: number, ≥ 0, < 1", "[0.9, 0.95]", False),
        ("data.NAME.where", "files", "table of names, to each: text or whole number", "{}", False),
        ("reward_service.scorers[].weight", "http", "number", "1.0", False),
        ("judge.training.repeat", "labels", "table of names, to each: whole number, ≥ 1", "{}", False),
        ("rollout", "", "table", "its own defaults", False),
    ],
)
def test_a_declaration_is_put_into_plain_words(path, tag, kind, default, may_change):
    field = row(path, tag)
    assert (field.type, field.default, field.may_change) == (kind, default, may_change)
