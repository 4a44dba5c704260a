"""What a person does on the page of a finished run of 150 documents, with a second run on the same texts."""

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from playwright.sync_api import Page, Route, expect

from tests.viz import browser
from tests.viz.browser import (
    BEST,
    SOURCES,
    SPIKE,
    Visit,
    choose,
    drawn,
    go_to,
    loss_of,
    points_of,
    text_in_reader,
    until,
)
from viz.charts.style import LIGHT
from viz.record.schema import Row

chromium, visit = browser.chromium, browser.visit


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    root = tmp_path_factory.mktemp("runs")

    def better(step: int) -> Sequence[tuple[str, Row]]:
        return browser.rows_at(step, loss=loss_of(step) - 0.25 - step % 3 / 100)

    run = browser.write_run(root / "run", tell=browser.with_some_gone)
    other = browser.write_run(root / "other", tell=better, run_id="run-2", config={"num_steps": 150, "seed": 2})
    with browser.served(run, other) as found:
        yield found


def reader(page: Page) -> Any:
    return page.locator("#reader")


def shows(page: Page, step: int) -> None:
    """The document of the step is open, and the address is a link to it."""
    expect(page.locator("#reader-title")).to_have_text(f"Step {step:,}")
    assert page.evaluate("location.hash") == f"#step={step}"


# ---- the fixture itself


def test_control_every_complaint_of_a_page_is_recorded(visit: Visit, address: str) -> None:
    page = visit(address)
    page.evaluate("console.error('said'); console.warn('warned'); setTimeout(() => { throw Error('thrown') })")
    page.evaluate("Promise.reject(Error('refused')), undefined")
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.hacked = 1\">')")
    page.evaluate("document.head.append(Object.assign(document.createElement('script'), { text: 'hacked = 1' }))")
    page.evaluate("fetch('https://example.org/').catch(() => {})")
    page.evaluate("alert('asked')")
    page.evaluate("fetch('/api/documents/12345')")
    heard = "\n".join(visit.settle())
    for part in (
        "said", "warned", "thrown", "refused", "policy: script-src-attr inline", "policy: script-src-elem inline",
        "policy: connect-src https://example.org", "dialog: asked", "404",
    ):  # fmt: skip
        assert part in heard, part
    assert page.evaluate("window.hacked") is None  # the policy stops what gets past the page
    visit.problems.clear()


# ---- a point of the curve, and its document


def test_a_click_on_a_point_opens_its_document(visit: Visit, address: str) -> None:
    page = drawn(visit(address))
    expect(page.locator("#state")).to_have_text("ended: done · 150 of 150 documents")
    expect(page).to_have_title("150 · tiny 0.3 M")
    expect(reader(page)).to_contain_text("No document is open")
    (point, *_) = [point for point in points_of(page, 40) if point["symbol"] == "circle"]
    assert point["value"] == pytest.approx(loss_of(40))
    page.mouse.move(point["x"] + 30, point["y"] + 30)
    page.mouse.move(point["x"], point["y"], steps=3)
    expect(page.locator(".hovertext")).to_contain_text(f"step 40  loss {loss_of(40):.3f}")
    page.mouse.click(point["x"], point["y"])
    shows(page, 40)
    assert text_in_reader(page) == browser.text_of(40)
    text = reader(page).inner_text()
    assert SOURCES[40 % 3] in text and "part-0.jsonl, row 40" in text and f"{loss_of(40):.3f}" in text
    assert " begins 40" in text and " wrote 40" in text  # generated, and actual
    (line,) = [
        shape for shape in page.evaluate("document.getElementById('chart').layout.shapes") if shape["xref"] == "x"
    ]
    assert line["x0"] == 40
    page.evaluate("location.hash = '#step=3'")
    shows(page, 3)
    tokens = reader(page).locator("[data-words]")
    tokens.nth(0).hover()
    expect(page.locator("#tip")).to_contain_text("not predicted")
    tokens.nth(5).hover()
    expect(page.locator("#tip")).to_contain_text(f"loss {(4 * 7 + 3) % 20 / 2:.2f}, 4 tokens ranked above it")
    page.locator("#reader summary").click()
    count = tokens.count()
    expect(reader(page).get_by_role("table", name="All predictions, in order").locator("tbody tr")).to_have_count(
        count - 1
    )


