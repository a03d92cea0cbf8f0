"""Writes deploy/grafana/dashboards/*.json; a test keeps them as this would write them."""

import json
from pathlib import Path
from typing import Final

from deploy.dashboards.grafana import to_json
from deploy.dashboards.learning import LEARNING
from deploy.dashboards.reliability import RELIABILITY
from deploy.dashboards.reward import REWARD
from deploy.dashboards.throughput import THROUGHPUT
from deploy.dashboards.workers import WORKERS

FOLDER: Final = Path(__file__).parents[1] / "grafana" / "dashboards"
DASHBOARDS: Final = (LEARNING, THROUGHPUT, WORKERS, REWARD, RELIABILITY)


def documents() -> dict[str, str]:
    """Text by name of file."""
    return {
        dashboard.uid.removeprefix("mini-chatgpt-") + ".json": json.dumps(to_json(dashboard), indent=1) + "\n"
        for dashboard in DASHBOARDS
    }


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, text in documents().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
