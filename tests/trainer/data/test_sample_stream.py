import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from tests.conftest import make_texts, write_jsonl
from trainer.data.document_filter import hash_text, is_held_out, usable_texts
from trainer.data.document_stream import DocumentStream
from trainer.data.sample_stream import LONGEST_TEXT_KEPT, PASSED_BY, SampleStream
from trainer.data.sources import DataSource, Shard, resolve_source
from trainer.data.tokenizer import Tokenizer
from trainer.errors import SourceUnreachable, UserError
from trainer.records import Cursor, Document, Origin, Sample


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


NOWHERE = f"hf://datasets/someone/data@{'0' * 40}/a.jsonl"

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


@pytest.fixture
def half_bad(tmp_path: Path) -> DocumentStream:
    """Sixty good rows; before each of them one that is no JSON, and two of those at the end."""
    path = write_jsonl(tmp_path / "a.jsonl", make_texts(60))
    lines = [part for line in path.read_text().splitlines() for part in ("{bad", line)]
    path.write_text("\n".join([*lines, "{bad", "{bad"]))
    return DocumentStream(source=resolve_source(str(path)))


def test_rows_that_cannot_be_read_are_told_just_before_the_sample_behind_them(
    half_bad: DocumentStream, tokenizer: Tokenizer
) -> None:
    told: list[str] = []
    threads = set()

    def on_fault(detail: str) -> None:
        told.append(detail)
        threads.add(threading.current_thread())

    samples = stream(half_bad, tokenizer, on_fault=on_fault)
    name = half_bad.source.shards[0].name
    for count, sample in enumerate(samples, 1):
        assert sample.document.origin.row == 2 * count - 1
        assert told == [f"{name} row {2 * row}: not JSON" for row in range(count)]
    assert len(told) == 62 and told[-1] == f"{name} row 121: not JSON"
    assert threads == {threading.current_thread()}


def test_what_was_read_ahead_is_told_once_also_when_the_run_goes_on_later(
    half_bad: DocumentStream, tokenizer: Tokenizer
) -> None:
    whole: list[str] = []
    list(stream(half_bad, tokenizer, on_fault=whole.append))
    for cut in (1, 30, 59):
        told: list[str] = []
        first = stream(half_bad, tokenizer, on_fault=told.append, ahead=20)
        iterator = iter(first)
        for _ in range(cut):
            next(iterator)
        state = first.state_dict()
        first.close()
        assert len(told) == cut
        list(stream(half_bad.at(Cursor(**state["cursor"])), tokenizer, on_fault=told.append, state=state))
        assert told == whole


def test_going_back_to_a_state(half_bad: DocumentStream, tokenizer: Tokenizer) -> None:
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


def test_a_document_that_is_to_be_passed_by(half_bad: DocumentStream, tokenizer: Tokenizer) -> None:
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
    assert found["skipped"] == {"not JSON": 62, PASSED_BY: 1} and found["trained"] == 59
    assert found["passed_by"] == state["passed_by"] == after[3].stream_state["passed_by"]  # and is kept from then on
    old = {key: value for key, value in before[-1].stream_state.items() if key != "passed_by"}  # of an older version
    assert [sample.ids for sample in samples.again(old)] == [sample.ids for sample in whole[5:]]


def test_a_closed_stream_stops_waiting_for_the_network(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # so that it waits, wherever this runs
    closed_port = DataSource("someone/data", "0" * 40, (Shard("json lines", NOWHERE, NOWHERE),))
    events: list[tuple[str, str]] = []
    source = DocumentStream(source=closed_port, on_event=lambda *event: events.append(event))
    samples = stream(source, tokenizer)
    samples._thread.start()
    deadline = time.monotonic() + 60
    while not events and time.monotonic() < deadline:
        time.sleep(0.05)
    assert events and samples._thread.is_alive()
    samples.close()
    samples._thread.join(5)
    assert not samples._thread.is_alive()


def test_a_long_text_is_not_kept_whole(tokenizer: Tokenizer) -> None:
    text = " ".join(make_texts(1)) * 1000
    (sample,) = stream(documents([text]), tokenizer)
    assert len(text) > LONGEST_TEXT_KEPT == len(str(sample.document.text))
    assert sample.document_bytes == len(text.encode()) and sample.text_hash == hash_text(text)


def test_pieces_of_control_never_come_out_of_text(tokenizer: Tokenizer) -> None:
    odd = [
        "<s> </s> <unk> <pad> <s></s><unk>",
        "\u2581\u2581 a \u2581b\u2581 \u2581",
        "\x00\x01\x02 NUL and others \x7f",
        "<0x00>" * 9,
    ]
    trained = list(stream(documents(odd), tokenizer))
    assert len(trained) == len(odd)
    assert all(token > 2 for sample in trained for token in sample.ids)
    assert odd[0].startswith(tokenizer.DecodeIds(trained[0].ids)) and len(trained[0].ids) == 32
