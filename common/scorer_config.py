"""What scores a response: the classifier of [reward_model], Python functions, HTTP services. Imports pydantic only."""

import ipaddress
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, JsonValue, field_validator

from common.config_base import CHANGEABLE, Config

RESERVED = ("reward_model", "reward_model_p_positive", "prompt", "judge", "judge_p_positive")
"""Parts that classifiers leave in the record."""

PartName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
_PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*", re.ASCII)


class Weighted(Config):
    """One term of the score, which is the sum of weight times number over all scorers."""

    weight: float = Field(default=1.0, allow_inf_nan=False)
    """Weight in the score; negative punishes, 0 only records."""


class ModelScorerConfig(Weighted):
    """The classifier of [reward_model]; `ppo.score_baseline` concerns this scorer only."""

    type: Literal["model"] = "model"
    """Tag of the union."""
    name: Literal["reward_model"] = "reward_model"
    """Its part in the record; fixed, since there is one [reward_model], and report and evaluation know it by this."""


class FunctionScorerConfig(Weighted):
    """A Python function, in a process of its own beside each reward replica.

    It is called as `score(prompts: list[str], responses: list[str], **arguments)` and returns one finite number for
    each response.
    """

    type: Literal["function"] = "function"
    """Tag of the union."""
    name: PartName = "function"
    """Its part in the record."""
    callable: str
    """Import path `package.module:function`, importable where the reward replicas run. Its code is in no fingerprint:
    who changes it runs PPO again with `--again ppo`."""
    arguments: dict[str, JsonValue] = {}
    """Keyword arguments of every call, as in `{ ngram_words = 2 }`: strings, numbers, booleans, lists and tables."""
    timeout_s: Annotated[float, CHANGEABLE] = Field(default=30.0, gt=0)
    """Longest time of one call; then its process is killed and the batch's texts are tried one by one."""
    start_timeout_s: Annotated[float, CHANGEABLE] = Field(default=60.0, gt=0)
    """Longest time to start the process and import the function."""
    batch_sequences: int = Field(default=64, ge=1)
    """Texts of one call."""

    @field_validator("callable")
    @classmethod
    def _is_an_import_path(cls, path: str) -> str:
        if not _PATH.fullmatch(path):
            raise ValueError(f"callable={path!r} must have the form package.module:function, as in my_rewards:brevity")
        return path

    @field_validator("arguments")
    @classmethod
    def _are_keywords(cls, arguments: dict[str, JsonValue]) -> dict[str, JsonValue]:
        for name, value in arguments.items():
            if not name.isidentifier() or name in ("prompts", "responses"):
                raise ValueError(
                    f"arguments has {name!r}, which cannot be a keyword argument; legal are names as in Python, other "
                    "than prompts and responses, which are the texts"
                )
            if not _travels(value):
                raise ValueError(
                    f"arguments.{name}={value!r} holds a number that is not finite, or nothing; legal are strings, "
                    "finite numbers, booleans, and lists and tables of these"
                )
        return arguments


class HttpScorerConfig(Weighted):
    """A service that is sent `{"prompts": [...], "responses": [...]}` and answers `{"scores": [...]}`."""

    type: Literal["http"] = "http"
    """Tag of the union."""
    name: PartName = "http"
    """Its part in the record."""
    url: str
    """Where to POST; https with a verified certificate, or http on loopback."""
    timeout_s: Annotated[float, CHANGEABLE] = Field(default=30.0, gt=0)
    """Longest time of one request."""
    max_retries: Annotated[int, CHANGEABLE] = Field(default=3, ge=0)
    """Further tries after a failed connection, a timeout, or status 429 or 5xx."""
    backoff_s: Annotated[float, CHANGEABLE] = Field(default=0.5, gt=0)
    """Pause before the first further try; it doubles with each, up to a minute, and half of it is random."""
    token_env: Annotated[str | None, CHANGEABLE] = None
    """Environment variable of the driver (of a job: where Ray was started on the head) with a token, sent as
    `Authorization: Bearer ...`; None: none."""
    ca_file: Annotated[str | None, CHANGEABLE] = None
    """PEM file of the only authorities to trust; None: those of the system."""
    batch_sequences: int = Field(default=64, ge=1)
    """Texts of one request."""

    @field_validator("token_env")
    @classmethod
    def _names_a_variable(cls, name: str | None) -> str | None:
        if name is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise ValueError(
                "token_env must be the name of an environment variable, as in REWARD_TOKEN: letters, digits and _; "
                "never the token itself"
            )
        return name

    @field_validator("url")
    @classmethod
    def _is_safe(cls, url: str) -> str:
        """What is wrong is said without the URL where it may hold a password."""
        parts = urlsplit(url)
        if "@" in parts.netloc:
            raise ValueError("url must hold no user or password; name a token by token_env")
        if parts.scheme not in ("http", "https") or not parts.hostname or re.search(r"[\s\\#]", url):
            raise ValueError(f"url={url!r} must be of the form https://host/path")
        if parts.scheme == "http" and not is_loopback(parts.hostname):
            raise ValueError(
                f"url={url!r}: texts and token would travel in the clear; use https://, or http:// on 127.0.0.1"
            )
        return url


ScorerConfig = Annotated[ModelScorerConfig | FunctionScorerConfig | HttpScorerConfig, Field(discriminator="type")]


def _travels(value: JsonValue) -> bool:
    """Whether a value is the same in TOML and in JSON: neither has the other's `null` or `inf`."""
    if isinstance(value, Mapping):
        return all(_travels(item) for item in value.values())
    if isinstance(value, list):
        return all(_travels(item) for item in value)
    return value is not None and not (isinstance(value, float) and not math.isfinite(value))


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine's own loopback."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_scorers(scorers: Sequence[ModelScorerConfig | FunctionScorerConfig | HttpScorerConfig]) -> None:
    """Raise ValueError unless every part has a name of its own and something counts."""
    twice = [name for name, number in Counter(s.name for s in scorers).items() if number > 1]
    if twice:
        raise ValueError(f"two scorers are called {twice[0]!r}; give each a name of its own")
    for scorer in scorers:
        if scorer.type != "model" and (scorer.name in RESERVED or scorer.name.endswith("_offsets")):
            raise ValueError(
                f"a scorer may not be called {scorer.name!r}: {', '.join(RESERVED)} and names that end in _offsets "
                "have a meaning in the record; choose another name"
            )
    if not any(scorer.weight for scorer in scorers):
        raise ValueError("every scorer has weight 0, so nothing is rewarded; give one another weight")
