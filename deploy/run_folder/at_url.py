"""What a command says that reads run folders on disks, and is given a URL. Imports nothing heavy."""

import re


def is_url(where: str) -> bool:
    """Whether it is one, also where a Path has made `s3:/bucket` of `s3://bucket`."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", where) is not None


def spelt(url: str) -> str:
    """With both of its slashes."""
    return re.sub(r":/+", "://", url, count=1)


def on_disks_only(folder: str) -> str:
    """For an error: why a run folder at this URL is not read, and what to do."""
    name = folder.rpartition("/")[2]
    return (
        f"this command reads run folders on disks only. Work on a copy (`aws s3 cp --recursive {folder} runs/{name}`, "
        "then --runs runs); or ask a run that is running by --url, or its cluster by --address, where the command has "
        "them"
    )
