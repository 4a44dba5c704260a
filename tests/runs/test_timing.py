"""The benchmarks of step, growth and generation, on a tiny model and too short for meaningful numbers."""

import pytest

from benchmarks import __main__ as command
from benchmarks import generate, growth, step, timing
from tests.runs.conftest import Capture

OF_THE_UPDATE = ("orthogonalization", "momenta", "AdamW", "weight average")


def rows_of(capsys: Capture) -> dict[str, list[str]]:
    """First cell → the others, of all tables that were printed."""
    lines = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    return {first.strip(): [cell.strip() for cell in rest] for first, *rest in lines}


def test_contenders_take_turns_and_are_compared_within_a_round() -> None:
    order = []

    def one() -> float:
        order.append("one")
        return 2.0 * len(order)

    def other() -> float:
        order.append("other")
        return 1.0 * (len(order) - 1)

    times = timing.take_turns({"one": one, "other": other}, 3)
    assert order == ["one", "other"] * 3
    assert timing.ratio(times, "one", "other") == 2.0
    assert timing.in_words([10.0, 11.0, 9.0, 10.0]) == "10 ms ± 8 %"
    assert timing.in_words([0.12345], "s") == "0.1235 s"


@pytest.mark.full
def test_step(capsys: Capture) -> None:
    step.main("tiny", 1, steps=2, compile_step=False)
    rows = rows_of(capsys)
    assert 0 < float(rows["roofline: products at their peak, memory traffic of AdamW"][1].split(" of")[0]) < 2
    parts = {name: float(cells[1].rstrip("%")) for name, cells in rows.items() if cells[-1].endswith("%")}
    assert parts["backward"] > 5 and parts["update"] > 5
    assert parts["update"] == pytest.approx(sum(parts[f"in the update: {name}"] for name in OF_THE_UPDATE), abs=15)
    assert 0 <= parts["numbers to Python, and the rest"] < 30  # of a step of a few milliseconds


@pytest.mark.full  # two processes, one of them with transformers
def test_generate(capsys: Capture) -> None:
    generate.main("tiny", 3, tokens=5)
    rows = rows_of(capsys)
    assert float(rows["ours, bf16"][1]) > 0 and float(rows["ours, fp32"][1]) > 0


def test_an_unknown_benchmark_or_flag_is_refused(capsys: Capture) -> None:
    for words in (["learning"], ["growth", "--rounds", "3"], ["startup", "--size", "tiny"], []):
        with pytest.raises(SystemExit, match="2"):
            command.main(words)
    capsys.readouterr()


@pytest.mark.full  # the tokenizer of a corpus of that size takes half a minute
def test_growth(capsys: Capture) -> None:
    growth.main(400, window=10)
    rows = rows_of(capsys)
    assert float(rows["400"][1].split()[0]) > 50 and "ms" in rows["10"][0]