def test_the_curves_and_their_controls(visit: Visit, address: str) -> None:
    """Zoom by buttons and dragging, window of the average, logarithmic axes, evaluations, outliers."""
    page = drawn(visit(address))
    everything = browser.shown_range(page)
    assert everything[0] <= 0 and everything[1] >= 150

    def press(name: str) -> tuple[float, float]:
        before = browser.shown_range(page)
        page.get_by_role("button", name=name, exact=True).click()
        until(page, "(old) => document.getElementById('chart')._fullLayout.xaxis.range[0] !== old[0]", list(before))
        return browser.shown_range(page)

    low, high = press("Zoom in")
    assert 70 < high - low < 80 and low == pytest.approx(37, abs=2)
    shifted = press("Later")
    assert shifted[0] > low and shifted[1] - shifted[0] == pytest.approx(high - low, abs=2)
    assert press("Earlier")[0] == pytest.approx(low, abs=2)
    assert press("Zoom out") == everything
    first, last = (points_of(page, step)[0] for step in (80, 110))
    page.mouse.move(first["x"], first["top"] + 40)
    page.mouse.down()
    page.mouse.move(last["x"], first["top"] + 60, steps=4)
    page.mouse.up()
    until(page, "document.getElementById('chart')._fullLayout.xaxis.range[0] > 70")
    low, high = browser.shown_range(page)
    assert low == pytest.approx(80, abs=3) and high == pytest.approx(110, abs=3)
    until(page, "document.getElementById('chart').data[0].x.length < 40")
    assert max(page.evaluate("document.getElementById('chart').data[0].x")) <= 112
    page.mouse.dblclick(first["x"], first["top"] + 40)
    until(page, "document.getElementById('chart')._fullLayout.xaxis.range[0] < 70")
    assert browser.shown_range(page) == everything
    data = page.evaluate("document.getElementById('chart').data.map(({ y, line }) => ({ y: [...y], line }))")
    assert [trace["y"] for trace in data if (trace["line"] or {}).get("color") == LIGHT.held_out] == [[5.25]]
    (triangle,) = [point for point in points_of(page, SPIKE) if point["symbol"] == "triangle-up"]
    assert triangle["colour"] == LIGHT.bad and triangle["y"] == pytest.approx(triangle["top"], abs=1)
    average = "[...document.getElementById('chart').data.find(({ line }) => line?.width === 2).y]"
    before = page.evaluate(average)
    page.locator("#window").fill("0")
    expect(page.locator("#window-words")).to_have_text("10 documents")
    until(page, f"(old) => JSON.stringify({average}) !== old", "[" + ",".join(map(repr, before)) + "]")
    assert page.evaluate(average)[-1] != pytest.approx(before[-1], abs=1e-3)
    page.locator("#log-steps").check()
    until(page, "document.getElementById('chart')._fullLayout.xaxis.type === 'log'")
    page.locator("#log-loss").check()
    until(page, "document.getElementById('chart')._fullLayout.yaxis.type === 'log'")
    (point, *_) = points_of(page, 40)
    page.mouse.move(point["x"] + 20, point["y"] + 20)
    page.mouse.move(point["x"], point["y"], steps=3)
    expect(page.locator(".hovertext")).to_contain_text("step 40 ")
    page.mouse.click(point["x"], point["y"])
    shows(page, 40)


# ---- links


def test_links_to_documents(visit: Visit, address: str) -> None:
    """A link opens its document, the browser's back and forward buttons work, and a missing step is reported."""
    page = drawn(visit(f"{address}#step=7", refused=True))
    shows(page, 7)
    go_to(page, "1,00")  # with a thousands separator
    shows(page, 100)
    go_to(page, 50)
    shows(page, 50)
    page.go_back()
    shows(page, 100)
    assert text_in_reader(page) == browser.text_of(100)
    page.go_back()
    shows(page, 7)
    assert text_in_reader(page) == browser.text_of(7)
    page.go_forward()
    shows(page, 100)
    page.get_by_role("button", name="next ▶").click()
    shows(page, 101)
    page.evaluate("location.hash = '#step=149'")
    shows(page, 149)
    expect(page.get_by_role("button", name="next ▶")).to_be_disabled()
    page.evaluate("location.hash = '#step=999999'")
    shows(page, 999999)
    expect(reader(page)).to_contain_text("the run has no step 999,999")
    page.evaluate(f"location.hash = '#step={browser.GONE[2]}'")
    shows(page, browser.GONE[2])
    expect(reader(page)).to_contain_text("no longer kept")
    assert "part-0.jsonl" in reader(page).inner_text()  # everything else is kept
    page.evaluate("location.hash = '#step=<img src=x onerror=alert(1)>'")
    expect(reader(page)).to_contain_text("No document is open")
    go_to(page, "-1")
    expect(page.locator("#go-words")).to_have_text("enter a whole number, 0 or greater")


