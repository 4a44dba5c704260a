"""The JSON API over a real socket: any request gets an answer or a one-line error, and never a server failure."""

import contextlib
import gzip
import math
import shutil
import threading
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.viz.asgi import status_of
from tests.viz.conftest import execute
from tests.viz.page.test_guard import Answer, ask, page_of
from tests.viz.runs_to_draw import HOSTILE, columns_of
from tests.viz.views.test_token_text import MODELS
from viz.page.api import QUERIES, Service
from viz.page.http import application
from viz.page.live_run import FRESH_SECONDS
from viz.page.static import PLOTLY, page_files
from viz.record.schema import STEP, rows_of
from viz.record.writer import StoreWriter

COUNT = 400
SECRET = b"the content of a file beside the record"


def ugly_run(folder: Path, count: int = COUNT) -> None:
    """Write a run with NaN, infinities, spikes of 1e12, hostile texts, prompts and events, as a trainer does."""
    columns, config = columns_of(count, ugly=True), {"clip": math.inf, "more": [math.nan]}
    about = {"run_id": "ugly", "tokenizer": MODELS["ours"], "note": HOSTILE, "config": config}
    writer = StoreWriter(folder / "run.db", about)
    random = np.random.default_rng(0)
    for step in range(count):
        row: dict[str, Any] = {name: columns[name][step].item() for name in STEP if name not in ("tokens", "bytes")}
        row |= {"source": columns["source"][step], "shard": HOSTILE, "text_hash": random.bytes(32), "tokens": 9}
        row |= {"token_ids": random.integers(3, 400, 10), "token_losses": [(math.nan, math.inf, 2.0)[step % 3]] * 9}
        sample = {"prompt": HOSTILE, "reference": "r", "error": HOSTILE} if step % 20 == 0 else {}
        writer.add_rows(rows_of({"step": step, **row, **sample}, "in" if sample else "", "out" if sample else ""))
        if step % 20 == 0:
            writer.add_rows(rows_of({"step": step, "prompt": "asked"}, "", "again"))
    for kind in ("spike", "resume", "checkpoint", HOSTILE):
        writer.add("events", {"time": 0.0, "step": 30, "kind": kind, "detail": HOSTILE})
    writer.add("evaluations", {"step": 3, "split": HOSTILE, "source": "", "loss": math.inf})
    writer.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page") / "record"
    (folder / "earlier" / "old").mkdir(parents=True)
    ugly_run(folder)
    shutil.copy(folder / "run.db", folder / "earlier" / "old" / "run.db")
    execute(folder / "earlier" / "old" / "run.db", "UPDATE run SET run_id = 'old'")
    (folder / "secret.txt").write_bytes(SECRET)
    (folder.parent / "secret.txt").write_bytes(SECRET)
    return folder


@pytest.fixture(scope="module")
def port(folder: Path) -> Iterator[int]:
    with page_of(folder) as found:
        yield found


ROUTES = [f"/api/{name}" for name in QUERIES]
PARAMETERS = sorted({name for _, known in QUERIES.values() for name in known})
VALUES = st.one_of(
    st.sampled_from(
        [
            "0", "1", "10", "399", "400", "4000", str(2**53), str(2**53 + 1), str(2**63), "9" * 400, "-1", "+1", "1.5",
            "1e3", "٣", "0x10", "", " ", "linear", "log", "above", "below", "spike", "asked", HOSTILE[:300], "old",
            "ugly", "one", "\0", "%00", "NaN", "null", "RedPajamaCommonCraw0", "' OR 1=1 --", "a" * 2000,
        ]
    ),
    st.text(max_size=20),
)  # fmt: skip
QUERY = st.one_of(
    st.dictionaries(st.sampled_from(PARAMETERS), VALUES, max_size=4),
    st.dictionaries(st.one_of(st.sampled_from(PARAMETERS), st.text(max_size=8)), VALUES, max_size=3),
)


def quoted(query: dict[str, str]) -> str:
    return urllib.parse.urlencode(query, encoding="utf-8", errors="surrogatepass")


def well_formed(answer: Answer) -> None:
    assert answer.status in (200, 400, 404), answer.body
    assert answer.headers["content-type"] == "application/json"
    content = answer.json
    assert isinstance(content, dict)
    if answer.status != 200:
        assert set(content) == {"error"}
        assert 0 < len(content["error"]) < 1000 and "\n" not in content["error"]


