"""The whole command on damaged data: everything readable is trained on; the rest is counted and reported."""

import gzip
import json
import random
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from tests.conftest import make_texts
from tests.runs.conftest import SMALL, Capture, Train, count_steps, run_code, start, table, wait_until
from tests.runs.test_resume import equal_runs
from trainer.base.checkpoint_file import read_state
from trainer.data.tokenizer import Tokenizer

EVENTS = "SELECT detail FROM events WHERE kind = 'bad row' ORDER BY rowid"
ORIGINS = "SELECT shard, row FROM documents ORDER BY step"


def json_lines(texts: list[str]) -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """A folder whose shards are damaged in different ways."""
    folder = tmp_path / "broken"
    folder.mkdir()
    texts = make_texts(400, seed=3)

    def take(count: int) -> list[str]:
        taken, texts[:] = texts[:count], texts[count:]
        return taken

    rows = json_lines(take(30)).splitlines(keepends=True)
    rows[20] = b'{"text": "not \xff UTF-8"}\n'
    rows[29] = rows[29][: len(rows[29]) // 2]  # half a last row
    (folder / "a.jsonl").write_bytes(b"".join(rows))
    frames = [bytearray(zstandard.compress(json_lines(take(10)))) for _ in range(4)]
    frames[2][9:] = b"\xff" * (len(frames[2]) - 9)  # a bad frame in the middle
    (folder / "b.jsonl.zst").write_bytes(b"".join(frames))
    (folder / "c.jsonl").write_bytes(json_lines(take(10)))
    # Text that hardly compresses, so that half of the file contains about half of the rows.
    noise = [f"{text} {random.Random(text).randbytes(400).hex()}" for text in take(40)]
    packed = gzip.compress(json_lines(noise))
    (folder / "d.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    paragraphs = [text.encode() for text in take(20)]
    paragraphs[7] += b" caf\xe9"
    (folder / "e.txt").write_bytes(b"\n\n".join(paragraphs))
    path = folder / "f.parquet"
    pq.write_table(pa.table({"text": take(30)}), path, row_group_size=10, compression="zstd", use_dictionary=False)
    place = pq.ParquetFile(path).metadata.row_group(1).column(0).data_page_offset
    data = bytearray(path.read_bytes())
    data[place : place + 60] = b"\xff" * 60
    path.write_bytes(data)
    (folder / "g.jsonl.zst").write_bytes(b"")
    (folder / "h.jsonl.zst").write_bytes(zstandard.compress(json_lines(take(20))))
    return folder


@pytest.mark.parametrize(
    "cuts",
    [
        [("a.jsonl", 22), ("c.jsonl", -1), ("e.txt", 8)],
        pytest.param([("b.jsonl.zst", -1), ("c.jsonl", 0), ("e.txt", 0)], marks=pytest.mark.full),
        pytest.param([("d.jsonl.gz", 1), ("h.jsonl.zst", 0)], marks=pytest.mark.full),
    ],
)
def test_everything_readable_is_read_and_the_rest_is_reported(
    train: Train, tmp_path: Path, broken: Path, capsys: Capture, cuts: list[tuple[str, int]]
) -> None:
    """Also when stopped inside damaged shards and at their ends. `cuts` are (shard, documents from its beginning)."""
    assert train("--dataset", broken, "--steps", 10_000, "--out", "whole") == 0
    said = capsys.readouterr().out
    viz = tmp_path / "whole" / "training_viz"
    bad = [detail.removeprefix(f"{broken}/") for (detail,) in table(viz, EVENTS)]
    half_gz = int(re.search(r"d\.jsonl\.gz row (\d+)", "\n".join(bad))[1])  # type: ignore[index]
    assert 15 <= half_gz <= 25
    damaged = "the rest of the shard is damaged"
    assert bad[:2] == ["a.jsonl row 20: not UTF-8", "a.jsonl row 29: not JSON"]
    assert bad[2].startswith(f"b.jsonl.zst row 20: {damaged} (zstd")
    assert bad[3] == f"d.jsonl.gz row {half_gz}: {damaged} (cut off in the middle of its compressed data)"
    assert bad[4] == "e.txt row 7: not UTF-8"
    assert bad[5].startswith(f"f.parquet row 10: {damaged} (")
    assert len(bad) == 6
    readable = {"a.jsonl": set(range(29)) - {20}, "b.jsonl.zst": set(range(20)), "c.jsonl": set(range(10))}
    readable |= {"d.jsonl.gz": set(range(half_gz)), "e.txt": set(range(20)) - {7}, "f.parquet": set(range(10))}
    readable |= {"h.jsonl.zst": set(range(20))}
    trained = [(Path(shard).name, row) for shard, row in table(viz, ORIGINS)]
    expected = [(name, row) for name, rows in sorted(readable.items()) for row in sorted(rows)]
    steps = len(trained)
    state = read_state(tmp_path / "whole" / "checkpoints" / f"checkpoint_step_{steps}.bin")
    samples = state["samples"]
    assert samples["trained"] == steps and steps + samples["held_out"] == len(expected)
    assert set(trained) <= set(expected) and trained == sorted(trained)
    assert samples["skipped"]["not UTF-8"] == 2 and sum(samples["skipped"].values()) == 6
    assert "a.jsonl row 20: not UTF-8" in said and "2 not UTF-8" in said and "Out of documents" in said

    starts = [next(step for step, (name, _) in enumerate(trained) if name == shard) + by for shard, by in cuts]
    assert train("--dataset", broken, "--steps", starts[0], "--out", "parts") == 0
    for cut in (*starts[1:], 10_000):
        assert train("--resume", "--steps", cut, "--out", "parts") == 0
    equal_runs(tmp_path / "whole", tmp_path / "parts", steps)
    assert table(tmp_path / "parts" / "training_viz", EVENTS) == table(viz, EVENTS)  # each reported once


def test_a_thousand_bad_rows_in_a_row_end_the_run_and_999_do_not(train: Train, tmp_path: Path, capsys: Capture) -> None:
    texts = make_texts(40)
    # With a given tokenizer, training starts before the reader reaches the bad rows.
    tokenizer = tmp_path / "tokenizer.model"
    tokenizer.write_bytes(Tokenizer.train(texts, 400).model_bytes)
    for bad, code in ((1000, 0), (1001, 2)):
        path = tmp_path / f"{bad}.jsonl"
        path.write_bytes(json_lines(texts[:20]) + b'{"text": "cut\n' * bad + json_lines(texts[20:]))
        assert train("--dataset", path, "--steps", 1000, "--out", str(bad), "--tokenizer", tokenizer) == code
        error = capsys.readouterr().err
        rows = table(tmp_path / str(bad) / "training_viz", ORIGINS)
        events = table(tmp_path / str(bad) / "training_viz", EVENTS)
        assert len(events) == bad
        if code:
            line = f"1,001 documents in a row can't be used (1,001 not JSON), the last at {path} row 1020"
            assert line in error and error.strip().count("\n") == 0
            assert len(rows) <= 20 and list((tmp_path / str(bad) / "checkpoints").glob("*.bin"))
        else:
            assert error == "" and rows[-1][1] == 1039


@pytest.mark.full
def test_a_local_file_that_vanishes_ends_the_run_with_exit_3_and_a_resume_works(train: Train, tmp_path: Path) -> None:
    texts = make_texts(300, seed=4)
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "a.jsonl").write_bytes(json_lines(texts[:250]))
    (folder / "b.jsonl").write_bytes(json_lines(texts[250:]))
    tokenizer = tmp_path / "tokenizer.model"
    tokenizer.write_bytes(Tokenizer.train(texts, 400).model_bytes)
    flags = ["--dataset", str(folder), "--steps", "280", "--tokenizer", str(tokenizer)]
    assert train(*flags, "--out", "whole") == 0
    process = start([*SMALL, *flags, "--out", "cut"], tmp_path)
    wait_until(lambda: count_steps(tmp_path / "cut" / "training_viz") >= 5, process)
    (folder / "b.jsonl").rename(tmp_path / "b.jsonl")
    _, error = process.communicate(timeout=300)
    assert process.returncode == 3, error
    assert error.count("\n") == 1 and f"can't read {folder / 'b.jsonl'}" in error and "--resume" in error
    done = len(table(tmp_path / "cut" / "training_viz", ORIGINS))
    assert 240 <= done <= 250
    (tmp_path / "b.jsonl").rename(folder / "b.jsonl")
    assert train("--resume", "--out", "cut") == 0
    equal_runs(tmp_path / "whole", tmp_path / "cut", 280)


ODD_TEXTS: list[tuple[object, bool]] = [
    # (the text, whether it is trained on)
    (None, False),
    (7, False),
    (1e400, False),
    (["a list"], False),
    ({"text": "within"}, False),
    ("", False),
    ("nine char", False),
    ("ten chars!", True),
    ("                    ", True),
    ("\x00" * 20, True),
    ("text with \x00 in it and \x1b[31m colours \x07", True),
    ("half of a pair \ud800 alone", False),
    ("🎉" * 30, True),
    ("▁▁▁ the character ▁ that stands for a space ▁", True),
    ("<s> and </s> and <unk> and <pad> are only text here", True),
    ("<s></s><unk><s></s><unk>", True),
    ("\u202e right to left and \ufeff marks \u2028 of \u2029 lines", True),
]


def long_texts(size: int) -> list[tuple[object, bool]]:
    """Texts of about `size` bytes each."""
    letters = random.Random(0).choices("abcdefghijklmnopqrstuvwxyz0123456789", k=size)
    return [
        ("word " * (size // 5), True),
        ("x" * size, True),
        ("🎉👩‍👩‍👧" * (size // 50), True),
        ("".join(letters), True),
        ("三" * (size // 3), True),
    ]


PEAKS = """
import resource, sys
from tests.runs.conftest import QUICK
from trainer.cli import main
for name in ("plain", "odd"):
    code = main([*sys.argv[1:], "--dataset", f"{name}.jsonl", "--out", name], QUICK)
    print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10)
    assert code == 0
"""


@pytest.mark.parametrize("size", [200_000, pytest.param(10_000_000, marks=pytest.mark.full)])
def test_unusual_documents_are_trained_on_or_counted_in_bounded_memory(tmp_path: Path, size: int) -> None:
    texts, odd_texts = make_texts(40), [*ODD_TEXTS, *long_texts(size)]
    tokenizer = Tokenizer.train(texts, 400)
    (tmp_path / "tokenizer.model").write_bytes(tokenizer.model_bytes)
    odd = [json.dumps({"text": text}).encode() for text, _ in odd_texts]
    plain = [json.dumps({"text": text}).encode() for text in texts]
    (tmp_path / "odd.jsonl").write_bytes(b"\n".join([*plain[:5], *odd, *plain[5:]]))
    (tmp_path / "plain.jsonl").write_bytes(b"\n".join(plain))
    code, output, error = run_code(PEAKS, [*SMALL, "--steps", 1000, "--tokenizer", "tokenizer.model"], tmp_path)
    assert code == 0, error
    plain_peak, output_of_odd, odd_peak = re.split(r"peak (\d+)\n", output)[1:4]
    assert int(odd_peak) - int(plain_peak) < 800  # megabytes; SentencePiece needs 250 for 10 MB without a space
    viz = tmp_path / "odd" / "training_viz"
    trained = {row for _, row in table(viz, ORIGINS)}
    samples = read_state(next((tmp_path / "odd" / "checkpoints").glob("*.bin")))["samples"]
    assert samples["held_out"] <= 2
    missing = {5 + place for place, (_, is_used) in enumerate(odd_texts) if is_used} - trained
    assert len(missing) <= samples["held_out"]
    assert not {5 + place for place, (_, is_used) in enumerate(odd_texts) if not is_used} & trained
    assert samples["skipped"] == {
        "text is not a string": 5,
        "shorter than 10 characters": 2,
        "lone surrogate": 1,
    }
    assert len(trained) == samples["trained"] == len(texts) + len(odd_texts) - 8 - samples["held_out"]
    assert table(viz, EVENTS) == []  # they are readable, so they are not bad rows
    assert re.search(r"skipped 8 \(.*5 text is not a string", output_of_odd)
    control = [piece for piece in range(tokenizer.GetPieceSize()) if tokenizer.piece_bytes[piece] == 0]
    assert control == [0, 1, 2]
    for text, is_used in odd_texts:
        if is_used:
            ids = tokenizer.encode_prefix(str(text)[:10_000], 48)
            assert not set(ids) & set(control)
            assert str(text).replace("▁", " ").encode().startswith(tokenizer.DecodeIds(ids).encode()[:-4])
