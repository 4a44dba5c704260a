"""The model card of an exported model: what is known of its training, and how to open it."""

from collections.abc import Mapping
from typing import Any

from trainer.config import ModelShape
from trainer.observe.totals import Tally
from trainer.run.run_state import misfit


def model_card(state: Mapping[str, Any], shape: ModelShape, vocab_size: int, *, name: str, opening: str) -> str:
    """Markdown with the Hub's header.

    Args:
        state: of the checkpoint. One that is no whole run tells nothing of its training.
        opening: Python that makes `model` and `tokenizer`.
    """
    return "\n".join(
        [
            "---",
            "library_name: transformers",
            "pipeline_tag: text-generation",
            "---",
            "",
            f"# {_plain(name)}",
            "",
            f"A language model of the Qwen3 design, {shape.parameters(vocab_size) / 1e6:.1f} M parameters ({shape}, "
            f"vocabulary of {vocab_size:,}), trained by `train_slimpajama` on one document per step.",
            "",
            *_training(state),
            "",
            "It was trained without tokens for the beginning and the end of a text: `max_new_tokens` says how far it "
            "goes. No licence is stated, because none was recorded of the documents.",
            "",
            "```python",
            opening,
            'ids = tokenizer("The", return_tensors="pt")',
            "print(tokenizer.decode(model.generate(**ids, max_new_tokens=100)[0]))",
            "```",
            "",
        ]
    )


def _training(state: Mapping[str, Any]) -> list[str]:
    """What a checkpoint tells of its training, as a table."""
    if misfit(state):
        return ["What it was trained on is not recorded."]
    tally = Tally()
    tally.load_state_dict(state["tally"])
    _, loss, window = tally.first_and_last()
    source, settings, rounds = state["source"], state["config"], state["samples"]["cursor"]["epoch"]
    start = settings.get("pretrained_checkpoint")
    rows = {
        "documents": f"`{_plain(source['name'])}`, revision `{_plain(source['revision'])}`",
        "trained on": f"{tally.documents:,} of them, {tally.tokens:,} predictions, "
        f"at most {settings.get('max_seq_length')} tokens of each",
        "rounds": f"{rounds + 1}",
        "begun with": f"`{_plain(start)}`" if isinstance(start, str) else "new weights",
        "loss": f"{loss:.4f} nats per token, the mean of the last {window} documents, each before it was learned from",
        "run": f"`{_plain(state['run_id'])}`",
    }
    return ["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows.items())]


def _plain(text: str) -> str:
    """The text as it can stand in a line, and in a table, of Markdown."""
    return "".join(character if character.isprintable() and character not in "`|<>" else "?" for character in text)
