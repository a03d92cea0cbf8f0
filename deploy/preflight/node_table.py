"""The nodes of a cluster as a table: where, which labels, what is free of what there is. Shown by `preflight`."""

from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from common.label_selector import NODE_ID
from deploy.preflight.finding import show_amount
from deploy.preflight.packing import NodeFacts

_HEAD = "node:__internal_head__"
_COLUMNS = ("CPU", "GPU", "memory")
_NO_CHOICE = ("node:", "object_store_memory", "accelerator_type:")
"""Resources that Ray adds itself; the kind of GPU is a label too."""


def node_table(nodes: Sequence[NodeFacts]) -> Table:
    """A row per node; columns that would be empty are left out."""
    shown = [name for name in _COLUMNS if any(node.total.get(name) for node in nodes)]
    labelled, others = any(map(_labels, nodes)), any(map(_others, nodes))
    table = Table(title=f"{len(nodes)} node{'s' * (len(nodes) != 1)}: free of total", title_justify="left")
    table.add_column("node", no_wrap=True)
    for name in shown:
        table.add_column(name, justify="right", no_wrap=True)
    for heading in ["others"] * others + ["labels"] * labelled:
        table.add_column(heading, overflow="fold")
    for node in sorted(nodes, key=lambda node: (_HEAD not in node.total, node.address)):
        cells = [_amount(name, node) for name in shown] + [_others(node)] * others + [_labels(node)] * labelled
        table.add_row(_name(node), *map(escape, cells))
    return table


def _name(node: NodeFacts) -> str:
    marks = " head" * (_HEAD in node.total) + " [red]draining[/]" * node.is_draining
    return f"{escape(node.address)} [dim]{node.node_id[:8]}[/]{marks}"


def _amount(name: str, node: NodeFacts) -> str:
    return f"{show_amount(name, node.free.get(name, 0))} of {show_amount(name, node.total.get(name, 0))}"


def _others(node: NodeFacts) -> str:
    names = sorted(name for name in node.total if name not in _COLUMNS and not name.startswith(_NO_CHOICE))
    return "\n".join(f"{name} {_amount(name, node)}" for name in names)


def _labels(node: NodeFacts) -> str:
    return "\n".join(f"{name}={value}" for name, value in sorted(node.labels.items()) if name != NODE_ID)
