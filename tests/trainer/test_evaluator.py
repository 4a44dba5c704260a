import math

import pytest
import torch

from tests.conftest import make_texts
from trainer.config import MODEL_SIZES
from trainer.evaluator import Evaluator
from trainer.model import LanguageModel
from trainer.records import Cursor, Document, Origin, Sample
from trainer.samples import SampleStream, held_out_samples
from trainer.tokenizer import Tokenizer
from trainer.usable import is_held_out


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(make_texts(50), vocab_size=400)


def documents(count: int) -> list[Document]:
    return [Document(text, "here", Origin("f", row), Cursor(row=row + 1)) for row, text in enumerate(make_texts(count))]


def held_out(tokenizer: Tokenizer, count: int = 5) -> list[Sample]:
    return held_out_samples(documents(2000), tokenizer, 32, count, own_split=False)


def test_what_is_evaluated_on_is_never_trained_on(tokenizer: Tokenizer) -> None:
    evaluated = held_out(tokenizer, 100)
    trained = SampleStream(documents(2000), tokenizer, 32, hold_out=True, should_stop=lambda: False)
    hashes = {sample.text_hash for sample in trained}
    assert len(evaluated) >= 5 and all(is_held_out(sample.text_hash) for sample in evaluated)
    assert not hashes & {sample.text_hash for sample in evaluated}
    assert len(hashes) + len(evaluated) == 2000


def test_a_split_of_its_own_is_taken_from_its_start(tokenizer: Tokenizer) -> None:
    samples = held_out_samples(documents(20), tokenizer, 32, 7, own_split=True)
    assert [sample.document.origin.row for sample in samples] == list(range(7))


def test_the_loss_is_the_mean_over_all_predictions(tokenizer: Tokenizer) -> None:
    samples = held_out(tokenizer)
    short = Sample(**{field: getattr(samples[0], field) for field in Sample.__dataclass_fields__} | {"ids": [1, 2, 3]})
    samples.append(short)  # a mean of means would count these two predictions like thirty others
    model = LanguageModel(MODEL_SIZES["tiny"], tokenizer.vocab_size, seed=3)
    losses, right = [], []
    for sample in samples:
        logits = model(torch.tensor([sample.input_ids]))[0]
        losses += torch.nn.functional.cross_entropy(logits, torch.tensor(sample.target_ids), reduction="none").tolist()
        right += (logits.argmax(-1) == torch.tensor(sample.target_ids)).tolist()
    evaluator = Evaluator(model, {"validation": samples})
    found = evaluator.measure("validation")
    assert evaluator.evaluate() == found.loss == pytest.approx(sum(losses) / len(losses), rel=1e-6)
    assert found.accuracy == sum(right) / len(right)
    assert found.tokens == len(losses) and found.bytes == sum(sample.predicted_bytes for sample in samples)
    assert found.loss == pytest.approx(math.log(400), abs=0.5)
    with pytest.raises(KeyError):
        evaluator.evaluate("test")


def test_looking_leaves_no_trace(tokenizer: Tokenizer) -> None:
    model = LanguageModel(MODEL_SIZES["tiny"], tokenizer.vocab_size)
    before = [parameter.clone() for parameter in model.parameters()]
    state = torch.get_rng_state()
    Evaluator(model, {"validation": held_out(tokenizer)}).evaluate()
    assert torch.equal(state, torch.get_rng_state())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))
