"""The whole idea in one file: train a language model on one document per step, and print the loss of each document.

    python scripts/onefile_train.py documents.jsonl --steps 1000 --model-size tiny

Read it from top to bottom; it imports nothing from this project. It is also the reference: on a CPU in fp32,
`train_slimpajama.py --dtype fp32` computes the same losses (`tests/runs/test_golden.py`), but faster, and it records
and draws them.
"""

import argparse
import hashlib
import io
import json
from collections.abc import Iterator
from pathlib import Path

import sentencepiece
import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Layers, width, query heads, key-value heads, head width, feed-forward width.
SIZES = {"tiny": (2, 64, 4, 2, 16, 192), "small": (6, 384, 6, 3, 64, 1152)}


# --- documents: each line of the file is one document, {"text": …}


def read_texts(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            text = json.loads(line)["text"]
            if isinstance(text, str) and len(text) >= 10:
                yield text


def is_held_out(text: str) -> bool:
    """Whether to keep the document for evaluation: one in 100, chosen by the hash of its text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % 100 == 0


# --- tokenizer: lossless byte-pair encoding


def train_tokenizer(texts: list[str], vocab_size: int) -> sentencepiece.SentencePieceProcessor:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(text[i : i + 1000] for text in texts for i in range(0, len(text), 1000)),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab_size,
        hard_vocab_limit=False,
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


# --- model: the Qwen3 design


def rotate(x: Tensor) -> Tensor:
    """Rotary embedding: rotate pairs of dimensions of (heads, T, head_dim) by an angle that grows with the position."""
    length, width = x.shape[-2:]
    speeds = 10_000.0 ** (-torch.arange(0, width, 2) / width)
    angles = torch.arange(length)[:, None] * speeds
    left, right = x.chunk(2, dim=-1)
    return torch.cat([left * angles.cos() - right * angles.sin(), right * angles.cos() + left * angles.sin()], dim=-1)


class Layer(nn.Module):
    def __init__(self, width: int, heads: int, kv_heads: int, head_dim: int, hidden: int) -> None:
        super().__init__()
        self.head_dim, self.groups = head_dim, heads // kv_heads
        self.q_proj = nn.Linear(width, heads * head_dim, bias=False)
        self.k_proj = nn.Linear(width, kv_heads * head_dim, bias=False)
        self.v_proj = nn.Linear(width, kv_heads * head_dim, bias=False)
        self.o_proj = nn.Linear(heads * head_dim, width, bias=False)
        self.q_norm, self.k_norm = nn.RMSNorm(head_dim, eps=1e-6), nn.RMSNorm(head_dim, eps=1e-6)
        self.gate_proj = nn.Linear(width, hidden, bias=False)
        self.up_proj = nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)
        self.input_norm, self.post_attention_norm = nn.RMSNorm(width, eps=1e-6), nn.RMSNorm(width, eps=1e-6)

    def attend(self, x: Tensor) -> Tensor:
        def heads(flat: Tensor) -> Tensor:
            return flat.view(len(x), -1, self.head_dim).transpose(0, 1)

        queries = rotate(self.q_norm(heads(self.q_proj(x))))
        keys = rotate(self.k_norm(heads(self.k_proj(x)))).repeat_interleave(self.groups, dim=0)
        values = heads(self.v_proj(x)).repeat_interleave(self.groups, dim=0)
        scores = queries @ keys.transpose(1, 2) / self.head_dim**0.5
        future = torch.ones(len(x), len(x), dtype=torch.bool).triu(1)
        mixed = scores.masked_fill(future, -torch.inf).softmax(-1) @ values
        return self.o_proj(mixed.transpose(0, 1).flatten(1))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attend(self.input_norm(x))
        inner = self.post_attention_norm(x)
        return x + self.down_proj(F.silu(self.gate_proj(inner)) * self.up_proj(inner))


class LanguageModel(nn.Module):
    def __init__(self, size: str, vocab_size: int, seed: int) -> None:
        super().__init__()
        layers, width, *rest = SIZES[size]
        self.embedding = nn.Embedding(vocab_size, width)
        self.layers = nn.Sequential(*(Layer(width, *rest) for _ in range(layers)))
        self.norm = nn.RMSNorm(width, eps=1e-6)
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():  # norms keep their ones
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                nn.init.zeros_(parameter)  # so that a new block passes its input through unchanged
            elif parameter.dim() > 1:
                nn.init.normal_(parameter, 0.0, 0.02, generator=generator)

    def forward(self, ids: Tensor) -> Tensor:
        """(T,) token ids → (T, vocabulary) logits. The embedding is also the output layer."""
        return self.norm(self.layers(self.embedding(ids))) @ self.embedding.weight.T


# --- training: one document, one step

POLYNOMIALS = (8.3837, -24.7659, 18.3571), (3.969, -2.8424, 0.5167), (3.4626, -2.4982, 0.4802), (2.491, -1.78, 0.406)


def learning_rate(step: int, full: float, warmup: int) -> float:
    return full * max(step, 1) / warmup if step < warmup else full


def orthogonalize(matrix: Tensor) -> Tensor:
    """Approximate the nearest matrix with orthonormal rows or columns, by polynomial iterations (arXiv 2505.16932)."""
    x = matrix / (1.05 * torch.linalg.matrix_norm(matrix.T @ matrix) + 1e-24) ** 0.5
    for a, b, c in POLYNOMIALS:
        x = a * x + x @ (b * (gram := x.T @ x) + c * gram @ gram)
    return x


class Update:
    """Update embedding and norms with AdamW at every step, and the matrices in turns with Muon."""

    def __init__(self, model: LanguageModel, max_seq_length: int) -> None:
        self.momenta = {p: torch.zeros_like(p) for p in model.layers.parameters() if p.dim() > 1}
        self.width = model.embedding.embedding_dim
        self.interval = max(1, self.width // 24)
        others = [p for p in model.parameters() if p not in self.momenta]
        self.adamw = torch.optim.AdamW(others, betas=(0.9, 2 ** ((1 - max_seq_length) / 10e6)), weight_decay=0.0)

    @torch.no_grad()
    def __call__(self, step: int, rate: float) -> None:
        self.adamw.param_groups[0]["lr"] = 3 * rate
        self.adamw.step()
        for place, (matrix, momentum) in enumerate(self.momenta.items()):
            momentum.lerp_(matrix.grad, 0.05)
            if (step + 1 + place) % self.interval == 0:
                reach = 20 * rate * self.interval * (max(1.0, matrix.shape[0] / matrix.shape[1]) / self.width) ** 0.5
                matrix -= reach * orthogonalize(momentum)


def train(arguments: argparse.Namespace) -> Iterator[tuple[float, float]]:
    """Yield (loss in nats per token, accuracy) of each document, measured before the model learns from it."""
    texts = list(read_texts(arguments.data))
    if arguments.tokenizer:
        tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(arguments.tokenizer))
    else:
        tokenizer = train_tokenizer(texts[:2000], arguments.vocab_size)
    model = LanguageModel(arguments.model_size, tokenizer.GetPieceSize(), arguments.seed)
    update = Update(model, arguments.max_seq_length)
    samples = (tokenizer.EncodeAsIds(text)[: arguments.max_seq_length] for text in texts if not is_held_out(text))
    for step, ids in zip(range(arguments.steps), (ids for ids in samples if len(ids) >= 2), strict=False):
        inputs, targets = torch.tensor(ids[:-1]), torch.tensor(ids[1:])
        logits = model(inputs)
        loss = F.cross_entropy(logits, targets)
        loss.backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])
        torch._foreach_div_([p.grad for p in model.parameters()], norm.clamp(min=1.0))
        update(step, learning_rate(step, arguments.learning_rate, arguments.warmup_steps))
        model.zero_grad()
        yield loss.item(), (logits.argmax(-1) == targets).float().mean().item()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train a language model, one document per step.")
    parser.add_argument("data", type=Path, help='JSON lines, {"text": …}')
    parser.add_argument("--tokenizer", type=Path, help="SentencePiece model (default: train one on the texts)")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--model-size", choices=SIZES, default="small")
    parser.add_argument("--max-seq-length", type=int, default=256)
    parser.add_argument("--vocab-size", type=int, default=8192)
    parser.add_argument("--learning-rate", type=float, default=0.001)
    parser.add_argument("--warmup-steps", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    for step, (loss, accuracy) in enumerate(train(parser.parse_args())):
        print(f"{step}\t{loss:.6f}\t{accuracy:.4f}", flush=True)
