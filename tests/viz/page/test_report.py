"""`python -m viz report`: one file that needs nothing else."""

import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.viz import browser
from tests.viz.browser import (
    BEST,
    SPIKE,
    Visit,
    choose,
    drawn,
    go_to,
    loss_of,
    points_of,
    text_in_reader,
    until,
    write_run,
)
from tests.viz.page.test_page import check_probes
from viz.__main__ import main
from viz.charts.style import LIGHT
from viz.page.report import make_report
from viz.record.schema import Row

chromium, visit = browser.chromium, browser.visit


def worse(step: int) -> Sequence[tuple[str, Row]]:
    return browser.rows_at(step, loss=loss_of(step) + 0.5 + step % 3 / 100)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    write_run(root / "run", tell=browser.with_some_gone)
    write_run(root / "other", tell=worse, run_id="run-2", config={"num_steps": 150, "seed": 2})
    return root


@pytest.fixture(scope="module")
def report(folder: Path) -> Path:
    assert main(["report", str(folder / "run"), str(folder / "other"), "-o", str(folder / "report.html")]) == 0
    return folder / "report.html"


def opened(visit: Visit, path: Path, ending: str = "") -> tuple[Page, list[str]]:
    """Open the report from its file, without a network; also returns the list of its requests."""
    page = visit("about:blank", offline=True)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"{path.as_uri()}{ending}")
    return drawn(page), asked


def test_the_command_prints_the_path(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(folder / "run"), "-o", str(folder / "again.html")]) == 0
    assert re.fullmatch(rf"{re.escape(str(folder))}/again\.html \([\d.]+ MB\)\n", capsys.readouterr().out)
    assert main(["report", str(folder / "nothing"), "-o", str(folder / "x.html")]) == 2
    assert capsys.readouterr().err.count("\n") == 1 and not (folder / "x.html").exists()


def test_the_report_of_a_run(visit: Visit, report: Path) -> None:
    page, asked = opened(visit, report)
    assert asked == [report.as_uri()]
    expect(page.locator("#state")).to_have_text("ended: done · 150 of 150 documents")
    assert page.locator("#chart").bounding_box()["height"] > 500
    assert len(page.evaluate("document.getElementById('chart').data[0].x")) == 150
    (mark,) = [point for point in points_of(page, SPIKE) if point["symbol"] == "triangle-up"]
    page.mouse.move(mark["x"], mark["y"] + 60)
    page.mouse.move(mark["x"], mark["y"] + 1, steps=4)
    expect(page.locator(".hovertext")).to_contain_text(f"step {SPIKE}")
    page.mouse.click(mark["x"], mark["y"] + 1)
    expect(page.locator("#reader-title")).to_have_text(f"Step {SPIKE}")
    assert text_in_reader(page) == browser.text_of(SPIKE)
    expect(page.locator("#reader")).to_contain_text("loss 14.0 where 5.4 is usual")

    page.get_by_label("Direction").select_option("below")
    until(page, "(step) => document.querySelector('#panel tbody td').textContent === step", str(BEST))
    for tab, words in (
        ("sources", "web pages"), ("samples", "wrote 140"), ("samples", "answered 100"),
        ("events", "checkpoint_step_50.bin"), ("compare", "over 150 shared documents"),
        ("search", "report can't be searched"),
    ):  # fmt: skip
        choose(page, tab)
        expect(page.locator("#panel")).to_contain_text(words)
        if tab == "compare":
            expect(page.locator("#panel .sentence")).to_contain_text("his run is better by 0.50")
            overlay = "(colour) => document.getElementById('chart').data.some((trace) => trace.line?.color === colour)"
            until(page, overlay, LIGHT.second)
    check_probes(page)
    page.get_by_role("button", name="Zoom in", exact=True).click()
    until(page, "document.getElementById('chart')._fullLayout.xaxis.range[0] > 30")
    low, high = browser.shown_range(page)
    assert 70 < high - low < 80
    page.get_by_role("button", name="All", exact=True).click()
    until(page, "document.getElementById('chart')._fullLayout.xaxis.range[0] <= 0")
    assert asked == [report.as_uri()]


def test_links_into_a_report_and_its_policy(visit: Visit, report: Path) -> None:
    """The report contains the documents of its lists, and tells where to find others."""
    page, asked = opened(visit, report, f"#step={SPIKE}")
    expect(page.locator("#reader-title")).to_have_text(f"Step {SPIKE}")
    listed = page.evaluate("[...document.querySelectorAll('#panel tbody tr')].map((row) => row.cells[0].textContent)")
    assert len(listed) > 20
    for step in (listed[-1], 0, 149):
        go_to(page, step)
        expect(page.locator("#reader-title")).to_have_text(f"Step {step}")
        expect(page.locator("#reader [aria-label='Text of the document']")).to_contain_text(f"Document {step} begins")
    page.go_back()
    expect(page.locator("#reader-title")).to_have_text("Step 0")
    go_to(page, 99999)
    expect(page.locator("#reader")).to_contain_text("Not in this report")
    assert len(asked) == 1

    # Its policy allows no other script.
    page.evaluate("document.head.append(Object.assign(document.createElement('script'), { text: 'hacked = 1' }))")
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.hacked = 1\">')")
    page.evaluate("fetch('https://example.org/').catch(() => {})")
    heard = "\n".join(visit.settle())
    for part in ("script-src-elem inline", "script-src-attr inline", "connect-src https://example.org"):
        assert f"policy: {part}" in heard
    assert page.evaluate("window.hacked") is None
    visit.problems.clear()


def test_control_a_modified_script_does_not_run(visit: Visit, report: Path, tmp_path: Path) -> None:
    """The policy has the hash of each script, so that a script with one more character does not run."""
    changed = report.read_text("utf-8").replace("const modules = {};", "const modules = { };")
    assert changed != report.read_text("utf-8")
    path = tmp_path / "changed.html"
    path.write_text(changed, "utf-8")
    page = visit(path.as_uri(), offline=True)
    assert "policy: script-src-elem inline" in "\n".join(visit.settle())
    expect(page.locator("#state")).to_have_text("Loading …")
    visit.problems.clear()


def test_a_run_without_a_step(visit: Visit, tmp_path: Path) -> None:
    path = tmp_path / "empty.html"
    path.write_bytes(make_report(write_run(tmp_path / "run", 0, ended=False, config={"probes": False})))
    page = drawn(visit(path.as_uri(), offline=True))
    expect(page.locator("#state")).to_have_text("stopped · 0 documents")
    for tab, words in (
        ("spikes", "needs 20 documents"), ("probes", "(--no-probes)"), ("compare", "There is no other run"),
    ):  # fmt: skip
        choose(page, tab)
        expect(page.locator("#panel")).to_contain_text(words)


def test_no_data_can_close_their_element(report: Path) -> None:
    text = report.read_text("utf-8")
    (answers,) = re.findall(r'<script type="application/json" id="answers">(.*?)</script>', text, flags=re.DOTALL)
    assert "<" not in answers
    assert len(re.findall(r"<script\b", text)) >= 3 and "http-equiv" in text[:600]
