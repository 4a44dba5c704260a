"""The page in dark and light, on a phone and on a large screen: nothing overlaps or is cut off."""

import io
import time
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any, Literal

import pytest
from PIL import Image, ImageColor
from playwright.sync_api import Page, ViewportSize, expect

from tests.viz import browser
from tests.viz.browser import Visit, choose, drawn, rows_at, served, until, write_run
from viz.charts.style import DARK, LIGHT, Palette
from viz.record.schema import Row

chromium, visit = browser.chromium, browser.visit

PHONE: ViewportSize = {"width": 390, "height": 844}
DESKTOP: ViewportSize = {"width": 1600, "height": 1000}
TABS = ("spikes", "sources", "samples", "probes", "events", "compare", "search")
SOURCE = "RedPajamaStackExchangeAndCommonCrawl"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    root = tmp_path_factory.mktemp("runs_of_an_experiment_that_has_a_long_name")
    about = {"source": "data/red_pajama/part-*.jsonl", "note": "SlimPajama out of reach (no network)"}

    def tell(step: int) -> Sequence[tuple[str, Row]]:
        text = {"text": f"A document of one word: {'W' * 1000}"} if step == 41 else {}
        return rows_at(step, source=f"{SOURCE}{step % 3}", **text)

    run = write_run(root / "training_viz", tell=tell, **about)
    with served(run, write_run(root / "other" / "training_viz", run_id="run-2")) as found:
        yield found


BEYOND = """() => {
  const { clientWidth, scrollWidth } = document.documentElement;
  if (scrollWidth <= clientWidth) return [];
  const scrolls = (one) => one && (getComputedStyle(one).overflowX !== "visible" || scrolls(one.parentElement));
  return [...document.querySelectorAll("body *")]
    .map((one) => [one, Math.round(one.getBoundingClientRect().right)])
    .filter(([one, right]) => right > clientWidth && !scrolls(one.parentElement))
    .map(([one, right]) => `${one.tagName}#${one.id} ${right}`);
}"""


def beyond_the_window(page: Page) -> list[str]:
    """Return the elements that make the page scroll sideways. Waits, as figures resize later than the window."""
    deadline = time.monotonic() + 5
    while (found := page.evaluate(BEYOND)) and time.monotonic() < deadline:
        page.wait_for_timeout(50)
    return [str(one) for one in found]


WORDS = """(place) => {
  const found = [], walker = document.createTreeWalker(document.querySelector(place), NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const range = document.createRange();
    range.selectNodeContents(walker.currentNode);
    if (!walker.currentNode.data.trim()) continue;
    const whole = [...range.getClientRects()].filter(({ width, height }) => width > 1 && height > 1);
    const rectangles = whole.map(({ left, right, top, bottom }) => [left, right, top, bottom]);
    if (whole.length) found.push({ words: walker.currentNode.data, rectangles });
  }
  return found;
}"""


def overlaps(page: Page, place: str) -> list[tuple[str, str]]:
    """Return the pairs of texts inside an element that overlap."""
    words: list[dict[str, Any]] = page.evaluate(WORDS, place)
    assert len(words) > 4
    return [
        (one["words"], other["words"])
        for one, other in combinations(words, 2)
        if any(
            min(a[1], b[1]) - max(a[0], b[0]) > 1 and min(a[3], b[3]) - max(a[2], b[2]) > 4
            for a in one["rectangles"]
            for b in other["rectangles"]
        )
    ]


def rgb(colour: str) -> str:
    return "rgb({}, {}, {})".format(*ImageColor.getrgb(colour))


def check_colours(page: Page, palette: Palette) -> None:
    style = """(place) => {
      const { color, backgroundColor } = getComputedStyle(document.querySelector(place));
      return [color, backgroundColor];
    }"""
    assert page.evaluate(style, "html") == [rgb(palette.ink), rgb(palette.paper)]
    until(page, "(paper) => document.getElementById('chart')._fullLayout.paper_bgcolor === paper", palette.paper)
    colours = page.evaluate("document.getElementById('chart').data.map(({ line }) => line?.color)")
    assert palette.main in colours and palette.held_out in colours
    other = DARK if palette is LIGHT else LIGHT
    assert not {other.main, other.held_out} & set(colours)


def check_picture(content: bytes, palette: Palette, size: ViewportSize) -> None:
    """The screenshot has the size of the window and the theme's background, and is not empty."""
    with Image.open(io.BytesIO(content)) as picture:
        assert picture.size == (size["width"], size["height"])
        colours = picture.convert("RGB").getcolors(2**24)
    assert colours is not None
    total = sum(count for count, _ in colours)
    count, most = max(colours)
    assert most == ImageColor.getrgb(palette.paper) and 0.4 * total < count < 0.97 * total and len(colours) > 100
    assert sum(count for count, colour in colours if colour == ImageColor.getrgb(palette.main)) > 100


