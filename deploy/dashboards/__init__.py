"""The Grafana dashboards, written as Python and committed as JSON: `python -m deploy.dashboards` writes them anew."""
