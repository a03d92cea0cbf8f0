"""What one check of the preflight found. A record and two ways to write numbers; no check is made here."""

from dataclasses import dataclass

_UNITS = ("bytes", "kB", "MB", "GB", "TB", "PB")


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found."""

    check: str
    """What was looked at, as in `learner on a node`."""
    measured: str = ""
    """What was there, for those who ask; may have several lines."""
    failure: str = ""
    """Why the run cannot start: what is needed, what is there, what to change. Empty where all is well."""
    caution: str = ""
    """What may still be in the way, though the run can start."""


def show_bytes(number: float) -> str:
    """`1.5 GB`, by powers of 1000."""
    for unit in _UNITS[:-1]:
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == "bytes" else f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} {_UNITS[-1]}"


def show_amount(resource: str, number: float) -> str:
    """An amount of one of Ray's resources: memory in bytes, everything else as it is counted."""
    return show_bytes(number) if resource == "memory" else f"{number:.6g}"
