"""The embedded default data: the standard library's texts, kept as shards in the user's cache folder."""

import gc
import hashlib
import json
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import zstandard

from trainer.data.library_texts import library_documents
from trainer.errors import MachineError

FORMAT = 1
"""Counts up whenever the same library would give other documents; older caches are then left alone."""
SHARDS = 4
MANIFEST = "manifest.json"


@dataclass(frozen=True, slots=True)
class EmbeddedLibrary:
    """The shards made of this interpreter's standard library."""

    folder: Path
    shards: tuple[Path, ...]
    """`.jsonl.zst` files of rows `{"text", "source", "origin"}`, shuffled over all shards."""
    revision: str
    """SHA-256 hex of all rows (not of their compression, so that another zstd release makes no other data of them)."""
    documents: int
    """Rows in all."""


def prepare(cache: Path | None = None) -> EmbeddedLibrary:
    """Return the library's shards: made on first use (about 2 s), checked against their digests afterwards (some ms).

    `cache` is the folder to keep them under, the user's cache folder by default; one that can't be written is replaced
    by the system's temporary folder. Raises MachineError where this Python has no source files, or no folder can be
    written.
    """
    version = ".".join(map(str, sys.version_info[:3]))
    key = f"{sys.implementation.name}-{version}-format{FORMAT}"
    user = os.getuid() if hasattr(os, "getuid") else "user"
    folders = (cache or _user_cache(), Path(tempfile.gettempdir()) / f"train_slimpajama-{user}")
    for folder in folders:
        place = folder / "train_slimpajama" / "python-library" / key
        library = _open(place)
        if library is not None:
            return library
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            building = Path(tempfile.mkdtemp(prefix=".building-", dir=place.parent))
        except OSError:
            continue  # a read-only home is common in containers; the next folder serves as well
        try:
            _write(building)
            _move_into_place(building, place)
        except OSError as error:
            raise MachineError(f"can't keep the embedded library in {place}: {error.strerror or error}") from error
        finally:
            shutil.rmtree(building, ignore_errors=True)
        library = _open(place)
        if library is not None:
            return library
    raise MachineError(f"no folder for the embedded library: neither {folders[0]} nor {folders[1]} can be written")


def _user_cache() -> Path:
    if named := os.environ.get("XDG_CACHE_HOME"):
        return Path(named)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    return Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache")


def _open(place: Path) -> EmbeddedLibrary | None:
    """What stands in `place`, or None if it is absent or damaged in any way: then it is made again."""
    try:
        manifest = json.loads((place / MANIFEST).read_bytes())
        shards = tuple(place / name for name in manifest["shards"])
        for shard in shards:
            if hashlib.sha256(shard.read_bytes()).hexdigest() != manifest["shards"][shard.name]:
                return None
        return EmbeddedLibrary(place, shards, manifest["revision"], manifest["documents"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _move_into_place(building: Path, place: Path) -> None:
    """Give `building` its name. Where another process was first, its folder stays; a damaged one goes."""
    for _ in range(5):  # each round is lost only to another process that made a change in the same instant
        try:
            building.rename(place)
            return
        except OSError:
            if _open(place) is not None:
                return
        damaged = building.with_name(building.name + ".damaged")
        try:
            place.rename(damaged)
        except FileNotFoundError:
            continue
        shutil.rmtree(damaged, ignore_errors=True)
    raise OSError("another process keeps changing it")


def _write(folder: Path) -> None:
    """Make all documents and write shards and manifest into the empty `folder`."""
    with _undisturbed():
        rows = _rows()
    digest = hashlib.sha256()
    digests = {}
    for index in range(SHARDS):
        lines = "".join(rows[len(rows) * index // SHARDS : len(rows) * (index + 1) // SHARDS]).encode()
        digest.update(lines)
        shard = zstandard.ZstdCompressor(level=3).compress(lines)
        name = f"{index}.jsonl.zst"
        digests[name] = hashlib.sha256(shard).hexdigest()
        (folder / name).write_bytes(shard)
    manifest = {"revision": digest.hexdigest(), "documents": len(rows), "shards": digests}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))


@contextmanager
def _undisturbed() -> Iterator[None]:
    """No garbage collection, which would walk the growing trees again and again, and no warnings about old modules."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        if collecting:
            gc.enable()


def _rows() -> list[str]:
    """All documents as JSON lines, each text once, in an order that only the texts decide."""
    rows: dict[bytes, str] = {}
    for source, origin, text in library_documents():
        try:
            key = hashlib.sha256(text.encode()).digest()
        except UnicodeEncodeError:  # a docstring that shows a lone surrogate: no text that a file could hold
            continue
        if key not in rows:
            rows[key] = json.dumps({"text": text, "source": source, "origin": origin}, ensure_ascii=False) + "\n"
    return [rows[key] for key in sorted(rows)]
