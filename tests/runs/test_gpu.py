"""The promises about a GPU; skipped without one."""

from pathlib import Path

import pytest
import torch

from tests.conftest import Run
from tests.runs.conftest import SMALL, start, table
from tests.runs.test_resume import equal_runs
from tests.runs.test_stopping import OUT_OF_MEMORY
from tests.trainer.model.test_language_model import rough_model
from trainer.config import MODEL_SIZES
from trainer.learning.step import TrainingStep
from trainer.model.language_model import LanguageModel
from trainer.model.sampling import CachedDecoder

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU with CUDA")

COMPILED = pytest.param("--compile", marks=pytest.mark.full)


@pytest.fixture
def words(corpus: Path) -> list[str]:
    return [*SMALL, "--device", "cuda", "--dataset", str(corpus)]


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("how", ["--no-compile", COMPILED])
def test_a_deterministic_run_resumes_to_the_last_bit(
    words: list[str], run_command: Run, tmp_path: Path, how: str, dtype: str
) -> None:
    """Compiled also with other torch caches, so that no timing decides which kernel is used."""

    def run(*flags: object, cache: str) -> str:
        environment = {key: str(tmp_path / cache / key) for key in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")}
        return run_command(*flags, cwd=tmp_path, environment=environment).stdout

    words += ["--deterministic", "--dtype", dtype, how]
    run(*words, "--steps", 24, "--out", "whole", cache="one")
    run(*words, "--steps", 9, "--out", "parts", cache="other")
    assert "not bit-identical" not in run("--resume", "--steps", 24, "--out", "parts", cache="third")
    equal_runs(tmp_path / "whole", tmp_path / "parts", 24)


def test_without_deterministic_a_resume_reports_it(words: list[str], run_command: Run, tmp_path: Path) -> None:
    run_command(*words, "--steps", 3, cwd=tmp_path)
    assert (
        "cuda without --deterministic; not bit-identical" in run_command("--resume", "--steps", 5, cwd=tmp_path).stdout
    )


def test_observation_changes_no_bit(words: list[str], run_command: Run, tmp_path: Path) -> None:
    words += ["--deterministic", "--dtype", "bf16", "--steps", "70"]
    looking = "--display-samples 9 --viz-interval 20 --checkpoint-interval 30 --evaluation-interval 20".split()
    run_command(*words, *looking, "--out", "looked", cwd=tmp_path)
    run_command(*words, "--no-probes", "--display-samples", 70, "--out", "blind", cwd=tmp_path)
    assert table(tmp_path / "looked" / "training_viz", "SELECT count(*) FROM probes") != [(0,)]
    for folder in ("looked", "blind"):
        assert table(tmp_path / folder / "training_viz", "SELECT count(*) FROM steps") == [(70,)]
    losses = [table(tmp_path / folder / "training_viz", "SELECT * FROM documents") for folder in ("looked", "blind")]
    assert losses[0] == losses[1]


def test_out_of_memory(words: list[str], tmp_path: Path) -> None:
    """After 27 documents, a step requests more memory than the device has."""
    how = "self.hoard = torch.empty(2**50, dtype=torch.uint8, device='cuda')"
    script = OUT_OF_MEMORY.format(how=how)
    process = start([*words, "--steps", "100", "--checkpoint-interval", "10"], tmp_path, script)
    _, error = process.communicate(timeout=300)
    assert process.returncode == 5, error
    assert error.startswith("train_slimpajama.py: out of memory: ") and error.count("\n") == 1
    assert (tmp_path / "checkpoints" / "checkpoint_step_20.bin").exists()


def test_a_step_equals_that_on_a_cpu() -> None:
    """In fp32, over two turns of every matrix and both kinds of spikes."""
    steps = []
    for device in ("cpu", "cuda"):
        model = LanguageModel(MODEL_SIZES["tiny"], 300).to(device)
        steps.append(TrainingStep(model, dtype=torch.float32, max_seq_length=64))
    generator = torch.Generator().manual_seed(3)
    for number in range(30):
        ids = torch.randint(0, 300, (40,), generator=generator).tolist()
        one, other = (step([7] * 60 if number == 25 else ids, 1e-3) for step in steps)
        assert other.loss == pytest.approx(one.loss, rel=1e-3)
        assert other.gradient_norm == pytest.approx(one.gradient_norm, rel=1e-2)
        assert (other.fault == "", other.updated) == (one.fault == "", one.updated)
    weights = [step.state_dict()["average"] for step in steps]
    for name, weight in weights[0].items():
        assert (weights[1][name].cpu() - weight).norm() < 1e-2 * weight.norm(), name


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.03)])
def test_decoding_token_by_token_equals_one_forward_pass(dtype: torch.dtype, tolerance: float) -> None:
    model, ids = rough_model().to("cuda", dtype), list(range(7, 19))
    with torch.no_grad():
        expected = model(torch.tensor([ids], device="cuda"))[0].float()
    for first in (1, 5):
        decoder = CachedDecoder(model.model, model.shape, capacity=2)
        found = torch.stack([decoder.read(ids[:first]), *(decoder.read([token]) for token in ids[first:])])
        assert (found.float() - expected[first - 1 :]).norm() < tolerance * expected[first - 1 :].norm()
