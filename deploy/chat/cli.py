"""The command `minichatgpt chat`. Imports what is heavy after parsing."""

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from deploy.control.cli import RunsOption

app = typer.Typer(rich_markup_mode="rich")


class PolicyChoice(StrEnum):
    """Stages of a run that leave a policy."""

    pretrained = "pretrained"
    sft = "sft"
    ppo = "ppo"


class DeviceChoice(StrEnum):
    """Where to compute."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


EXAMPLES = """
[bold]Examples[/]

  minichatgpt chat demo                                    the newest policy of runs/demo, also while it trains

  minichatgpt chat demo --model sft                        the policy before PPO; or --checkpoint 10, latest, best

  minichatgpt chat HuggingFaceTB/SmolLM2-135M-Instruct     any model of the hub, or a folder with one

  minichatgpt chat demo --prompt "the film" --seed 1 --score --json

  cat prompts.txt | minichatgpt chat demo --json > answers.jsonl

[bold]While you talk[/]

  /help lists the commands: /retry, /more, /score, /compare, /set temperature 0.7, /system TEXT, /clear, /quit

  Ctrl-C ends the answer; a second one, /quit or Ctrl-D ends the talk

[bold]Exit codes[/]

  0    the talk is over, or every prompt is answered

  1    an error; the message says what to change

  2    the command line is not understood

  130  ended by Ctrl-C
"""


@app.command(epilog=EXAMPLES)
def chat(
    name: Annotated[
        str, typer.Argument(metavar="RUN_OR_MODEL", help="Name of a run or its folder; a model's folder or hub name.")
    ],
    model: Annotated[
        PolicyChoice | None, typer.Option("--model", help="Of a run: which stage's policy; else the newest.")
    ] = None,
    checkpoint: Annotated[
        str | None, typer.Option(metavar="STEP", help="Of a run: the policy after STEP updates, or latest, or best.")
    ] = None,
    prompts: Annotated[
        list[str] | None, typer.Option("--prompt", metavar="TEXT", help="Answer this and end; may be repeated.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per prompt, for programs.")] = False,
    with_score: Annotated[
        bool, typer.Option("--score", help="With --prompt or a pipe: what the run's reward model and judge say, too.")
    ] = False,
    is_chat: Annotated[
        bool | None,
        typer.Option("--chat/--complete", help="A conversation, or go on with the text. Default: as PPO was asked."),
    ] = None,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="System message of a conversation.")] = None,
    temperature: Annotated[
        float | None, typer.Option(metavar="T", help="0: the likeliest token. Default: as in the run's PPO, or 0.8.")
    ] = None,
    top_p: Annotated[float | None, typer.Option(metavar="P", help="Draw from the likeliest tokens of mass P.")] = None,
    max_tokens: Annotated[
        int | None, typer.Option(metavar="N", help="Of an answer. Default: as in the run's PPO, or 256.")
    ] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="The same seed gives the same answers.")] = None,
    device: Annotated[DeviceChoice, typer.Option(help="auto: the GPU where there is one.")] = DeviceChoice.auto,
    runs: RunsOption = Path("runs"),
) -> None:
    """Talk with a policy: in a conversation, or it goes on with what you write.

    Of a run, as the prompts of its PPO were; of a model, a conversation if it has a chat template.

    With --prompt, or lines from a pipe, each is answered by itself.
    """
    from deploy.chat.launch import ChatRequest, launch_chat

    settings = {"temperature": temperature, "top_p": top_p, "max_tokens": max_tokens, "seed": seed}
    request = ChatRequest(
        name=name,
        runs=runs,
        model=None if model is None else model.value,
        checkpoint=checkpoint,
        prompts=tuple(prompts or ()),
        as_json=as_json,
        with_score=with_score,
        is_chat=is_chat,
        system=system,
        settings={key: value for key, value in settings.items() if value is not None},
        device=device.value,
        environ=os.environ,
    )
    launch_chat(request)
