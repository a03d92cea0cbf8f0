"""Whether the functions that score can be imported, take their arguments, and score the replicas' probe text.

Each is started as a replica would start it, in a process of its own: the driver imports none of a user's code.
"""

import time

from common.config import RunConfig
from common.errors import ConfigError
from common.scorer_config import FunctionScorerConfig
from deploy.preflight.finding import Finding
from reward_service.function_scorer import FunctionScorer
from reward_service.mixture import PROBE
from reward_service.scorers import Failure, Outcome, Text, checked

SECOND = Text("The plot", " is thin.", "The plot is thin.")


def check_scorers(config: RunConfig, *, may_differ: bool) -> list[Finding]:
    """Try every function scorer on the probe text, once.

    Args:
        config: the run.
        may_differ: replicas may run on other machines than this one, where other packages are installed: what fails
            here is told, and need not fail there.
    """
    if config.ppo is None:
        return []
    scorers = [scorer for scorer in config.reward_service.scorers if isinstance(scorer, FunctionScorerConfig)]
    return [_check(scorer, may_differ) for scorer in scorers]


def _check(scorer: FunctionScorerConfig, may_differ: bool) -> Finding:
    name = f"scorer {scorer.name}"
    start = time.perf_counter()
    try:
        outcome = _score_probe(scorer)
    except ConfigError as error:
        failure = str(error)
    else:
        if not isinstance(outcome, Failure):
            seconds = time.perf_counter() - start
            return Finding(name, f"{scorer.callable} scores the probe text {outcome.value:g}, in {seconds:.1f} s")
        failure = (
            f"the probe text {PROBE.whole!r} cannot be scored: {outcome.reason}: {outcome.detail}; a scorer must give "
            "it one finite number, or no replica can start"
        )
    if may_differ:
        return Finding(name, f"not on this machine, and so perhaps not where replicas run: {failure}")
    return Finding(name, failure=f"{name}: {failure}")


def _score_probe(scorer: FunctionScorerConfig) -> Outcome:
    """What a replica would be told; raises ConfigError if the function's process cannot be started."""
    function = FunctionScorer(scorer)
    try:
        function.start()
        outcome = checked(function.score([PROBE], time.monotonic() + scorer.timeout_s)[0])
        if isinstance(outcome, Failure) or scorer.batch_sequences == 1:
            return outcome
        both = function.ask([PROBE, SECOND], time.monotonic() + scorer.timeout_s)  # as `score` does, but not one by one
        if isinstance(both, Failure) and both.reason == "reward_shape":
            raise ConfigError(f"{scorer.callable}, asked for two texts: {both.detail}; give each one number")
        return outcome
    finally:
        function.close()
