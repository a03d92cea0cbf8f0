"""The tokens of HTTP scorers, from the environment to the reward service; nothing of them is written down."""

from collections.abc import Mapping

from common.config import RunConfig
from deploy.environment_secret import read_secret


def scorer_secrets(config: RunConfig, environ: Mapping[str, str]) -> dict[str, str]:
    """Values of the environment variables that scorers name, by variable.

    Raises:
        ConfigError: one is not set, or holds what no HTTP header may; names the scorer and the variable.
    """
    secrets: dict[str, str] = {}
    for scorer in config.reward_service.scorers:
        if scorer.type != "http" or scorer.token_env is None:
            continue
        named = f"scorer {scorer.name!r} sends the token in the environment variable {scorer.token_env}"
        secrets[scorer.token_env] = read_secret(environ, scorer.token_env, named)
    return secrets
