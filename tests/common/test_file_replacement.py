from collections.abc import Iterator
from pathlib import Path

import pytest

from common.file_replacement import replace_file


@pytest.mark.parametrize("durable", [True, False])
def test_a_file_is_replaced_completely_and_nothing_else_is_left(tmp_path: Path, durable: bool) -> None:
    path, seen = tmp_path / "file", []

    def before(temporary: Path) -> None:
        seen.append((temporary.read_bytes(), path.exists() and path.read_bytes(), temporary.parent == tmp_path))

    for content in (b"one", b"two"):
        replace_file(path, lambda file, content=content: file.write(content), durable=durable, before_naming=before)
        assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]
    assert seen == [(b"one", False, True), (b"two", b"one", True)], "complete before it gets the name"


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("on fire")])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: Exception) -> None:
    path = tmp_path / "training_step_000050.png"
    path.write_bytes(b"old")

    def pieces() -> Iterator[bytes]:
        yield b"half of the "
        assert len(list(tmp_path.iterdir())) == 2
        assert list(tmp_path.glob("training_step_*.png")) == [path], "the temporary file looks like a finished one"
        raise error

    with pytest.raises(type(error)) as caught:
        replace_file(path, lambda file: file.writelines(pieces()), durable=True)
    if isinstance(error, OSError):
        assert (caught.value.errno, caught.value.filename) == (28, str(path))
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
