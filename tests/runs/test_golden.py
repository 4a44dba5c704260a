"""Twenty losses that must not change without a reason, and that the one-file reference agrees with."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import PROJECT
from tests.runs.conftest import STEPS, Train, table

GOLDEN = Path(__file__).with_name("golden_losses.txt")


def _losses(folder: Path) -> list[float]:
    return [row[1] for row in table(folder, STEPS)]


def test_golden_losses_and_the_one_file_reference(train: Train, corpus: Path, tmp_path: Path) -> None:
    assert train("--steps", 20, "--learning-rate", 0.003) == 0
    losses = _losses(tmp_path / "training_viz")
    golden = [float(line) for line in GOLDEN.read_text().split()]
    assert losses == pytest.approx(golden, rel=1e-5)  # kernels differ between processors in the last bits

    tokenizer = tmp_path / "tokenizer.model"
    tokenizer.write_bytes(table(tmp_path / "training_viz", "SELECT tokenizer FROM run")[0][0])
    flags = "--steps 20 --model-size tiny --max-seq-length 48 --warmup-steps 10 --learning-rate 0.003".split()
    reference = subprocess.run(
        [sys.executable, PROJECT / "scripts" / "onefile_train.py", corpus, "--tokenizer", tokenizer, *flags],
        capture_output=True,
        text=True,
        check=True,
    )
    rows = [line.split("\t") for line in reference.stdout.splitlines()]
    assert [float(row[1]) for row in rows] == pytest.approx(losses, rel=1e-5)
    accuracies = [row[2] for row in table(tmp_path / "training_viz", STEPS)]
    assert [float(row[2]) for row in rows] == pytest.approx(accuracies, abs=1e-4)


def test_the_reference_is_one_file_to_read() -> None:
    source = (PROJECT / "scripts" / "onefile_train.py").read_text()
    assert len(source.splitlines()) <= 200
    assert "from trainer" not in source and "import trainer" not in source and "viz" not in source
