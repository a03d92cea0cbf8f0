"""The URL of a server that a command line names: of a run's control channel, or of Ray's dashboard. Asks nobody."""

from urllib.parse import SplitResult, urlsplit

from common.errors import ConfigError


def http_url(option: str, text: str, *, legal: str) -> SplitResult:
    """The parts of a URL with a host; path, port and TLS are left to whoever gives it.

    Args:
        option: that took it, for errors, as in `--url`.
        text: what was given.
        legal: what would have been, for errors.

    Raises:
        ConfigError: it is no such URL, or holds a user or password, which a list of processes would show.
    """
    try:
        parts = urlsplit(text)
        _ = parts.port
    except ValueError as error:
        raise ConfigError(f"{option} {text!r} is no URL: {error}; {legal}") from error
    if "@" in parts.netloc:
        raise ConfigError(f"{option} holds a user or password, which whoever lists processes sees; {legal}")
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ConfigError(f"{option} {text!r} is not of the form http://host:port or https://host; {legal}")
    return parts
