"""Ctrl-C, SIGTERM and SIGHUP: before the first step they end the process, then they are a flag that the loop reads."""

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType, TracebackType

NOTHING_TRAINED = "interrupted before the first step; nothing was trained"


class StopSignals:
    """While entered, the first signal raises KeyboardInterrupt, or after `hold` only sets `received`, so that a step is
    finished and saved before the end. A second one ends the process at once."""

    def __init__(self) -> None:
        self.received: int | None = None
        """The signal's number, or None."""
        self._is_held = False
        self._ends_at_once = False
        self._previous: dict[int, object] = {}

    def is_set(self) -> bool:
        """Whether the run was asked to stop."""
        return self.received is not None

    def hold(self) -> None:
        """From here on there is something to save: a signal is only noted."""
        self._is_held = True

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """In here the first signal, too, ends the process at once: for what swallows a KeyboardInterrupt."""
        self._ends_at_once = True
        try:
            yield
        finally:
            self._ends_at_once = False

    @property
    def exit_code(self) -> int:
        """128 + the signal's number, as shells have it: 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP."""
        return 128 + (self.received or signal.SIGINT)

    def __enter__(self) -> "StopSignals":
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            # `nohup` has SIGHUP ignored, and means it. That a background job has SIGINT ignored means nothing.
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what signal.signal itself returned

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None or self._ends_at_once:
            # Everything on disk is whole at every moment, so there is nothing to tidy up: leave as asked.
            _tell("Stopped at once; --resume goes on from the last checkpoint" if self._is_held else NOTHING_TRAINED)
            os._exit(128 + number)
        self.received = number
        if not self._is_held:
            raise KeyboardInterrupt
        _tell("Stopping after this step, and saving; once more stops at once, without")


def _tell(line: str) -> None:
    # Not by print: the signal may have come in the middle of one.
    with contextlib.suppress(OSError):
        os.write(2, f"\n{line}\n".encode())
