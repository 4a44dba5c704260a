"""The embedded corpus, made from the Python that runs the tests."""

import inspect
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest
import zstandard

from tests.conftest import PROJECT
from trainer.data.stdlib_corpus import EmbeddedLibrary, prepare
from trainer.errors import MachineError


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def library(cache: Path) -> EmbeddedLibrary:
    return prepare(cache)


@pytest.fixture(scope="module")
def rows(library: EmbeddedLibrary) -> list[dict[str, str]]:
    lines = b"".join(zstandard.decompress(shard.read_bytes()) for shard in library.shards).split(b"\n")
    assert lines.pop() == b""
    return [json.loads(line) for line in lines]


def test_each_source_has_enough_different_documents(library: EmbeddedLibrary, rows: list[dict[str, str]]) -> None:
    assert len(rows) == library.documents >= 10_000
    counts = Counter(row["source"] for row in rows)
    assert set(counts) == {"python-docs", "python-docstrings", "python-code"}
    assert min(counts.values()) > 100
    lengths = [len(row["text"]) for row in rows]
    assert min(lengths) >= 200 and max(lengths) <= 4000
    assert len({row["text"] for row in rows}) == len(rows)
    starts = Counter(row["origin"] for row in rows if row["source"] == "python-code")
    assert max(starts.values()) == 1, "no piece of code is in two documents"
    assert any(not row["text"].isascii() for row in rows)
    assert not any(re.search("[\ud800-\udfff]", row["text"]) for row in rows), "Unicode is intact"


def test_functions_have_no_docstrings_and_docstrings_are_cleaned(rows: list[dict[str, str]]) -> None:
    (decode,) = [row["text"] for row in rows if "def raw_decode(self, s, idx=0):" in row["text"]]
    assert "StopIteration" in decode
    assert "Decode a JSON document" not in decode
    described = [row for row in rows if "Decode a JSON document from ``s``" in row["text"]]
    assert {row["source"] for row in described} == {"python-docstrings"}
    assert inspect.cleandoc(json.dumps.__doc__ or "") in {row["text"] for row in rows}


def test_the_origin_leads_back_to_the_text(rows: list[dict[str, str]]) -> None:
    files: dict[str, list[str]] = {}
    for row in rows:
        name, number = re.fullmatch(r"(.*):(\d+)", row["origin"], re.DOTALL).groups()  # type: ignore[union-attr]
        first_line = row["text"].split("\n")[0]
        if row["source"] == "python-docs":
            assert topics[name.partition("#")[2]].strip("\n").split("\n")[int(number) - 1] == first_line
            continue
        path = Path(os.__file__).parent / name.removeprefix("Lib/")
        if name not in files:
            # As ast counts them; str.splitlines ends lines at form feeds too.
            files[name] = path.read_bytes().decode("utf-8", "replace").replace("\r\n", "\n").split("\n")
        line = files[name][int(number) - 1]
        if row["source"] == "python-code":
            assert line.strip() == first_line.strip() or "\ufffd" in line
        else:
            assert re.search("['\"]", line) or first_line.strip() in "\n".join(files[name][int(number) - 1 :])


def test_the_second_use_writes_nothing(library: EmbeddedLibrary, cache: Path) -> None:
    before = [shard.stat().st_mtime_ns for shard in library.shards]
    assert prepare(cache) == library
    assert [shard.stat().st_mtime_ns for shard in library.shards] == before


def test_processes_that_start_together_make_one_equal_library(library: EmbeddedLibrary, tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from trainer.data.stdlib_corpus import prepare; "
    command = [sys.executable, "-c", code + "print(prepare(Path(sys.argv[1])).revision)", tmp_path]
    environment = os.environ | {"PYTHONHASHSEED": "7", "LC_ALL": "C"}
    options: Any = {"cwd": PROJECT, "env": environment, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, **options) for _ in range(2)]
    assert [process.communicate(timeout=60)[0].strip() for process in processes] == [library.revision] * 2
    (made,) = (tmp_path / "train_slimpajama" / "python-library").iterdir()
    assert made.name.startswith(sys.implementation.name)
    other = prepare(tmp_path)
    assert other.folder == made != library.folder
    assert [shard.read_bytes() for shard in other.shards] == [shard.read_bytes() for shard in library.shards]


@pytest.mark.parametrize("damage", ["shard", pytest.param("manifest", marks=pytest.mark.full)])
def test_damage_is_repaired(library: EmbeddedLibrary, cache: Path, damage: str) -> None:
    shard = library.shards[1]
    whole = shard.read_bytes()
    if damage == "shard":
        shard.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    else:
        (library.folder / "manifest.json").write_text("[]")
    assert prepare(cache) == library
    assert shard.read_bytes() == whole
    assert [path.name for path in library.folder.parent.iterdir()] == [library.folder.name]


def test_the_temporary_folder_replaces_a_read_only_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = tmp_path / "a file"
    blocked.touch()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    library = prepare(blocked)
    assert library.folder.is_relative_to(tmp_path) and library.documents >= 10_000
    monkeypatch.setattr("tempfile.tempdir", str(blocked))
    with pytest.raises(MachineError, match=r"neither .* nor .* is writable"):
        prepare(blocked)
