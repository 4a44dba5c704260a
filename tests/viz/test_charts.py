"""What a chart shows is asked of the figure; where it shows it, of the renderer."""

import io
import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from PIL import Image

from viz.chart_files import draw_run, forget_charts
from viz.charts import HEIGHT, WIDTH, Chart, short_number
from viz.schema import rows_of
from viz.store import Columns, StoreReader, StoreWriter

Metrics = Callable[..., dict[str, Any]]

RUN = {"source": "python-library", "note": "SlimPajama out of reach (no network)", "model": "small 13.8 M"}
SAMPLE = {
    "step": 2950,
    "prompt": "def parse_header(line):\n    ",
    "input": "def parse_header(line):\n    '''Parse a header'''",
    "output": "return line.split(':', 1)\n" * 30,
    "reference": "'''Parse a Content-type like header.\n\n    Return the main content-type and a dictionary.''' " * 30,
    "error": None,
}
HOSTILE = (
    "$x^{$ \\frac{ $$ \\ _{}^ %s <b>&amp; \x00\x07\x1b[31m \u202e\u2066 \ud83d\ud800 😀 日本語 עברית ไทย e\u0301\u0301 "
    "\r\n\t\v\f\u2028" + "W" * 3000
)


def columns_of(count: int, sources: int = 3, ugly: bool = False) -> Columns:
    """A run of `count` documents: falling loss, warm-up; if ugly, NaN, infinities and spikes in everything."""
    random = np.random.default_rng(count)
    steps = np.arange(count)
    names = np.array([f"RedPajamaCommonCraw{i}" for i in range(sources)], dtype=object)
    columns: Columns = {
        "steps": steps,
        "loss": 3 + 6 * np.exp(-steps / 300) + random.normal(0, 0.6, count),
        "accuracy": np.clip(0.4 - 0.35 * np.exp(-steps / 300) + random.normal(0, 0.07, count), 0, 1),
        "throughput": np.abs(random.normal(5200, 600, count)),
        "tokens": np.full(count, 255),
        "seconds": np.full(count, 255 / 5200.0),
        "learning_rate": 1e-3 * np.minimum(1, np.maximum(steps, 1) / 1000),
        "gradient_norm": random.lognormal(0, 0.5, count),
        "source": names[random.integers(0, sources, count)],
    }
    if ugly:
        for name, spike in (("loss", 1e4), ("throughput", 1e9), ("gradient_norm", 1e12), ("learning_rate", 5.0)):
            columns[name][count // 3] = np.nan
            columns[name][count // 4] = np.inf
            columns[name][count // 2] = spike
        columns["gradient_norm"][-1] = 0.0
    return columns


@pytest.fixture(scope="module")
def chart() -> Chart:
    return Chart()


def texts_of(chart: Chart) -> dict[str, Any]:
    """Every visible text of the figure, by a name that tells where it is -> its box in pixels."""
    renderer = chart.canvas.get_renderer()
    found = {"title": chart.figure._suptitle}
    for number, axes in enumerate(chart.figure.axes):
        axis_on = axes.axison
        parts = {"title": [axes.title, axes._left_title, axes._right_title], "text": axes.texts}
        if axis_on:
            parts["label"] = [axis.label for axis in (axes.xaxis, axes.yaxis) if axis.get_visible()]
            for letter, axis in (("x", axes.xaxis), ("y", axes.yaxis)):
                low, high = sorted(axis.get_view_interval())
                ticks = axis.get_major_ticks() if axis.get_visible() else []
                for tick in ticks:
                    if low <= tick.get_loc() <= high:
                        parts.setdefault(f"{letter} tick", []).extend([tick.label1, tick.label2])
        if axes.get_legend() is not None:
            parts["legend"] = list(axes.get_legend().get_texts())
        for name, artists in parts.items():
            for index, artist in enumerate(artists):
                found[f"panel {number} {name} {index}"] = artist
    shown = {name: artist for name, artist in found.items() if artist.get_visible() and artist.get_text().strip()}
    return {f"{name}: {artist.get_text()[:20]!r}": artist.get_window_extent(renderer) for name, artist in shown.items()}


def overlaps(chart: Chart) -> list[str]:
    """What is wrong with the places of the texts: pairs that meet, and texts that leave their room."""
    boxes = texts_of(chart)
    wrong = [
        f"{a} meets {b}"
        for (a, box), (b, other) in itertools.combinations(boxes.items(), 2)
        if min(box.x1, other.x1) - max(box.x0, other.x0) > 1 and min(box.y1, other.y1) - max(box.y0, other.y0) > 1
    ]
    wrong += [f"{name} leaves the figure" for name, box in boxes.items() if not _inside(box, 0, 0, WIDTH, HEIGHT)]
    panel = chart.text.get_window_extent()
    for name, box in boxes.items():
        if name.startswith("panel 2 text") and not _inside(box, panel.x0, panel.y0, panel.x1, panel.y1):
            wrong.append(f"{name} leaves its panel")
    for axes in chart.figure.axes:
        if (legend := axes.get_legend()) is not None:
            box, room = legend.get_window_extent(), axes.get_window_extent()
            if not _inside(box, room.x0 - 8, room.y0 - 8, room.x1 + 8, room.y1 + 8):
                wrong.append(f"the legend of {axes.get_title(loc='left')} leaves its axes")
    return wrong


def _inside(box: Any, x0: float, y0: float, x1: float, y1: float) -> bool:
    return box.x0 >= x0 - 1 and box.y0 >= y0 - 1 and box.x1 <= x1 + 1 and box.y1 <= y1 + 1


def size_of(picture: bytes) -> tuple[int, int]:
    with Image.open(io.BytesIO(picture)) as image:
        image.load()
        return image.size


@pytest.mark.parametrize(
    ("count", "sources", "ugly"),
    [
        *((count, 3, False) for count in (0, 1, 2, 5, 100, 3000, 100_000)),
        *((count, 7, True) for count in (5, 100, 3000, 100_000)),
        (1, 1, False),
        (100, 30, True),
        (100_000, 30, False),
    ],
)
def test_nothing_overlaps_at_any_length(chart: Chart, count: int, ugly: bool, sources: int) -> None:
    picture = chart.draw(RUN, columns_of(count, sources, ugly), SAMPLE if count else None, count)
    assert overlaps(chart) == []
    assert size_of(picture) == (WIDTH, HEIGHT)
    assert len(picture) < 250_000


def evaluations_of(steps: Sequence[int], split: str = "validation", above: float = 0.0) -> list[dict[str, Any]]:
    return [{"split": split, "step": step, "loss": above + 3 + 6 * math.exp(-step / 300)} for step in steps]


def held_out_line(chart: Chart, split: str = "validation") -> Any:
    return next((line for line in chart.loss.lines if f"({split})" in str(line.get_label())), None)


@pytest.mark.parametrize(("count", "ugly"), [(12, False), (1200, True), (3000, False), (100_000, True)])
def test_held_out_losses_are_drawn_over_the_others(chart: Chart, count: int, ugly: bool) -> None:
    every = max(count // 6, 1)
    rows = evaluations_of(range(every - 1, count, every))
    chart.draw(RUN, columns_of(count, 3, ugly), SAMPLE, count, rows)
    assert overlaps(chart) == []
    line = held_out_line(chart)
    assert [*zip(line.get_xdata(), line.get_ydata(), strict=True)] == [(row["step"], row["loss"]) for row in rows]
    labels = [text.get_text() for text in chart.loss.get_legend().get_texts()]
    assert f"held out (validation): {rows[-1]['loss']:.3f}" in labels
    assert chart.loss.lines[-1] is line  # over them
    chart.draw(RUN, columns_of(count, 3, ugly), SAMPLE, count)
    assert held_out_line(chart) is None  # a figure is used again and again


def test_held_out_losses_are_in_the_picture_wherever_they_are(chart: Chart) -> None:
    chart.draw(RUN, columns_of(500), SAMPLE, 500, evaluations_of([99, 499], above=40.0))
    low, high = chart.loss.get_ylim()
    assert low < 40 < 46 < high
    missing = [{"split": "validation", "step": 99, "loss": None}]
    chart.draw(RUN, columns_of(500), SAMPLE, 500, missing)
    assert held_out_line(chart) is None and chart.loss.get_ylim()[1] < 20
    both = [*evaluations_of([99, 499], "test"), *missing, *evaluations_of([499])]
    chart.draw(RUN, columns_of(500), SAMPLE, 500, both)
    assert held_out_line(chart, "test").get_xdata().tolist() == [99, 499]
    assert held_out_line(chart).get_xdata().tolist() == [499]


def test_thousands_of_evaluations_make_a_line_without_points(chart: Chart) -> None:
    rows = evaluations_of(range(3000))
    rows[1234]["loss"] = 9.875
    picture = chart.draw(RUN, columns_of(3000), SAMPLE, 3000, rows)
    line = held_out_line(chart)
    assert 100 < len(line.get_xdata()) < 1000 and line.get_marker() == "None"
    assert (1234, 9.875) in [*zip(line.get_xdata(), line.get_ydata(), strict=True)]
    assert len(picture) < 250_000


def test_a_chart_holds_the_evaluations_until_its_step(filled: Path, chart: Chart) -> None:
    writer = StoreWriter(filled / "run.db", {}, resume=True)
    for step in (9, 19):
        writer.add("evaluations", {"step": step, "split": "validation", "source": "", "loss": 3.0})
        writer.add("evaluations", {"step": step, "split": "validation", "source": "code", "loss": 2.0})
    writer.close()
    with StoreReader(filled / "run.db") as store:
        for step, shown in ((10, [9]), (20, [9, 19])):
            draw_run(chart, store, store.columns(), filled, step)
            assert held_out_line(chart).get_xdata().tolist() == shown
            assert held_out_line(chart).get_ydata().tolist() == [3.0] * len(shown)


def test_the_test_for_overlaps_can_fail(chart: Chart) -> None:
    chart.draw(RUN, columns_of(100), SAMPLE, 100)
    chart.loss.set_ylabel("far too long a label " * 10)
    chart.text.texts[-1].set_text("W" * 100)
    wrong = overlaps(chart)
    chart.loss.set_ylabel("nats per token")
    assert any("meets" in line for line in wrong)
    assert any("leaves" in line for line in wrong)


@pytest.mark.parametrize("part", ["prompt", "output", "reference", "error", "source", "note", "model"])
def test_hostile_text_is_only_text(chart: Chart, part: str) -> None:
    columns = columns_of(50)
    if part == "source":
        columns["source"][:] = HOSTILE
    chart.draw(RUN | {part: HOSTILE}, columns, SAMPLE | {part: HOSTILE}, 50)
    if part != "model":  # a model's name is ours
        assert overlaps(chart) == []


def test_generated_dollars_are_shown_as_they_are(chart: Chart) -> None:
    chart.draw(RUN, columns_of(2), SAMPLE | {"output": "costs $5 or $x_1$ \\alpha"}, 2)
    assert "costs $5 or $x_1$ \\alpha" in [text.get_text() for text in chart.text.texts]


def test_the_title_names_source_fallback_model_and_count(chart: Chart) -> None:
    chart.draw(RUN, columns_of(100), None, 100)
    expected = "python-library (SlimPajama out of reach (no network)) · small 13.8 M · 100 documents trained"
    assert chart.figure.get_suptitle() == expected
    chart.draw({"source": "x"}, columns_of(1), None, 1)
    assert chart.figure.get_suptitle() == "x · 1 document trained"
    chart.draw(RUN | {"note": "a long reason " * 40}, columns_of(100), None, 100)
    assert "…" in chart.figure.get_suptitle()
    assert chart.figure.get_suptitle().endswith("100 documents trained")


def test_the_loss_is_said_to_be_held_out(chart: Chart) -> None:
    assert "held-out" in chart.loss.get_title(loc="left")


def test_an_empty_run_says_that_it_waits(chart: Chart) -> None:
    chart.draw({}, columns_of(0), None, 0)
    said = [text.get_text() for axes in chart.figure.axes for text in axes.texts]
    assert "waiting for the first document" in said
    assert "no generation yet" in said


def test_a_spike_is_named_with_its_step(chart: Chart) -> None:
    columns = columns_of(100_000)
    columns["loss"][54_321] = 41.25
    columns["loss"][777] = np.nan
    chart.draw(RUN, columns, None, 100_000)
    legend = [text.get_text() for text in chart.loss.get_legend().get_texts()]
    assert "highest 41.25 at step 54,321" in " ".join(legend)
    assert "1 not finite: first at step 777" in legend
    spiked = columns_of(100_000)["gradient_norm"]
    columns["gradient_norm"] = spiked
    spiked[4_321] = 1e6
    chart.draw(RUN, columns, None, 100_000)
    drawn = chart.norm.lines[0]
    assert (4_321, 1e6) in set(zip(drawn.get_xdata(), drawn.get_ydata(), strict=True))


def test_the_average_over_all_data_is_drawn_not_one_of_the_reduced(chart: Chart) -> None:
    columns = columns_of(100_000)
    columns["loss"][:] = np.where(np.arange(100_000) % 100 == 0, 100.0, 1.0)  # mean 1.99; of extremes: 50.5
    chart.draw(RUN, columns, None, 100_000)
    averages = [line for line in chart.loss.lines if line.get_label().startswith("average")]
    assert averages[0].get_ydata()[-1] == pytest.approx(1.99, abs=0.3)


def test_each_source_has_its_curve(chart: Chart) -> None:
    chart.draw(RUN, columns_of(500, sources=3), None, 500)
    names = {line.get_label().split(":")[0] for line in chart.sources.lines}
    assert names == {"RedPajamaCommonCraw0", "RedPajamaCommonCraw1", "RedPajamaCommonCraw2"}
    assert len({(line.get_color(), line.get_linestyle()) for line in chart.sources.lines}) == 3


def test_a_failed_generation_is_said_and_nothing_stands_in_for_it(chart: Chart) -> None:
    chart.draw(RUN, columns_of(2), SAMPLE | {"output": "", "error": "out of memory"}, 2)
    assert "(failed: out of memory)" in [text.get_text() for text in chart.text.texts]


def test_the_same_chart_does_not_depend_on_what_was_drawn_before(chart: Chart) -> None:
    chart.draw(RUN, columns_of(3000, 7, ugly=True), SAMPLE, 3000)
    again = chart.draw(RUN, columns_of(100), SAMPLE, 100)
    assert again == Chart().draw(RUN, columns_of(100), SAMPLE, 100)


def test_the_users_settings_are_neither_used_nor_changed(chart: Chart) -> None:
    plain = chart.draw(RUN, columns_of(100), SAMPLE, 100)
    with matplotlib.rc_context({"text.usetex": True, "font.size": 30, "axes.facecolor": "black"}):
        assert chart.draw(RUN, columns_of(100), SAMPLE, 100) == plain
        assert Chart().draw(RUN, columns_of(100), SAMPLE, 100) == plain
        assert matplotlib.rcParams["font.size"] == 30


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (2500, "2500"), (20_000, "20k"), (1.5e6, "1.5M"), (0.001, "0.001"), (5e-4, "5e-4")]
)
def test_short_numbers(value: float, text: str) -> None:
    assert short_number(value) == text


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix == ".png"}


def test_a_chart_shows_the_run_as_of_its_step(filled: Path, tmp_path_factory: Any, metrics: Metrics) -> None:
    with StoreReader(filled / "run.db") as store:
        early = draw_run(Chart(), store, store.columns(), filled, 10).read_bytes()
    other = tmp_path_factory.mktemp("other")
    writer = StoreWriter(other / "run.db", {"source": "python-library", "model": "small 13.8 M"})
    with StoreReader(filled / "run.db") as store:
        columns, (sample, _) = store.columns(below_step=10), store.text_samples()
    for step in range(10):
        given = {name: columns[name][step] for name in columns if name not in ("steps", "source", "tokens", "bytes")}
        given["tokens"] = int(columns["tokens"][step])
        given |= {"step": step, "source": columns["source"][step], "token_ids": [1, 2]}
        writer.add_rows(rows_of(given, *((sample["input"], sample["output"]) if step == 0 else ("", ""))))
    writer.close()
    with StoreReader(other / "run.db") as store:
        assert len(store.columns()["steps"]) == 10
        assert draw_run(Chart(), store, store.columns(), other, 10).read_bytes() == early


def test_the_latest_is_the_newest_of_the_numbered(filled: Path) -> None:
    with StoreReader(filled / "run.db") as store:
        chart, columns = Chart(), store.columns()
        for step in (10, 20, 5):
            draw_run(chart, store, columns, filled, step)
        files = files_of(filled)
        expected = ["training_latest.png", *(f"training_step_{step:06d}.png" for step in (5, 10, 20))]
        assert sorted(files) == expected
        assert files["training_latest.png"] == files["training_step_000020.png"]
        forget_charts(filled, 10)
        files = files_of(filled)
        assert sorted(files) == expected[:3]
        assert files["training_latest.png"] == files["training_step_000010.png"]
        forget_charts(filled, 0)
        assert files_of(filled) == {}
