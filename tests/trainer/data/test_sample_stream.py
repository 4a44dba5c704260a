import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from tests.conftest import make_texts, write_jsonl
from trainer.data.document_filter import hash_text, is_held_out, usable_texts
from trainer.data.document_stream import DocumentStream
from trainer.data.sample_stream import LONGEST_TEXT_KEPT, ROLLED_BACK, SampleStream
from trainer.data.sources import DataSource, Shard, resolve_source
from trainer.data.tokenizer import Tokenizer
from trainer.errors import SourceUnreachable, UserError
from trainer.records import Cursor, Document, Origin, Sample


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


ODD = [None, 7, "", "nine char", "ten chars!", "\ud800 a lone surrogate", ["a list"], "x" * 10_000_000]


def test_unusable_documents_are_counted_by_reason(tokenizer: Tokenizer) -> None:
    odd = [*ODD, "日本語のテキストです。これは文書。", "a\x00b\x00c\x00 with NUL in it"]
    samples = stream(documents(odd), tokenizer)
    trained = [sample.document.origin.row for sample in samples]
    assert trained == [4, 7, 8, 9]
    state = samples.state_dict()
    assert state["skipped"] == {"text is not a string": 3, "shorter than 10 characters": 2, "lone surrogate": 1}
    assert state["cursor"]["row"] == len(odd), "documents skipped after the last sample are counted too"
    one_piece = Tokenizer.train(["abcdefghij abcdefghij"] * 50, vocab_size=300)
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


def test_the_state_is_that_of_the_last_sample_and_ignores_what_was_read_ahead(tokenizer: Tokenizer) -> None:
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
        assert second.state_dict()["skipped"] == {"text is not a string": 60}
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


def test_too_many_skips_in_a_row_and_data_without_a_usable_document_are_refused(tokenizer: Tokenizer) -> None:
    good: list[object] = make_texts(1)
    rest = good + [None] * 1000 + good + [None] * 600 + ["short"] * 401
    samples = stream(documents(rest), tokenizer)
    seen: list[Sample] = []
    with pytest.raises(UserError, match="600 text is not a string, 401 shorter than 10 characters"):
        seen.extend(samples)
    with pytest.raises(UserError, match="1,001 documents in a row"):
        list(usable_texts(documents(rest)))
    with pytest.raises(UserError, match="2 text is not a string, 1 shorter than 10 characters"):
        list(usable_texts(documents([None, 3, "short"])))
    with pytest.raises(UserError, match="the data are empty"):
        list(usable_texts(documents([])))


def test_an_epoch_without_a_sample_ends_the_run(tokenizer: Tokenizer) -> None:
    held_out = next(text for text in make_texts(2000) if is_held_out(hash_text(text)))
    epochs = (Document(held_out, "here", Origin("f", 0), Cursor(epoch, 0, 1)) for epoch in range(10**9))
    with pytest.raises(UserError, match="no document of a complete epoch"):
        list(stream(epochs, tokenizer, hold_out=True))


def test_an_error_of_the_source_is_raised_after_the_samples_before_it(tokenizer: Tokenizer) -> None:
    def breaks() -> Iterator[Document]:
        yield from documents(make_texts(5))
        raise SourceUnreachable("gone")

    seen = []
    with pytest.raises(SourceUnreachable, match="gone"):
        seen.extend(sample.ids for sample in stream(breaks(), tokenizer))
    assert len(seen) == 5


def test_the_stream_stops_within_a_second_while_it_waits(tokenizer: Tokenizer) -> None:
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


@pytest.fixture
def half_bad(tmp_path: Path) -> DocumentStream:
    """Sixty good rows, each after one that is not JSON, and two of those at the end."""
    path = write_jsonl(tmp_path / "a.jsonl", make_texts(60))
    lines = [part for line in path.read_text().splitlines() for part in ("{bad", line)]
    path.write_text("\n".join([*lines, "{bad", "{bad"]))
    return DocumentStream(source=resolve_source(str(path)))


