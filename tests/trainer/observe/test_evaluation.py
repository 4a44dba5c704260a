import math
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from tests.conftest import make_texts
from trainer.config import MODEL_SIZES
from trainer.data.document_filter import is_held_out
from trainer.data.sample_stream import SampleStream, held_out_samples
from trainer.data.tokenizer import Tokenizer
from trainer.errors import SourceUnreachable, UserError
from trainer.model.language_model import LanguageModel
from trainer.observe.evaluation import Evaluator
from trainer.records import Cursor, Document, Origin, Sample


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


@pytest.fixture
def samples(tokenizer: Tokenizer) -> list[Sample]:
    """Documents of three sources and of different lengths, more than one batch of them."""
    found = held_out(tokenizer, 18)
    lengths = (2, 5, 31, 32, 9, 17)
    sources = ("code", "docs", "books")
    return [
        replace(
            sample,
            ids=sample.ids[: lengths[number % 6]],
            predicted_bytes=int(tokenizer.piece_bytes[sample.ids[1 : lengths[number % 6]]].sum()),
            document=replace(sample.document, source=sources[number % 3]),
        )
        for number, sample in enumerate(found)
    ]


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> LanguageModel:
    model = LanguageModel(MODEL_SIZES["tiny"], tokenizer.vocab_size, seed=3)
    with torch.no_grad():  # fresh weights hold every token as likely as the next
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)), alpha=0.1)
    return model


def by_hand(model: LanguageModel, samples: list[Sample]) -> tuple[list[float], list[bool], int]:
    """Loss and success of every prediction, one document at a time, and the bytes that were predicted."""
    losses: list[float] = []
    right: list[bool] = []
    for sample in samples:
        logits = model(torch.tensor([sample.input_ids]))[0]
        targets = torch.tensor(sample.target_ids)
        losses += torch.nn.functional.cross_entropy(logits, targets, reduction="none").tolist()
        right += (logits.argmax(-1) == targets).tolist()
    return losses, right, sum(sample.predicted_bytes for sample in samples)


def test_every_prediction_counts_the_same_in_all_and_by_source(model: LanguageModel, samples: list[Sample]) -> None:
    evaluator = Evaluator(lambda: model, {"validation": samples})
    whole, *parts = evaluator.measure()
    assert [part.source for part in parts] == ["books", "code", "docs"] and whole.source == ""
    for found, of in [(whole, samples)] + [
        (part, [sample for sample in samples if sample.document.source == part.source]) for part in parts
    ]:
        losses, right, size = by_hand(model, of)
        # Read one by one, and here in padded batches: the same but for the last digits.
        assert found.loss == pytest.approx(sum(losses) / len(losses), rel=1e-5)
        assert found.bits_per_byte == pytest.approx(sum(losses) / math.log(2) / size, rel=1e-5)
        assert (found.accuracy, found.tokens) == (sum(right) / len(right), len(losses))
        assert (found.bytes, found.documents) == (size, len(of))
    means = [sum(losses) / len(losses) for losses, _, _ in (by_hand(model, [sample]) for sample in samples)]
    assert abs(whole.loss - sum(means) / len(means)) > 0.001  # what a mean of means would be
    assert sum(part.loss * part.tokens for part in parts) / whole.tokens == pytest.approx(whole.loss, rel=1e-12)
    assert evaluator.evaluate("validation") == whole.loss
    with pytest.raises(KeyError):
        evaluator.evaluate("test")


def test_what_stands_beside_a_document_in_its_batch_does_not_matter(
    model: LanguageModel, samples: list[Sample]
) -> None:
    together = Evaluator(lambda: model, {"all": samples}).measure("all")[0]
    alone = [Evaluator(lambda: model, {"one": [sample]}).measure("one")[0] for sample in samples]
    assert sum(one.loss * one.tokens for one in alone) / together.tokens == pytest.approx(together.loss, rel=1e-6)


def test_a_stream_is_measured_as_a_list_is(
    model: LanguageModel, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Evaluator(lambda: model, {"all": samples}).measure("all")[0]
    monkeypatch.setattr("trainer.observe.evaluation.SORTED_AT_ONCE", 5)
    found = Evaluator(lambda: model, {"all": iter(samples)}).measure("all")[0]
    assert (found.tokens, found.bytes, found.documents) == (whole.tokens, whole.bytes, whole.documents)
    assert found.loss == pytest.approx(whole.loss, rel=1e-6)
    with pytest.raises(UserError, match="nothing to predict"):
        Evaluator(lambda: model, {"all": iter([])}).measure("all")


def test_the_model_is_measured_as_it_is_at_each_evaluation(samples: list[Sample], tokenizer: Tokenizer) -> None:
    model = LanguageModel(MODEL_SIZES["tiny"], tokenizer.vocab_size, seed=3)
    other = LanguageModel(MODEL_SIZES["tiny"], tokenizer.vocab_size, seed=4)
    evaluator = Evaluator(lambda: model, {"validation": samples})
    first = evaluator.evaluate()
    assert first == pytest.approx(math.log(400), abs=0.5) and evaluator.evaluate() == first
    model.load_state_dict(other.state_dict())
    assert evaluator.evaluate() == Evaluator(lambda: other, {"validation": samples}).evaluate() != first


class Slow(LanguageModel):
    """One that takes a millisecond for each token it reads."""

    def hidden(self, ids: torch.Tensor) -> torch.Tensor:
        time.sleep(0.001 * ids.numel())
        return super().hidden(ids)


def test_the_trial_tells_about_how_long_it_takes(samples: list[Sample], tokenizer: Tokenizer) -> None:
    model = Slow(MODEL_SIZES["tiny"], tokenizer.vocab_size)
    evaluator = Evaluator(lambda: model, {"a": samples, "b": samples})
    took = sum(evaluator.measure(split)[0].seconds for split in "ab")
    assert took > 0.5
    assert 0.65 < evaluator.trial_seconds() < 10  # one batch, the longest, takes 0.25 s, and there are two splits


def test_looking_leaves_no_trace(tokenizer: Tokenizer) -> None:
    model = LanguageModel(MODEL_SIZES["tiny"], tokenizer.vocab_size)
    before = [parameter.clone() for parameter in model.parameters()]
    state = torch.get_rng_state()
    evaluator = Evaluator(lambda: model, {"validation": held_out(tokenizer)})
    evaluator.trial_seconds()
    evaluator.evaluate()
    assert torch.equal(state, torch.get_rng_state())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


def test_documents_that_do_not_come_in_time_are_not_waited_for(tokenizer: Tokenizer) -> None:
    gate = threading.Event()

    def stalled() -> Iterator[Document]:
        yield from documents(400)  # a few of which are held out
        gate.wait(60)

    since = time.monotonic()
    with pytest.raises(SourceUnreachable, match="8 held-out documents did not arrive within 1 seconds"):
        held_out_samples(stalled(), tokenizer, 32, 8, own_split=False, seconds=1)
    assert time.monotonic() - since < 20
    gate.set()
    assert len(held_out_samples(stalled(), tokenizer, 32, 2, own_split=False, seconds=20)) == 2
