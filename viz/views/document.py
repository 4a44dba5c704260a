"""The document of a step: source, numbers, text and the loss of each token; and its description for a terminal."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from common.terminal_text import harmless, one_line
from viz.record.reader import StoreReader
from viz.record.schema import Row
from viz.stats.series import Series
from viz.views.token_text import Speller, speller

SURPRISES = 10
BEFORE = 8  # tokens of context


@dataclass(frozen=True)
class OpenedDocument:
    """The record of one step. Missing values are None; numbers may be NaN or infinite."""

    step: int
    previous: int | None
    """The previous step in the record."""
    next: int | None
    source: str
    shard: str | None
    row: int | None
    loss: float
    """Nats per token, measured before the model learned from it."""
    usual: float
    """The average of its source before it, nats per token; NaN if too few of the source were read."""
    accuracy: float
    gradient_norm: float
    learning_rate: float
    bytes_read: int | None
    """UTF-8 bytes of the complete characters that the model read."""
    document_bytes: int | None
    """UTF-8 bytes of the whole document."""
    ids: Sequence[int] | None
    """(T,) as the model read them; None if not kept."""
    texts: Sequence[str] | None
    """(T,) the text of each id; None if not kept, or if the record has no tokenizer."""
    losses: Sequence[float] | None
    """(T-1,) nats, for every id except the first."""
    ranks: Sequence[int] | None
    """(T-1,) how many tokens the model ranked above the true one."""
    judged: Sequence[str] = ()
    """Details of the spike detector's events of this step."""
    samples: Sequence[Row] = field(default_factory=tuple)
    """Rows of `text_samples`: generations before the model learned from this document."""

    @property
    def excess(self) -> float:
        """Nats per token above the usual loss of its source; NaN if unknown."""
        return self.loss - self.usual

    @property
    def about_tokens(self) -> int | None:
        """Estimated tokens of the whole document, from the bytes per token of the part that was read."""
        if not self.bytes_read or self.document_bytes is None or self.ids is None:
            return None
        return max(len(self.ids), round(len(self.ids) * self.document_bytes / self.bytes_read))

    @property
    def text(self) -> str | None:
        return None if self.texts is None else "".join(self.texts)

    def surprises(self, most: int) -> list[int]:
        """Return the indices in `losses` of the highest losses, the highest first."""
        known = [place for place, loss in enumerate(self.losses or ()) if not math.isnan(loss)]
        return sorted(known, key=lambda place: -(self.losses or ())[place])[:most]


def open_document(store: StoreReader, series: Series, step: int, speller: Speller | None) -> OpenedDocument:
    """Return the document of a step. `series` has the rows of the store, at least up to this one.

    Raises ValueError if the run has no such step.
    """
    if not series.size:
        raise ValueError(f"the run has no step {step:,}: it has no steps yet")
    steps, row = series["steps"], series.rows_below(step)
    if row >= len(steps) or steps[row] != step:
        raise ValueError(f"the run has no step {step:,}: its steps are {steps[0]:,} to {steps[-1]:,}")
    found = next((one for one in store.documents(step) if one["rank"] == 0), {})
    ids, losses, ranks = (
        None if found.get(name) is None else found[name].tolist()
        for name in ("token_ids", "token_losses", "token_ranks")
    )
    texts = speller.pieces(ids) if speller is not None and ids is not None else None
    return OpenedDocument(
        step,
        previous=int(steps[row - 1]) if row else None,
        next=int(steps[row + 1]) if row + 1 < len(steps) else None,
        source=found.get("source") or "",
        shard=found.get("shard"),
        row=found.get("row"),
        loss=float(series["loss"][row]),
        usual=float(series.usual.values()[row]),
        accuracy=float(series["accuracy"][row]),
        gradient_norm=float(series["gradient_norm"][row]),
        learning_rate=float(series["learning_rate"][row]),
        # A text that was cut within a character ends with the replacement character.
        bytes_read=None if texts is None else len("".join(texts).rstrip("\N{REPLACEMENT CHARACTER}").encode()),
        document_bytes=found.get("document_bytes"),
        ids=ids,
        texts=texts,
        losses=losses,
        ranks=ranks,
        judged=store.judged().get(step, ()),
        samples=store.text_samples_at(step),
    )


def describe_document(store: StoreReader, step: int) -> str:
    """Return a description of a step. Raises ValueError if the run has no such step, or its tokens are not kept."""
    series = Series()
    series.extend(store.columns())
    document = open_document(store, series, step, speller(store.run().get("tokenizer")))
    if document.ids is None:
        if document.shard is None:
            raise ValueError(f"the document of step {step:,} is not kept")
        where = f"{one_line(document.shard)} row {document.row}"
        raise ValueError(f"the tokens of step {step:,} are no longer kept; the document is {where}")
    above = "above" if document.excess > 0 else "below"
    usual = f", {abs(document.excess):.2f} {above} the average of its source at that step"
    lines = [
        f"Step {step:,}: {one_line(document.source or 'unknown source')}, {one_line(str(document.shard))} row "
        f"{document.row}",
        f"Loss {document.loss:.3f} nats per token{usual if math.isfinite(document.excess) else ''}; accuracy "
        f"{100 * document.accuracy:.1f} %, gradient norm {document.gradient_norm:.3g}, learning rate "
        f"{document.learning_rate:.2e}; {len(document.ids):,} tokens read"
        + (f" of {document.document_bytes:,} bytes" if document.document_bytes is not None else ""),
    ]
    if document.texts is None or document.text is None:
        return "\n".join([*lines, "The record has no tokenizer to decode its text."])
    lines += ["", harmless(document.text)]
    if document.losses is not None:
        lines += ["", "Tokens with the highest loss (nats), in brackets after the text before them:"]
        lines += [_surprise(document, place) for place in document.surprises(SURPRISES)]
    return "\n".join(lines)


def _surprise(document: OpenedDocument, place: int) -> str:
    assert document.texts is not None and document.losses is not None
    before = "".join(document.texts[max(0, place + 1 - BEFORE) : place + 1])
    return f"{document.losses[place]:6.2f}  {one_line(before)}[{one_line(document.texts[place + 1])}]"
