"""Failures that are not a defect of ours: each says one line to a person and carries the exit code of the process."""


class RunError(Exception):
    """A failure that a person can act on. The message is one line: what was expected, what was found, what next."""

    exit_code = 1


class UserError(RunError):
    """The user's input: a flag, a file, a combination that can't be."""

    exit_code = 2


class SourceUnreachable(RunError):
    """A source of documents that was asked for and could not be read."""

    exit_code = 3


class Diverged(RunError):
    """The model's numbers are past saving, and going back to a checkpoint did not help or was not possible."""

    exit_code = 4


class MachineError(RunError):
    """The machine: no disk, no memory, a folder that can't be written."""

    exit_code = 5
