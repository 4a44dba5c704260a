"""Time of the page for runs of several lengths, in the system's Chromium: reading, first drawing, zoom.

Uses generated runs in real stores (`benchmarks/chart.py`). Server and browser are already running; the first page loads
Plotly. A zoom is timed from the call to Plotly until the data from the server is drawn. Zooms alternate between a
tenth, a hundredth and a thousandth of the run.
"""

import shutil
import statistics
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn

from benchmarks.chart import fill, milliseconds
from viz.page.api import Service
from viz.page.http import application
from viz.page.process import listen

REPEATS = 5
ZOOM = """([from, to]) => new Promise((done) => {
  const chart = document.getElementById("chart"), began = performance.now();
  const drawn = () => {
    if (chart.layout.xaxis.range[0] === from || chart.data[0].x[0] < from - 1) return; // still the data before the zoom
    chart.removeListener("plotly_afterplot", drawn);
    done(performance.now() - began);
  };
  chart.on("plotly_afterplot", drawn);
  Plotly.relayout(chart, { "xaxis.range[0]": from, "xaxis.range[1]": to });
})"""


@contextmanager
def served(folder: Path) -> Iterator[tuple[Service, str]]:
    """Serve the page of a run from a thread; yield the service and the address."""
    service, listening = Service.of(folder), listen(None)
    server = uvicorn.Server(uvicorn.Config(application(service), log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    try:
        yield service, f"http://127.0.0.1:{listening.getsockname()[1]}/"
    finally:
        server.should_exit = True
        thread.join()
        service.close()


def measured(service: Service, address: str, browser: Any, count: int) -> str:
    """Measure one run and return its row of the table."""
    read = milliseconds(service.read_ahead)
    page = browser.new_page(viewport={"width": 1600, "height": 1000})

    def draw() -> None:
        page.goto(address)
        page.wait_for_selector(f'#chart[data-drawn="{count}"]')

    pages = [milliseconds(draw) for _ in range(REPEATS)]
    series = [milliseconds(lambda: service.answers.series(points=1000)) for _ in range(REPEATS)]
    zooms = []
    for repeat in range(REPEATS):
        for share in (0.1, 0.01, 0.001):
            width = max(share * count, 20)
            begin = min((0.2 + 0.1 * repeat) * count, count - width)
            zooms.append(page.evaluate(ZOOM, [begin, begin + width]))
            page.wait_for_timeout(300)
    page.close()
    later, answer, zoom = map(statistics.median, (pages[1:], series, zooms))
    return (
        f"| {count:,} | {read:,.0f} | {pages[0]:,.0f} | {later:,.0f} | {answer:.0f} | {zoom:.0f} | {max(zooms):.0f} |"
    )


def main(documents: list[int]) -> None:
    """Print a table with a row for a run of each of these lengths."""
    from playwright.sync_api import sync_playwright

    print("| documents | read, ms | first page drawn | a later page | `/api/series` of all | zoom | slowest zoom |")
    print("|---|---|---|---|---|---|---|")
    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=flags)
        for count in documents:
            print(f"{count:,} documents", file=sys.stderr)
            with tempfile.TemporaryDirectory() as folder:
                fill(Path(folder) / "run.db", count)
                with served(Path(folder)) as (service, address):
                    print(measured(service, address, browser, count), flush=True)
        browser.close()
