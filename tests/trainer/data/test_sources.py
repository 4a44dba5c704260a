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


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        ("a.jsonl a.json.gz a.JSONL.ZST", "json lines"),
        ("a.txt.zst", "paragraphs"),
        ("a.parquet", "parquet"),
        ("a.parquet.gz a.jsonl.gz.zst a.csv jsonl", None),
    ],
)
def test_the_kind_follows_from_the_name(names: str, kind: str | None) -> None:
    assert {kind_of(name) for name in names.split()} == {kind}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("cerebras/SlimPajama-627B wikitext", False),
        ("data data/b.jsonl missing.jsonl ./missing ~/missing /missing no/such/folder some/*", True),
    ],
)
@pytest.mark.usefixtures("folder")
def test_local_or_hub(names: str, expected: bool) -> None:
    assert {is_local(name) for name in names.split()} == {expected}


def names(dataset: str) -> list[str]:
    return [shard.name for shard in resolve_source(dataset).shards]


@pytest.mark.usefixtures("folder")
def test_folders_globs_and_files_in_order() -> None:
    assert names("data") == ["data/a.txt", "data/b.jsonl", "data/sub/c.jsonl.zst", "data/sub/d.parquet"]

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
