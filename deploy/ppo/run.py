"""One run of PPO: learner, pools, checkpoints and controls wired together, trained through losses, ended cleanly."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from types import TracebackType
from typing import Any, Literal

from actors.prompts import PromptStream
from common.errors import CheckpointError, MiniChatGPTError, RunStopped
from common.metrics import RunMetrics
from common.ports import Evaluations, Recorder
from common.records import Identity
from common.supervision import Ledger, RestartBudget
from deploy.autoscaler.autoscaler import Autoscaler, build_autoscaler
from deploy.guards.rails import GuardRails
from deploy.place import Place
from deploy.ppo.beginning import Beginning, newest_whole
from deploy.ppo.brake import Brake
from deploy.ppo.checkpoint_writer import CheckpointWriter
from deploy.ppo.controls import PPOControls
from deploy.ppo.pools import supervised
from deploy.ppo.pulse import Cycle
from deploy.ppo.recovery import Lineages, Recovery
from deploy.ppo.settings_journal import FILE
from deploy.ppo.steering import Steering, open_journal
from deploy.ppo.stream import draws_used
from deploy.ppo.supervisor import Supervisor
from deploy.run_folder.event_log import EventLog
from deploy.run_folder.files import read_json
from deploy.runtime import HostedLearner, Members
from learner.loop import train


class PPORun:
    """What is alive while PPO trains.

    Args:
        place: where it runs.
        supervisor: source of samples.
        learner: owner of the weights.
        writer: of checkpoints.
        recovery: goes back to a checkpoint.
        steering: settings and pause between updates.
        guards: guard rails of learning, which stand before it.
        autoscaler: asks for more or fewer workers; None: nobody does of itself.
        anew: whether `--again ppo` was given, which must be left out to go on.
    """

    def __init__(
        self,
        place: Place,
        *,
        supervisor: Supervisor,
        learner: HostedLearner,
        writer: CheckpointWriter,
        recovery: Recovery,
        steering: Steering,
        guards: GuardRails,
        autoscaler: Autoscaler | None,
        anew: bool,
    ) -> None:
        assert place.config.ppo is not None, "the pipeline runs the stages that the configuration names"
        self.place = place
        self.ppo = place.config.ppo
        self.supervisor = supervisor
        self.learner = learner
        self.writer = writer
        self.recovery = recovery
        self.steering = steering
        self.guards = guards
        self.autoscaler = autoscaler
        self.anew = anew

    def train(self, recorder: Recorder, evaluations: Evaluations) -> None:
        """Run the loop to its end.

        Raises:
            MiniChatGPTError: it could not; a note of the error says which checkpoint is kept.
            RunStopped: somebody wanted the end; the message says what is kept.
        """

        def loop() -> None:
            train(
                learner=self.learner,
                rollouts=self.supervisor,
                recorder=recorder,
                steering=self.guards,
                evaluations=evaluations,
                checkpoints=self.writer,
                config=self.ppo,
            )

        with Rescue(self):
            self.recovery.train(loop)

    def cycled(self, cycle: Cycle) -> None:
        """An update is recorded."""
        if self.autoscaler is not None:
            self.autoscaler.updated(cycle)

    def rescue(self) -> str:
        """Write a checkpoint of the last update if there is none yet; says in words what is kept, and never raises."""
        done = f"stopped after update {self.learner.step} of {self.ppo.updates}. "
        try:
            self.supervisor.abandon()
            self.writer.settle()  # one may be on its way
            newest = self.writer.newest
            if self.learner.step > (newest.step if newest is not None else 0):
                if not self._is_booked():
                    return done + "The samples of that update are not booked, so that it is done again. " + self._kept()
                self.writer.save(self.learner, self.supervisor)
                self.writer.wait()
        except (MiniChatGPTError, OSError, RuntimeError) as error:
            done += f"A checkpoint of it could not be written: {error}. "
        return done + self._kept()

    def _is_booked(self) -> bool:
        """Whether the ledger knows of the last update: not where the supervisor ended while it was computed."""
        trained: int = self.supervisor.state_dict()["ledger"]["trained"]
        return trained == self.learner.step * self.ppo.trajectories_per_update

    def _kept(self) -> str:
        """From where the same command would go on."""
        try:
            kept = newest_whole(self.recovery.store, lambda message: None)
        except CheckpointError as error:
            return f"Nothing can be gone on from: {error}"
        if kept is None:
            return "There is no checkpoint: the same command starts PPO from its beginning"
        without = ", without --again ppo," if self.anew else ""
        return f"Checkpoint {kept.name} is kept; the same command{without} goes on from it"

    def result(self) -> dict[str, Any]:
        """What the stage's record says."""
        config, ledger = self.place.config, self.supervisor.ledger()
        pools = self.supervisor.describe()
        return {
            "updates": self.learner.step,
            "trajectories": ledger.trained,
            "ledger": ledger.as_dict(),
            "lineage": self.recovery.lineages.lineage,
            "members": {slot["name"]: slot["described"] for pool in pools.values() for slot in pool["slots"]}
            | {"learner": self.learner.described},
            "runtime": self.place.runtime.name,
            "threads": {
                "rollout": config.rollout.num_threads,
                "reward_service": config.reward_service.num_threads,
                "learner": config.learner.num_threads,
            },
        }


