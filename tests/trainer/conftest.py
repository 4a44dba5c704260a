import pytest

from tests.conftest import make_texts
from trainer.data.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(make_texts(50), vocab_size=400)
