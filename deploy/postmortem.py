"""Placeholder until the branch `preflight` is merged."""

from dataclasses import dataclass

from ray.exceptions import RayActorError


@dataclass(frozen=True, slots=True)
class MemberFacts:
    """What is known of a process."""

    role: str
    name: str
    node: str = ""
    pid: int | None = None
    phase: str = ""
    rss_bytes: int | None = None


def describe_death(error: RayActorError, member: MemberFacts) -> str:
    """In words."""
    return f"{member.role} {member.name} died in {member.phase}: {error}"
