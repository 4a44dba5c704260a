"""A single spike in a very long run is visible when all documents are shown, and a click opens it."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.viz import browser
from tests.viz.browser import Visit, drawn, points_of, rows_at, served, shown_range, text_in_reader, text_of, until
from tests.viz.views.test_token_text import MODELS
from viz.charts.style import LIGHT
from viz.record import schema

chromium, visit = browser.chromium, browser.visit

# The loss of most documents lies between 3 and 5; 7919 has no factor in common with 2001.
FILL = """
WITH RECURSIVE numbers (step) AS (SELECT :first UNION ALL SELECT step + 1 FROM numbers WHERE step + 1 < :below)
INSERT INTO steps (step, rank, loss, accuracy, throughput, learning_rate, gradient_norm, tokens, bytes, seconds,
  seconds_waited, unigram_entropy)
SELECT step, 0, CASE step WHEN :spike THEN 15.5 ELSE 3 + (step * 7919 % 2001) / 1000.0 END,
  0.3 + (step * 31 % 101) / 1000.0, 5000 + step * 17 % 301, 0.001, 1 + (step * 13 % 97) / 100.0, 255, 1000, 0.05,
  0.001, 6
FROM numbers
"""

pytestmark = pytest.mark.full  # the quick suite tests the same in stats/test_downsample.py and page/test_answers.py


def fill(database: sqlite3.Connection, first: int, below: int, spike: int = -1) -> None:
    database.execute("BEGIN")
    database.execute(FILL, {"first": first, "below": below, "spike": spike})
    database.execute("COMMIT")


def open_store(folder: Path) -> sqlite3.Connection:
    return sqlite3.connect(folder / "run.db", isolation_level=None)


@pytest.fixture(scope="module")
def steps() -> int:
    return 1_000_000


@pytest.fixture(scope="module")
def spike(steps: int) -> int:
    return int(0.6172835 * steps)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, steps: int, spike: int) -> Path:
    """A record of so many steps, with a few documents kept. SQLite computes the numbers itself, in a second."""
    folder = tmp_path_factory.mktemp("long")
    about = {
        "run_id": "big", "config": {"num_steps": 2 * steps, "warmup_steps": 1000}, "model": "small 13.8 M",
        "tokenizer": MODELS["ours"], "vocab_size": 340, "ended": 1.8e9, "outcome": "done",
    }  # fmt: skip
    with closing(open_store(folder)) as database:
        database.execute("PRAGMA synchronous = OFF")
        statements = [*schema.create_statements(), schema.insert_statement("run", schema.make_row("run", about))]
        for step in (spike - 1, spike, spike + 1):
            rows = [row for table, row in rows_at(step, source="") if table == "documents"]
            statements += [schema.insert_statement("documents", row) for row in rows]
        for statement in statements:
            database.execute(*statement)
        fill(database, 0, steps, spike)
    return folder


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    with served(folder) as found:
        yield found


def at_the_edge(page: Page, spike: int) -> dict[str, float]:
    """The mark of the spike at the upper edge of the lane."""
    (mark,) = [point for point in points_of(page, spike) if point["symbol"] == "triangle-up"]
    assert mark["colour"] == LIGHT.bad and mark["value"] == "15.500"
    assert mark["y"] == pytest.approx(mark["top"], abs=1)
    return mark


def in_the_curve(page: Page, spike: int) -> dict[str, float]:
    (point,) = [point for point in points_of(page, spike) if point["symbol"] == "circle"]
    assert point["value"] == 15.5
    return point


def shows_the_spike(page: Page, spike: int) -> None:
    expect(page.locator("#reader-title")).to_have_text(f"Step {spike:,}")
    assert page.evaluate("location.hash") == f"#step={spike}"
    assert text_in_reader(page) == text_of(spike)


def click(page: Page, point: dict[str, float], spike: int) -> None:
    """Move to a point and click. In a dense curve its neighbours are as near: the label shows which one is hit."""
    page.mouse.move(point["x"], point["y"] + 60)
    page.mouse.move(point["x"], point["y"] + 1, steps=4)
    expect(page.locator(".hovertext")).to_contain_text(f"{spike:,}")
    page.mouse.click(point["x"], point["y"] + 1)


def test_one_spike_in_a_long_run_is_visible_and_opens(visit: Visit, address: str, steps: int, spike: int) -> None:
    page = drawn(visit(address))
    expect(page.locator("#state")).to_have_text(f"ended: done · {steps:,} of {2 * steps:,} documents")
    low, high = shown_range(page)
    assert low <= 0 and high >= steps
    assert page.evaluate("document.getElementById('chart').data[0].x.length") < 10_000  # reduced
    in_the_curve(page, spike)
    click(page, at_the_edge(page, spike), spike)
    shows_the_spike(page, spike)
    page.get_by_role("button", name="next ▶").click()
    expect(page.locator("#reader-title")).to_have_text(f"Step {spike + 1:,}")

    # Zooming keeps it, down to single documents.
    loaded = "() => document.getElementById('chart').data[0].x.length"

    def held(before: tuple[float, float]) -> tuple[float, float]:
        """The visible range, once it has changed and its points are loaded."""
        until(page, "(old) => document.getElementById('chart')._fullLayout.xaxis.range[0] !== old[0]", list(before))
        low, high = shown_range(page)
        margin = 0.02 * (high - low) + 2  # a view begins and ends at a whole step
        inside = """([low, high]) => {
          const { x } = document.getElementById("chart").data[0];
          return x[0] >= low && x.at(-1) <= high;
        }"""
        until(page, inside, [low - margin, high + margin])
        in_the_curve(page, spike)
        return low, high

    now = shown_range(page)
    for name in ("Zoom in", "Later"):
        page.get_by_role("button", name=name, exact=True).click()
        now = held(now)
        at_the_edge(page, spike)
    while now[1] - now[0] > 30:  # each time to about a fortieth, in the end to single documents
        mark = in_the_curve(page, spike)
        page.mouse.move(mark["x"] - 10, mark["top"] + 30)
        page.mouse.down()
        page.mouse.move(mark["x"] + 10, mark["top"] + 60, steps=4)
        page.mouse.up()
        now = held(now)
    assert page.evaluate(loaded) <= 30
    click(page, in_the_curve(page, spike), spike)
    shows_the_spike(page, spike)
    page.get_by_role("button", name="All", exact=True).click()
    until(page, "(steps) => document.getElementById('chart')._fullLayout.xaxis.range[1] >= steps", steps)
    in_the_curve(page, spike)


def test_a_zoomed_range_stays_while_rows_arrive(
    visit: Visit, address: str, folder: Path, steps: int, spike: int
) -> None:
    """Last in this file: the store has more rows from here on."""
    page = drawn(visit(address, poll_faster=True))
    page.get_by_role("button", name="Zoom in", exact=True).click()
    until(page, "document.getElementById('chart')._fullLayout.xaxis.range[0] > 40000")
    held = shown_range(page)
    points = page.evaluate("document.getElementById('chart').data[0].x")
    with closing(open_store(folder)) as database:
        fill(database, steps, steps + 5000)
    expect(page.locator("#state")).to_contain_text(f"{steps + 5000:,} of {2 * steps:,} documents")
    page.wait_for_timeout(500)  # a few more polls
    assert shown_range(page) == held and page.evaluate("document.getElementById('chart').data[0].x") == points
    in_the_curve(page, spike)
    page.get_by_role("button", name="All", exact=True).click()
    grown = "(steps) => document.getElementById('chart')._fullLayout.xaxis.range[1] >= steps"
    until(page, grown, steps + 5000)  # control
