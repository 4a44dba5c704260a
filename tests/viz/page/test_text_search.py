"""Search finds text in the documents of a run, with their steps, and only reads the run's files."""

import gc
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import sentencepiece

from tests.viz.page.test_live_run import listing
from tests.viz.views.test_token_text import MODELS
from viz.page.text_search import CONTEXT, TextSearch
from viz.record.schema import rows_of
from viz.record.writer import StoreWriter

Metrics = Callable[..., dict[str, Any]]
TEXTS = [
    "The quick brown fox jumps over the lazy dog.",
    "A Fox, a dog and a second FOX.",
    "She said \"never\" -- and NOT once OR twice AND then NEAR(the end) left* ^it {alone} a:b c-d 'quoted'.",
    "before" * 30 + " needle " + "after" * 30,
    "nul here: a\0b, and \0 behind",
    "emoji 😀😃 and 👩‍👩‍👧, 日本語, été, ÉTÉ",
    "percent 100% under_score back\\slash; DROP TABLE texts; --",
    "",
    "ab",
]


@pytest.fixture
def search() -> Iterator[TextSearch]:
    made = TextSearch()
    yield made
    made.close()
    gc.collect()  # reports a connection that was left open


def encode(text: str) -> list[int]:
    found: list[int] = sentencepiece.SentencePieceProcessor(model_proto=MODELS["ours"]).EncodeAsIds(text)
    return found


def add(writer: StoreWriter, texts: Sequence[str], first: int = 0) -> None:
    for step, text in enumerate(texts, first):
        writer.add_rows(rows_of({"step": step, "loss": 1.0, "token_ids": encode(text)}))
    writer.flush()


@pytest.fixture
def store(tmp_path: Path) -> Path:
    (tmp_path / "record").mkdir()
    writer = StoreWriter(tmp_path / "record" / "run.db", {"tokenizer": MODELS["ours"]})
    add(writer, TEXTS)
    writer.close()
    return writer.path


@pytest.fixture
def indexed(store: Path, search: TextSearch) -> TextSearch:
    search.follow(store, 1, len(TEXTS))
    search.wait()
    assert search.indexed_below == len(TEXTS)
    return search


def steps(search: TextSearch, text: str, most: int = 50, edition: int = 1) -> list[int]:
    found = search.find(text, edition, most)
    assert found["problem"] is None
    return [hit["step"] for hit in found["hits"]]


def expected(text: str) -> list[int]:
    return [step for step, other in enumerate(TEXTS) if text.lower() in other.lower()]


def test_a_hit_has_its_context(indexed: TextSearch) -> None:
    (hit,) = indexed.find("needle", 1)["hits"]
    assert (hit["step"], hit["hit"]) == (3, "needle")
    text, place = TEXTS[3], TEXTS[3].index("needle")
    assert hit["before"] == text[place - CONTEXT : place] and hit["after"] == text[place + 6 : place + 6 + CONTEXT]
    (hit,) = indexed.find("The quick", 1)["hits"]
    assert hit["before"] == "" and hit["after"] == " brown fox jumps over the lazy dog."


def test_case_is_ignored_and_shown_unchanged(indexed: TextSearch) -> None:
    found = indexed.find("fOX", 1)
    assert [(hit["step"], hit["hit"]) for hit in found["hits"]] == [(0, "fox"), (1, "Fox")] and found["total"] == 2
    assert steps(indexed, "ÉTÉ") == steps(indexed, "été") == [5]


@pytest.mark.parametrize(
    "text",
    [
        '"never"', '"', '""', '" OR "', "NOT once OR twice", "fox NOT dog", "fox AND dog", "NEAR(the end)", "left*",
        "fox*", "^it", "{alone}", "a:b", "text:fox", "c-d", "'quoted'", "'", "-- and", "100%", "%", "under_score", "_",
        "back\\slash", "DROP TABLE texts; --", "*", "(", ")", "+", "rowid",
        "😀", "😃 a", "👩‍👩‍👧", "日", "日本", "日本語", "é", "ét",
        "a\0b", "\0", "behind", "\0 behind", "and \0 be", "a", "ab", "abc", " ", "  ", "   ", "x" * 500,
        "quick brown", "quick  brown",
    ],
)  # fmt: skip
def test_any_text_is_plain_text(indexed: TextSearch, text: str) -> None:
    """Including syntax of FTS5 and SQL, one or two characters, NUL and multi-byte characters."""
    assert steps(indexed, text) == expected(text)


def test_the_limit_applies_to_hits_but_not_to_the_total(indexed: TextSearch) -> None:
    found = indexed.find("a", 1, 2)
    assert len(found["hits"]) == 2 and found["total"] == len(expected("a")) > 2


def test_a_query_of_500_different_characters(indexed: TextSearch) -> None:
    assert steps(indexed, "".join(map(chr, range(0x4E00, 0x4E00 + 500)))) == []
    assert steps(indexed, "".join(map(chr, range(0x1F300, 0x1F300 + 500)))) == []


def test_letters_whose_lower_case_is_longer_or_depends_on_its_place(tmp_path: Path, search: TextSearch) -> None:
    writer = StoreWriter(tmp_path / "run.db", {"tokenizer": MODELS["ours"]})
    add(writer, ["İİİ then the needle here", "ΟΔΟΣΑ"])
    writer.close()
    search.follow(tmp_path / "run.db", 1, 2)
    search.wait()
    assert search.find("needle", 1)["hits"][0]["hit"] == "needle"
    assert steps(search, "ΟΔΟΣ") == [1]


