from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece

from common.terminal_text import harmless, one_line
from tests.viz.runs_to_draw import HOSTILE
from viz.record.schema import rows_of
from viz.record.writer import StoreReader, StoreWriter
from viz.views.document import describe_document

Metrics = Callable[..., dict[str, Any]]


@pytest.fixture
def store(tmp_path: Path, metrics: Metrics) -> Path:
    """Thirty documents of one text, of which step 25 was surprised by one word."""
    (tmp_path / "text").write_text("one two three four five six seven eight nine ten\n" * 50)
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text"), model_prefix=str(tmp_path / "model"), vocab_size=300, model_type="bpe",
        hard_vocab_limit=False, normalization_rule_name="identity", add_dummy_prefix=False, byte_fallback=True,
        remove_extra_whitespaces=False, minloglevel=2,
    )  # fmt: skip
    model = (tmp_path / "model.model").read_bytes()
    ids = sentencepiece.SentencePieceProcessor(model_proto=model).EncodeAsIds("one two\n three four")
    writer = StoreWriter(tmp_path / "run.db", {"tokenizer": model})
    for step in range(30):
        losses = [2.0] * (len(ids) - 1)
        if step == 25:
            losses[-1] = 17.5
        about = {"loss": sum(losses) / len(losses), "token_ids": ids, "token_losses": losses, "source": "numbers"}
        writer.add_rows(rows_of(metrics(step, **about)))
    writer.close()
    return tmp_path / "run.db"


def test_a_document_is_told_with_what_surprised_most(store: Path) -> None:
    with StoreReader(store) as reader:
        lines = describe_document(reader, 25).splitlines()
    assert lines[0].startswith("Step 25: numbers, hf://") and lines[0].endswith("row 25")
    assert "above the average of its source then; accuracy 25.0 %" in lines[1]
    assert lines[3:5] == ["one two", " three four"]
    assert lines[7].strip().startswith("17.50") and lines[7].endswith("our]") and "\\n three" in lines[7]


def test_too_early_for_an_average_none_is_told(store: Path) -> None:
    with StoreReader(store) as reader:
        assert "average of its source" not in describe_document(reader, 3)


def test_what_is_not_there_is_said(store: Path, tmp_path: Path, metrics: Metrics) -> None:
    with StoreReader(store) as reader, pytest.raises(ValueError, match="no step 30: they are 0 to 29"):
        describe_document(reader, 30)
    writer = StoreWriter(tmp_path / "other.db", {})
    writer.add_rows(rows_of(metrics(0) | {"token_ids": None}))
    writer.add_rows(rows_of(metrics(1) | {"token_losses": None}))
    writer.close()
    with StoreReader(tmp_path / "other.db") as reader:
        with pytest.raises(ValueError, match="step 0 is not kept"):
            describe_document(reader, 0)
        assert "no tokenizer" in describe_document(reader, 1)


def test_a_hostile_text_steers_no_terminal() -> None:
    shown = harmless(HOSTILE)
    assert "\x1b" not in shown and "\x00" not in shown and "\u202e" not in shown and "\r" not in shown
    assert "<b>&amp;" in shown and "日本語" in shown
    assert one_line("a\nb\tc\x1b") == "a\\nb\\tc�"


def test_names_of_a_hostile_source_steer_no_terminal(tmp_path: Path, metrics: Metrics) -> None:
    writer = StoreWriter(tmp_path / "run.db", {})
    writer.add_rows(rows_of(metrics(0, source=HOSTILE, shard="\x1b[2J\x1b]0;title\x07")))
    writer.close()
    with StoreReader(tmp_path / "run.db") as reader:
        said = describe_document(reader, 0)
    assert not {"\x1b", "\x07", "\x00", "\u202e"} & set(said) and said.count("\n") == 2
