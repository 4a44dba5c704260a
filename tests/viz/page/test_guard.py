"""Whom the server answers, over a real socket: `python -m viz serve` as a process, requests as bytes."""

import contextlib
import http.client
import json
import re
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import PROJECT
from tests.viz.asgi import status_of
from viz.page.api import Service
from viz.page.http import application, unguarded
from viz.page.static import page_files
from viz.record.schema import rows_of
from viz.record.writer import StoreWriter

ALLOWED = "my-box.example"


@dataclass(frozen=True)
class Answer:
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        def refuse(constant: str) -> None:
            raise ValueError(f"{constant} is not JSON")

        return json.loads(self.body, parse_constant=refuse)


def ask(
    port: int,
    path: str | bytes = "/api/run",
    method: str = "GET",
    hosts: Sequence[str | bytes] = ("localhost",),
    headers: Sequence[tuple[str, str]] = (),
    version: str = "HTTP/1.1",
) -> Answer:
    """Exactly these bytes, on a connection of their own: a client would refuse to send half of them."""

    def encoded(text: str | bytes) -> bytes:
        return text if isinstance(text, bytes) else text.encode("latin-1")

    lines = [method.encode() + b" " + encoded(path) + b" " + version.encode()]
    lines += [b"Host: " + encoded(host) for host in hosts]
    lines += [f"{name}: {value}".encode() for name, value in (*headers, ("Connection", "close"))]
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(b"\r\n".join([*lines, b"", b""]))
        with contextlib.closing(http.client.HTTPResponse(connection, method=method)) as response:
            response.begin()
            return Answer(response.status, response.headers, response.read())


@contextlib.contextmanager
def page_of(*arguments: object) -> Iterator[int]:
    """`python -m viz serve` with these arguments, for a while: its port."""
    command = [sys.executable, "-m", "viz", "serve", *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=PROJECT) as process:
        try:
            assert process.stdout is not None and process.stderr is not None
            line = next((line for line in process.stdout if line.startswith("The page")), "")
            assert line, process.stderr.read()
            yield int(re.search(r":(\d+)", line)[1])  # type: ignore[index]
        finally:
            process.terminate()


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    folder = tmp_path_factory.mktemp("run")
    writer = StoreWriter(folder / "run.db", {"run_id": "r1"})
    writer.add_rows(rows_of({"step": 0, "loss": 2.0}))
    writer.close()
    with page_of(folder, "--allow-host", ALLOWED) as found:
        yield found


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "localhost:8000",
        "localhost:1",
        "LocalHost:65535",
        "localhost.",
        "127.0.0.1",
        "127.0.0.1:9",
        "[::1]",
        "[::1]:8000",
        ALLOWED,
        f"{ALLOWED}:8000",
        ALLOWED.upper(),
    ],
)
def test_names_of_this_machine_are_answered_whichever_port_a_tunnel_has(port: int, host: str) -> None:
    answer = ask(port, hosts=[host])
    assert answer.status == 200 and answer.json["steps"] == 1


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8000",
        "localhost.evil.example",
        "evil-localhost",
        "127.0.0.1.evil.example",
        "127.0.0.2",
        "0.0.0.0",
        "[::]",
        "[::2]:80",
        "192.168.0.1",
        "2130706433",
        "0x7f.1",
        "xn--localhost-",
        f"other.{ALLOWED}",
        "example",
    ],
)
def test_other_names_are_refused_with_the_flag_that_would_let_them(port: int, host: str) -> None:
    for path in ("/api/run", "/", "/style.css", "/nothing"):
        answer = ask(port, path, hosts=[host])
        assert answer.status == 403
        assert "--allow-host" in answer.json["error"]
        assert b"r1" not in answer.body


@pytest.mark.parametrize(
    "hosts",
    [
        [],
        [""],
        ["localhost", "localhost"],
        ["localhost", "evil.example"],
        ["localhost:port"],
        ["localhost:99999"],
        ["localhost/path"],
        ["user@localhost"],
        ["@localhost"],
        ["localhost?x"],
        ["localhost#x"],
        ["http://localhost"],
        [":8000"],
        ["[::1"],
        ["::1"],
        ["[localhost]"],
        ["localhost:-1"],
        [b"\xff\xfe"],
        [b"loc\xe4lhost"],
        [b"localhost localhost"],
    ],
)
def test_a_host_that_is_none_is_refused(port: int, hosts: list[str | bytes]) -> None:
    answer = ask(port, hosts=hosts)
    assert answer.status in (400, 403) and b"r1" not in answer.body
    if len(hosts) != 1 or isinstance(hosts[0], str):
        assert answer.status == 400


