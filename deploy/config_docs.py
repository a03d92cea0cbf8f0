"""docs/configuration.md, made from the declarations: `python -m deploy.config_docs > docs/configuration.md`."""

import re
import sys

from deploy.config_fields import Field, Section, sections

COMMAND = "python -m deploy.config_docs > docs/configuration.md"

_HEAD = f"""# Configuration

<!-- Made from the declarations in common/*config*.py; do not edit. To make it anew: {COMMAND} -->

Every setting of a run. A configuration is a TOML file; `--set a.b=c` changes one setting. A misspelt key is an error
that names the legal ones. `minichatgpt config show FILE` prints all of them as they are resolved, `minichatgpt config
explain FILE` what follows from them, and `minichatgpt config fields clip` looks settings up.

* **NAME** stands for a name of your choice, `[[…]]` for a list of tables.
* Where a table has a `type`, the other keys depend on it; each kind has a section of its own.
* ↻ marks settings that may differ when a run goes on or a stage is found done: they say where, how many, how long or
  how often, and change no result. Any other change runs the stages anew that depend on it.
* *required* has no default; *none* means that nothing is there.
"""


def page() -> str:
    """The whole page."""
    return "\n".join([_HEAD, _contents(), *map(_section, sections())])


def title(section: Section) -> str:
    """`[ppo.kl] type = "fixed"`; of a table that stands in many places, what they have in common."""
    names = ", ".join(_header(place) for place in section.places)
    if len(section.places) > 2:
        names = f"[….{section.places[0].rpartition('.')[2]}]"
    return f'{names} type = "{section.tag}"' if section.tag else names


def _header(place: str) -> str:
    if not place:
        return "Top level"
    return f"[[{place.removesuffix('[]')}]]" if place.endswith("[]") else f"[{place}]"


def _contents() -> str:
    lines = [f"* [`{title(section)}`](#{_anchor(section)}): {_first_sentence(section)}" for section in sections()]
    return "\n".join([*lines, ""])


def _first_sentence(section: Section) -> str:
    return re.split(r"\. (?=[A-Z])", section.meaning)[0].rstrip(".")


def _anchor(section: Section) -> str:
    """One of our own, for those that are made from titles differ between renderers."""
    place = section.places[0] or "top"
    return "-".join(part for part in (place.replace(".", "-").replace("[]", ""), section.tag) if part).lower()


def _section(section: Section) -> str:
    rows = "\n".join(_row(field, section) for field in section.fields)
    table = f"| setting | type | default | meaning |\n|---|---|---|---|\n{rows}\n" if section.fields else ""
    places = f"Stands at {', '.join(f'`{_header(p)}`' for p in section.places)}.\n\n" if len(section.places) > 2 else ""
    return f'<a id="{_anchor(section)}"></a>\n## `{title(section)}`\n\n{section.meaning}\n\n{places}{table}'


def _row(field: Field, section: Section) -> str:
    default = field.default if field.default in ("required", "none", "its own defaults") else f"`{field.default}`"
    default = f"*{default}*" if default in ("required", "none") else default
    mark = " ↻" if field.may_change else ""
    cells = (f"`{field.name}`{mark}", _linked(field, section), default, field.meaning)
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _linked(field: Field, section: Section) -> str:
    """The type, its tables linked to their sections."""
    place = f"{section.places[0]}.{field.name}".removeprefix(".")
    inner = [s for s in sections() if {place, f"{place}.NAME", f"{place}[]"} & set(s.places)]
    words = field.type
    for one in inner:
        name = f"`{one.tag}`" if one.tag else "table"
        words = words.replace(name, f"[{name}](#{_anchor(one)})", 1)
    return words


if __name__ == "__main__":
    sys.stdout.write(page())