@given(route=st.sampled_from(ROUTES), query=QUERY)
@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_query_gets_an_answer(port: int, route: str, query: dict[str, str]) -> None:
    well_formed(ask(port, f"{route}?{quoted(query)}"))


@given(route=st.sampled_from(ROUTES), data=st.data())
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_valid_queries_are_answered(port: int, route: str, data: st.DataObject) -> None:
    """Valid parameters and values only, which reach deeper than random text."""
    known = QUERIES[route.removeprefix("/api/")][1]
    steps = st.integers(0, COUNT + 5)
    taken = {
        "points": st.integers(10, 4000), "window": st.integers(1, 100_000), "limit": st.integers(1, 500), "from": steps,
        "to": steps, "scale": st.sampled_from(["linear", "log"]), "side": st.sampled_from(["above", "below"]),
        "run": st.sampled_from(["old", "ugly"]), "q": st.text(min_size=1, max_size=5), "prompt": st.just("0"),
        "kind": st.sampled_from(["spike", "resume"]), "source": st.just("RedPajamaCommonCraw1"),
    }  # fmt: skip
    given = [name for name in known if name in ("q", "run") or data.draw(st.booleans())]
    answer = ask(port, f"{route}?{quoted({name: str(data.draw(taken[name])) for name in given})}")
    well_formed(answer)
    assert answer.status == 200 or route == "/api/compare"


@given(step=st.one_of(st.integers(-5, COUNT + 5).map(str), VALUES), query=st.one_of(st.just({}), QUERY))
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_document_is_found_or_not_found(port: int, step: str, query: dict[str, str]) -> None:
    path = urllib.parse.quote(step, safe="", encoding="utf-8", errors="surrogatepass")
    answer = ask(port, f"/api/documents/{path}?{quoted(query)}")
    well_formed(answer)
    if step.isascii() and step.isdigit() and int(step) < COUNT and not query:
        assert answer.status == 200 and answer.json["step"] == int(step)


@pytest.mark.parametrize("route", [*ROUTES, "/api/documents/5"])
def test_an_unknown_parameter_is_named(port: int, route: str) -> None:
    answer = ask(port, f"{route}?stepp=5")
    assert answer.status == 400 and "'stepp'" in answer.json["error"]


@pytest.mark.parametrize(
    "path",
    [
        "/secret.txt", "/../secret.txt", "/../../secret.txt", "/%2e%2e/secret.txt", "/..%2fsecret.txt",
        "/%2e%2e%2fsecret.txt", "/..\\secret.txt", "/./secret.txt", "//secret.txt", "/style.css/../secret.txt",
        "/style.css%00.txt", "/%00", "/a%00b", "/etc/passwd", "//etc/passwd", "/%2fetc%2fpasswd", "/run.db",
        "/api/../secret.txt", "/api/documents/../run", "/api/documents/%2e%2e", "/api/documents/%00",
        "/api/documents/5%2f..", "/server.py", "/page/index.html", "/index.html", "/.git/config", "/favicon.ico",
        "/api/", "/api/nothing", "/api/documents", "/api/documents/", "/static/", "/" + "a" * 8000, "/" + "../" * 2000,
        "/api/documents/" + "9" * 5000, "/%", "/%zz", "/%ff%fe", "/~root", "/*", "/;", "/\xe4",
        "http://localhost/secret.txt", "secret.txt", "*", "file:///etc/passwd", "..", "/ /",
    ],
)  # fmt: skip
def test_no_path_opens_a_file(port: int, folder: Path, path: str) -> None:
    for raw in (path, f"{folder}/secret.txt" if path == "/secret.txt" else path):
        answer = ask(port, raw)
        assert 400 <= answer.status < 500, answer.body[:200]
        assert SECRET not in answer.body and b"root:" not in answer.body and b"SQLite" not in answer.body


def test_an_endless_path_is_refused(port: int) -> None:
    with contextlib.suppress(ConnectionError):  # the server may hang up before the end
        assert 400 <= ask(port, "/" + "a" * 500_000).status < 500
    assert ask(port, "/api/run").status == 200
    for path in ("/api/run/", "/style.css/", "/api/documents/5/", "?x"):  # nothing is redirected
        assert ask(port, path).status in (400, 404)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "get", "X"])
