"""Failures that are not bugs in our code. Each has a message of one line and the exit code of the process."""


class RunError(Exception):
    """A failure that the user can act on. The message is one line: what was expected, what was found, what to do."""

    exit_code = 1


class UserError(RunError):
    """Invalid input of the user: a flag, a file, or a combination of them."""

    exit_code = 2


class SourceUnreachable(RunError):
    """The requested source of documents can't be read."""

    exit_code = 3


class Diverged(RunError):
    """The weights are not finite, and rolling back to a checkpoint did not help or was not possible."""

    exit_code = 4


class MachineError(RunError):
    """The machine failed: no disk space, no memory, or a folder that can't be written."""

    exit_code = 5
