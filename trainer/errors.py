"""Failures that are not bugs in this project. Each has a one-line message and the exit code of the process."""


class RunError(Exception):
    """A failure the user can act on. The message is one line: what was expected, what was found, what to do next."""

    exit_code = 1


class UserError(RunError):
    """Invalid user input: a flag, a file, or a combination of them."""

    exit_code = 2


class SourceUnreachable(RunError):
    """A requested source of documents can't be read."""

    exit_code = 3


class Diverged(RunError):
    """The weights are not finite, and rolling back to a checkpoint did not help or was not possible."""

    exit_code = 4


class MachineError(RunError):
    """The machine failed: disk, memory, or a folder that is not writable."""

    exit_code = 5
