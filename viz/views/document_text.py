"""The document of a step in words for a terminal."""

import math

from common.terminal_text import harmless, one_line
from viz.record.reader import StoreReader
from viz.stats.series import Series
from viz.views.document import OpenedDocument, open_document
from viz.views.token_text import speller

SURPRISES = 10
BEFORE = 8  # tokens of context


def describe_document(store: StoreReader, step: int) -> str:
    """The lines about a step. Raises ValueError where the run has no such step, or its document is not kept."""
    series = Series()
    series.extend(store.columns())
    document = open_document(store, series, step, speller(store.run().get("tokenizer")))
    if document.ids is None:
        if document.shard is None:
            raise ValueError(f"the document of step {step:,} is not kept")
        where = f"{one_line(document.shard)} row {document.row}"
        raise ValueError(f"the tokens of step {step:,} are no longer kept: its document is {where}")
    above = "above" if document.excess > 0 else "below"
    usual = f", {abs(document.excess):.2f} {above} the average of its source then"
    lines = [
        f"Step {step:,}: {one_line(document.source or 'unknown source')}, {one_line(str(document.shard))} row "
        f"{document.row}",
        f"Loss {document.loss:.3f} nats per token{usual if math.isfinite(document.excess) else ''}; accuracy "
        f"{100 * document.accuracy:.1f} %, gradient norm {document.gradient_norm:.3g}, learning rate "
        f"{document.learning_rate:.2e}; {len(document.ids):,} tokens read"
        + (f" of {document.document_bytes:,} bytes" if document.document_bytes is not None else ""),
    ]
    if document.texts is None or document.text is None:
        return "\n".join([*lines, "The record holds no tokenizer that could spell it."])
    lines += ["", harmless(document.text)]
    if document.losses is not None:
        lines += ["", "What surprised most, nats, with the truth in brackets behind what came before it:"]
        lines += [_surprise(document, place) for place in document.surprises(SURPRISES)]
    return "\n".join(lines)


def _surprise(document: OpenedDocument, place: int) -> str:
    assert document.texts is not None and document.losses is not None
    before = "".join(document.texts[max(0, place + 1 - BEFORE) : place + 1])
    return f"{document.losses[place]:6.2f}  {one_line(before)}[{one_line(document.texts[place + 1])}]"
