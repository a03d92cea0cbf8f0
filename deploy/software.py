"""Versions of what runs, for metrics: looked up where packages are installed, so that nothing heavy is imported."""

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Final

PACKAGES: Final = {"version": "minichatgpt", "torch": "torch", "ray": "ray"}


def versions() -> dict[str, str]:
    """Of this project, Python, torch and Ray; `unknown` of what is not installed, but lies in the path."""
    return {"python": platform.python_version(), **{name: _version(package) for name, package in PACKAGES.items()}}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