def test_only_get_and_head_are_answered(port: int, method: str) -> None:
    for path in ("/api/run", "/", "/api/documents/5"):
        answer = ask(port, path, method)
        assert answer.status in (400, 404, 405), answer.body
        assert b"ugly" not in answer.body


@pytest.mark.parametrize("path", ["/", "/main.js", "/api/series", f"/{PLOTLY}"])
def test_gzip_only_if_accepted(port: int, path: str) -> None:
    whole, packed = ask(port, path), ask(port, path, headers=[("Accept-Encoding", "gzip, br")])
    assert "content-encoding" not in whole.headers and packed.headers["content-encoding"] == "gzip"
    assert gzip.decompress(packed.body) == whole.body
    assert len(packed.body) < 0.6 * len(whole.body)
    assert "accept-encoding" in packed.headers["vary"].lower()


def test_every_file_of_the_page_is_served(port: int) -> None:
    for name, (content, kind) in page_files().items():
        answer = ask(port, "/" if name == "index.html" else f"/{name}")
        assert (answer.status, answer.body, answer.headers["content-type"]) == (200, content, kind)
        assert ("immutable" in answer.headers["cache-control"]) == name.startswith("plotly")
    for path in ("/api/run", "/api/documents/5", "/api/documents/999"):
        assert ask(port, path).headers["cache-control"] == "no-store"


def test_every_route_reports_a_missing_run(tmp_path: Path) -> None:
    with page_of(tmp_path / "nowhere") as port:
        for route in [*ROUTES, "/api/documents/5"]:
            given = {"/api/search": "?q=a", "/api/compare": "?run=a"}.get(route, "")
            answer = ask(port, route + given)
            assert answer.status == 503 and answer.json["state"] == "waiting"
            assert "content-security-policy" in answer.headers
        assert ask(port, "/").status == 200
        (tmp_path / "nowhere").mkdir()
        ugly_run(tmp_path / "nowhere")
        assert ask(port, "/api/run").json["steps"] == COUNT
        (tmp_path / "nowhere" / "run.db").unlink()
        time.sleep(FRESH_SECONDS)
        answer = ask(port, "/api/events")
        assert answer.status == 503 and answer.json["state"] == "gone"


def test_concurrent_requests_get_the_same_answers(port: int) -> None:
    found: list[tuple[int, bytes]] = []

    def read() -> None:
        for path in ("/api/series?window=7", "/api/documents/5", "/api/spikes"):
            answer = ask(port, path)
            found.append((answer.status, answer.body))

    threads = [threading.Thread(target=read) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 60 and len(set(found)) == 3 and {status for status, _ in found} == {200}


CORRUPTIONS = {
    "blobs": ["UPDATE documents SET token_ids = x'00ff', token_losses = x'', token_ranks = 'text'"],
    "kinds": [
        "UPDATE documents SET source = 5, shard = x'ff', row = 'many', document_bytes = 'large'",
        "UPDATE text_samples SET output = x'ff00', prompt = 7, error = 1.5",
        "UPDATE events SET detail = x'ff', kind = NULL, time = 9e999",
    ],
    "texts": [
        f"UPDATE {table} SET {column} = CAST(x'ff41fe' AS TEXT)"
        for table, column in (("text_samples", "output"), ("events", "detail"), ("documents", "shard"))
    ],
    "config": ["""UPDATE run SET config = '["no", "object"]', vocab_size = 'many', started = x'00'"""],
    "tables": [f"DROP TABLE {table}" for table in ("text_samples", "events", "evaluations")],
}


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_a_corrupted_record_never_fails_a_request(folder: Path, tmp_path: Path, kind: str) -> None:
    """A record from elsewhere is untrusted: an answer or a one-line error, never a traceback."""
    shutil.copy(folder / "run.db", tmp_path / "run.db")
    execute(tmp_path / "run.db", *CORRUPTIONS[kind])
    with contextlib.closing(Service.of(tmp_path)) as service:
        answering = application(service)
        for path in [*ROUTES, "/api/documents/5", "/api/search?q=one"]:
            assert status_of(answering, path) in (200, 400, 404, 503), path
