"""Writes deploy/kubernetes/monitoring/rules.yaml: the rules of deploy/prometheus/rules as a PrometheusRule, the kind
that the Prometheus Operator reads. As text, so that comments come along; a test keeps the file as this would write it.

    python -m deploy.monitoring.kubernetes_rules > deploy/kubernetes/monitoring/rules.yaml
"""

import textwrap
from pathlib import Path
from typing import Final

RULES: Final = Path(__file__).parents[1] / "prometheus" / "rules"
HEAD: Final = """\
# Written by `python -m deploy.monitoring.kubernetes_rules` from deploy/prometheus/rules; change it there.
# change: labels, if your Prometheus chooses its rules by them (kube-prometheus-stack: release: NAME)
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: minichatgpt
spec:
  groups:
"""


def as_text() -> str:
    """The whole file."""
    bodies = []
    for path in sorted(RULES.glob("*.yml")):
        _, _, groups = path.read_text(encoding="utf-8").partition("\ngroups:\n")
        bodies.append(textwrap.indent(groups.rstrip("\n") + "\n", "  "))
    return HEAD + "\n".join(bodies)


if __name__ == "__main__":
    print(as_text(), end="")
