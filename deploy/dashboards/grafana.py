"""A dashboard as Grafana's JSON, schema version 36 (Grafana 9 and later read it)."""

from typing import Any, Final

from deploy.dashboards.panels import Dashboard, Panel, series
from deploy.dashboards.panels import describe as describe_panel

SOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}
TAG: Final = "mini-chatgpt"
COLUMNS, HEIGHT = 24, 8
STAT_HEIGHT: Final = 4

UNKNOWN: Final = {"type": "special", "options": {"match": "nan", "result": {"text": "–", "color": "text"}}}
"""A gauge is NaN until the run knows it."""
ANNOTATIONS: Final = (
    ("Settings changed", "blue", "setting_changes", "setting"),
    ("Guard rail acted", "red", "guard_actions", "guard, action"),
    ("Member or learner restarted", "orange", "restarts", "role"),
    ("Pools resized", "green", "resizes", "role"),
)
"""Title, colour, counter, its labels."""


def to_json(dashboard: Dashboard) -> dict[str, Any]:
    """The whole document."""
    return {
        "uid": dashboard.uid,
        "title": dashboard.title,
        "description": dashboard.question,
        "tags": [TAG],
        "schemaVersion": 36,
        "version": 1,
        "editable": False,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "links": [{"title": "Mini-ChatGPT", "type": "dashboards", "tags": [TAG], "asDropdown": False,
                   "includeVars": True, "keepTime": True}],
        "templating": {"list": _variables()},
        "annotations": {"list": [_annotation(*of) for of in ANNOTATIONS]},
        "panels": _panels(dashboard),
    }  # fmt: skip


def _variables() -> list[dict[str, Any]]:
    everything = {"selected": True, "text": ["All"], "value": ["$__all"]}
    return [
        {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus", "hide": 0},
        {"name": "run", "label": "Run", "type": "query", "datasource": SOURCE, "refresh": 2, "sort": 1,
         "query": {"query": "label_values(minichatgpt_updates_total, run)", "refId": "run"},
         "multi": True, "includeAll": True, "current": everything},
    ]  # fmt: skip


def _annotation(title: str, colour: str, counter: str, labels: str) -> dict[str, Any]:
    expr = f"sum by (run, {labels}) (increase({series(counter)}[$__interval])) > 0"
    text = " ".join(f"{{{{{label}}}}}" for label in ("run", *labels.split(", ")))
    return {"name": title, "enable": True, "datasource": SOURCE, "expr": expr, "iconColor": colour,
            "titleFormat": title, "textFormat": text, "step": "10s"}  # fmt: skip


def _panels(dashboard: Dashboard) -> list[dict[str, Any]]:
    """Panels from left to right, rows from top to bottom."""
    found: list[dict[str, Any]] = []
    y = 0
    for row in dashboard.rows:
        found.append({"id": len(found) + 1, "type": "row", "title": row.title, "collapsed": False, "panels": [],
                      "gridPos": {"x": 0, "y": y, "w": COLUMNS, "h": 1}})  # fmt: skip
        x, y, height = 0, y + 1, 0
        for panel in row.panels:
            if x + panel.width > COLUMNS:
                x, y = 0, y + height
            height = STAT_HEIGHT if panel.kind == "stat" else HEIGHT
            place = {"x": x, "y": y, "w": panel.width, "h": height}
            found.append({"id": len(found) + 1, "gridPos": place, **_panel(panel)})
            x += panel.width
        y += height
    return found


def _panel(panel: Panel) -> dict[str, Any]:
    instant = panel.kind in ("stat", "table")
    targets = [
        {"refId": chr(ord("A") + i), "datasource": SOURCE, "expr": query.expr, "legendFormat": query.legend,
         "instant": instant, "range": not instant, "format": _format(panel)}
        for i, query in enumerate(panel.queries)
    ]  # fmt: skip
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": describe_panel(panel),
        "datasource": SOURCE,
        "targets": targets,
        "fieldConfig": {"defaults": _defaults(panel), "overrides": []},
        "options": _options(panel),
    }


def _format(panel: Panel) -> str:
    return {"heatmap": "heatmap", "table": "table"}.get(panel.kind, "time_series")


def _defaults(panel: Panel) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
    steps += [{"color": colour, "value": value} for value, colour in panel.steps]
    defaults: dict[str, Any] = {
        "unit": panel.unit,
        "color": {"mode": "thresholds" if panel.kind in ("stat", "state-timeline") else "palette-classic"},
        "thresholds": {"mode": "absolute", "steps": steps},
        "mappings": [
            {"type": "value", "options": {str(value): {"text": word, "color": colour, "index": i}}}
            for i, (value, word, colour) in enumerate(panel.words)
        ]
        + [UNKNOWN],
    }
    if panel.kind == "timeseries":
        defaults["custom"] = {
            "lineWidth": 1,
            "fillOpacity": 60 if panel.stacked else 5,
            "showPoints": "auto",
            "spanNulls": False,
            "stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"},
            "thresholdsStyle": {"mode": "line" if panel.steps else "off"},
        }
    return defaults


def _options(panel: Panel) -> dict[str, Any]:
    match panel.kind:
        case "timeseries":
            return {"legend": {"displayMode": "table", "placement": "bottom", "calcs": ["lastNotNull", "max"]},
                    "tooltip": {"mode": "multi", "sort": "desc"}}  # fmt: skip
        case "stat":
            return {"reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
                    "colorMode": "value", "graphMode": "none", "textMode": "auto"}  # fmt: skip
        case "heatmap":
            return {"calculate": False, "color": {"scheme": "Blues", "mode": "scheme", "steps": 64},
                    "yAxis": {"unit": panel.unit}, "cellGap": 1,
                    "tooltip": {"show": True, "yHistogram": True}}  # fmt: skip
        case "state-timeline":
            return {"mergeValues": True, "showValue": "auto", "legend": {"displayMode": "list", "placement": "bottom"}}
        case "table":
            return {"showHeader": True}