# ---- the keyboard

FOCUSED = """() => {
  const { activeElement: at } = document, style = getComputedStyle(at);
  return {
    id: at.id, tag: at.tagName, words: at.textContent.trim().slice(0, 30),
    outline: style.outlineStyle === "none" ? 0 : parseFloat(style.outlineWidth),
    inView: at.getBoundingClientRect().width > 0,
  };
}"""


def test_the_keyboard_alone(visit: Visit, address: str) -> None:
    page = drawn(visit(address))
    walked: list[dict[str, Any]] = []
    while not (walked and walked[-1]["id"] == "panel") and len(walked) < 40:
        page.keyboard.press("Tab")
        walked.append(page.evaluate(FOCUSED))
    ids = [stop["id"] or stop["words"] for stop in walked]
    assert walked[0]["words"] == "Skip to the document"
    order = ["theme", "window", "log-steps", "log-loss", "zoom-in", "zoom-all", "go-step", "tab-spikes", "panel"]
    assert [name for name in ids if name in order] == order
    assert all(stop["outline"] >= 1 and stop["inView"] for stop in walked), walked
    names = page.evaluate("[...document.querySelectorAll('[role=tab]')].map((tab) => tab.id)")
    page.focus(f"#{names[0]}")
    for expected in (*names[1:], names[0]):
        page.keyboard.press("ArrowRight")
        expect(page.locator(f"#{expected}")).to_have_attribute("aria-selected", "true")
        until(page, "(tab) => document.getElementById('panel').dataset.ready === tab", expected.removeprefix("tab-"))
        expect(page.locator(f"#{expected}")).to_be_focused(timeout=10_000)
    page.keyboard.press("End")
    expect(page.locator(f"#{names[-1]}")).to_be_focused()
    page.keyboard.press("Home")
    expect(page.locator("#tab-spikes")).to_be_focused()

    page.focus("#go-step")
    page.keyboard.type("12")
    page.keyboard.press("Enter")
    shows(page, 12)
    page.focus("#go-step")
    page.keyboard.press("ArrowLeft")  # in a field, arrow keys belong to the field
    shows(page, 12)
    page.locator("#skip").focus()
    page.keyboard.press("Enter")
    page.wait_for_timeout(200)
    expect(reader(page)).to_be_focused()
    shows(page, 12)
    page.keyboard.press("ArrowRight")
    shows(page, 13)
    page.keyboard.press("ArrowRight")
    shows(page, 14)
    page.keyboard.press("ArrowLeft")
    shows(page, 13)
    page.keyboard.press("Escape")
    expect(reader(page)).to_contain_text("No document is open")
    assert page.evaluate("location.hash") == ""
    page.evaluate("document.activeElement.blur()")  # in a field, / is a character
    page.keyboard.press("/")
    expect(page.get_by_role("searchbox")).to_be_focused()
    page.keyboard.type("Document 33 ")
    page.keyboard.press("Enter")
    expect(page.locator("#panel tbody tr")).to_have_count(1)
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    shows(page, 33)

    # Rebuilt controls get the focus back, so that pressing a key again repeats the action.
    page.get_by_role("button", name="next ▶").focus()
    page.keyboard.press("Enter")
    shows(page, 34)
    focused = [page.evaluate("document.activeElement.textContent")]
    choose(page, "spikes")
    page.get_by_label("Direction").focus()
    page.keyboard.press("ArrowDown")
    until(page, "(step) => document.querySelector('#panel tbody td').textContent === step", str(BEST))
    page.wait_for_timeout(200)
    focused.append(page.evaluate("document.activeElement.getAttribute('aria-label')"))
    choose(page, "sources")
    page.locator("#panel input[type=checkbox]").nth(1).focus()
    page.keyboard.press("Space")
    until(page, "document.querySelector('#panel .figure').data[1].visible === false")
    page.wait_for_timeout(200)
    focused.append(page.evaluate("document.activeElement.type"))
    assert focused == ["next ▶", "Direction", "checkbox"]


