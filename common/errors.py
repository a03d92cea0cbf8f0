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


class TooManyDropsError(MiniChatGPTError, RuntimeError):
    """The reward service could not judge so many samples that going on would make no sense; says why the last one."""


class LedgerError(MiniChatGPTError, AssertionError):
    """Samples were lost or counted twice: a bug of ours, never a user's fault."""


class NonFiniteError(MiniChatGPTError, ArithmeticError):
    """A loss, gradient or measure was NaN or infinite; the weights are as they were before the step."""


class CorruptWeightsError(NonFiniteError):
    """Weights or optimizer state are NaN or infinite themselves: nothing but loading a checkpoint mends them."""
