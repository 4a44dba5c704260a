"""What the model writes at a display step, beside what the document really said, and of one prompt again and again."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from trainer.data.tokenizer import Tokenizer
from trainer.model.language_model import LanguageModel
from trainer.records import Sample

PROMPT_TOKENS = 10
GENERATION_LENGTH = 40
"""Of prompt and continuation."""
SHOWN_TOKENS = 50


@dataclasses.dataclass(frozen=True)
class Generation:
    """What the model wrote, or why it could not. What the document says never stands in for it."""

    prompt: str
    """What the model was given."""
    input: str
    """The beginning of the document, or the user's own prompt; nothing where the run's first prompt is asked again."""
    output: str
    reference: str | None = None
    """How the document goes on after the prompt."""
    error: str | None = None

    def metrics(self) -> dict[str, Any]:
        """The keys that `viz/record/writer.py` knows, beside the two texts that `update` takes apart."""
        known = {"prompt": self.prompt, "reference": self.reference, "error": self.error}
        return {key: value for key, value in known.items() if value is not None}


class Display:
    """Lets the model go on from the document it is about to learn from, and from the user's prompts.

    Where the user has none, the beginning of the run's first document is asked again at display steps 1, 2, 3, 4, 6, 8,
    12, 16 …: one prompt by which moments of a run can be compared, for a handful of generations in all. The newest of
    them is at most a third of the run old (at first a half).
    """

    def __init__(
        self, model: Callable[[], LanguageModel], tokenizer: Tokenizer, prompts: Sequence[str], seed: int, interval: int
    ) -> None:
        """`model` is asked at each look for the one that writes, as it then is; `interval`: steps from look to look."""
        self._model = model
        self._tokenizer = tokenizer
        self._prompts = prompts
        self._seed = seed
        self._interval = interval
        self._first_prompt: list[int] = []

    def show(self, sample: Sample, step: int) -> list[Generation]:
        """The document's own generation first, then one for each prompt (or the first one), as many new tokens long."""
        decode = self._tokenizer.DecodeIds
        length = min(PROMPT_TOKENS, len(sample.input_ids))
        own = dataclasses.replace(
            self._continue(sample.input_ids[:length], GENERATION_LENGTH, step),
            input=decode(sample.input_ids[:SHOWN_TOKENS]),
            reference=decode(sample.ids[length:GENERATION_LENGTH]),
        )
        asked = []
        for text in self._prompts:
            ids = self._tokenizer.EncodeAsIds(text)
            written = self._continue(ids, len(ids) + GENERATION_LENGTH - PROMPT_TOKENS, step)
            asked.append(dataclasses.replace(written, prompt=text, input=text))
        if not self._first_prompt:
            self._first_prompt = sample.input_ids[:length]
        elif not self._prompts and _is_moment(step // self._interval):
            written = self._continue(self._first_prompt, GENERATION_LENGTH, step)
            asked.append(dataclasses.replace(written, input=""))
        return [own, *asked]

    def _continue(self, prompt_ids: list[int], max_length: int, step: int) -> Generation:
        prompt = self._tokenizer.DecodeIds(prompt_ids)
        try:
            # A seed for each step: what is written depends on the weights alone, and no other generator is touched.
            ids = self._model().generate(prompt_ids, max_length, seed=self._seed + step)
            output = self._tokenizer.DecodeIds(ids[len(prompt_ids) :])
        except (RuntimeError, ValueError, FloatingPointError) as error:
            return Generation(prompt, prompt, "", error=str(error))
        return Generation(prompt, prompt, output)

    def state_dict(self) -> dict[str, Any]:
        return {"first_prompt": self._first_prompt}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        ids = state["first_prompt"][:PROMPT_TOKENS]
        # A checkpoint may come from anywhere: ids that are none are not asked, the next document's beginning is.
        self._first_prompt = ids if max(ids, default=0) < self._tokenizer.vocab_size else []


def _is_moment(count: int) -> bool:
    """Whether a count is a power of two, or three times one."""
    power = count // 3 if count % 3 == 0 else count
    return power > 0 and power & (power - 1) == 0
