"""A Python function as a scorer. It runs in a process of its own, so that it can hang, crash or leak without harm."""

import json
import time
from collections.abc import Iterator, Sequence

from common.errors import ConfigError, MemberFailedError, PhaseTimeoutError
from common.scorer_config import FunctionScorerConfig
from reward_service.host_process import HostProcess
from reward_service.scorers import Failure, Outcome, Text, read_scores


class FunctionScorer:
    """Implements `Scorer`. A batch that fails as a whole is tried again text by text: only the culprits fail.

    Args:
        config: which function, and its limits.
    """

    is_deterministic = False

    def __init__(self, config: FunctionScorerConfig) -> None:
        self.config = config
        self.name = config.name
        self.version = config.callable
        if config.arguments:
            self.version += json.dumps(config.arguments, sort_keys=True)
        self.host: HostProcess | None = None
        """None until started, and after it was killed."""

    def start(self) -> None:
        """Start the function's process; raises ConfigError, which names the import path, if that fails."""
        self.host = self._start(self.config.start_timeout_s)

    def score(self, texts: Sequence[Text], deadline: float) -> list[Outcome]:
        """See `Scorer`."""
        outcomes: list[Outcome] = []
        try:
            for first in range(0, len(texts), self.config.batch_sequences):
                outcomes.extend(self._batch(texts[first : first + self.config.batch_sequences], deadline))
        except ConfigError as error:  # the process does not start again
            is_late = isinstance(error.__cause__, PhaseTimeoutError)
            failure = Failure("reward_timeout" if is_late else "reward_error", str(error))
            outcomes += [failure] * (len(texts) - len(outcomes))
        return outcomes

    def close(self) -> None:
        """End the function's process."""
        if self.host is not None:
            self.host.kill()
            self.host = None

    def _start(self, timeout_s: float) -> HostProcess:
        return HostProcess.start(self.config.callable, self.config.arguments, timeout_s)

    def _batch(self, texts: Sequence[Text], deadline: float) -> Iterator[Outcome]:
        answer = self.ask(texts, deadline)
        if not isinstance(answer, Failure):
            yield from answer
        elif len(texts) == 1:
            yield answer
        else:
            for text in texts:
                yield from self._batch([text], deadline)

    def ask(self, texts: Sequence[Text], deadline: float) -> list[Outcome] | Failure:
        """One call of the function; raises ConfigError if its process cannot be started."""
        if self.host is not None and not self.host.is_running:  # it died between two calls: not these texts' fault
            self.close()
        if self.host is None and (left := deadline - time.monotonic()) > 0:
            self.host = self._start(min(self.config.start_timeout_s, left))
        left = deadline - time.monotonic()
        if self.host is None or left <= 0:
            return Failure("reward_timeout", "the time for the chunk is up")
        request = {"prompts": [t.prompt for t in texts], "responses": [t.response for t in texts]}
        try:
            answer = self.host.ask(request, min(self.config.timeout_s, left))
        except PhaseTimeoutError as error:
            self.host = None
            return Failure("reward_timeout", f"{self.config.callable}: {error}")
        except MemberFailedError as error:
            self.host = None
            return Failure("reward_error", f"{self.config.callable}: {error}")
        if "error" in answer:
            return Failure("reward_error", f"{self.config.callable} raised {answer['error']}")
        if "shape" in answer:
            return Failure("reward_shape", f"{self.config.callable}: {answer['shape']}")
        return read_scores(self.name, answer["scores"], len(texts))
