"""Read one file of a Hub dataset, one request at a time, and retry until the source has been silent for too long.

`HfFileSystem` can't be used here: it retries six times with its own pauses and does not report them, discards what
arrived before a response broke off, caches "not found" forever, and lists a folder before it opens a file.
"""

import io
import random
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from trainer.errors import SourceUnreachable

HUB = "hf://datasets/"
BLOCK_BYTES = 4 << 20
PROGRESS_BYTES = 1 << 18
"""A source that delivered this much is reachable again: the pauses start over at the shortest one."""
POLL_SECONDS = 0.1
TRIES_FOR_A_COMMIT = 4
""""Not found" responses after which a commit counts as deleted."""


class Stopped(Exception):
    """`should_stop` returned true while waiting for a source."""


class EventFailed(Exception):
    """`on_event` raised an OSError (the cause). Any other OSError here is a network failure, which is retried."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryTiming:
    """When a request is given up and sent again, in seconds."""

    first_pause: float = 1.0
    """Each pause is twice as long as the one before, up to `longest_pause`."""
    longest_pause: float = 60.0
    stall: float = 30.0
    """A response that sends no byte for this long is given up."""


class Patience:
    """Tracks how long a source has been silent, and waits before each retry. Not thread-safe."""

    def __init__(
        self,
        name: str = "the source",
        max_stall: float = 0.0,
        *,
        where: Callable[[], str] = lambda: "",
        on_event: Callable[[str, str], None] = lambda kind, detail: None,
        should_stop: Callable[[], bool] = lambda: False,
        timing: RetryTiming = RetryTiming(),
    ) -> None:
        """
        Args:
            name: the source's name in messages.
            max_stall: seconds without progress before the source counts as lost.
            where: returns what is being read, for the events.
            on_event: called with ("retry", what failed and when the next attempt follows) in the waiting thread.
            should_stop: checked while waiting.
            timing: pauses between attempts.
        """
        self.failures = 0
        """Failed attempts since the last progress."""
        self.timing = timing
        self._name = name
        self._max_stall = max_stall
        self._where = where
        self._on_event = on_event
        self._should_stop = should_stop
        self._since = time.monotonic()

    def progress(self) -> None:
        """Restart the clock: data arrived, or data that arrived were processed."""
        self.failures, self._since = 0, time.monotonic()

    def left(self) -> float:
        """Return the seconds until the source counts as lost."""
        return self._max_stall - (time.monotonic() - self._since)

    def check(self) -> None:
        """Raise Stopped if `should_stop` returns true, TimeoutError if the time is up."""
        if self._should_stop():
            raise Stopped
        if self.left() <= 0:
            raise TimeoutError("no response in time")

    def wait(self, error: Exception) -> None:
        """Wait before the next attempt: about 1, 2, 4 … 60 seconds, or as long as the Hub asks for.

        Raises SourceUnreachable if there has been no progress for too long, Stopped if `should_stop` returns true, and
        EventFailed.
        """
        left = self.left()
        if left <= 0:
            raise SourceUnreachable(
                f"{self._name} delivered no document for {self._max_stall - left:.0f} s: {reason_of(error)}. "
                "Continue later with --resume"
            ) from error
        # Random, so that many runs do not return at the same instant. Drawing from the global generator would change
        # what the model learns.
        spread = random.SystemRandom().uniform(0.8, 1.2)
        seconds = min(self.timing.longest_pause, self.timing.first_pause * 2.0 ** min(self.failures, 10)) * spread
        seconds = min(max(seconds, _requested_pause(error) * max(spread, 1.0)), left)
        self.failures += 1
        try:
            self._on_event("retry", f"{self._where()}: {reason_of(error)}; retrying in {seconds:.0f} s")
        except OSError as failed:
            raise EventFailed from failed
        end = time.monotonic() + seconds
        while (remaining := end - time.monotonic()) > 0:
            if self._should_stop():
                raise Stopped
            time.sleep(min(POLL_SECONDS, remaining))


class HubFile(io.RawIOBase):
    """The bytes at an `hf://datasets/…@commit/…` address, for an `io.BufferedReader` of BLOCK_BYTES.

    After a broken connection, reading continues where it stopped. Reading raises what `Patience.wait` raises, and
    SourceUnreachable if the Hub no longer has the commit.
    """

    def __init__(self, address: str, patience: Patience) -> None:
        from huggingface_hub import hf_hub_url

        match = re.fullmatch(HUB + r"([^@]+)@([^/]+)/(.+)", address)
        if match is None:
            raise ValueError(f"{address} is not the address of a file in a Hub dataset with its revision")
        self._repository, self._commit, path = match.groups()
        self._url = hf_hub_url(self._repository, path, repo_type="dataset", revision=self._commit)
        self._patience = patience
        self._position = 0
        self._size: int | None = None  # known after the first response

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_END and self._size is None:
            self._position = 0
            self.readinto(bytearray(1))
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size or 0}[whence]
        self._position = max(0, start + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer, or as much of it as the file has left, and return the number of bytes."""
        from huggingface_hub.errors import HTTPError, RevisionNotFoundError  # type: ignore[attr-defined]

        view = memoryview(buffer).cast("B")
        start = self._position
        while (got := self._position - start) < len(view) and (self._size is None or self._position < self._size):
            try:
                self._request(view[got:])
                continue
            except (HTTPError, OSError) as error:
                failure: Exception = error
            except RuntimeError as error:
                if "closed" not in str(error):  # closed by another thread whose connection failed
                    raise
                failure = error
            if isinstance(failure, RevisionNotFoundError) and self._patience.failures >= TRIES_FOR_A_COMMIT - 1:
                raise SourceUnreachable(
                    f"the Hub no longer has commit {self._commit[:12]} of {self._repository}, which this run reads. "
                    "If it is restored, continue with --resume"
                ) from failure
            self._patience.wait(failure)
        return got

    def _request(self, view: memoryview) -> None:
        """Request the bytes at the position once. The position advances past what arrived, even if this raises."""
        from huggingface_hub import get_session
        from huggingface_hub.utils import build_hf_headers, hf_raise_for_status  # type: ignore[attr-defined]

        first = self._position
        headers = {
            **build_hf_headers(),
            "Range": f"bytes={first}-{first + len(view) - 1}",
            "Accept-Encoding": "identity",  # a range of a compressed response would be useless
        }
        timeout = min(self._patience.timing.stall, max(self._patience.left(), 0.1))
        with get_session().stream("GET", self._url, headers=headers, timeout=timeout) as response:
            total = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+)", response.headers.get("Content-Range", ""))
            if response.status_code == 416 and total:  # an empty file has no range
                self._size = int(total[2])
                return
            hf_raise_for_status(response)
            if response.status_code == 206 and (not total or total[1] is None or int(total[1]) != first):
                raise OSError("the response contains other bytes than requested")
            whole = response.status_code != 206  # a server without ranges starts at the first byte
            length = response.headers.get("Content-Length") if whole else total[2] if total else None
            self._size = int(length) if length is not None else self._size
            self._copy(view, response.iter_bytes(), first if whole else 0)
            if whole and length is None:
                self._size = self._position
            if self._position < min(first + len(view), self._size or 0):
                raise OSError("the response ended early")
        self._patience.progress()

    def _copy(self, view: memoryview, pieces: Iterator[bytes], to_skip: int) -> None:
        """Copy the pieces into the view and advance the position."""
        taken = counted = 0
        for piece in pieces:
            self._patience.check()
            skipped = min(to_skip, len(piece))
            to_skip -= skipped
            piece = piece[skipped : skipped + len(view) - taken]
            view[taken : taken + len(piece)] = piece
            taken += len(piece)
            self._position += len(piece)
            if taken - counted >= PROGRESS_BYTES:
                self._patience.progress()
                counted = taken
            if taken == len(view):
                return


