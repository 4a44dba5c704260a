"""The embedded corpus: documents cut from Python's standard library, kept as shards in the user's cache folder.

`prepare` makes the shards once for each Python version. `library_documents` cuts the documents: the language reference
that `pydoc` shows, functions without their docstrings, and docstrings.
"""

import ast
import gc
import hashlib
import inspect
import io
import json
import os
import shutil
import sys
import tempfile
import tokenize
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import zstandard

from trainer.base.atomic_files import sha256_of_file
from trainer.data.document_filter import hash_text
from trainer.errors import MachineError

FORMAT = 1
"""Counts up whenever the same library would give other documents; older caches are then left alone."""
SHARDS = 4
MANIFEST = "manifest.json"
SHORTEST, LONGEST = 200, 4000
"""Characters in a document."""
EXCLUDED = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "pydoc_data", "encodings"}
"""Folders left out: tests come with some installations only, packages are not the library's, `encodings` is tables."""

Lines = list[tuple[int, str]]
"""A piece of text: its lines, each with its 1-based number in the file it comes from."""


# ------------------------------------------------------------------------------------------------------------ the cache


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
            if sha256_of_file(shard) != manifest["shards"][shard.name]:
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
            key = hash_text(text)
        except UnicodeEncodeError:  # a docstring that shows a lone surrogate: no text that a file could hold
            continue
        if key not in rows:
            rows[key] = json.dumps({"text": text, "source": source, "origin": origin}, ensure_ascii=False) + "\n"
    return [rows[key] for key in sorted(rows)]


# -------------------------------------------------------------------------------------------------------- the documents


def library_documents() -> Iterator[tuple[str, str, str]]:
    """(source, origin, text) of every document: topics first, then the files in the order of their names.

    The origin is `Lib/json/decoder.py:123`, the text's first line (for a docstring, the line it begins in), or
    `Lib/pydoc_data/topics.py#assert:1`, the line within a topic. Some texts come several times, from several files.
    Raises MachineError where this Python came without source files.
    """
    from pydoc_data.topics import topics  # here, because half a megabyte of text is needed only where shards are made

    for topic, text in sorted(topics.items()):
        for lines in _sized([list(enumerate(text.strip("\n").split("\n"), 1))]):
            yield "python-docs", f"Lib/pydoc_data/topics.py#{topic}:{lines[0][0]}", _text(lines)
    library = Path(os.__file__).parent
    files = _source_files(library)
    if not files:
        raise MachineError(
            f"Python has no source files of its library in {library}. Name your own data: --dataset FILE"
        )
    for path in files:
        module = _read_module(path)
        name = "Lib/" + path.relative_to(library).as_posix()
        for group in module.code if module else ():
            yield from (("python-code", f"{name}:{lines[0][0]}", _text(lines)) for lines in _sized(group))
        for lines in _sized(module.docstrings if module else ()):
            yield "python-docstrings", f"{name}:{lines[0][0]}", _text(lines)


def _source_files(library: Path) -> list[Path]:
    files = []
    for folder, folders, names in os.walk(library):
        folders[:] = [name for name in folders if name not in EXCLUDED]
        files += [Path(folder, name) for name in names if name.endswith(".py")]
    return sorted(files)


@dataclass(slots=True)
class _Module:
    """What one file of the library holds, each piece in the order of the file."""

    lines: list[str]
    code: list[list[Lines]] = field(default_factory=list)
    """Functions without their docstrings, one list for the module and one for each class."""
    docstrings: list[Lines] = field(default_factory=list)


_Function = ast.FunctionDef | ast.AsyncFunctionDef
_Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def _read_module(path: Path) -> _Module | None:
    """Take a file apart, or return None if it is no Python of this version (lib2to3 has such)."""
    data = path.read_bytes()
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
        text = data.decode(encoding).replace("\r\n", "\n")
        tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return None
    # str.splitlines would also cut at form feeds, which the parser does not count as ends of lines.
    module = _Module(text.split("\n"))
    docstring = _docstring(module, tree)
    if docstring is not None:
        module.docstrings.append(_clean(docstring))
    _take_apart(module, tree, group=None)
    return module


