"""The /metrics endpoint of the driver, on while PPO trains."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prometheus_client import CollectorRegistry, start_http_server
from rich.console import Console

from common.config import MetricsConfig
from common.errors import ConfigError
from deploy.run_address import announce


@contextmanager
def serve_metrics(
    config: MetricsConfig, registry: CollectorRegistry, folder: Path, console: Console
) -> Iterator[str | None]:
    """Serve the registry in a thread of its own; yields the URL, and writes it to run.json.

    Raises:
        ConfigError: the port is taken.
    """
    if not config.enabled:
        yield None
        return
    try:
        server, thread = start_http_server(config.port, addr=config.host, registry=registry)
    except OSError as error:
        raise ConfigError(
            f"metrics cannot bind {config.host}:{config.port}: {error.strerror}; set metrics.port = 0 for a free one"
        ) from error
    url = f"http://{config.host}:{server.server_port}/metrics"
    try:
        with announce(folder, metrics_url=url):
            console.print(f"[dim]metrics at {url}[/]")
            yield url
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=5)