def fills_its_place(page: Page, size: ViewportSize) -> None:
    """The chart fills its place; it resizes a little later than the window."""
    chart = page.locator("#chart").bounding_box()
    assert chart is not None and chart["width"] > 0.5 * size["width"] and chart["height"] > 600
    within = """([width, height]) => {
      const picture = document.querySelector("#chart .main-svg").getBoundingClientRect();
      return Math.abs(picture.width - width) < 1 && Math.abs(picture.height - height) < 1;
    }"""
    until(page, within, [chart["width"], chart["height"]])


@pytest.mark.full
def test_both_themes_on_both_screens(visit: Visit, address: str) -> None:
    page = drawn(visit(f"{address}#step=40", viewport=PHONE, color_scheme="dark"))
    expect(page.locator("#reader-title")).to_have_text("Step 40")
    themes: tuple[tuple[Literal["light", "dark"], Palette], ...] = (("dark", DARK), ("light", LIGHT))
    for size in (PHONE, DESKTOP):
        page.set_viewport_size(size)
        fills_its_place(page, size)
        page.evaluate("scrollTo(0, 0)")
        for scheme, palette in themes:
            page.emulate_media(color_scheme=scheme)
            check_colours(page, palette)
            check_picture(page.screenshot(), palette, size)
        for place in ("header", "#tabs", ".tools", "#reader"):
            assert overlaps(page, place) == [], place
        assert beyond_the_window(page) == []

    page.emulate_media(color_scheme="dark")
    button = page.locator("#theme")
    expect(button).to_have_attribute("aria-label", "Colours: system setting")
    button.click()
    check_colours(page, LIGHT)
    expect(button).to_have_attribute("aria-label", "Colours: light")
    page.reload()
    check_colours(drawn(page), LIGHT)  # remembered
    button.click()
    expect(button).to_have_attribute("aria-label", "Colours: dark")
    page.emulate_media(color_scheme="light")
    check_colours(page, DARK)
    button.click()
    expect(button).to_have_attribute("aria-label", "Colours: system setting")
    check_colours(page, LIGHT)
    page.wait_for_timeout(300)
    choose(page, "sources")
    assert page.evaluate("document.querySelector('#panel .figure')._fullLayout.paper_bgcolor") == LIGHT.paper
    page.emulate_media(color_scheme="dark")
    until(page, "(paper) => document.querySelector('#panel .figure')._fullLayout.paper_bgcolor === paper", DARK.paper)


@pytest.mark.full
@pytest.mark.parametrize("widths", [(320,), (601, 1001)])
def test_no_tab_makes_the_page_wider_than_the_window(visit: Visit, address: str, widths: tuple[int, ...]) -> None:
    """Not even with a word of 1,000 letters."""
    page = drawn(visit(f"{address}#step=41", viewport={"width": widths[0], "height": 900}))
    expect(page.locator("#reader-title")).to_have_text("Step 41")
    wide: dict[str, list[str]] = {}
    for tab in TABS:
        choose(page, tab)
        if tab == "compare":
            page.get_by_role("button", name="Compare", exact=True).click()
            expect(page.locator("#panel .sentence")).to_be_visible()
        for width in widths:  # the narrowest window of each layout
            page.set_viewport_size({"width": width, "height": 900})
            if tab == TABS[0]:
                assert (width, overlaps(page, "header"), overlaps(page, "#tabs")) == (width, [], [])
            wide[f"{tab} at {width}"] = beyond_the_window(page)
    assert {place: found for place, found in wide.items() if found} == {}
    page.add_style_tag(content="main { width: 3000px; }")
    assert beyond_the_window(page)  # a control


def test_a_tap_opens_a_point_on_a_phone(visit: Visit, address: str) -> None:
    page = drawn(visit(address, viewport=PHONE, has_touch=True, is_mobile=True, device_scale_factor=2))
    (point, *_) = browser.points_of(page, 60)
    page.touchscreen.tap(point["x"], point["y"])
    expect(page.locator("#reader-title")).to_contain_text("Step ")
    assert page.evaluate("location.hash.startsWith('#step=')")
    until(page, "document.getElementById('reader').getBoundingClientRect().top < innerHeight")
    assert page.evaluate("document.getElementById('reader').getBoundingClientRect().top") >= -1
