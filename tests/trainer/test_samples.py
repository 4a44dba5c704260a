import threading
import time
from collections.abc import Iterable, Iterator

import pytest

from tests.conftest import make_texts
from trainer.errors import SourceUnreachable, UserError
from trainer.records import Cursor, Document, Origin, Sample
from trainer.samples import SampleStream, hash_text, is_held_out, usable_texts
from trainer.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(make_texts(50), vocab_size=500)


def documents(texts: Iterable[object], start: int = 0) -> Iterator[Document]:
    for row, text in enumerate(texts):
        if row >= start:
            yield Document(text, "here", Origin("file", row), Cursor(row=row + 1))


def stream(items: Iterable[Document], tokenizer: Tokenizer, **options: object) -> SampleStream:
    settings: dict[str, object] = {"hold_out": False, "should_stop": lambda: False, **options}
    return SampleStream(items, tokenizer, 32, **settings)  # type: ignore[arg-type]


def test_a_sample_is_the_truncated_document(tokenizer: Tokenizer) -> None:
    texts = make_texts(5)
    for text, sample in zip(texts, stream(documents(texts), tokenizer), strict=True):
        ids = tokenizer.EncodeAsIds(text)[:32]
        assert (sample.ids, sample.input_ids, sample.target_ids) == (ids, ids[:-1], ids[1:])
        assert sample.document_bytes == len(text.encode())
        assert sample.predicted_bytes == len(tokenizer.DecodeIds(ids[1:]).encode())


ODD: list[object] = [
    None,
    7,
    "",
    "nine char",
    "ten chars!",
    "\ud800 half of a pair",
    ["a list"],
    "x" * 10_000_000,
    "日本語のテキストです。これは文書。",
    "🙂" * 20,
    "a\x00b\x00c\x00 with NUL in it",
    "<s> </s> <unk> are only text here",
]


def test_what_cannot_be_used_is_counted_by_reason(tokenizer: Tokenizer) -> None:
    samples = stream(documents(ODD), tokenizer)
    trained = [sample.document.origin.row for sample in samples]
    assert trained == [4, 7, 8, 9, 10, 11]
    state = samples.state_dict()
    assert state["skipped"] == {
        "text is no string": 3,
        "shorter than 10 characters": 2,
        "half a surrogate pair": 1,
    }
    assert state["cursor"]["row"] == len(ODD)  # also what was skipped behind the last sample is behind us


def test_fewer_than_two_tokens_is_a_reason() -> None:
    one_piece = Tokenizer.train(["abcdefghij abcdefghij"] * 50, vocab_size=300)
    assert len(one_piece.EncodeAsIds("abcdefghij")) == 1
    samples = stream(documents(["abcdefghij", "abcdefghij abcdefghij"]), one_piece)
    assert [sample.document.origin.row for sample in samples] == [1]
    assert samples.state_dict()["skipped"] == {"fewer than 2 tokens": 1}


def test_one_in_a_hundred_is_held_out_by_its_text(tokenizer: Tokenizer) -> None:
    texts = make_texts(2000)
    samples = stream(documents(texts), tokenizer, hold_out=True)
    trained = {sample.text_hash for sample in samples}
    everything = {sample.text_hash for sample in stream(documents(texts), tokenizer)}
    held_out = everything - trained
    assert held_out == {text_hash for text_hash in everything if is_held_out(text_hash)}
    assert 5 <= len(held_out) == samples.state_dict()["held_out"] <= 40


def test_the_state_is_that_of_the_sample_handed_out_not_of_what_was_fetched(tokenizer: Tokenizer) -> None:
    texts: list[object] = [text for text in make_texts(60) for text in (text, None)]
    whole = [sample.ids for sample in stream(documents(texts), tokenizer)]
    for cut in (1, 2, 17, 59):
        first = stream(documents(texts), tokenizer, ahead=20)
        iterator = iter(first)
        taken = [next(iterator).ids for _ in range(cut)]
        state = first.state_dict()
        assert state["trained"] == cut
        first.close()
        second = stream(documents(texts, state["cursor"]["row"]), tokenizer, state=state)
        assert taken + [sample.ids for sample in second] == whole
        assert second.state_dict()["skipped"] == {"text is no string": 60}
        assert second.state_dict()["trained"] == 60


def test_reading_ahead_is_bounded(tokenizer: Tokenizer) -> None:
    read = []

    def slow() -> Iterator[Document]:
        for document in documents(make_texts(200)):
            read.append(document)
            yield document

    samples = stream(slow(), tokenizer, ahead=10)
    next(iter(samples))
    time.sleep(0.3)
    assert len(read) <= 13
    samples.close()


def test_more_than_a_thousand_skips_in_a_row_end_the_run(tokenizer: Tokenizer) -> None:
    good: list[object] = make_texts(1)
    rest = good + [None] * 1000 + good + [None] * 600 + ["short"] * 401
    samples = stream(documents(rest), tokenizer)
    seen: list[Sample] = []
    with pytest.raises(UserError, match="600 text is no string, 401 shorter than 10 characters"):
        seen.extend(samples)
    with pytest.raises(UserError, match="1,001 documents in a row"):
        list(usable_texts(documents(rest)))


def test_documents_of_which_none_can_be_used_are_told_by_reason() -> None:
    with pytest.raises(UserError, match="2 text is no string, 1 shorter than 10 characters"):
        list(usable_texts(documents([None, 3, "short"])))
    with pytest.raises(UserError, match="the data are empty"):
        list(usable_texts(documents([])))


def test_a_round_without_a_sample_is_the_last(tokenizer: Tokenizer) -> None:
    held_out = next(text for text in make_texts(2000) if is_held_out(hash_text(text)))
    rounds = (Document(held_out, "here", Origin("f", 0), Cursor(epoch, 0, 1)) for epoch in range(10**9))
    with pytest.raises(UserError, match="held none to train on"):
        list(stream(rounds, tokenizer, hold_out=True))


def test_an_error_of_the_source_comes_behind_the_samples_before_it(tokenizer: Tokenizer) -> None:
    def breaks() -> Iterator[Document]:
        yield from documents(make_texts(5))
        raise SourceUnreachable("gone")

    seen = []
    with pytest.raises(SourceUnreachable, match="gone"):
        seen.extend(sample.ids for sample in stream(breaks(), tokenizer))
    assert len(seen) == 5


def test_a_stop_is_answered_within_a_second_while_waiting(tokenizer: Tokenizer) -> None:
    hang, stop = threading.Event(), threading.Event()

    def hangs() -> Iterator[Document]:
        yield from documents(make_texts(1))
        hang.wait(20)

    samples = iter(stream(hangs(), tokenizer, should_stop=stop.is_set))
    next(samples)
    threading.Timer(0.2, stop.set).start()
    since = time.monotonic()
    assert next(samples, None) is None
    assert time.monotonic() - since < 1.2
    hang.set()
