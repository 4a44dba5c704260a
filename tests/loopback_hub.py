"""A local Hub: a real HTTP server that serves folders as dataset repositories, and fails on request.

A client finds it through `HF_ENDPOINT`, which `huggingface_hub` reads when it is imported. So a test runs its client in
a separate process with `client_environment()`.
"""

import contextlib
import hashlib
import json
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit


@dataclass
class Fault:
    """What happens to the next `times` requests of `method` for a path that contains `part`."""

    part: str
    method: str = "GET"
    times: int = 1
    begins: range | None = None  # applies only to requests for a byte range that starts in this range
    status: int | None = None  # respond with this status and no body
    headers: Mapping[str, str] = field(default_factory=dict)
    """Headers of the response with this status, such as `{"Retry-After": "3"}`."""
    cut_after: int | None = None  # announce the complete body, send this many bytes of it, and close the connection
    hang_seconds: float = 0.0  # wait this long before responding
    stall_after: int | None = None  # send this many bytes of the body, wait `stall_seconds`, and send the rest
    stall_seconds: float = 0.0
    drop: bool = False  # close the connection without a response
    away_seconds: float = 0.0  # close all connections and refuse new ones for this long
    spoil: bool = False  # send wrong bytes of the right length
    action: Callable[[], object] = lambda: None  # called first when the fault occurs