NEED_NAMES = {"image", "img", "table", "tabpanel", "region", "complementary", "DisclosureTriangle"}
"""Roles that need a name although they can't be focused."""


def unnamed(page: Page) -> list[str]:
    """Return the roles of elements without an accessible name. The content of a figure counts as one image."""
    session = page.context.new_cdp_session(page)
    nodes = [node for node in session.send("Accessibility.getFullAXTree")["nodes"] if not node["ignored"]]
    roles = {node["role"]["value"] for node in nodes}
    assert roles >= {"button", "tab", "tabpanel", "slider"}, roles  # the tree is there
    found = []
    for node in nodes:
        role, name = node["role"]["value"], node.get("name", {}).get("value", "").strip()
        can_focus = any(one["name"] == "focusable" and one["value"]["value"] for one in node.get("properties", []))
        if name or not (role in NEED_NAMES or (can_focus and role != "RootWebArea")):
            continue
        element = session.send("DOM.resolveNode", {"backendNodeId": node["backendDOMNodeId"]})["object"]["objectId"]
        asked = {"functionDeclaration": "function () { return Boolean(this.closest('svg')); }", "returnByValue": True}
        if not session.send("Runtime.callFunctionOn", {"objectId": element, **asked})["result"]["value"]:
            found.append(role)
    session.detach()
    return found


# ---- the tabs


def rows_of_panel(page: Page) -> list[list[str]]:
    found: list[list[str]] = page.evaluate(
        "[...document.querySelectorAll('#panel tbody tr')].map((row) => [...row.cells].map((cell) => cell.textContent))"
    )
    return found


def test_spikes_sources_events(visit: Visit, address: str) -> None:
    page = drawn(visit(address))
    rows = rows_of_panel(page)
    assert rows[0][0] == str(SPIKE) and "spike" in rows[0] and rows[0][4] == SOURCES[SPIKE % 3]
    assert rows[0][-1].startswith(f"Document {SPIKE} begins and goes on")
    assert len({row[4] for row in rows}) == 3
    page.get_by_label("Source", exact=True).select_option(SOURCES[BEST % 3])
    until(
        page,
        "new Set([...document.querySelectorAll('#panel tbody tr')].map((row) => row.cells[4].textContent)).size === 1",
    )
    assert {row[4] for row in rows_of_panel(page)} == {SOURCES[BEST % 3]}
    page.get_by_label("Direction").select_option("below")
    until(page, "(step) => document.querySelector('#panel tbody td').textContent === step", str(BEST))
    page.locator("#panel tbody button").first.click()
    shows(page, BEST)
    assert text_in_reader(page) == browser.text_of(BEST)
    assert unnamed(page) == []

    choose(page, "sources")
    figure = "document.querySelector('#panel .figure')"
    assert page.evaluate(f"{figure}.data.map((trace) => trace.visible)") == [True] * 3
    assert {row[0].strip() for row in rows_of_panel(page)} == set(SOURCES)
    assert {row[2] for row in rows_of_panel(page)} == {"50"}
    name = rows_of_panel(page)[1][0].strip()
    page.get_by_label(name).uncheck()
    until(page, f"{figure}.data.filter((trace) => trace.visible === false).length === 1")
    assert page.evaluate(f"{figure}.data[1].visible") is False
    page.get_by_label(name).check()
    until(page, f"{figure}.data.every((trace) => trace.visible !== false)")
    assert unnamed(page) == []

    choose(page, "events")
    rows = rows_of_panel(page)
    assert [row[:3] for row in rows] == [
        ["100", "checkpoint", "checkpoint_step_100.bin"],
        [str(SPIKE), "spike", "loss 14.0 where 5.4 is usual"],
        ["50", "checkpoint", "checkpoint_step_50.bin"],
    ]
    assert "checkpoint 2" in page.locator("#panel").inner_text()
    page.locator("#panel tbody button").nth(1).click()
    shows(page, SPIKE)
    expect(reader(page)).to_contain_text("loss 14.0 where 5.4 is usual")
    assert unnamed(page) == []
    page.evaluate("document.getElementById('go').append(document.createElement('button'))")
    assert unnamed(page) == ["button"]  # a control

    # A late answer does not replace the tab chosen since.
    held: list[Route] = []
    page.route("**/api/spikes?*", lambda route: held.append(route))
    page.click("#tab-spikes")
    while not held:
        page.wait_for_timeout(20)
    choose(page, "sources")
    held[0].continue_()
    page.wait_for_timeout(300)
    assert page.locator("#tab-sources").get_attribute("aria-selected") == "true"
    assert page.locator("#panel table").get_attribute("aria-label") == "Sources"


