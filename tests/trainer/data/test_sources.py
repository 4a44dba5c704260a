"""What a name on the command line stands for, as far as no network is needed (the Hub's side: test_documents.py)."""

import os
from pathlib import Path

import pytest

from trainer.data.sources import is_local, kind_of, resolve_source
from trainer.errors import UserError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("b.jsonl", "a.txt", "sub/c.jsonl.zst", "sub/d.parquet", "sub/.hidden.jsonl", ".git/e.txt", "notes.md"):
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return tmp_path / "data"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.jsonl", "json lines"),
        ("a.json.gz", "json lines"),
        ("a.JSONL.ZST", "json lines"),
        ("a.txt.zst", "paragraphs"),
        ("a.parquet", "parquet"),
        ("a.parquet.gz", None),
        ("a.jsonl.gz.zst", None),
        ("a.csv", None),
        ("jsonl", None),
    ],
)
def test_kinds_of_files(name: str, kind: str | None) -> None:
    assert kind_of(name) == kind


@pytest.mark.parametrize(
    ("dataset", "local"),
    [
        ("cerebras/SlimPajama-627B", False),
        ("wikitext", False),
        ("data", True),
        ("data/b.jsonl", True),
        ("missing.jsonl", True),
        ("./missing", True),
        ("~/missing", True),
        ("/missing", True),
        ("no/such/folder", True),
        ("some/*", True),
    ],
)
@pytest.mark.usefixtures("folder")
def test_local_or_hub(dataset: str, local: bool) -> None:
    assert is_local(dataset) is local


def names(dataset: str) -> list[str]:
    return [shard.name for shard in resolve_source(dataset).shards]


@pytest.mark.usefixtures("folder")
def test_a_folder_is_its_readable_files_in_order() -> None:
    assert names("data") == ["data/a.txt", "data/b.jsonl", "data/sub/c.jsonl.zst", "data/sub/d.parquet"]


@pytest.mark.usefixtures("folder")
def test_a_glob_and_a_file() -> None:
    assert names("data/**/*.jsonl*") == ["data/b.jsonl", "data/sub/c.jsonl.zst"]
    assert names("data/b.jsonl") == ["data/b.jsonl"]


def test_the_home_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("USERPROFILE", str(folder))
    assert names("~/a.txt") == [str(folder / "a.txt")]


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ("missing.jsonl", "missing.jsonl: no such file"),
        ("data/*.csv", "no such file"),
        ("data/notes.md", r"has \.md: expected \.jsonl"),
        ("data/*.md", r"has \.md: expected \.jsonl"),
        ("no/such/folder", "no such file"),
    ],
)
@pytest.mark.usefixtures("folder")
def test_what_cannot_be_is_said(dataset: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        resolve_source(dataset)


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="an empty folder"):
        resolve_source(str(tmp_path))


def test_files_have_no_splits(folder: Path) -> None:
    with pytest.raises(UserError, match="neither configurations nor splits"):
        resolve_source(str(folder), split="test")
    with pytest.raises(UserError, match="neither configurations nor splits"):
        resolve_source(str(folder), config="en")


def test_the_revision_follows_the_contents_wherever_they_lie(folder: Path) -> None:
    revision = resolve_source("data").revision
    assert resolve_source("data", revision=revision).revision == revision
    os.utime(folder / "b.jsonl", (0, 0))
    folder.rename(folder.with_name("moved"))
    assert resolve_source("moved").revision == revision
    (folder.with_name("moved") / "b.jsonl").write_text("other")
    with pytest.raises(UserError, match=f"has changed: .*expected {revision[:12]}"):
        resolve_source("moved", revision=revision)


@pytest.mark.usefixtures("folder")
def test_the_revision_of_much_data_follows_sizes_and_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.data.sources.READ_WHOLE_BYTES", 1)
    revision = resolve_source("data").revision
    assert resolve_source("data").revision == revision
    os.utime("data/b.jsonl", (0, 0))
    assert resolve_source("data").revision != revision
