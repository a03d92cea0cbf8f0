"""Which benchmarks there are, for the help of the command line, which loads nothing heavy; suite.py runs them."""

IN_ALL = {
    "engine": "the sampling engine beside Hugging Face's generate",
    "learner": "an update of PPO beside a plain loop",
    "reward": "a reward replica beside its bare classifier",
    "publish": "weights on their way to two workers",
    "overlap": "generation ahead of learning, beside taking turns",
    "loop": "whole updates of PPO, as `run` does them",
    "scale": "the control plane with simulated workers",
}
"""Word of the command line and what it measures, in the order of `all`."""
APART = {
    "peers": "a step of PPO beside TRL's, which it installs",
    "curves": "how fast ours and TRL's PPO learn, as a picture",
}
"""Those that are not part of `all`, for they install what is compared."""
ALL = "all"


def what_there_is() -> str:
    """One line for each, as the help shows them: lines of their own are paragraphs there."""
    lines = [*(IN_ALL | APART).items(), (ALL, f"these but {' and '.join(APART)}")]
    return "\n\n".join(f"{name}: {what}" for name, what in lines)
