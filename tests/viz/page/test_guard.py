"""Which requests the server answers, over a real socket: `python -m viz serve` as a process, requests as bytes."""

import contextlib
import http.client
import json
import re
import socket
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.viz.asgi import status_of
from tests.viz.conftest import start_python, write_store
from viz.page.api import Service
from viz.page.http import application, unguarded
from viz.page.static import PLOTLY

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
    """Send exactly these bytes, on a new connection: an HTTP client would refuse to send half of them."""

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
    """Run `python -m viz serve` with these arguments; yields its port."""
    with start_python("-m", "viz", "serve", *arguments, stderr=subprocess.PIPE) as process:
        try:
            line = next((line for line in process.stdout if line.startswith("The page")), "")
            assert line, process.stderr.read()
            yield int(re.search(r":(\d+)", line)[1])  # type: ignore[index]
        finally:
            process.terminate()


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    folder = write_store(tmp_path_factory.mktemp("run"), [{"step": 0, "loss": 2.0}], run_id="r1")
    with page_of(folder, "--allow-host", ALLOWED) as found:
        yield found


@pytest.mark.parametrize(
    "host",
    [
        "localhost", "localhost:8000", "LocalHost:65535", "localhost.", "127.0.0.1", "127.0.0.1:9", "[::1]",
        "[::1]:8000", ALLOWED, f"{ALLOWED}:8000", ALLOWED.upper(),
    ],
)  # fmt: skip
def test_own_names_are_accepted_on_any_port(port: int, host: str) -> None:
    answer = ask(port, hosts=[host])
    assert answer.status == 200 and answer.json["steps"] == 1


@pytest.mark.parametrize(
    "host",
    [
        "evil.example", "evil.example:8000", "localhost.evil.example", "evil-localhost", "127.0.0.1.evil.example",
        "127.0.0.2", "0.0.0.0", "[::]", "[::2]:80", "192.168.0.1", "2130706433", "0x7f.1", "xn--localhost-",
        f"other.{ALLOWED}", f"www.{ALLOWED}", ALLOWED.removeprefix("my-"), "example", "*",
    ],
)  # fmt: skip
def test_other_names_are_refused_and_the_flag_is_named(port: int, host: str) -> None:
    for path in ("/api/run", "/", "/style.css", "/nothing"):
        answer = ask(port, path, hosts=[host])
        assert answer.status == 403
        assert "--allow-host" in answer.json["error"]
        assert b"r1" not in answer.body


@pytest.mark.parametrize(
    "hosts",
    [
        [], [""], ["localhost", "localhost"], ["localhost", "evil.example"], ["localhost:port"], ["localhost/path"],
        ["user@localhost"], ["@localhost"], ["localhost?x"], ["localhost#x"], ["http://localhost"], [":8000"], ["[::1"],
        ["::1"], ["[localhost]"], ["localhost:-1"], [b"\xff\xfe"], [b"loc\xe4lhost"], [b"localhost localhost"],
    ],
)  # fmt: skip
@pytest.mark.parametrize("version", ["HTTP/1.0", "HTTP/1.1"])
def test_a_missing_repeated_or_malformed_host_is_refused(port: int, hosts: list[str | bytes], version: str) -> None:
    answer = ask(port, hosts=hosts, version=version)
    assert answer.status in (400, 403) and b"r1" not in answer.body


def test_control_http_1_0_is_answered(port: int) -> None:
    assert ask(port, hosts=["localhost"], version="HTTP/1.0").status == 200


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://localhost:8000", 200), ("http://localhost", 200), ("http://127.0.0.1:1", 200),
        ("http://[::1]:8000", 200), (f"http://{ALLOWED}:8000", 200), (f"https://{ALLOWED}", 200),
        ("https://localhost", 200), ("null", 403), ("", 403), ("http://evil.example", 403),
        ("https://localhost.evil.example", 403), ("http://evil.example/localhost", 403),
        ("http://evil@localhost", 403), ("file://localhost", 403), ("chrome-extension://localhost", 403),
        ("localhost", 403), ("http://", 403), ("http://localhost:x", 403), ("http://*", 403),
    ],
)  # fmt: skip
def test_only_own_origins_are_answered(port: int, origin: str, status: int) -> None:
    answer = ask(port, headers=[("Origin", origin)])
    assert answer.status == status
    assert (b"r1" in answer.body) == (status == 200)
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(
    ("path", "site", "status"),
    [
        ("/api/run", "cross-site", 403),  # an image or a script of another site sends no Origin
        ("/api/run", "same-origin", 200),
        ("/api/run", "none", 200),
        ("/", "cross-site", 200),  # a link to a step was clicked
    ],
)
def test_other_sites_may_link_to_the_page_but_not_use_the_api(port: int, path: str, site: str, status: int) -> None:
    assert ask(port, path, headers=[("Sec-Fetch-Site", site)]).status == status


def test_one_allowed_origin_does_not_excuse_another(port: int) -> None:
    assert ask(port, headers=[("Origin", "http://localhost"), ("Origin", "http://evil.example")]).status == 403


EACH_KIND = [
    "/", "/style.css", "/main.js", f"/{PLOTLY}", "/api/run", "/api/events?kind=x", "/api/run?nonsense=1",
    "/api/documents/0", "/api/documents/77", "/api/documents/x", "/nothing", "/api",
]  # fmt: skip


@pytest.mark.parametrize("path", EACH_KIND)
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
def test_every_response_has_the_security_headers(port: int, path: str, method: str) -> None:
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
        assert len(answer.headers.get_all("content-type") or ()) == 1
        if host != "localhost":
            assert answer.status == 403


def test_control_without_the_guard_any_name_is_answered(tmp_path: Path) -> None:
    """It is the guard that refuses, not something below it."""
    with contextlib.closing(Service.of(tmp_path)) as service:
        assert status_of(application(service), "/style.css", b"evil.example") == 403
        assert status_of(application(service, ["evil.example"]), "/style.css", b"evil.example") == 200
        assert status_of(unguarded(service), "/style.css", b"evil.example") == 200
