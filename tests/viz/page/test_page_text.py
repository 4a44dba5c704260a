"""Texts of documents, sources, prompts and events are only ever shown as text, on the page and in the report."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.viz import browser
from tests.viz.browser import Visit, choose, drawn, rows_at, served, text_in_reader, until, write_run
from viz.page.report import make_report
from viz.record.schema import Row, rows_of
from viz.record.writer import StoreWriter

chromium, visit = browser.chromium, browser.visit

ACT = "window.hacked = 1; alert(1)"
WORD = "W" * 1000
TAGS = (
    f"</pre></script></style></textarea></title><script>{ACT}</script><img src=x onerror='{ACT}'>"
    f'<svg onload="{ACT}"><a href="javascript:{ACT}">here</a><iframe srcdoc="<script>{ACT}</script>"></iframe>'
    "<b style='position:fixed'>bold</b><!-- $x^2$ $$\\frac{ &lt;i&gt; &amp; %{x} %{y} %s {{a}} ${hacked = 1}"
)
MARKED = "Q1\0Q2\x07\x1b[31mQ3\u202eQ4\u2028Q5\u2066Q6\ufeffQ7\ud83dQ8\udc00Q9 😀 日本語 עברית e\u0301"
SHOWN = "Q1U+0000Q2U+0007U+001B[31mQ3U+202EQ4U+2028Q5U+2066Q6U+FEFFQ7?Q8?Q9 😀 日本語 עברית e\u0301"
"""The same as shown on the page: invisible characters and those that change the text direction, by their code."""
HOSTILE = f"{TAGS}{MARKED}"
DOCUMENT = f"{HOSTILE} {WORD}"
STEP = 40


def hostile(step: int) -> Sequence[tuple[str, Row]]:
    own: dict[str, Any] = {"source": HOSTILE, "shard": HOSTILE, "loss": 3.0 + step % 4 / 10} if step % 2 == 0 else {}
    return rows_at(step, text=DOCUMENT if step == STEP else f"{HOSTILE} {step}", **own)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile") / "run"
    write_run(folder, 70, hostile, run_id=HOSTILE, model=HOSTILE, source=HOSTILE, note=HOSTILE, ended=False)
    writer = StoreWriter(folder / "run.db", {}, resume=True)
    sample = {"step": STEP, "prompt": f"{HOSTILE} prompt", "source": HOSTILE}
    writer.add_rows(rows_of(sample | {"reference": f"{HOSTILE} reference"}, "in", f"{HOSTILE} output"))
    writer.add_rows(rows_of(sample, "in", f"{HOSTILE} answer"))
    writer.add_rows(rows_of(sample | {"step": STEP + 1, "error": f"{HOSTILE} error"}, "in", ""))
    for kind in ("spike", HOSTILE):
        writer.add("events", {"time": 1.7e9, "step": STEP, "kind": kind, "detail": f"{HOSTILE} detail"})
    writer.add("evaluations", {"step": STEP, "split": HOSTILE, "source": "", "loss": 5.0})
    writer.update_run(ended=1.7e9, outcome=HOSTILE)
    writer.close()
    return folder


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    def worse(step: int) -> Sequence[tuple[str, Row]]:
        return [(table, row | {"loss": 9.0} if table == "steps" else row) for table, row in hostile(step)]

    folder = tmp_path_factory.mktemp("hostile") / "other"
    about = {"config": {"seed": HOSTILE, "dataset": HOSTILE}, "model": f"{HOSTILE} other"}
    return write_run(folder, 70, worse, run_id="other<b>", **about)


@pytest.fixture(scope="module")
def address(run: Path, other: Path) -> Iterator[str]:
    with served(run, other) as found:
        yield found


def holds(page: Page, place: str, *ends: str) -> None:
    """The whole text is there as text, and created no element."""
    for part in (TAGS, SHOWN, *ends):
        until(
            page,
            "([place, part]) => document.querySelector(place).textContent.replaceAll('⏎\\n', '\\n').includes(part)",
            [place, part], seconds=15,
        )  # fmt: skip
    harmless(page)


SCRIPTS = "[...document.scripts].filter((script) => !script.type || script.type === 'module').length"
MADE = """[...document.querySelectorAll(
  "img, iframe, object, embed, #chart a, a[href^=javascript], svg[onload], [onerror], [onload], b[style*=fixed], pre"
)].map((found) => found.outerHTML.slice(0, 200))"""


def harmless(page: Page) -> None:
    assert page.evaluate("[window.hacked, " + SCRIPTS + "]") == [None, 2]
    assert page.evaluate(MADE) == []


def test_control_the_same_text_as_markup_acts(visit: Visit) -> None:
    page = visit("about:blank")
    page.evaluate("(text) => { document.body.innerHTML = text; }", HOSTILE.encode("utf-8", "replace").decode())
    until(page, "window.hacked === 1")
    assert any("dialog: 1" in problem for problem in visit.settle())
    assert page.evaluate(MADE)
    visit.problems.clear()


def hover_label(page: Page, figure: str) -> str:
    """Return the hover label of a point of the first curve of a figure."""
    x, y = page.evaluate(
        """(figure) => {
          const place = document.querySelector(figure), box = place.getBoundingClientRect();
          const { xaxis, yaxis } = place._fullLayout, { x, y } = place.data[0], middle = Math.floor(x.length / 2);
          return [box.left + xaxis._offset + xaxis.d2p(x[middle]), box.top + yaxis._offset + yaxis.d2p(y[middle])];
        }""",
        figure,
    )
    page.mouse.move(x + 15, y + 15)
    page.mouse.move(x, y, steps=3)
    label = page.locator(f"{figure} .hovertext")
    expect(label).to_have_count(1)
    return label.text_content() or ""


def test_the_page(visit: Visit, address: str) -> None:
    page = drawn(visit(f"{address}#step={STEP}", viewport={"width": 1280, "height": 1700}))
    holds(page, "#reader", *(f"{SHOWN} {end}" for end in (WORD, "prompt", "output", "reference", "detail")))
    assert text_in_reader(page) == f"{TAGS}{SHOWN} {WORD}"
    for place in ("#model", "#about", "#state"):
        holds(page, place)
    assert TAGS in page.title()
    tokens = page.locator("#reader [data-words]")
    tokens.nth(30).hover()
    expect(page.locator("#tip")).to_be_visible()
    page.locator("#reader summary").click()
    page.get_by_role("button", name="next ▶").click()
    expect(page.locator("#reader-title")).to_have_text(f"Step {STEP + 1}")
    holds(page, "#reader", f"generation failed: {TAGS}{SHOWN} error", f"{SHOWN} {STEP + 1}")

    # Every tab of the same page.
    assert TAGS[:60] in (page.locator("#panel tbody tr").first.text_content() or "")  # the first words of a document
    holds(page, "#panel")
    page.get_by_label("Source", exact=True).select_option(index=1)
    sources = "new Set([...document.querySelectorAll('#panel tbody tr')].map((row) => row.cells[4].textContent))"
    until(page, f"{sources}.size === 1")
    assert TAGS in page.evaluate(f"[...{sources}][0]")
    choose(page, "sources")
    holds(page, "#panel table")
    label = hover_label(page, "#panel .figure")
    assert f"<script>{ACT}</script>" in label and "<b style='position:fixed'>bold</b>" in label
    assert "Q3U+202EQ4" in label
    assert "{x}" in label and "{y}" in label  # where Plotly would fill in a number
    harmless(page)
    choose(page, "samples")
    holds(page, "#panel", f"{SHOWN} answer")
    choose(page, "events")
    holds(page, "#panel", f"{SHOWN} detail")
    choose(page, "search")
    page.get_by_role("searchbox").fill("<script>window")
    page.get_by_role("searchbox").press("Enter")
    expect(page.locator("#panel")).to_contain_text("Found in 70 ")
    assert page.locator("#panel .hit").first.inner_text() == "<script>window"
    harmless(page)
    choose(page, "compare")
    assert TAGS in page.locator("#panel select").inner_text()
    page.get_by_role("button", name="Compare", exact=True).click()
    expect(page.locator("#panel .sentence")).to_contain_text("is better by")
    holds(page, "#panel table")


def test_the_report(visit: Visit, run: Path, other: Path, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_bytes(make_report(run, [other]))
    page = drawn(visit(f"{path.as_uri()}#step=0", offline=True))
    assert page.evaluate("document.getElementById('answers').textContent.length") > 1000
    holds(page, "#reader", f"{SHOWN} 0")
    for place in ("#model", "#about", "#panel"):
        holds(page, place)
    for tab in ("sources", "samples", "events"):
        choose(page, tab)
        holds(page, "#panel" if tab != "sources" else "#panel table")
    choose(page, "compare")
    expect(page.locator("#panel .sentence")).to_contain_text("is better by")
    holds(page, "#panel table")
