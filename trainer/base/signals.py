"""Ctrl-C, SIGTERM and SIGHUP: before the first step they end the process; later they set a flag that the loop reads."""

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType, TracebackType

NOTHING_TRAINED = "interrupted before the first step; nothing was trained"


class StopSignals:
    """A context manager that handles stop signals.

    The first signal raises KeyboardInterrupt. After `hold`, it only sets `received`, so that the current step is
    completed and saved. A second signal ends the process immediately.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        """The signal number, or None."""
        self._is_held = False
        self._ends_at_once = False
        self._previous: dict[int, object] = {}

    def is_set(self) -> bool:
        """Return whether the run was asked to stop."""
        return self.received is not None

    def hold(self) -> None:
        """From now on there is something to save: the first signal only sets the flag."""
        self._is_held = True

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Let the first signal end the process immediately: for code that swallows a KeyboardInterrupt."""
        self._ends_at_once = True
        try:
            yield
        finally:
            self._ends_at_once = False

    @property
    def exit_code(self) -> int:
        """128 + the signal number, as in shells: 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP."""
        return 128 + (self.received or signal.SIGINT)

    def __enter__(self) -> "StopSignals":
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            # `nohup` ignores SIGHUP on purpose. Shells ignore SIGINT in background jobs, which is no such request.
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
            # Files on disk are complete at every moment, so nothing needs to be cleaned up.
            _print(
                "Stopped without saving; --resume continues from the last checkpoint"
                if self._is_held
                else NOTHING_TRAINED
            )
            os._exit(128 + number)
        self.received = number
        if not self._is_held:
            raise KeyboardInterrupt
        _print("Stopping after this step and saving; press Ctrl-C again to quit without saving")


def _print(line: str) -> None:
    # Not with print(): the signal may have interrupted another call of it.
    with contextlib.suppress(OSError):
        os.write(2, f"\n{line}\n".encode())