class Rescue:
    """Context manager: whatever ends the block, what was trained is saved, and the error says what is kept.

    A second Ctrl-C, which is no Exception, ends it at once.
    """

    def __init__(self, run: PPORun) -> None:
        self._run = run

    def __enter__(self) -> None:
        """Nothing is needed before."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> Literal[False]:
        if isinstance(error, RunStopped):
            message = f"{error.reason}: {self._run.rescue()}"
            raise RunStopped(message, reason=error.reason, exit_code=error.exit_code) from error
        if isinstance(error, Exception):
            kept = self._run.rescue()
            error.add_note(kept[:1].upper() + kept[1:])
        return False


@contextmanager
def ppo_run(
    place: Place,
    beginning: Beginning,
    members: Members,
    *,
    metrics: RunMetrics,
    prompts: PromptStream,
    log: EventLog,
    went_back: Callable[[int], None],
) -> Iterator[PPORun]:
    """Start the pools, go on from the checkpoint where there is one, and answer the control channel."""
    config, learner = place.config, members.learner
    assert config.ppo is not None, "the pipeline runs the stages that the configuration names"
    assert learner is not None, "training has a learner"
    lineages, ledger = _latest(place, beginning)
    identity = Identity(lineages.lineage, beginning.step)
    metrics.began(identity, config.ppo.updates, max_staleness=config.ppo.max_staleness)
    with ExitStack() as stack:
        supervisor = stack.enter_context(
            supervised(
                place, members, prompts=prompts, metrics=metrics, ledger=ledger, note=log.note, keep=lineages.keep
            )
        )
        writer = stack.enter_context(closing(_writer(place, beginning, metrics, log)))
        lineages.newest = lambda: writer.newest
        steering = _steering(place, members, step=beginning.step, supervisor=supervisor, writer=writer,
                             lineages=lineages, metrics=metrics, log=log)  # fmt: skip
        guards = GuardRails(config, place.folder, steering=steering, metrics=metrics, note=log.write)

        def forget_later(step: int) -> None:
            steering.go_back_to(step)
            guards.go_back_to(step)
            went_back(step)

        recovery = Recovery(
            learner=learner,
            supervisor=supervisor,
            steering=steering,
            store=beginning.store,
            writer=writer,
            lineages=lineages,
            budget=RestartBudget(config.learner.max_restarts, config.learner.restart_window_s),
            folder=place.folder,
            metrics=metrics,
            went_back=forget_later,
            note=log.write,
            stop=place.stop,
            first=beginning.checkpoint,
            first_checkpoint=config.ppo.checkpoint_every,
        )
        controls = PPOControls(place, supervisor=supervisor, learner=learner, writer=writer, watch=members.watch,
                               recovery=recovery, steering=steering, guards=guards, log=log)  # fmt: skip
        autoscaler = build_autoscaler(place, controls, note=log.write)
        if autoscaler is not None:
            controls.autoscaler = autoscaler.status
        stack.enter_context(place.controls.attached(controls))
        yield PPORun(place, supervisor=supervisor, learner=learner, writer=writer, recovery=recovery,
                     steering=steering, guards=guards, autoscaler=autoscaler, anew=beginning.anew)  # fmt: skip


def _writer(place: Place, beginning: Beginning, metrics: RunMetrics, log: EventLog) -> CheckpointWriter:
    """Of checkpoints, after the one that the run goes on from."""
    config = place.config
    assert config.ppo is not None, "the pipeline runs the stages that the configuration names"
    return CheckpointWriter(
        beginning.store,
        config.ppo,
        settings=lambda: beginning.settings,
        save_timeout_s=config.learner.save_timeout_s,
        warn=lambda text: log.write("checkpoint_failed", text),
        metrics=metrics,
        newest=beginning.checkpoint,
        before_commit=place.send,
    )


def _steering(
    place: Place,
    members: Members,
    *,
    step: int,
    supervisor: Supervisor,
    writer: CheckpointWriter,
    lineages: Lineages,
    metrics: RunMetrics,
    log: EventLog,
) -> Steering:
    """Settings as an earlier attempt left them, and a brake behind which checkpoints are still written."""
    ppo, learner = place.config.ppo, members.learner
    assert ppo is not None, "the pipeline runs the stages that the configuration names"
    assert learner is not None, "training has a learner"
    return Steering(
        ppo,
        open_journal(ppo, place.folder, log.write),
        place.folder / FILE,
        brake=Brake(
            watch=members.watch,
            stop=place.stop,
            is_asked=writer.is_asked,
            save=lambda: writer.save(learner, supervisor),
            told=metrics.paused,
        ),
        step=step,
        draw=lambda: draws_used(supervisor.state_dict()),
        lineage=lambda: lineages.lineage,
        told=metrics,
        note=log.write,
    )


def _latest(place: Place, beginning: Beginning) -> tuple[Lineages, Ledger]:
    """Lineage and ledger of the last attempt: of ledger.json, which is newer than any checkpoint, if it is there."""
    path, ledger, lineage = place.folder / "ledger.json", Ledger(), 0
    if beginning.checkpoint is not None:
        state: Any = beginning.store.read_state(beginning.checkpoint)["rollouts"]
        ledger, lineage = Ledger.of(state["ledger"]), beginning.store.next_lineage() - 1
    if path.is_file():
        saved = read_json(path)
        latest = Ledger.of(saved["ledger"])
        if latest.dispatched >= ledger.dispatched:
            ledger, lineage = latest, max(lineage, int(saved["lineage"]))
    return Lineages(path, lineage), ledger