def test_new_documents_are_found_later(tmp_path: Path, search: TextSearch) -> None:
    writer = StoreWriter(tmp_path / "run.db", {"tokenizer": MODELS["ours"]})
    add(writer, TEXTS[:2])
    search.follow(tmp_path / "run.db", 1, 2)
    search.wait()
    assert steps(search, "needle") == []
    add(writer, TEXTS[2:], 2)
    assert steps(search, "needle") == []  # not indexed yet
    search.follow(tmp_path / "run.db", 1, len(TEXTS))
    search.wait()
    assert steps(search, "needle") == [3] and steps(search, "fox") == [0, 1]
    writer.close()


def test_a_new_edition_discards_the_index(store: Path, tmp_path: Path, search: TextSearch, indexed: TextSearch) -> None:
    assert steps(indexed, "needle") == [3]
    writer = StoreWriter(tmp_path / "run.db", {"tokenizer": MODELS["ours"]})
    add(writer, ["something else", "entirely"])
    writer.close()
    search.follow(tmp_path / "run.db", 2, 2)
    search.wait()
    assert steps(search, "needle", edition=2) == [] and steps(search, "entirely", edition=2) == [1]
    old = search.find("fox", 1)
    assert (old["total"], old["indexed_below"]) == (0, 0) and search.indexed_below == 2


def test_documents_that_are_not_kept_are_skipped(tmp_path: Path, search: TextSearch) -> None:
    writer = StoreWriter(tmp_path / "run.db", {"tokenizer": MODELS["ours"]})
    for step in range(1, 1300, 2):
        writer.add_rows(rows_of({"step": step, "loss": 1.0, "token_ids": encode(f"number {step}.")}))
    writer.close()
    search.follow(tmp_path / "run.db", 1, 1300)
    search.wait()
    assert steps(search, "number 1299.") == [1299] and steps(search, "number 700.") == []
    found = search.find("number", 1, 5)
    assert (found["total"], found["searched"], found["indexed_below"]) == (650, 650, 1300)


def test_the_run_and_its_folder_are_untouched(store: Path, search: TextSearch) -> None:
    before = listing(store.parent)
    for edition in (1, 2):
        search.follow(store, edition, len(TEXTS))
        search.wait()
        assert steps(search, "fox", edition=edition) == [0, 1]
        search.find("a", edition)
    assert listing(store.parent) == before


def test_closing_deletes_the_index(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    search = TextSearch()
    search.follow(store, 1, len(TEXTS))
    search.wait()
    assert list((tmp_path / "temporary").rglob("*.db"))
    search.close()
    assert list((tmp_path / "temporary").iterdir()) == []
    search.follow(store, 2, len(TEXTS))  # as by a late request
    search.wait()
    assert list((tmp_path / "temporary").iterdir()) == []


def test_closing_does_not_wait_for_a_long_run(tmp_path: Path) -> None:
    writer = StoreWriter(tmp_path / "run.db", {"tokenizer": MODELS["ours"]})
    ids = encode("some words of a document " * 40)
    for step in range(6000):
        writer.add_rows(rows_of({"step": step, "loss": 1.0, "token_ids": ids}))
    writer.close()
    search = TextSearch()
    began = time.monotonic()
    search.follow(tmp_path / "run.db", 1, 6000)
    assert time.monotonic() - began < 0.2  # indexing runs in a thread
    search.find("words", 1)  # during indexing
    search.close()
    assert search.indexed_below < 6000  # control: indexing was in progress


def test_results_during_indexing_are_correct(tmp_path: Path, search: TextSearch) -> None:
    writer = StoreWriter(tmp_path / "run.db", {"tokenizer": MODELS["ours"]})
    ids = encode("a number of them")
    for step in range(3000):
        writer.add_rows(rows_of({"step": step, "loss": 1.0, "token_ids": ids}))
    writer.close()
    search.follow(tmp_path / "run.db", 1, 3000)
    totals = [0]
    while search.indexed_below < 3000:
        totals.append(search.find("of them", 1, 1)["total"])
        time.sleep(0.005)
    search.wait()
    totals.append(search.find("of them", 1, 1)["total"])
    assert totals == sorted(totals) and totals[-1] == 3000 and len(set(totals)) > 2


def test_a_record_without_a_tokenizer_says_why_nothing_is_found(tmp_path: Path, search: TextSearch) -> None:
    writer = StoreWriter(tmp_path / "run.db", {})
    add(writer, TEXTS)
    writer.close()
    search.follow(tmp_path / "run.db", 1, len(TEXTS))
    search.wait()
    found = search.find("fox", 1)
    assert found["hits"] == [] and "no tokenizer" in found["problem"]


@pytest.mark.parametrize("edition", [1, 2])
def test_a_store_that_is_missing_at_first_is_read_later(
    tmp_path: Path, store: Path, search: TextSearch, edition: int
) -> None:
    search.follow(tmp_path / "nowhere" / "run.db", 1, 5)
    search.wait()
    assert "nowhere" in search.find("fox", 1)["problem"]
    search.follow(store, edition, len(TEXTS))
    search.wait()
    assert steps(search, "fox", edition=edition) == [0, 1]
