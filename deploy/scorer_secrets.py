"""The tokens of HTTP scorers, from the environment to the reward service; nothing of them is written down."""

from collections.abc import Mapping

from common.config import RunConfig
from common.errors import ConfigError


def scorer_secrets(config: RunConfig, environ: Mapping[str, str]) -> dict[str, str]:
    """Values of the environment variables that scorers name, by variable.

    Raises:
        ConfigError: one is not set, or holds what no HTTP header may; names the scorer and the variable.
    """
    secrets: dict[str, str] = {}
    for scorer in config.reward_service.scorers:
        if scorer.type != "http" or scorer.token_env is None:
            continue
        value = environ.get(scorer.token_env, "")
        named = f"scorer {scorer.name!r} sends the token in the environment variable {scorer.token_env}"
        if not value:
            raise ConfigError(
                f"{named}, which is not set; export it where the run is started (a job's: where Ray is, on the head)"
            )
        if not value.isascii() or not value.isprintable() or " " in value:
            raise ConfigError(f"{named}, which holds a space, a line break or a letter beyond ASCII; remove it")
        secrets[scorer.token_env] = value
    return secrets
