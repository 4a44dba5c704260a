"""A real browser and a real server for the tests of the page, and the runs that they show.

A test file imports the fixtures by `chromium, visit = browser.chromium, browser.visit`. Each file has its own browser,
which is closed after the file, because Playwright's event loop would interfere with those of other tests.
"""

import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Dialog, Page, expect, sync_playwright

from tests.viz.small_tokenizers import MODELS, encode
from viz.page.api import Service
from viz.page.http import application
from viz.record.schema import Row, rows_of
from viz.record.writer import StoreWriter

PATIENCE = 30_000  # milliseconds, for a busy machine
expect.set_options(timeout=PATIENCE)

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--disable-breakpad", "--no-first-run",
]  # fmt: skip
WATCH = """
addEventListener("securitypolicyviolation", (event) =>
  console.error(`policy: ${event.effectiveDirective} ${event.blockedURI}`));
addEventListener("unhandledrejection", (event) => console.error(`unhandled: ${event.reason}`));
"""
POLL_FASTER = """
const wait = setTimeout;
window.setTimeout = (act, delay, ...rest) => wait(act, delay >= 1000 ? 100 : delay, ...rest);
"""
NETWORK = "Failed to load resource: "  # Chromium's message for a failed request or a status such as 404


def _no_browser(known: str) -> None:
    line = f"no browser ({', '.join(NAMES)}, {known}): apt-get install chromium, or playwright install chromium"
    if os.environ.get("REQUIRE_BROWSER"):
        pytest.fail(line, pytrace=False)
    pytest.skip(line)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """A browser for one test file. If there is none, skip, or fail if REQUIRE_BROWSER is set."""
    with sync_playwright() as playwright:
        known = playwright.chromium.executable_path
        path = next(filter(None, map(shutil.which, NAMES)), known)
        if not Path(path).exists():
            _no_browser(known)
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@dataclass
class Visit:
    """`visit(address)` opens a page in a new context and collects its complaints in `problems`."""

    browser: Browser
    problems: list[str] = field(default_factory=list)
    contexts: list[BrowserContext] = field(default_factory=list)

    def __call__(
        self, address: str, *, refused: bool = False, offline: bool = False, poll_faster: bool = False, **settings: Any
    ) -> Page:
        """Open an address in a new context with `settings`, such as its viewport.

        `refused`: the console may report failed requests. `poll_faster`: every 100 ms instead of every second.
        """
        context = self.browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **settings})
        self.contexts.append(context)
        context.set_default_timeout(PATIENCE)
        context.set_offline(offline)
        context.add_init_script(WATCH + POLL_FASTER if poll_faster else WATCH)
        page = context.new_page()

        def hear(message: ConsoleMessage) -> None:
            if message.type in ("error", "warning") and not (refused and message.text.startswith(NETWORK)):
                self.problems.append(f"{message.type}: {message.text}")

        def refuse(dialog: Dialog) -> None:
            self.problems.append(f"dialog: {dialog.message}")
            dialog.dismiss()

        page.on("console", hear)
        page.on("pageerror", lambda error: self.problems.append(f"page error: {error}"))
        page.on("dialog", refuse)
        page.goto(address)
        return page

    def settle(self) -> list[str]:
        """Return the problems, including those still pending."""
        for context in self.contexts:
            for page in context.pages:
                page.evaluate("new Promise((done) => setTimeout(done, 20))")
        return self.problems


@pytest.fixture
def visit(chromium: Browser) -> Iterator[Visit]:
    """Fail the test at its end if there were console errors, uncaught errors, dialogs or policy violations."""
    made = Visit(chromium)
    yield made
    problems = made.settle()
    for context in made.contexts:
        context.close()
    assert problems == []


def until(page: Page, expression: str, argument: object = None, seconds: float = PATIENCE / 1000) -> Any:
    """Wait until an expression is truthy and return its value. (The page's policy forbids Playwright's own wait.)"""
    deadline = time.monotonic() + seconds
    while not (found := page.evaluate(expression, argument)):
        assert time.monotonic() < deadline, f"never true: {expression}"
        page.wait_for_timeout(50)
    return found


def drawn(page: Page) -> Page:
    """Wait until the curves and the tab are shown; returns the page."""
    until(page, "document.querySelector('#chart[data-drawn]') && document.querySelector('#panel[data-ready]')")
    return page


def choose(page: Page, tab: str) -> None:
    """Open a tab and wait for its content."""
    page.evaluate("delete document.getElementById('panel').dataset.ready")
    page.click(f"#tab-{tab}")
    until(page, "(tab) => document.getElementById('panel').dataset.ready === tab", tab)


def text_in_reader(page: Page) -> str:
    """The text of the open document, without the marks that show its line ends."""
    found: str = page.evaluate("document.querySelector('#reader [aria-label=\"Text of the document\"]').textContent")
    return found.replace("⏎\n", "\n")


POINTS = """(step) => {
  const chart = document.getElementById("chart"), box = chart.getBoundingClientRect(), found = [];
  for (const trace of chart.data) {
    if ((trace.yaxis ?? "y") !== "y" || !Array.isArray(trace.customdata?.[0])) continue;
    const place = trace.customdata.findIndex(([other]) => other === step);
    const { xaxis, yaxis } = chart._fullLayout;
    if (place >= 0) found.push({
      symbol: trace.marker?.symbol ?? "circle", colour: trace.marker?.color,
      value: trace.customdata[place][1], height: trace.y[place],
      x: box.left + xaxis._offset + xaxis.d2p(trace.x[place]), y: box.top + yaxis._offset + yaxis.d2p(trace.y[place]),
      top: box.top + yaxis._offset,
    });
  }
  return found;
}"""


