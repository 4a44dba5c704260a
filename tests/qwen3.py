"""A small Qwen3 with random weights and a byte-level tokenizer, as `transformers` and `tokenizers` write them."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from tests.conftest import make_texts

VOCAB = 640
"""Rows of the embedding: more rows than the tokenizer has tokens, as in every Qwen3."""
ENDS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]

# Qwen3's pattern: words with the character before them, single digits, runs of punctuation, line ends, spaces.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def make_tokenizer() -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.normalizer = normalizers.NFC()
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator([*make_texts(60), "\n\n  it's  \t été 東京 123 "] * 2, trainer)
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in ENDS])
    return made


def make_model(**settings: Any) -> Qwen3ForCausalLM:
    """Return a float32 model with weights so large that every part affects the output."""
    known = {
        "vocab_size": VOCAB,
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 4096,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        "tie_word_embeddings": True,
    }
    model = Qwen3ForCausalLM(Qwen3Config(**{**known, **settings}))
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model


def write_folder(folder: Path, model: Qwen3ForCausalLM | None = None, **options: Any) -> Path:
    """Write the folder with `save_pretrained`; `options` are passed to that of the model."""
    made = make_tokenizer()
    (model or make_model(eos_token_id=made.token_to_id("<|endoftext|>"))).save_pretrained(folder, **options)
    PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|endoftext|>").save_pretrained(folder)
    return folder
