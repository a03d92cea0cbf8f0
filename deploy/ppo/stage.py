"""The PPO stage: from its inputs to what it leaves in the run folder."""

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.progress import Progress

from actors.prompt_texts import build_prompts
from common.ports import Evaluations
from common.records import ModelPaths, StageResult
from common.run_place import LISTS, copies
from common.text import load_tokenizer
from deploy.evaluation.evaluations import BEFORE, Heldout, HeldoutEvaluations, NoEvaluations, heldout_of
from deploy.place import Place
from deploy.ppo.beginning import Beginning
from deploy.ppo.listeners import Listeners
from deploy.ppo.recorder import RunRecorder
from deploy.ppo.run import PPORun, ppo_run
from deploy.ppo.settings_journal import FILE
from deploy.progress import progress
from deploy.run_folder.event_log import EventLog
from deploy.runtime import Members
from deploy.tracking.trackers import Trackers, build_trackers, tracked_run


def ppo_stage(place: Place, beginning: Beginning, models: ModelPaths) -> StageResult:
    """Run PPO from the policy at `models.policy`; leaves models/ppo, metrics, samples, trajectories, checkpoints."""
    config, folder, console = place.config, place.folder, place.console
    assert config.ppo is not None, "the pipeline runs the stages that the configuration names"
    start = time.monotonic()
    _make_room(folder, beginning)
    if beginning.step >= config.ppo.updates:
        console.print(f"ppo: all {config.ppo.updates} updates are done already; nothing more is trained")
    metrics = place.metrics
    with ExitStack() as stack:
        with place.drawn("prompts"):
            prompts, heldout = build_prompts(config, models), heldout_of(config, models)
        if prompts.num_too_long:
            console.print(
                f"ppo: {prompts.num_too_long} prompts of demonstrations are left out, for they have more than "
                f"ppo.prompt_tokens.max = {config.ppo.prompt_tokens.max} tokens"
            )
        members = stack.enter_context(place.runtime.members(config, models, folder, place.stop))
        bar = stack.enter_context(progress(console))
        task = bar.add_task("ppo", total=config.ppo.updates, completed=beginning.step, message="starting")
        log = EventLog(folder, bar.console, count=metrics.event)
        trackers = stack.enter_context(_trackers(place, log, is_evaluated=heldout is not None))
        run = stack.enter_context(
            ppo_run(place, beginning, members, metrics=metrics, prompts=prompts, log=log, went_back=trackers.go_back_to)
        )
        started = time.monotonic()
        listeners = Listeners(run.guards, trackers)
        recorder = RunRecorder(
            folder,
            tokenizer=load_tokenizer(models.policy),
            ledger=run.supervisor.ledger,
            metrics=metrics,
            watch=members.watch,
            pulse=run.supervisor.lookout.pulse,
            settings=lambda: run.steering.in_force,
            saw=run.writer.saw,
            track=listeners.updated,
            cycled=run.cycled,
            note=log.write,
            bar=(bar, task),
        )
        evaluations = _evaluations(place, heldout, models, members, run, track=listeners.evaluated, log=log, bar=bar)
        run.train(recorder, evaluations)
        trained = time.monotonic()
        run.learner.export(folder / "models" / "ppo")
        result = run.result() | ({"prompts_too_long": prompts.num_too_long} if prompts.num_too_long else {})
    seconds = {"start": started - start, "train": trained - started, "export": time.monotonic() - trained}
    return StageResult(result, seconds)


def _evaluations(
    place: Place,
    heldout: Heldout | None,
    models: ModelPaths,
    members: Members,
    run: PPORun,
    *,
    track: Callable[[Mapping[str, Any]], None],
    log: EventLog,
    bar: Progress,
) -> Evaluations:
    """Those while PPO learns, if any are wanted."""
    if heldout is None:
        return NoEvaluations()
    return HeldoutEvaluations(
        place,
        heldout,
        supervisor=run.supervisor,
        transport=members.transport,
        weights_before=lambda: members.weights_of(models.policy, BEFORE),
        metrics=place.metrics,
        watch=members.watch,
        track=track,
        note=log.write,
        console=bar.console,
    )


def _trackers(place: Place, log: EventLog, *, is_evaluated: bool) -> Trackers:
    config = place.config
    every = config.evaluate.every_updates if config.evaluate is not None and is_evaluated else 0
    return Trackers(
        build_trackers(config),
        tracked_run(config, place.folder),
        note=log.write,
        evaluates=lambda step: every > 0 and step % every == 0,
    )


def _make_room(folder: Path, beginning: Beginning) -> None:
    """Remove what an earlier attempt left; all of it where PPO starts from its beginning."""
    stale = [f"{LISTS}/models/ppo.json", "models/ppo", "summary.json"]
    clear_samples(folder, heldout=True)
    if beginning.checkpoint is None:
        beginning.store.clear()
        clear_samples(folder, heldout=False)
        stale += ["metrics.jsonl", "evaluations.jsonl", "trajectories", "trackers.json", "tensorboard"]
    if beginning.anew:
        stale += ["events.jsonl", "logs", "ledger.json", FILE]
    for place in copies(folder):
        for name in stale:
            place.remove(name)


def clear_samples(folder: Path, *, heldout: bool) -> None:
    """Remove evaluation's lines of samples.jsonl, or PPO's: the other stage may be done and not run again. A last line
    that was cut short goes too.
    """
    path = folder / "samples.jsonl"
    if path.is_file():
        lines = path.read_bytes().splitlines(keepends=True)  # of text, it would part lines at what a model may write
        kept = (line for line in lines if line.endswith(b"\n") and line.startswith(b'{"kind": "heldout"') != heldout)
        path.write_bytes(b"".join(kept))