def check_probes(page: Page) -> None:
    """The tab of re-measured documents shows the one of `write_run`, as a curve and token by token."""
    choose(page, "probes")
    panel, first = page.locator("#panel"), loss_of(browser.PROBED)
    later = [f"{first + change:.2f}" for change in browser.MEASURED.values()]
    words = ("before training", "right after", "1 document later", "8 documents later")
    expect(panel).to_contain_text(
        " → ".join(f"{one} {loss}" for one, loss in zip(words, (f"{first:.2f}", *later), strict=True))
    )
    heights = until(page, "document.querySelector('#panel .figure').data?.[0]?.y")
    assert [round(height, 2) for height in heights] == [round(first, 2), *map(float, later)]
    page.click("#panel summary")
    text = page.locator("#panel div.text")
    assert text.evaluate("(box) => box.textContent").replace("⏎", "") == browser.text_of(browser.PROBED)
    page.select_option("#panel select >> nth=0", "0")
    page.select_option("#panel select >> nth=1", "2")  # before training to 1 document later: 1.5 nats lower
    until(page, "document.querySelectorAll('#panel div.text .d3').length > 3")
    page.select_option("#panel select >> nth=0", "2")
    page.select_option("#panel select >> nth=1", "3")  # to 8 documents later: 1.25 nats are forgotten
    until(page, "document.querySelectorAll('#panel div.text .l4').length > 3")
    expect(page.locator("#panel div.text .d3")).to_have_count(0)
    page.hover("#panel div.text span >> nth=5")
    expect(page.locator("#tip")).to_contain_text("(+1.25)")
    page.click(f"#panel button.link:text-is('{browser.PROBED}')")
    expect(page.locator("#reader-title")).to_have_text(f"Step {browser.PROBED}")


OVERLAY = """(colour) => document.getElementById("chart").data
  .filter((trace) => (trace.yaxis ?? "y") === "y" && trace.line?.color === colour).map((trace) => trace.x.length)"""


def test_samples_comparison_search_probes(visit: Visit, address: str) -> None:
    page = drawn(visit(address))
    choose(page, "samples")
    panel = page.locator("#panel")
    expect(panel).to_contain_text("wrote 140")
    expect(panel).to_contain_text("Repeated prompt (3 times)")
    expect(panel).to_contain_text("answered 100")
    slider = panel.locator("input[type=range]")
    slider.fill("3")
    expect(panel).to_contain_text("wrote 30")
    assert "wrote 140" not in panel.inner_text() and " begins 30" in panel.inner_text()
    slider.press("ArrowLeft")
    expect(panel).to_contain_text("wrote 20")
    panel.locator("output button").click()
    shows(page, 20)
    assert unnamed(page) == []

    choose(page, "compare")
    assert page.evaluate(OVERLAY, LIGHT.second) == []
    page.get_by_role("button", name="Compare", exact=True).click()
    sentence = page.locator("#panel .sentence")
    expect(sentence).to_contain_text("he other run is better by 0.26")
    expect(sentence).to_contain_text("over 150 shared documents")
    (points,) = until(page, f"() => {{ const found = ({OVERLAY})('{LIGHT.second}'); return found.length && found; }}")
    assert points > 20
    assert {row[0] for row in rows_of_panel(page)} == set(SOURCES)
    expect(page.locator("#panel .notes")).to_contain_text("seed")
    assert unnamed(page) == []
    page.get_by_role("button", name="Remove from the curves").click()
    until(page, f"() => !({OVERLAY})('{LIGHT.second}').length")
    expect(sentence).to_have_count(0)

    choose(page, "search")
    field = page.get_by_role("searchbox")
    field.fill("DOCUMENT 33 begins")
    field.press("Enter")
    panel = page.locator("#panel")
    expect(panel).to_contain_text("Found in 1 ")
    expect(panel.locator(".hit")).to_have_text("Document 33 begins")
    panel.locator("tbody button").click()
    shows(page, 33)
    field.fill("never written anywhere")
    field.press("Enter")
    expect(panel).to_contain_text("Not found in any of ")
    assert unnamed(page) == []
    check_probes(page)
    assert unnamed(page) == []