class LoopbackHub:
    """Serves `repositories` (`owner/name` → folder) until the `with` block ends."""

    def __init__(self, repositories: Mapping[str, Path]) -> None:
        self.repositories = dict(repositories)
        """The folders at `main`."""
        self.older: dict[str, dict[str, Path]] = {}
        """Repository → older commit that still exists → its folder."""
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str, int]] = []
        """(method, path, bytes of body sent)"""
        self.lock = threading.Lock()
        self.connections: set[socket.socket] = set()
        self._port = 0
        self._is_open = True
        self._listen()
        self.endpoint = f"http://127.0.0.1:{self._port}"

    def __enter__(self) -> "LoopbackHub":
        self._serve()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self.lock:
            self._is_open = False
        self._server.shutdown()
        self._server.server_close()

    def push(self, repository: str, folder: Path) -> None:
        """Add a commit to `main`; the previous one stays available."""
        self.older.setdefault(repository, {})[self.commit(repository)] = self.repositories[repository]
        self.repositories[repository] = folder

    def forget_commits(self) -> None:
        """Keep only `main`, as after squashing the history."""
        self.older.clear()

    def folder_at(self, repository: str, revision: str | None) -> tuple[Path, str] | None:
        """Return the folder and commit of a revision, or None if it does not exist."""
        commit = self.commit(repository)
        if revision in (None, "main", commit):
            return self.repositories[repository], commit
        older = self.older.get(repository, {})
        return (older[revision], revision) if revision in older else None

    def go_away(self, seconds: float) -> None:
        """Close all connections and refuse new ones for this long. Returns immediately."""
        server = self._server

        def away() -> None:
            server.shutdown()
            server.server_close()
            with self.lock:
                for connection in self.connections:
                    _close(connection)
            time.sleep(seconds)
            with self.lock:
                if self._is_open:
                    self._listen()
                    self._serve()

        threading.Thread(target=away, daemon=True).start()

    def _listen(self) -> None:
        hub = self

        class Handler(_Handler):
            def __init__(self, *args: Any) -> None:
                self.hub = hub
                super().__init__(*args)

        self._server = _Server(("127.0.0.1", self._port), Handler)
        self._port = self._server.server_port

    def _serve(self) -> None:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def commit(self, repository: str) -> str:
        """Return the revision of `main`: 40 hex digits computed from the names and sizes of its files."""
        folder = self.repositories[repository]
        names = [f"{path.relative_to(folder)} {path.stat().st_size}" for path in sorted(folder.rglob("*"))]
        return hashlib.sha1("\n".join(names).encode()).hexdigest()

    def fault_for(self, method: str, path: str, first_byte: int) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                fits = fault.begins is None or first_byte in fault.begins
                if fits and fault.times > 0 and fault.method == method and fault.part in path:
                    fault.times -= 1
                    return fault
        return None

    def bytes_sent(self, part: str) -> int:
        """Return the number of body bytes sent for paths that contain `part`."""
        return sum(sent for _, path, sent in self.requests if part in path)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print nothing: the tests close connections on purpose."""


def _close(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):  # closed by the client already
        connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: LoopbackHub

    def setup(self) -> None:
        super().setup()
        with self.hub.lock:
            self.hub.connections.add(self.connection)

    def finish(self) -> None:
        with self.hub.lock:
            self.hub.connections.discard(self.connection)
        super().finish()

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing: the tests read `requests`."""

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        fault = self.hub.fault_for(self.command, path, int(span[1]) if span else 0)
        if fault is not None:
            fault.action()
            time.sleep(fault.hang_seconds)
            if fault.away_seconds:
                self.hub.go_away(fault.away_seconds)
            if fault.drop or fault.away_seconds:
                self.close_connection = True
                return _close(self.connection)
            if fault.status is not None:
                missing = {"X-Error-Code": "EntryNotFound"} if fault.status == 404 else {}
                return self._send(fault.status, b"", {**missing, **fault.headers})
        for repository in self.hub.repositories:
            if match := re.fullmatch(
                rf"/api/datasets/{repository}(?:/(revision|tree|paths-info)/([^/]+)(?:/(.*))?)?", path
            ):
                what, revision, below = match.groups()
                found = self.hub.folder_at(repository, revision)
                if found is None:
                    return self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
                folder, commit = found
                if what == "tree":
                    return self._send_json(_tree(folder, below or ""))
                if what == "paths-info":
                    paths = [folder / name for name in parse_qs(body.decode()).get("paths", [])]
                    return self._send_json([_entry(folder, path) for path in paths if path.exists()])
                return self._send_json({"id": repository, "sha": commit, "private": False, "siblings": []})
            if match := re.fullmatch(rf"/datasets/{repository}/resolve/([^/]+)/(.*)", path):
                found = self.hub.folder_at(repository, match[1])
                if found is None:
                    return self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
                file = found[0] / match[2]
                if not file.is_file():
                    return self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
                return self._send_file(file, found[1], span, fault)
        return self._send(401, b"", {"X-Error-Code": "RepoNotFound"})  # the Hub's response for a missing repository

    do_HEAD = do_POST = do_GET

    def _send_file(self, file: Path, commit: str, span: re.Match[str] | None, fault: Fault | None) -> None:
        data = file.read_bytes()
        headers = {"ETag": f'"{_oid(file)}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        status = 200
        if fault is not None and fault.spoil:
            data = bytes(byte ^ 0x5A for byte in data)
        if span:
            first, last = int(span[1]), min(int(span[2] or len(data)), len(data) - 1)
            if first >= len(data):
                return self._send(416, b"", {"Content-Range": f"bytes */{len(data)}"})
            headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
            data, status = data[first : last + 1], 206
        return self._send(status, data, headers, fault)

    def _send_json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, data: bytes, headers: Mapping[str, str], fault: Fault | None = None) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        sent = b"" if self.command == "HEAD" else data[: fault.cut_after if fault else None]
        with self.hub.lock:
            self.hub.requests.append((self.command, self.path, len(sent)))
        if fault is not None and fault.stall_after is not None:
            self.wfile.write(sent[: fault.stall_after])
            time.sleep(fault.stall_seconds)
            sent = sent[fault.stall_after :]
        self.wfile.write(sent)
        if fault is not None and fault.cut_after is not None:
            self.close_connection = True


def _tree(folder: Path, below: str) -> list[dict[str, object]]:
    return [_entry(folder, path) for path in sorted((folder / below).rglob("*"))]


def _entry(folder: Path, path: Path) -> dict[str, object]:
    name = path.relative_to(folder).as_posix()
    if path.is_dir():
        return {"type": "directory", "path": name, "oid": _oid(path), "size": 0}
    return {"type": "file", "path": name, "oid": _oid(path), "size": path.stat().st_size}


def _oid(path: Path) -> str:
    return hashlib.sha1(str(path).encode()).hexdigest()


def client_environment(endpoint: str, home: Path) -> dict[str, str]:
    """Return the environment of a process that uses `endpoint` as the Hub and stores everything under `home`."""
    root = str(Path(__file__).parent.parent)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    return {
        **kept,
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home / "huggingface"),
        "XDG_CACHE_HOME": str(home / "cache"),
        "HF_UPDATE_DOWNLOAD_COUNTS": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1",
        "PYTHONPATH": os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])]),
    }


def closed_port() -> str:
    """Return an endpoint where nothing listens."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    server.server_close()
    return f"http://127.0.0.1:{server.server_port}"