def test_unreadable_rows_are_reported_before_the_next_sample(half_bad: DocumentStream, tokenizer: Tokenizer) -> None:
    reported: list[str] = []
    threads = set()

    def on_fault(detail: str) -> None:
        reported.append(detail)
        threads.add(threading.current_thread())

    samples = stream(half_bad, tokenizer, on_fault=on_fault)
    name = half_bad.source.shards[0].name
    for count, sample in enumerate(samples, 1):
        assert sample.document.origin.row == 2 * count - 1
        assert reported == [f"{name} row {2 * row}: not JSON" for row in range(count)]
    assert len(reported) == 62 and reported[-1] == f"{name} row 121: not JSON"
    assert threads == {threading.current_thread()}


def test_unreadable_rows_are_reported_once_across_a_resume(half_bad: DocumentStream, tokenizer: Tokenizer) -> None:
    whole: list[str] = []
    list(stream(half_bad, tokenizer, on_fault=whole.append))
    for cut in (1, 30, 59):
        reported: list[str] = []
        first = stream(half_bad, tokenizer, on_fault=reported.append, ahead=20)
        iterator = iter(first)
        for _ in range(cut):
            next(iterator)
        state = first.state_dict()
        first.close()
        assert len(reported) == cut
        list(stream(half_bad.at(Cursor(**state["cursor"])), tokenizer, on_fault=reported.append, state=state))
        assert reported == whole


def test_rolling_back_to_a_state(half_bad: DocumentStream, tokenizer: Tokenizer) -> None:
    whole = list(stream(half_bad, tokenizer, hold_out=True))
    samples = stream(half_bad, tokenizer, hold_out=True)
    iterator = iter(samples)
    states = [samples.state_dict(), *(next(iterator).stream_state for _ in range(20))]
    for taken in (20, 7, 0, 7):
        samples = samples.again(states[taken])
        assert samples.state_dict() == states[taken]
        assert list(samples) == whole[taken:]
        assert samples.state_dict()["trained"] == len(whole)
    with pytest.raises(TypeError, match=r"no `at\(cursor\)`"):
        stream(documents(make_texts(3)), tokenizer).again(states[0])


def test_a_document_that_caused_a_rollback_is_skipped(half_bad: DocumentStream, tokenizer: Tokenizer) -> None:
    whole = list(stream(half_bad, tokenizer))
    samples = stream(half_bad, tokenizer)
    iterator = iter(samples)
    before, culprit = [next(iterator) for _ in range(5)], next(iterator)
    cursor = culprit.document.cursor
    state = before[-1].stream_state
    assert state["passed_by"] == []
    state = {**state, "passed_by": [[cursor.epoch, cursor.shard, cursor.row]]}
    samples = samples.again(state)
    after = list(samples)
    assert [sample.ids for sample in after] == [sample.ids for sample in whole[6:]]
    found = samples.state_dict()
    assert found["skipped"] == {"not JSON": 62, ROLLED_BACK: 1} and found["trained"] == 59
    assert found["passed_by"] == state["passed_by"] == after[3].stream_state["passed_by"]
    old = {key: value for key, value in before[-1].stream_state.items() if key != "passed_by"}
    assert [sample.ids for sample in samples.again(old)] == [sample.ids for sample in whole[5:]]


def test_a_closed_stream_stops_waiting_for_the_network(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # so that every request fails
    address = f"hf://datasets/someone/data@{'0' * 40}/a.jsonl"
    unreachable = DataSource("someone/data", "0" * 40, (Shard("json lines", address, address),))
    events: list[tuple[str, str]] = []
    source = DocumentStream(source=unreachable, on_event=lambda *event: events.append(event))
    samples = stream(source, tokenizer)
    samples._thread.start()
    deadline = time.monotonic() + 60
    while not events and time.monotonic() < deadline:
        time.sleep(0.05)
    assert events and samples._thread.is_alive()
    samples.close()
    samples._thread.join(5)
    assert not samples._thread.is_alive()


def test_a_long_text_is_kept_only_in_part(tokenizer: Tokenizer) -> None:
    text = " ".join(make_texts(1)) * 1000
    (sample,) = stream(documents([text]), tokenizer)
    assert len(text) > LONGEST_TEXT_KEPT == len(str(sample.document.text))
    assert sample.document_bytes == len(text.encode()) and sample.text_hash == hash_text(text)
