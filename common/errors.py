"""The errors that this project raises on purpose; each is also the builtin that a caller would expect."""


class MiniChatGPTError(Exception):
    """Root of all errors raised on purpose: the command line prints these without a stack trace."""


class ConfigError(MiniChatGPTError, ValueError):
    """The configuration cannot be run as written; the message says what was got, what is legal, what to change."""


class DataError(MiniChatGPTError, ValueError):
    """Input data are unusable; the message names the file, the row and the column where they are known."""


class WeightsMismatchError(MiniChatGPTError, RuntimeError):
    """Weights that arrived are not those that were published."""


class CheckpointError(MiniChatGPTError, RuntimeError):
    """A checkpoint is absent, incomplete or damaged; the message names the file that does not verify."""


class PhaseTimeoutError(MiniChatGPTError, TimeoutError):
    """A phase passed its deadline; the message names the role, the phase, what was needed and what was there."""


class MemberFailedError(MiniChatGPTError, RuntimeError):
    """A worker, reward replica or learner failed; the message names role, member and phase, and the cause."""


class LearnerLostError(MemberFailedError):
    """The learner died, hangs or holds corrupt weights; it can be started again from a checkpoint."""


class LearnerTimeoutError(LearnerLostError):
    """The learner has passed a deadline.

    Args:
        message: what was waited for, and how long.
        phase: the same in a word.
    """

    def __init__(self, message: str, phase: str = "") -> None:
        super().__init__(message)
        self.phase = phase


class TooManyDropsError(MiniChatGPTError, RuntimeError):
    """The reward service could not judge so many samples that going on would make no sense; says why the last one."""


class LedgerError(MiniChatGPTError, AssertionError):
    """Samples were lost or counted twice: a bug of ours, never a user's fault."""


class NonFiniteError(MiniChatGPTError, ArithmeticError):
    """A loss, gradient or measure was NaN or infinite; the weights are as they were before the step."""


class CorruptWeightsError(NonFiniteError):
    """Weights or optimizer state are NaN or infinite themselves: nothing but loading a checkpoint mends them."""


class RunInUseError(MiniChatGPTError, RuntimeError):
    """Another process works in the run folder; the message names it."""


class BenchmarkError(MiniChatGPTError, RuntimeError):
    """A benchmark cannot be carried out: what is measured beside us cannot be installed, or fails."""


class ControlError(MiniChatGPTError, RuntimeError):
    """A run cannot be reached, does not answer in time, or refuses what was asked."""


class RunEndingError(ControlError):
    """The run that was asked is about to end, and answers no more."""


class StageEndedError(ControlError):
    """The stage that was asked has ended meanwhile; the run may go on in another one."""


class RollBack(MiniChatGPTError):  # noqa: N818 an order of a guard rail, no fault
    """A guard rail wants training to go back to an earlier checkpoint and on from there with other prompts.

    Args:
        message: which guard, and what it saw.
        before_step: first update of what went wrong: the checkpoint must be older.
    """

    def __init__(self, message: str, *, before_step: int) -> None:
        super().__init__(message)
        self.before_step = before_step


class RunStopped(MiniChatGPTError):  # noqa: N818 an order carried out, no fault
    """The run ends because somebody asked for it: Ctrl-C, SIGTERM or `stop`.

    Args:
        message: what is kept and how to go on.
        reason: who asked.
        exit_code: of the process.
    """

    def __init__(self, message: str, *, reason: str, exit_code: int) -> None:
        super().__init__(message)
        self.reason = reason
        self.exit_code = exit_code
