"""What the tests of monitoring share: Debian's programs, where they are installed."""

import shutil

import pytest


@pytest.fixture(scope="session")
def tool():
    """Path of a program; skips the test where it is not installed, as `.ci/run` does as root on Debian."""

    def find(name):
        path = shutil.which(name)
        if path is None:
            pytest.skip(f"{name} is not installed: apt-get install prometheus prometheus-alertmanager")
        return path

    return find
