"""Search finds text in the documents of a run, with their steps, and only reads the run's files."""

import gc
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.viz.conftest import write_store
from tests.viz.page.test_live_run import listing
from tests.viz.small_tokenizers import MODELS, encode
from viz.page.text_search import CONTEXT, TextSearch

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


@pytest.fixture(scope="module", autouse=True)
def no_connection_is_left_open() -> Iterator[None]:
    yield
    gc.collect()  # warns about those that are


@pytest.fixture
def search() -> Iterator[TextSearch]:
    made = TextSearch()
    yield made
    made.close()


def write(folder: Path, texts: Sequence[str], first: int = 0, resume: bool = False) -> Path:
    """Write a run on these texts, or continue it; returns its store."""
    ids = {text: encode(text) for text in set(texts)}
    calls = ({"step": step, "loss": 1.0, "token_ids": ids[text]} for step, text in enumerate(texts, first))
    return write_store(folder, calls, resume=resume, tokenizer=MODELS["ours"]) / "run.db"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return write(tmp_path / "record", TEXTS)


def index(search: TextSearch, store: Path, count: int, edition: int = 1) -> None:
    """Let the search read so many documents of a store, and wait until it has."""
    search.follow(store, edition, count)
    search.wait()


@pytest.fixture
def indexed(store: Path, search: TextSearch) -> TextSearch:
    index(search, store, len(TEXTS))
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
        "quick brown", "quick  brown", *("".join(map(chr, range(first, first + 500))) for first in (0x4E00, 0x1F300)),
    ],
)  # fmt: skip
def test_any_text_is_plain_text(indexed: TextSearch, text: str) -> None:
    """Including syntax of FTS5 and SQL, one or two characters, 500 different ones, NUL and multi-byte characters."""
    assert steps(indexed, text) == expected(text)


def test_the_limit_applies_to_hits_but_not_to_the_total(indexed: TextSearch) -> None:
    found = indexed.find("a", 1, 2)
    assert len(found["hits"]) == 2 and found["total"] == len(expected("a")) > 2


def test_letters_whose_lower_case_is_longer_or_depends_on_its_place(tmp_path: Path, search: TextSearch) -> None:
    index(search, write(tmp_path, ["İİİ then the needle here", "ΟΔΟΣΑ"]), 2)
    assert search.find("needle", 1)["hits"][0]["hit"] == "needle"
    assert steps(search, "ΟΔΟΣ") == [1]


def test_new_documents_are_found_later(tmp_path: Path, search: TextSearch) -> None:
    store = write(tmp_path, TEXTS[:2])
    index(search, store, 2)
    assert steps(search, "needle") == []
    write(tmp_path, TEXTS[2:], 2, resume=True)
    assert steps(search, "needle") == []  # not indexed yet
    index(search, store, len(TEXTS))
    assert steps(search, "needle") == [3] and steps(search, "fox") == [0, 1]


def test_a_new_edition_discards_the_index(tmp_path: Path, search: TextSearch, indexed: TextSearch) -> None:
    assert steps(indexed, "needle") == [3]
    index(search, write(tmp_path, ["something else", "entirely"]), 2, edition=2)
    assert steps(search, "needle", edition=2) == [] and steps(search, "entirely", edition=2) == [1]
    old = search.find("fox", 1)
    assert (old["total"], old["indexed_below"]) == (0, 0) and search.indexed_below == 2


def test_documents_that_are_not_kept_are_skipped(tmp_path: Path, search: TextSearch) -> None:
    calls = ({"step": step, "loss": 1.0, "token_ids": encode(f"number {step}.")} for step in range(1, 1300, 2))
    index(search, write_store(tmp_path, calls, tokenizer=MODELS["ours"]) / "run.db", 1300)
    assert steps(search, "number 1299.") == [1299] and steps(search, "number 700.") == []
    found = search.find("number", 1, 5)
    assert (found["total"], found["searched"], found["indexed_below"]) == (650, 650, 1300)


def test_the_run_and_its_folder_are_untouched(store: Path, search: TextSearch) -> None:
    before = listing(store.parent)
    for edition in (1, 2):
        index(search, store, len(TEXTS), edition)
        assert steps(search, "fox", edition=edition) == [0, 1]
        search.find("a", edition)
    assert listing(store.parent) == before


def test_closing_deletes_the_index(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    search = TextSearch()
    index(search, store, len(TEXTS))
    assert list((tmp_path / "temporary").rglob("*.db"))
    search.close()
    assert list((tmp_path / "temporary").iterdir()) == []
    index(search, store, len(TEXTS), edition=2)  # as by a late request
    assert list((tmp_path / "temporary").iterdir()) == []


def test_closing_does_not_wait_for_a_long_run(tmp_path: Path) -> None:
    store = write(tmp_path, ["some words of a document " * 40] * 6000)
    search = TextSearch()
    began = time.monotonic()
    search.follow(store, 1, 6000)
    assert time.monotonic() - began < 0.2  # indexing runs in a thread
    search.find("words", 1)  # during indexing
    search.close()
    assert search.indexed_below < 6000  # control: indexing was in progress


def test_results_during_indexing_are_correct(tmp_path: Path, search: TextSearch) -> None:
    search.follow(write(tmp_path, ["a number of them"] * 3000), 1, 3000)
    totals = [0]
    while search.indexed_below < 3000:
        totals.append(search.find("of them", 1, 1)["total"])
        time.sleep(0.005)
    search.wait()
    totals.append(search.find("of them", 1, 1)["total"])
    assert totals == sorted(totals) and totals[-1] == 3000


def test_a_record_without_a_tokenizer_says_why_nothing_is_found(tmp_path: Path, search: TextSearch) -> None:
    index(search, write_store(tmp_path, [{"step": 0, "loss": 1.0, "token_ids": encode("fox")}]) / "run.db", 1)
    found = search.find("fox", 1)
    assert found["hits"] == [] and "no tokenizer" in found["problem"]


@pytest.mark.parametrize("edition", [1, 2])
def test_a_store_that_is_missing_at_first_is_read_later(
    tmp_path: Path, store: Path, search: TextSearch, edition: int
) -> None:
    index(search, tmp_path / "nowhere" / "run.db", 5)
    assert "nowhere" in search.find("fox", 1)["problem"]
    index(search, store, len(TEXTS), edition)
    assert steps(search, "fox", edition=edition) == [0, 1]
