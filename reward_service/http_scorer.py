"""A service as a scorer, asked over HTTP. TLS is always verified; the token is in no error, log or repr.

It is sent `{"prompts": ["...", ...], "responses": ["...", ...]}` by POST and answers with status 200 and
`{"scores": [1.5, null, ...]}`: one number per response, null where it cannot be scored.
"""

import json
import random
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx2

from common.errors import ConfigError
from common.scorer_config import HttpScorerConfig, is_loopback
from reward_service.scorers import Failure, Outcome, Reason, Text, read_scores

MAX_PAUSE_S = 60.0
"""Longest pause before a further try, whatever the server asks for."""
MAX_ANSWER_BYTES = 2**24


@dataclass(frozen=True, slots=True)
class _Passing:
    """A failure that may pass."""

    failure: Failure
    retry_after_s: float | None = None
    """What the server asks for."""


class HttpScorer:
    """Implements `Scorer`. Where a request fails, its whole batch does: the server cannot say whose fault it was.

    Args:
        config: where, how often, how long.
        client: sends the token and verifies certificates.
    """

    is_deterministic = False

    def __init__(self, config: HttpScorerConfig, client: httpx2.Client) -> None:
        self.config = config
        self.name = config.name
        self.version = config.url
        self.client = client

    @classmethod
    def from_config(cls, config: HttpScorerConfig, token: str | None) -> "HttpScorer":
        """With a client of its own; raises ConfigError if the authorities' file cannot be read or the URL is none."""
        try:
            context = ssl.create_default_context(cafile=config.ca_file) if config.ca_file else True
            host = httpx2.URL(config.url).host
        except (OSError, httpx2.InvalidURL) as error:  # ssl.SSLError is an OSError
            raise ConfigError(f"scorer {config.name}: ca_file={config.ca_file}, url={config.url}: {error}") from error
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        # Proxies of the environment serve other hosts only: what is sent to loopback shall not leave the machine.
        return cls(config, httpx2.Client(headers=headers, verify=context, trust_env=not is_loopback(host)))

    def score(self, texts: Sequence[Text], deadline: float) -> list[Outcome]:
        """See `Scorer`."""
        outcomes: list[Outcome] = []
        for first in range(0, len(texts), self.config.batch_sequences):
            batch = texts[first : first + self.config.batch_sequences]
            answer = self._batch(batch, deadline)
            outcomes += [answer] * len(batch) if isinstance(answer, Failure) else answer
        return outcomes

    def close(self) -> None:
        """Close the connections."""
        self.client.close()

    def _batch(self, texts: Sequence[Text], deadline: float) -> list[Outcome] | Failure:
        """One request, tried again as long as its failure may pass."""
        request = {"prompts": [t.prompt for t in texts], "responses": [t.response for t in texts]}
        body = json.dumps(request).encode()
        answer = self._once(body, deadline)
        for attempt in range(self.config.max_retries):
            if not isinstance(answer, _Passing):
                break
            pause = self._pause(attempt, answer.retry_after_s)
            if time.monotonic() + pause >= deadline:
                break
            time.sleep(pause)
            answer = self._once(body, deadline)
        if isinstance(answer, _Passing):
            return answer.failure
        return answer if isinstance(answer, Failure) else read_scores(self.name, answer["scores"], len(texts))

    def _pause(self, attempt: int, retry_after_s: float | None) -> float:
        """Seconds: what the server asks for, else twice as long as before, half of it random."""
        if retry_after_s is not None:
            return min(MAX_PAUSE_S, retry_after_s)
        return min(MAX_PAUSE_S, self.config.backoff_s * 2.0**attempt) * random.SystemRandom().uniform(0.5, 1.0)

    def _once(self, body: bytes, deadline: float) -> dict[str, object] | Failure | _Passing:
        """One try; an answer has `scores`."""
        limit_s = min(self.config.timeout_s, deadline - time.monotonic())
        if limit_s <= 0:
            return self._failure("reward_timeout", "the time for the chunk is up")
        end = time.monotonic() + limit_s
        try:
            with self.client.stream("POST", self.config.url, content=body, timeout=limit_s) as response:
                return self._read(response, end)
        except httpx2.TimeoutException as error:
            return _Passing(self._failure("reward_timeout", f"{type(error).__name__} after {limit_s:.3g} s"))
        except httpx2.NetworkError as error:
            failure = self._failure("reward_error", f"{type(error).__name__}: {error}")
            return failure if _is_tls(error) else _Passing(failure)
        except httpx2.RequestError as error:  # its text may quote what was sent or received
            return _Passing(self._failure("reward_error", type(error).__name__))

    def _read(self, response: httpx2.Response, end: float) -> dict[str, object] | Failure | _Passing:
        """The answer. What the server says in other words than `scores` is never quoted: it may repeat the token."""
        status = response.status_code
        if status == 429 or status >= 500:
            after = retry_after_s(response.headers.get("Retry-After"), datetime.now(UTC))
            return _Passing(self._failure("reward_error", f"HTTP status {status}"), after)
        if status != 200:
            hint = "; redirects are not followed" if response.is_redirect else ""
            return self._failure("reward_error", f"HTTP status {status}{hint}")
        received = b""
        for piece in response.iter_bytes():
            received += piece
            if len(received) > MAX_ANSWER_BYTES:
                return self._failure("reward_shape", f"the answer is longer than {MAX_ANSWER_BYTES} bytes")
            if time.monotonic() > end:
                return _Passing(self._failure("reward_timeout", "the answer came too slowly"))
        try:
            answer = json.loads(received)
        except (ValueError, RecursionError):
            return self._failure("reward_shape", "the answer is not JSON")
        if not isinstance(answer, dict) or "scores" not in answer:
            return self._failure("reward_shape", 'the answer is not of the form {"scores": [...]}')
        return answer

    def _failure(self, reason: Reason, detail: str) -> Failure:
        return Failure(reason, f"{self.config.url}: {detail}")


def retry_after_s(header: str | None, now: datetime) -> float | None:
    """Seconds that a Retry-After header asks for, given as a number or as a date; None if there is none to read."""
    if header is None:
        return None
    if header.strip().isdecimal():
        return float(header)
    try:
        date = parsedate_to_datetime(header)
    except ValueError:
        return None
    return max(0.0, (date - now).total_seconds()) if date.tzinfo is not None else None


def _is_tls(error: BaseException | None) -> bool:
    """Whether an error came of TLS: the next try would end like this one."""
    while error is not None and not isinstance(error, ssl.SSLError):
        error = error.__cause__ or error.__context__
    return error is not None
