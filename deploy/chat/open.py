"""From a name to a policy: the name of a run, its folder, a model's folder, or a model on the hub."""

from dataclasses import dataclass
from pathlib import Path

from actors.chat import Sampling
from common.errors import ConfigError
from common.gguf_file import MAGIC
from common.modeling import load_policy
from common.text import load_tokenizer
from deploy.run_folder.address import runs_near
from deploy.run_folder.at_url import is_url, on_disks_only, spelt
from deploy.run_folder.files import read_json
from deploy.run_folder.models import Policy, PolicyName, RunModels

RUN, MODEL = "config.toml", "config.json"
"""By which file the folder of a run, and of a model, is known."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A policy, the run that it belongs to if any, and how answers are drawn where nobody says otherwise."""

    policy: Policy
    run: RunModels | None
    sampling: Sampling


def open_policy(name: str, runs: Path, *, model: PolicyName | None, checkpoint: str | None) -> Opened:
    """Load what is named.

    Args:
        name: of a run, or a folder, or of a model on the hub.
        runs: where run folders are.
        model: of a run: which stage's.
        checkpoint: of a run: `latest`, `best`, or the number of its updates.

    Raises:
        ConfigError: there is no such thing, or it is no policy; says what there is.
        CheckpointError: the checkpoint is not there, or damaged.
    """
    if model is not None and checkpoint is not None:
        raise ConfigError(f"--model {model} and --checkpoint {checkpoint} name two policies; leave one of them out")
    if is_url(name):
        raise ConfigError(f"{spelt(name)}: {on_disks_only(spelt(name))}")
    _refuse_gguf(Path(name))
    folder = find_local(name, runs)
    if folder is None or not (folder / RUN).is_file():
        if model is not None or checkpoint is not None:
            raise ConfigError(f"{name} is no run in {runs}, so it has neither stages (--model) nor checkpoints")
        return Opened(_plain(name if folder is None else str(folder), runs), None, Sampling())
    run = RunModels(folder)
    if checkpoint is not None:
        policy = run.checkpoint(checkpoint)
    else:
        policy = run.newest() if model is None else run.named(model)
    return Opened(policy, run, _as_in_ppo(run))


def find_local(name: str, runs: Path) -> Path | None:
    """The folder of a run or of a model; None where the name can only be one of the hub's.

    Raises:
        ConfigError: there is such a folder, and it is neither.
    """
    folders = [folder for folder in (Path(name), runs / name) if folder.is_dir()]
    for folder in folders:
        if (folder / RUN).is_file() or (folder / MODEL).is_file():
            return folder
    if folders:
        raise ConfigError(f"{folders[0]} is neither a run (it has no {RUN}) nor a model (it has no {MODEL})")
    return None


def _refuse_gguf(path: Path) -> None:
    if not path.is_file():
        return
    with path.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise ConfigError(f"{path} is a file; name a run, or the folder of a model")
    raise ConfigError(
        f"{path} is a GGUF file, which can be talked with once it is unpacked: `minichatgpt run` does so for a "
        f'configuration with [model] type = "gguf" and path = "{path}", then take `minichatgpt chat RUN '
        "--model pretrained`; without a run, see docs/chat.md"
    )


def _as_in_ppo(run: RunModels) -> Sampling:
    """As the run's rollout workers sample."""
    ppo = run.config.ppo
    return Sampling() if ppo is None else Sampling(temperature=ppo.temperature, max_tokens=ppo.response_tokens.max)


def _plain(name: str, runs: Path) -> Policy:
    """A model that belongs to no run."""
    config = Path(name) / MODEL
    architectures: list[str] = (read_json(config).get("architectures") if config.is_file() else None) or []
    if classifiers := [architecture for architecture in architectures if "Classif" in architecture]:
        raise ConfigError(f"{name} is a classifier ({classifiers[0]}), and classifiers do not speak; name a policy")
    try:
        policy, tokenizer = load_policy(name), load_tokenizer(name)
    except ConfigError as error:
        error.add_note(f"It is no run either; {runs_near(name, runs)}")
        raise
    words = f"{type(policy).__name__} of {policy.num_parameters():,} parameters"
    return Policy(words, False, policy, tokenizer, name)
