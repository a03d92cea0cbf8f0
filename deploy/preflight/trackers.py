"""Whether the trackers that a configuration names can be used: their packages are there, and wandb's key."""

from collections.abc import Mapping

from common.config import RunConfig
from deploy.environment_secret import WHERE
from deploy.preflight.finding import Finding

KEY = "WANDB_API_KEY"


def check_trackers(config: RunConfig, environ: Mapping[str, str]) -> list[Finding]:
    """One finding for each tracker that is on.

    Args:
        config: the run.
        environ: environment variables; of the key it matters only whether it is there.
    """
    found = []
    if config.trackers.tensorboard is not None:
        found.append(_tensorboard())
    if config.trackers.wandb is not None and config.trackers.wandb.mode != "disabled":
        found.append(_wandb(config.trackers.wandb.mode, environ))
    return found


def _tensorboard() -> Finding:
    try:
        import tensorboardX
    except ImportError as error:
        return _missing("tensorboard", "tensorboardX", error)
    return Finding("trackers.tensorboard", f"tensorboardX {tensorboardX.__version__}")


def _wandb(mode: str, environ: Mapping[str, str]) -> Finding:
    try:
        import wandb
    except ImportError as error:
        return _missing("wandb", "wandb", error)
    if mode == "online" and not environ.get(KEY):
        return Finding(
            "trackers.wandb",
            failure=f'trackers.wandb.mode="online" needs the environment variable {KEY}, which is not set; {WHERE}, or '
            'set mode = "offline"',
        )
    return Finding("trackers.wandb", f"wandb {wandb.__version__}, {mode}")


def _missing(name: str, package: str, error: ImportError) -> Finding:
    return Finding(
        f"trackers.{name}",
        failure=f"trackers.{name} needs the package {package}, which cannot be imported ({error}); install it with "
        f"`pip install 'minichatgpt[{name}]'`, or remove the table [trackers.{name}]",
    )