def test_without_a_host_as_http_1_0_has_it(port: int) -> None:
    assert ask(port, hosts=[], version="HTTP/1.0").status == 400
    assert ask(port, hosts=["localhost"], version="HTTP/1.0").status == 200


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://localhost:8000", 200),
        ("http://localhost", 200),
        ("http://127.0.0.1:1", 200),
        ("http://[::1]:8000", 200),
        (f"http://{ALLOWED}:8000", 200),
        (f"https://{ALLOWED}", 200),
        ("https://localhost", 200),
        ("null", 403),
        ("", 403),
        ("http://evil.example", 403),
        ("https://localhost.evil.example", 403),
        ("http://evil.example/localhost", 403),
        ("http://evil@localhost", 403),
        ("file://localhost", 403),
        ("chrome-extension://localhost", 403),
        ("localhost", 403),
        ("http://", 403),
        ("http://localhost:x", 403),
    ],
)
def test_pages_of_strangers_get_nothing(port: int, origin: str, status: int) -> None:
    answer = ask(port, headers=[("Origin", origin)])
    assert answer.status == status
    assert (b"r1" in answer.body) == (status == 200)
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(
    ("path", "site", "status"),
    [
        ("/api/run", "cross-site", 403),  # an image or a script of a stranger's page sends no Origin
        ("/api/run", "same-origin", 200),
        ("/api/run", "none", 200),
        ("/", "cross-site", 200),  # somebody has clicked a link to a step
    ],
)
def test_pages_of_strangers_may_link_here_and_ask_nothing(port: int, path: str, site: str, status: int) -> None:
    assert ask(port, path, headers=[("Sec-Fetch-Site", site)]).status == status


def test_one_good_origin_does_not_let_a_bad_one_in(port: int) -> None:
    assert ask(port, headers=[("Origin", "http://localhost"), ("Origin", "http://evil.example")]).status == 403


EACH_KIND = [
    "/",
    "/style.css",
    "/main.js",
    *(f"/{name}" for name in page_files() if name.startswith("plotly")),
    "/api/run",
    "/api/series",
    "/api/events?kind=x",
    "/api/run?nonsense=1",
    "/api/documents/0",
    "/api/documents/77",
    "/api/documents/x",
    "/nothing",
    "/api",
]


@pytest.mark.parametrize("path", EACH_KIND)
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
def test_every_answer_has_the_headers_that_keep_a_hostile_text_a_text(port: int, path: str, method: str) -> None:
    for host in ("localhost", "evil.example"):
        answer = ask(port, path, method, hosts=[host])
        parts = (part.strip().partition(" ") for part in answer.headers["content-security-policy"].split(";"))
        policy = {name: value for name, _, value in parts}
        assert policy["default-src"] == "'none'" and policy["script-src"] == "'self'"
        assert policy["connect-src"] == "'self'" and policy["frame-ancestors"] == "'none'"
        assert policy["base-uri"] == policy["form-action"] == "'none'"
        assert "unsafe-eval" not in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        assert answer.headers["cross-origin-opener-policy"] == "same-origin"
        assert answer.headers.get_all("content-type") and len(answer.headers.get_all("content-type") or ()) == 1
        if host != "localhost":
            assert answer.status == 403


def test_the_page_keeps_to_that_policy() -> None:
    """No script or handler in the page itself: the policy would stop it, and the page would stand still."""
    page = page_files()["index.html"][0].decode()
    assert not re.search(r"<script(?![^>]*\bsrc=)", page)
    assert not re.search(r"\son[a-z]+\s*=", page) and "javascript:" not in page
    assert not re.search(r"(src|href)=[\"']?(https?:)?//", page)


def test_control_without_the_guard_a_stranger_is_answered(tmp_path: Path) -> None:
    """It is the guard that refuses, and not something below it."""
    service = Service.of(tmp_path)
    try:
        assert status_of(application(service), "/style.css", b"evil.example") == 403
        assert status_of(application(service, ["evil.example"]), "/style.css", b"evil.example") == 200
        assert status_of(unguarded(service), "/style.css", b"evil.example") == 200
    finally:
        service.close()
