"""A secret that the configuration names by its environment variable: read by the driver, and written down nowhere."""

from collections.abc import Mapping

from common.errors import ConfigError

WHERE = "export it where the run is started (a job's: where Ray is, on the head)"
"""For errors: whose environment it is."""


def read_secret(environ: Mapping[str, str], variable: str, named: str) -> str:
    """The value of a variable.

    Args:
        environ: of the driver.
        variable: its name.
        named: how an error begins: who names the variable.

    Raises:
        ConfigError: it is not set, or holds what no HTTP header may.
    """
    value = environ.get(variable, "")
    if not value:
        raise ConfigError(f"{named}, which is not set; {WHERE}")
    if not value.isascii() or not value.isprintable() or " " in value:
        raise ConfigError(f"{named}, which holds a space, a line break or a letter beyond ASCII; remove it")
    return value