def _requested_pause(error: Exception) -> float:
    """Return the pause in seconds that the Hub asks for (`Retry-After` or its rate limit), otherwise 0."""
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import parse_ratelimit_headers  # type: ignore[attr-defined]

    if not isinstance(error, HfHubHTTPError) or error.response is None:
        return 0.0
    headers = error.response.headers
    after = headers.get("Retry-After", "").strip()
    if after.isdecimal():
        return float(after)
    limit = parse_ratelimit_headers(headers)
    return float(limit.reset_in_seconds) if limit is not None and limit.remaining == 0 else 0.0


def reason_of(error: BaseException) -> str:
    """Describe a failure of the network or the Hub in a few words."""
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError

    if isinstance(error, OfflineModeIsEnabled) or isinstance(error.__cause__, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set"
    if isinstance(error, GatedRepoError):
        return "gated: accept its terms on its page and log in with `hf auth login`"
    if isinstance(error, RepositoryNotFoundError):
        return "not found on the Hub, or not public"
    if isinstance(error, HfHubHTTPError) and error.response is not None:
        return f"the Hub responded with status {error.response.status_code}"
    if "timeout" in type(error).__name__.lower():
        return "the Hub did not respond in time"
    if type(error).__name__ in {"ConnectError", "ProxyError"}:
        return f"no connection to the Hub: {short_message(error)}"
    return short_message(error) or type(error).__name__


def short_message(error: BaseException) -> str:
    """Return a library's error message as one line that fits into a sentence."""
    text = re.sub(r"\[Errno -?\d+\] ", "", str(error).split("Example of usage")[0])
    return " ".join(text.split())[:200].rstrip(" .")
