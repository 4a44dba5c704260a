"""What `--dataset` names, without a network (names on the Hub: test_hub_file.py)."""

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
    (tmp_path / "data/empty").mkdir()
    return tmp_path / "data"


def test_the_kind_follows_from_the_name() -> None:
    assert [kind_of(name) for name in ("a.jsonl", "a.json.gz", "a.JSONL.ZST")] == ["json lines"] * 3
    assert (kind_of("a.txt.zst"), kind_of("a.parquet")) == ("paragraphs", "parquet")
    assert [kind_of(name) for name in ("a.parquet.gz", "a.jsonl.gz.zst", "a.csv", "jsonl")] == [None] * 4


@pytest.mark.usefixtures("folder")
def test_local_or_hub() -> None:
    local = "data data/b.jsonl missing.jsonl ./missing ~/missing /missing no/such/folder some/*".split()
    assert all(map(is_local, local)) and not any(map(is_local, ["cerebras/SlimPajama-627B", "wikitext"]))


def names(dataset: str) -> list[str]:
    return [shard.name for shard in resolve_source(dataset).shards]


def test_folders_globs_and_files_in_order(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert names("data") == ["data/a.txt", "data/b.jsonl", "data/sub/c.jsonl.zst", "data/sub/d.parquet"]
    assert names("data/**/*.jsonl*") == ["data/b.jsonl", "data/sub/c.jsonl.zst"]
    assert names("data/b.jsonl") == ["data/b.jsonl"]
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("USERPROFILE", str(folder))
    assert names("~/a.txt") == [str(folder / "a.txt")]


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ("missing.jsonl", "missing.jsonl: no such file"),
        ("data/*.csv", "no such file"),
        ("data/notes.md", r"has only \.md: expected \.jsonl"),
        ("data/*.md", r"has only \.md: expected \.jsonl"),
        ("no/such/folder", "no such file"),
        ("data/empty", "an empty folder"),
    ],
)
@pytest.mark.usefixtures("folder")
def test_missing_and_unsupported_files_are_refused(dataset: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        resolve_source(dataset)


def test_files_have_no_splits(folder: Path) -> None:
    for options in ({"split": "test"}, {"config": "en"}):
        with pytest.raises(UserError, match="neither configurations nor splits"):
            resolve_source(str(folder), **options)


def test_the_revision_follows_the_contents_and_not_the_place(folder: Path) -> None:
    revision = resolve_source("data").revision
    assert resolve_source("data", revision=revision).revision == revision
    os.utime(folder / "b.jsonl", (0, 0))
    folder.rename(folder.with_name("moved"))
    assert resolve_source("moved").revision == revision
    (folder.with_name("moved") / "b.jsonl").write_text("other")
    with pytest.raises(UserError, match=f"has changed: .*expected {revision[:12]}"):
        resolve_source("moved", revision=revision)


@pytest.mark.usefixtures("folder")
def test_the_revision_of_large_data_follows_sizes_and_times() -> None:
    revision = resolve_source("data", read_whole_bytes=1).revision
    assert resolve_source("data", read_whole_bytes=1).revision == revision != resolve_source("data").revision
    os.utime("data/b.jsonl", (0, 0))
    assert resolve_source("data", read_whole_bytes=1).revision != revision