def _take_apart(module: _Module, scope: ast.AST, group: list[Lines] | None) -> None:
    """Collect the functions and docstrings below a module or class; `group` takes those of the scope itself."""
    if group is None:
        group = []
        module.code.append(group)
    for statement in _statements(scope):
        if isinstance(statement, ast.ClassDef):
            docstring = _docstring(module, statement)
            if docstring is not None:
                module.docstrings.append(_clean(docstring))
            _take_apart(module, statement, group=None)
        elif isinstance(statement, _Function):
            _take_function(module, statement, group)
        else:
            _take_apart(module, statement, group)


def _take_function(module: _Module, function: _Function, group: list[Lines]) -> None:
    docstrings = [found for node in _definitions(function) if (found := _docstring(module, node)) is not None]
    module.docstrings += [_clean(docstring) for docstring in docstrings]
    left_out = {number for docstring in docstrings for number in range(docstring.lineno, _end(docstring) + 1)}
    first = min([function.lineno, *(decorator.lineno for decorator in function.decorator_list)])
    indent = module.lines[first - 1][: len(module.lines[first - 1]) - len(module.lines[first - 1].lstrip())]
    if len(function.body) > 1 or _docstring(module, function) is None:  # else nothing but the docstring is in it
        numbers = (number for number in range(first, _end(function) + 1) if number not in left_out)
        group.append([(number, module.lines[number - 1].removeprefix(indent)) for number in numbers])


def _statements(node: ast.AST) -> Iterator[ast.AST]:
    """The statements (and their clauses) right below a node. Most of a tree is expressions, which hold none."""
    for name in ("body", "handlers", "orelse", "finalbody", "cases"):
        yield from getattr(node, name, ())


def _definitions(function: _Function | ast.ClassDef) -> Iterator[_Function | ast.ClassDef]:
    """A function and all functions and classes within it."""
    yield function
    nodes = list(_statements(function))
    while nodes:
        node = nodes.pop()
        if isinstance(node, _Function | ast.ClassDef):
            yield node
        nodes += _statements(node)


def _docstring(module: _Module, node: _Documented) -> ast.Expr | None:
    """The statement that is the node's docstring, if it has its lines to itself; else it stays a part of the code."""
    first = node.body[0] if node.body else None
    if not (
        isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
    ):
        return None
    before = module.lines[first.lineno - 1].encode()[: first.col_offset]
    behind = module.lines[_end(first) - 1].encode()[first.end_col_offset :]
    return None if before.strip() or behind.strip() else first


def _clean(docstring: ast.Expr) -> Lines:
    assert isinstance(docstring.value, ast.Constant)
    return [(docstring.lineno, line) for line in inspect.cleandoc(str(docstring.value.value)).split("\n")]


def _end(node: ast.stmt) -> int:
    return node.end_lineno or node.lineno


def _text(lines: Lines) -> str:
    return "\n".join(line for _, line in lines).strip("\n")


def _sized(pieces: Iterable[Lines]) -> Iterator[Lines]:
    """Documents of SHORTEST to LONGEST characters: short pieces are joined with the next, long ones cut at lines."""
    joined: Lines = []
    for piece in pieces:
        joined = [*joined, (piece[0][0], ""), *piece] if joined else piece
        if len(_text(joined)) >= SHORTEST:
            yield from (part for part in _cut(joined) if len(_text(part)) >= SHORTEST)
            joined = []


def _cut(lines: Lines) -> Iterator[Lines]:
    """Cut into the fewest parts of about equal length, at an empty line where one is near."""
    total = len(_text(lines))
    if total <= LONGEST:
        yield lines
        return
    target = total / -(-total // LONGEST)
    part: Lines = []
    length = 0
    for number, line in _short_lines(lines):
        if length + len(line) > LONGEST or (length >= 0.9 * target and not line.strip()):
            yield part
            part, length = [], 0
        if part or line.strip():
            part.append((number, line))
            length += len(line) + 1
    yield part


def _short_lines(lines: Lines) -> Iterator[tuple[int, str]]:
    for number, line in lines:
        yield from ((number, line[at : at + LONGEST]) for at in range(0, len(line) or 1, LONGEST))
