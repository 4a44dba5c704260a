"""The tab of learning and forgetting, and the same in a report: what was measured again, as a curve and by token."""

from pathlib import Path

from playwright.sync_api import Page, expect

from tests.viz import browser
from tests.viz.browser import MEASURED, PROBED, Visit, choose, drawn, loss_of, served, text_of, until, write_run
from viz.page.report import make_report

chromium, visit = browser.chromium, browser.visit


def told(page: Page) -> None:
    """What the tab says of the one document that was measured again."""
    choose(page, "probes")
    panel, first = page.locator("#panel"), loss_of(PROBED)
    later = [f"{first + change:.2f}" for change in MEASURED.values()]
    words = (
        f"first read {first:.2f} → just after {later[0]} → 1 document later {later[1]} → 8 documents later {later[2]}"
    )
    expect(panel).to_contain_text(words)
    heights = until(page, "document.querySelector('#panel .figure').data?.[0]?.y")
    assert [round(height, 2) for height in heights] == [round(first, 2), *map(float, later)]
    page.click("#panel summary")
    text = page.locator("#panel div.text")
    assert text.evaluate("(box) => box.textContent").replace("⏎", "") == text_of(PROBED)
    page.select_option("#panel select >> nth=0", "0")
    page.select_option("#panel select >> nth=1", "2")  # from the first reading to a document later: 1.5 nats cheaper
    until(page, "document.querySelectorAll('#panel div.text .d3').length > 3")
    page.select_option("#panel select >> nth=0", "2")
    page.select_option("#panel select >> nth=1", "3")  # from there on 1.25 are forgotten again
    until(page, "document.querySelectorAll('#panel div.text .l4').length > 3")
    expect(page.locator("#panel div.text .d3")).to_have_count(0)
    page.hover("#panel div.text span >> nth=5")
    expect(page.locator("#tip")).to_contain_text("(+1.25)")
    page.click(f"#panel button.link:text-is('{PROBED}')")
    expect(page.locator("#reader-title")).to_have_text(f"Step {PROBED}")


def test_on_the_page(visit: Visit, tmp_path: Path) -> None:
    with served(write_run(tmp_path)) as address:
        told(drawn(visit(address)))


def test_in_a_report(visit: Visit, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_bytes(make_report(write_run(tmp_path)))
    told(drawn(visit(path.as_uri())))


def test_of_a_run_without_any(visit: Visit, tmp_path: Path) -> None:
    run = write_run(tmp_path, 30, config={"num_steps": 30, "probes": False})
    with served(run) as address:
        page = drawn(visit(address))
        choose(page, "probes")
        expect(page.locator("#panel")).to_contain_text("measures no documents again (--no-probes)")
