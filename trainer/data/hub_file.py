"""One file of a Hub dataset as a file to read from: one request at a time, asked again for as long as patience lasts.

Not read through `HfFileSystem`: it asks six times with pauses of its own, says nothing of it, throws away what came
before an answer broke off, keeps "not found" for good once it was told so, and lists a folder before it opens a file.
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
"""A source that gave so much is no longer one that stays away: pauses begin at the shortest again."""
POLL_SECONDS = 0.1
TRIES_FOR_A_COMMIT = 4
"""So often the Hub may say that it does not know a commit, before that is believed."""


class Stopped(Exception):
    """`should_stop` said so while a source was waited for."""


class EventFailed(Exception):
    """`on_event` raised an OSError (its cause): told apart, because here an OSError is a failure of the network."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryTiming:
    """When a request is given up and sent again, in seconds."""

    first_pause: float = 1.0
    """Each pause is twice as long as the one before, up to `longest_pause`."""
    longest_pause: float = 60.0
    stall: float = 30.0
    """A response that sends no byte for this long is given up."""


class Patience:
    """How long a source may stay away, and the waiting for it. Not for several threads at once."""

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
            name: what a person calls the source.
            max_stall: seconds without progress before it counts as lost.
            where: what is being read just now, for the events.
            on_event: called with ("retry", what failed and what now), in the thread that waits.
        """
        self.failures = 0
        """Since the last progress."""
        self.timing = timing
        self._name = name
        self._max_stall = max_stall
        self._where = where
        self._on_event = on_event
        self._should_stop = should_stop
        self._since = time.monotonic()

    def progress(self) -> None:
        """Something came, or what came was worked on: the time without an answer begins anew."""
        self.failures, self._since = 0, time.monotonic()

    def left(self) -> float:
        """Seconds until the source counts as lost."""
        return self._max_stall - (time.monotonic() - self._since)

    def check(self) -> None:
        """Raise Stopped when that was asked for, TimeoutError when the time is over."""
        if self._should_stop():
            raise Stopped
        if self.left() <= 0:
            raise TimeoutError("no answer in time")

    def wait(self, error: Exception) -> None:
        """Wait 1, 2, 4 … 60 seconds, more or less, or as long as the Hub asks for; then it is time to try again.

        Raises SourceUnreachable when there has been no progress for too long, Stopped when that was asked for, and
        EventFailed.
        """
        left = self.left()
        if left <= 0:
            raise SourceUnreachable(
                f"{self._name} gave no document for {self._max_stall - left:.0f} s: {reason_of(error)}. "
                "Go on later with --resume"
            ) from error
        # So that many runs do not come back at the same instant. A generator of its own: drawing from the global one
        # would change what is learned.
        spread = random.SystemRandom().uniform(0.8, 1.2)
        seconds = min(self.timing.longest_pause, self.timing.first_pause * 2.0 ** min(self.failures, 10)) * spread
        seconds = min(max(seconds, _asked_to_wait(error) * max(spread, 1.0)), left)
        self.failures += 1
        try:
            self._on_event("retry", f"{self._where()}: {reason_of(error)}; trying again in {seconds:.0f} s")
        except OSError as failed:
            raise EventFailed from failed
        end = time.monotonic() + seconds
        while (still := end - time.monotonic()) > 0:
            if self._should_stop():
                raise Stopped
            time.sleep(min(POLL_SECONDS, still))


class HubFile(io.RawIOBase):
    """The bytes of an `hf://datasets/…@commit/…` address, for an `io.BufferedReader` of BLOCK_BYTES.

    A connection that breaks is waited for and what came before is kept. Reading raises what `Patience.wait` raises,
    and SourceUnreachable for a commit that is gone.
    """

    def __init__(self, address: str, patience: Patience) -> None:
        from huggingface_hub import hf_hub_url

        match = re.fullmatch(HUB + r"([^@]+)@([^/]+)/(.+)", address)
        if match is None:
            raise ValueError(f"{address} names no file of a Hub dataset with its revision")
        self._repository, self._commit, path = match.groups()
        self._url = hf_hub_url(self._repository, path, repo_type="dataset", revision=self._commit)
        self._patience = patience
        self._position = 0
        self._size: int | None = None  # known from the first answer on

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
        """Fill the buffer as far as the file goes; the number of bytes."""
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
                if "closed" not in str(error):  # by another thread, whose own connection failed
                    raise
                failure = error
            if isinstance(failure, RevisionNotFoundError) and self._patience.failures >= TRIES_FOR_A_COMMIT - 1:
                raise SourceUnreachable(
                    f"the Hub no longer has commit {self._commit[:12]} of {self._repository}, which this run reads. "
                    "If it comes back, go on with --resume"
                ) from failure
            self._patience.wait(failure)
        return got

    def _request(self, view: memoryview) -> None:
        """Ask once for the bytes from the position on; the position stands behind what came, also when it raises."""
        from huggingface_hub import get_session
        from huggingface_hub.utils import build_hf_headers, hf_raise_for_status  # type: ignore[attr-defined]

        first = self._position
        headers = {
            **build_hf_headers(),
            "Range": f"bytes={first}-{first + len(view) - 1}",
            "Accept-Encoding": "identity",  # a range of what is compressed on the way would be of no use
        }
        timeout = min(self._patience.timing.stall, max(self._patience.left(), 0.1))
        with get_session().stream("GET", self._url, headers=headers, timeout=timeout) as answer:
            total = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+)", answer.headers.get("Content-Range", ""))
            if answer.status_code == 416 and total:  # nothing there: an empty file
                self._size = int(total[2])
                return
            hf_raise_for_status(answer)
            if answer.status_code == 206 and (not total or total[1] is None or int(total[1]) != first):
                raise OSError("the answer holds other bytes than were asked for")
            whole = answer.status_code != 206  # a server that knows no ranges begins at the first byte
            length = answer.headers.get("Content-Length") if whole else total[2] if total else None
            self._size = int(length) if length is not None else self._size
            self._take(view, answer.iter_bytes(), first if whole else 0)
            if whole and length is None:
                self._size = self._position
            if self._position < min(first + len(view), self._size or 0):
                raise OSError("the answer ended early")
        self._patience.progress()

    def _take(self, view: memoryview, pieces: Iterator[bytes], to_skip: int) -> None:
        """Copy what comes into the view, moving the position along."""
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


def _asked_to_wait(error: Exception) -> float:
    """Seconds that the Hub asks to stay away: `Retry-After`, or the reset of its rate limit. 0 where it does not."""
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
    """A failure of the network or the Hub in a few words."""
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError

    if isinstance(error, OfflineModeIsEnabled) or isinstance(error.__cause__, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set"
    if isinstance(error, GatedRepoError):
        return "gated: accept its terms on its page and log in with `hf auth login`"
    if isinstance(error, RepositoryNotFoundError):
        return "not found on the Hub, or not public"
    if isinstance(error, HfHubHTTPError) and error.response is not None:
        return f"the Hub answers {error.response.status_code}"
    if "timeout" in type(error).__name__.lower():
        return "the Hub does not answer in time"
    if type(error).__name__ in {"ConnectError", "ProxyError"}:
        return f"no connection to the Hub: {short_message(error)}"
    return short_message(error) or type(error).__name__


def short_message(error: BaseException) -> str:
    """The message of an error of a library, as the middle of a sentence."""
    text = re.sub(r"\[Errno -?\d+\] ", "", str(error).split("Example of usage")[0])
    return " ".join(text.split())[:200].rstrip(" .")
