"""The states of a run while its page is open (missing, empty, running, ended, stopped, deleted), and of the server."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.conftest import PROJECT, command_environment
from tests.runs.conftest import SMALL
from tests.viz import browser
from tests.viz.browser import Visit, drawn, free_port, go_to, rows_at, served, text_in_reader, text_of, until, write_run
from tests.viz.page.test_live_run import lock
from tests.viz.views.test_token_text import MODELS
from viz.record.writer import StoreWriter

chromium, visit = browser.chromium, browser.visit

POINTS = "document.getElementById('chart').data?.[0]?.x.length ?? 0"


def shows(page: Page, state: str, banner: str | None = None) -> None:
    """The header shows the state, and the banner its text; None: there is no banner."""
    expect(page.locator("#state")).to_contain_text(state)
    if banner is None:
        expect(page.locator("#banner")).to_be_hidden()
    else:
        expect(page.locator("#banner")).to_contain_text(banner)


def test_a_run_from_before_its_start_until_it_is_deleted(visit: Visit, tmp_path: Path) -> None:
    folder = tmp_path / "training_viz"
    with served(folder) as address:
        page = visit(address, refused=True, poll_faster=True)
        shows(page, "waiting", "This page shows a run as soon as one starts there")
        assert page.evaluate(POINTS) == 0
        folder.mkdir()
        about = {"config": {"num_steps": 200}, "model": "tiny 0.3 M", "tokenizer": MODELS["ours"], "vocab_size": 340}
        with lock(folder):
            writer = StoreWriter(folder / "run.db", about)
            shows(page, "running · 0 of 200 documents", "its first step is not finished yet")
            writer.add_rows(rows_at(0))
            writer.flush()
            shows(page, "running · 1 of 200 documents", "Only one document so far")
            until(page, f"{POINTS} === 1")
            for step in range(1, 60):
                writer.add_rows(rows_at(step))
            writer.flush()
            shows(page, "running · 60 of 200 documents")
            until(page, f"{POINTS} === 60")
            expect(page).to_have_title("60 · tiny 0.3 M")
            expect(page.locator("#state")).to_contain_text(re.compile(r"\d+ s left"))
            go_to(page, 52)
            expect(page.locator("#reader")).to_contain_text("Document 52")
            writer.rewind(40)  # the steps are trained again on other documents: the curve and the open document follow
            writer.add("events", {"time": time.time(), "step": 40, "kind": "roll-back", "detail": "to step 40"})
            for step in range(40, 60):
                writer.add_rows(rows_at(step, text=f"Again {step}: another text.", loss=3.0))
            writer.flush()
            expect(page.locator("#reader")).to_contain_text("Again")
            until(page, "document.getElementById('chart').data[0].y[50] === 3")
            assert page.evaluate("document.getElementById('chart').data[0].y[30]") != 3
        shows(page, "stopped · 60 of 200", "stopped without finishing")
        with lock(folder):
            shows(page, "running · 60 of 200")
        writer.update_run(ended=time.time(), outcome="interrupted")
        writer.close()
        shows(page, "ended: interrupted · 60 of 200 documents")
        for path in folder.glob("run.db*"):
            path.unlink()
        shows(page, "gone", "The record was deleted or moved")
        assert page.evaluate(POINTS) == 60  # what was loaded stays
        assert "Again" in page.locator("#reader").inner_text()
        (folder / "run.db").write_bytes(b"no database" * 1000)
        shows(page, "unreadable", "The record can't be read")
        assert page.evaluate(POINTS) == 60
        (folder / "run.db").unlink()
        write_run(folder, 30, model="another")
        shows(page, "ended: done · 30 of 30 documents")
        until(page, f"{POINTS} === 30")
        expect(page.locator("#model")).to_have_text("another")


@contextmanager
def command(*words: object, cwd: Path, after: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Start a command; yields the process and the address that it prints, and kills it at the end."""
    with (cwd / "output.txt").open("w+", encoding="utf-8") as output:
        process = subprocess.Popen(
            [sys.executable, *map(str, words)],
            cwd=cwd, env=command_environment(), stdout=output, stderr=output, stdin=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        try:
            deadline = time.monotonic() + 120
            while not (found := re.search(rf"{after}(http://\S+)", (cwd / "output.txt").read_text("utf-8"))):
                assert time.monotonic() < deadline and process.poll() is None, (cwd / "output.txt").read_text("utf-8")
                time.sleep(0.05)
            yield process, found[1]
        finally:
            if process.poll() is None:
                process.kill()
            process.wait(60)


AWAY = "The server does not respond"


@pytest.mark.full
def test_a_server_that_is_stopped_and_started_again(visit: Visit, tmp_path: Path) -> None:
    """At first with the same run, then with another of as many steps on the same port."""
    run, port = write_run(tmp_path / "run", 40, ended=False), free_port()
    serve = ("-m", "viz", "serve", run, "--port", port)
    with command(*serve, cwd=tmp_path, after="The page: ") as (process, address):
        assert re.fullmatch(rf"http://[\w.]+:{port}", address)
        page = drawn(visit(f"{address}/#step=12", refused=True, poll_faster=True))
        shows(page, "stopped · 40 of 40", "stopped without finishing")
        os.kill(process.pid, signal.SIGINT)
        process.wait(60)
    shows(page, "no server", AWAY)
    assert page.evaluate(POINTS) == 40
    assert text_of(12)[:10] in page.locator("#reader").inner_text()
    page.get_by_role("button", name="next ▶").click()
    expect(page.locator("#reader")).to_contain_text(AWAY)  # a document that is not loaded
    page.get_by_role("button", name="Zoom in", exact=True).click()
    shows(page, "no server", AWAY)
    with served(run, port=port):
        shows(page, "stopped · 40 of 40", "stopped without finishing")
        page.get_by_role("button", name="◀ previous").click()
        expect(page.locator("#reader")).to_contain_text(text_of(12)[:11])
    other = write_run(
        tmp_path / "other", 40, lambda step: rows_at(step, text=f"Other {step}.", loss=3.0), model="other"
    )
    with served(other, port=port):
        expect(page.locator("#model")).to_have_text("other")
        until(page, "document.getElementById('chart').data[0].y[30] === 3", seconds=10)
        expect(page.locator("#reader")).to_contain_text("Other 12", timeout=10_000)


@pytest.mark.full
def test_a_training_run_is_watched_from_start_to_end(visit: Visit, tmp_path: Path, corpus: Path) -> None:
    port = free_port()
    train = [PROJECT / "train_slimpajama.py", *SMALL, "--steps", 100_000, "--repeat", "--no-checkpoint"]
    words = [*train, "--dataset", corpus, "--serve", port]
    with command(*words, cwd=tmp_path, after="The page: ") as (process, address):
        page = visit(address, refused=True, poll_faster=True)  # the server may be up before the record exists
        until(page, f"{POINTS} > 0", seconds=120)
        shows(page, "running · ")
        first = int(page.evaluate("document.getElementById('chart').dataset.drawn"))
        until(page, "(first) => Number(document.getElementById('chart').dataset.drawn) > first", first)
        go_to(page, 3)
        expect(page.locator("#reader-title")).to_have_text("Step 3")
        expect(page.locator("#reader")).to_contain_text("documents.jsonl")
        document = text_in_reader(page)
        assert len(document) > 20
        os.kill(process.pid, signal.SIGINT)
        process.wait(120)
    assert process.returncode in (0, 130)
    shows(page, "no server", AWAY)
    assert page.evaluate(POINTS) > 0
    assert text_in_reader(page) == document
    output = (tmp_path / "output.txt").read_text("utf-8")
    assert not list((tmp_path / "training_viz").glob("run.db-*"))  # the page did not keep the record open
    assert "The page stopped with the run" in output and "Traceback" not in output
