"""What the run is told of the Ray cluster that it joins. Imports pydantic only."""

from typing import Annotated

from common.config_base import CHANGEABLE, Config


class ClusterConfig(Config):
    """The Ray cluster that the run joins by `--address`."""

    autoscaling: Annotated[bool, CHANGEABLE] = False
    """The cluster adds nodes when processes wait for one (KubeRay, `ray up`). What fits no node that is there is then
    a caution of the preflight, not a refusal, unless Ray says that its autoscaler has no such node to add."""
