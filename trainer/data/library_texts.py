"""Documents out of the interpreter's own standard library: its documentation topics, its docstrings, its functions.

No text stands in two documents: these three are disjoint parts of the library (functions come without their
docstrings), and nested functions stand in their outer one.
"""

import ast
import inspect
import io
import os
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from trainer.errors import MachineError

SHORTEST, LONGEST = 200, 4000
"""Characters in a document."""
EXCLUDED = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "pydoc_data", "encodings"}
"""Folders left out: tests come with some installations only, packages are not the library's, `encodings` is tables."""

Lines = list[tuple[int, str]]
"""A piece of text: its lines, each with its 1-based number in the file it comes from."""


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
