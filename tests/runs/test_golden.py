"""Twenty losses that must not change without a reason and that equal those of the one-file reference."""

import operator
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
    assert losses == pytest.approx(golden, rel=1e-5)  # kernels of different processors differ in the last bits

    rows = _reference(corpus, tmp_path, steps=20, rate=0.003)
    assert [row[1] for row in rows] == pytest.approx(losses, rel=1e-5)
    accuracies = [row[2] for row in table(tmp_path / "training_viz", STEPS)]
    assert [row[2] for row in rows] == pytest.approx(accuracies, abs=1e-4)

    assert train("--steps", 20, "--learning-rate", 0.003, "--dtype", "bf16", "--out", "bf16") == 0
    in_bf16 = _losses(tmp_path / "bf16" / "training_viz")
    assert in_bf16 == pytest.approx(losses, rel=1e-2) and in_bf16 != losses  # the mean over more documents is closer


@pytest.mark.full
def test_the_reference_agrees_over_200_documents(train: Train, corpus: Path, tmp_path: Path) -> None:
    """In fp32 in every loss, in bf16 in their mean: each loss is off by the rounding of bf16, about a thousandth."""
    for dtype in ("fp32", "bf16"):
        assert train("--steps", 200, "--learning-rate", 0.001, "--dtype", dtype, "--viz-dir", dtype) == 0
    in_fp32, in_bf16 = (_losses(tmp_path / dtype) for dtype in ("fp32", "bf16"))
    reference = [row[1] for row in _reference(corpus, tmp_path, viz="fp32", steps=200, rate=0.001)]
    assert in_fp32 == pytest.approx(reference, rel=1e-5)
    assert sum(in_bf16) == pytest.approx(sum(reference), rel=1e-3) and in_bf16 != in_fp32
    assert sum(map(abs, map(operator.sub, in_bf16, reference))) < 3e-3 * sum(reference)


def _reference(
    corpus: Path, folder: Path, *, viz: str = "training_viz", steps: int, rate: float
) -> list[tuple[float, ...]]:
    """Step, loss and accuracy of the one-file reference, with the tokenizer of the run in `folder`."""
    tokenizer = folder / "tokenizer.model"
    tokenizer.write_bytes(table(folder / viz, "SELECT tokenizer FROM run")[0][0])
    flags = f"--model-size tiny --max-seq-length 48 --warmup-steps 10 --steps {steps} --learning-rate {rate}".split()
    done = subprocess.run(
        [sys.executable, PROJECT / "scripts" / "onefile_train.py", corpus, "--tokenizer", tokenizer, *flags],
        capture_output=True,
        text=True,
        check=True,
    )
    return [tuple(map(float, line.split("\t"))) for line in done.stdout.splitlines()]


def test_the_reference_is_one_short_file() -> None:
    source = (PROJECT / "scripts" / "onefile_train.py").read_text()
    assert len(source.splitlines()) <= 200
    assert "from trainer" not in source and "import trainer" not in source and "viz" not in source
