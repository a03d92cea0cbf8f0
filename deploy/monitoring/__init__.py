"""Prometheus: where runs are found, what the metrics mean and cost."""
