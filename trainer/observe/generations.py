"""Text that the model generates at display steps: continuations of the current document and of fixed prompts."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from trainer.data.tokenizer import Tokenizer
from trainer.model.language_model import LanguageModel
from trainer.records import Sample

PROMPT_TOKENS = 10
GENERATION_LENGTH = 40
"""Number of tokens in prompt and continuation together."""
SHOWN_TOKENS = 50


@dataclasses.dataclass(frozen=True)
class Generation:
    """What the model generated, or why it failed. The text of the document never takes its place."""

    prompt: str
    """The text that the model continues."""
    input: str
    """The beginning of the document, or the user's prompt; empty for a repeat of the run's first prompt."""
    output: str
    reference: str | None = None
    """How the document continues after the prompt."""
    error: str | None = None

    def metrics(self) -> dict[str, Any]:
        """Return the metrics for `update`, except the two texts, which it takes separately."""
        known = {"prompt": self.prompt, "reference": self.reference, "error": self.error}
        return {key: value for key, value in known.items() if value is not None}


class Display:
    """Generates continuations of the document that the model is about to train on, and of the user's prompts.

    Without prompts, the beginning of the run's first document is repeated at display steps 1, 2, 3, 4, 6, 8, 12, 16 …
    This gives one prompt to compare the stages of a run by, at the cost of few generations. The newest of them is never
    older than a third of the run (half of it at the start).
    """

    def __init__(
        self, model: Callable[[], LanguageModel], tokenizer: Tokenizer, prompts: Sequence[str], seed: int, interval: int
    ) -> None:
        """
        Args:
            model: returns the model that generates; called for each generation.
            interval: steps between two display steps.
        """
        self._model = model
        self._tokenizer = tokenizer
        self._prompts = prompts
        self._seed = seed
        self._interval = interval
        self._first_prompt: list[int] = []

    def show(self, sample: Sample, step: int) -> list[Generation]:
        """Return the generation of the document, then one for each prompt, with the same number of new tokens."""
        decode = self._tokenizer.DecodeIds
        length = min(PROMPT_TOKENS, len(sample.input_ids))
        own = dataclasses.replace(
            self._continue(sample.input_ids[:length], GENERATION_LENGTH, step),
            input=decode(sample.input_ids[:SHOWN_TOKENS]),
            reference=decode(sample.ids[length:GENERATION_LENGTH]),
        )
        prompted = []
        for text in self._prompts:
            ids = self._tokenizer.EncodeAsIds(text)
            written = self._continue(ids, len(ids) + GENERATION_LENGTH - PROMPT_TOKENS, step)
            prompted.append(dataclasses.replace(written, prompt=text, input=text))
        if not self._first_prompt:
            self._first_prompt = sample.input_ids[:length]
        elif not self._prompts and _is_repeat(step // self._interval):
            written = self._continue(self._first_prompt, GENERATION_LENGTH, step)
            prompted.append(dataclasses.replace(written, input=""))
        return [own, *prompted]

    def _continue(self, prompt_ids: list[int], max_length: int, step: int) -> Generation:
        prompt = self._tokenizer.DecodeIds(prompt_ids)
        try:
            # A seed per step: the text depends only on the weights, and no other random generator is used.
            ids = self._model().generate(prompt_ids, max_length, seed=self._seed + step)
            output = self._tokenizer.DecodeIds(ids[len(prompt_ids) :])
        except (RuntimeError, ValueError, FloatingPointError) as error:
            return Generation(prompt, prompt, "", error=str(error))
        return Generation(prompt, prompt, output)

    def state_dict(self) -> dict[str, Any]:
        return {"first_prompt": self._first_prompt}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        ids = state["first_prompt"][:PROMPT_TOKENS]
        # A checkpoint may be untrusted: replace ids outside the vocabulary by the beginning of the next document.
        self._first_prompt = ids if max(ids, default=0) < self._tokenizer.vocab_size else []


def _is_repeat(count: int) -> bool:
    """Whether `count` is a power of two, or three times one."""
    power = count // 3 if count % 3 == 0 else count
    return power > 0 and power & (power - 1) == 0
