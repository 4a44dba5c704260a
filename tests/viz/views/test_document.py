import math
from pathlib import Path

import pytest

from common.terminal_text import harmless, one_line
from tests.viz.conftest import Metrics, write_store
from tests.viz.runs_to_draw import HOSTILE
from tests.viz.small_tokenizers import MODELS, encode
from viz.record.reader import StoreReader
from viz.views.document import describe_document


@pytest.fixture
def store(tmp_path: Path, metrics: Metrics) -> Path:
    """Thirty documents with the same text; in step 25, the last token has a high loss."""
    ids, calls = encode("one two\n three four"), []
    for step in range(30):
        losses = [2.0] * (len(ids) - 2) + [17.5 if step == 25 else 2.0]
        about = {"loss": sum(losses) / len(losses), "token_ids": ids, "token_losses": losses, "source": "numbers"}
        calls.append(metrics(step, **about))
    return write_store(tmp_path, calls, tokenizer=MODELS["ours"]) / "run.db"


def test_the_description_contains_text_numbers_and_surprises(store: Path) -> None:
    with StoreReader(store) as reader:
        lines = describe_document(reader, 25).splitlines()
        assert "average of its source" not in describe_document(reader, 3)  # too early for an average
    assert lines[0].startswith("Step 25: numbers, hf://") and lines[0].endswith("row 25")
    assert "above the average of its source" in lines[1] and "accuracy 25.0 %" in lines[1]
    assert lines[3:5] == ["one two", " three four"]
    surprise, context = lines[7].strip().split(maxsplit=1)
    assert math.isclose(float(surprise), 17.5) and context.endswith("four]") and "\\n three" in context


def test_missing_parts_are_reported(store: Path, tmp_path: Path, metrics: Metrics) -> None:
    with StoreReader(store) as reader, pytest.raises(ValueError, match=r"no step 30.*0 to 29"):
        describe_document(reader, 30)
    hostile_names = {"source": HOSTILE, "shard": "\x1b[2J\x1b]0;title\x07"}
    calls = [metrics(0, token_ids=None), metrics(1, token_losses=None), metrics(2, **hostile_names)]
    with StoreReader(write_store(tmp_path / "other", calls) / "run.db") as reader:
        with pytest.raises(ValueError, match="step 0 is not kept"):
            describe_document(reader, 0)
        assert "no tokenizer" in describe_document(reader, 1)
        hostile = describe_document(reader, 2)
    assert not {"\x1b", "\x07", "\x00", "\u202e"} & set(hostile) and hostile.count("\n") == 2  # no control sequences


def test_hostile_text_contains_no_control_sequences() -> None:
    shown = harmless(HOSTILE)
    assert not {"\x1b", "\x00", "\u202e", "\r"} & set(shown) and "<b>&amp;" in shown and "日本語" in shown
    assert one_line("a\nb\tc\x1b") == "a\\nb\\tc�"