def points_of(page: Page, step: int) -> list[dict[str, Any]]:
    """Return the points that show a step in the loss lane (curve and edge); `x`, `y` in pixels of the window."""
    found: list[dict[str, Any]] = page.evaluate(POINTS, step)
    return found


def go_to(page: Page, step: object) -> None:
    """Type a step into the field that opens its document."""
    page.fill("#go-step", str(step))
    page.press("#go-step", "Enter")


def shown_range(page: Page) -> tuple[float, float]:
    """Return the steps at the ends of the axis."""
    low, high = page.evaluate("document.getElementById('chart')._fullLayout.xaxis.range")
    return low, high


@contextmanager
def served(folder: Path, *others: Path, port: int = 0) -> Iterator[str]:
    """Serve a folder from a thread and yield the address: a process per test would take seconds."""
    service = Service.of(folder, others)
    settings: dict[str, Any] = {"log_level": "warning", "access_log": False, "lifespan": "off"}
    server = uvicorn.Server(uvicorn.Config(application(service), timeout_graceful_shutdown=2, **settings))
    with socket.create_server(("127.0.0.1", port)) as listening:
        port = listening.getsockname()[1]
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            yield f"http://localhost:{port}/"
        finally:
            server.should_exit = True
            thread.join()
            service.search.close()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        number: int = found.getsockname()[1]
    return number


# ---- the runs

SPIKE, BEST = 97, 61
PROBED, MEASURED = 40, {0: -0.75, 1: -1.5, 8: -0.25}
"""The step of a re-measured document; number of documents later -> change of its loss."""
SOURCES = ("web pages", "code", "books")
GONE = range(20, 30)
"""Steps whose documents are no longer kept."""
RowsOf = Callable[[int], Sequence[tuple[str, Row]]]


def text_of(step: int) -> str:
    return f"Document {step} begins\nand goes on: four five six seven, eight."


def loss_of(step: int) -> float:
    return {SPIKE: 14.0, BEST: 1.0}.get(step, 5.0 + (step * 37 % 11) / 10 - step / 300)


def token_losses(step: int, text: str) -> list[float]:
    return [(place * 7 + step) % 20 / 2 for place in range(len(encode(text)) - 1)]


def rows_at(step: int, **changed: Any) -> list[tuple[str, Row]]:
    """Return the rows of a step as a trainer writes them. `text`: of its document; None if it is not kept."""
    text = changed.pop("text", text_of(step))
    ids = [] if text is None else encode(text)
    losses = [] if text is None else token_losses(step, text)
    content = {
        "token_ids": ids, "token_losses": np.array(losses, np.float32),
        "token_ranks": np.arange(len(losses), dtype=np.int32),
    }  # fmt: skip
    metrics: dict[str, Any] = {
        "step": step, "loss": loss_of(step), "accuracy": 0.25 + step % 5 / 100, "throughput": 5000.0 + step % 7,
        "learning_rate": 1e-5 * (step + 1), "gradient_norm": 1.0 + step % 3, "tokens": max(len(losses), 1),
        "bytes": 90, "seconds": 0.05, "seconds_waited": 0.001, "unigram_entropy": 5.0,
        "source": SOURCES[step % len(SOURCES)], "shard": "part-0.jsonl", "row": step,
        "text_hash": step.to_bytes(32, "big"), "document_bytes": 120,
    }  # fmt: skip
    rows = rows_of(metrics | content | changed)
    if text is None:
        rows = [(table, {k: v for k, v in row.items() if k not in content}) for table, row in rows]
    return rows


def write_run(folder: Path, count: int = 150, tell: RowsOf = rows_at, *, ended: bool = True, **about: Any) -> Path:
    """Write the record of a run of `count` documents, with samples, events and an evaluation; returns its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    described = {
        "run_id": "run-1", "config": {"warmup_steps": 10, "num_steps": count, "seed": 1}, "model": "tiny 0.3 M",
        "source": "data/documents.jsonl", "tokenizer": MODELS["ours"], "tokenizer_hash": "t", "vocab_size": 340,
    }  # fmt: skip
    writer = StoreWriter(folder / "run.db", described | about)
    for step in range(count):
        writer.add_rows(tell(step))
        if step % 10 == 0:
            began = {"prompt": f"Document {step}", "reference": f" begins {step}", "source": SOURCES[0]}
            writer.add_rows(rows_of({"step": step} | began, f"Document {step}", f" wrote {step}"))
        if step % 50 == 0:
            writer.add_rows(rows_of({"step": step, "prompt": "Asked again"}, "Asked again", f" answered {step}"))
    if count > SPIKE:
        for step, kind, detail in (
            (50, "checkpoint", "checkpoint_step_50.bin"), (SPIKE, "spike", "loss 14.0 where 5.4 is usual"),
            (100, "checkpoint", "checkpoint_step_100.bin"),
        ):  # fmt: skip
            writer.add("events", {"time": 1.7e9 + step, "step": step, "kind": kind, "detail": detail})
        whole = {"split": "held-out", "source": "", "loss": 5.25, "accuracy": 0.3, "bits_per_byte": 1.5}
        writer.add("evaluations", {"step": count - 1} | whole)
    if count > PROBED + 8:
        for distance, change in MEASURED.items():
            losses = np.array(token_losses(PROBED, text_of(PROBED)), np.float32) + change
            about = {"document": PROBED, "loss": loss_of(PROBED) + change, "accuracy": 0.5, "token_losses": losses}
            writer.add("probes", {"step": PROBED + distance} | about)
    if ended:
        writer.update_run(ended=time.time(), outcome="done")
    writer.close()
    return folder


def with_some_gone(step: int) -> list[tuple[str, Row]]:
    return rows_at(step, text=None) if step in GONE else rows_at(step)
