"""The document of a step in words for a terminal: where it is from, how it went, what it says, what surprised most."""

import unicodedata

import numpy as np

from viz.reader import StoreReader
from viz.series import Series
from viz.token_text import decoder

SURPRISES = 10
BEFORE = 8  # tokens of context


def describe_document(store: StoreReader, step: int) -> str:
    """The lines about a step. Raises ValueError where the run has no such step, or its document is not kept."""
    series = Series()
    series.extend(store.columns(below_step=step + 1))
    if not series.size or int(series["steps"][-1]) != step:
        newest = store.columns()["steps"]
        there = f"they are 0 to {newest[-1]:,}" if len(newest) else "it has none yet"
        raise ValueError(f"the run has no step {step:,}: {there}")
    documents = store.documents(step)
    if not documents or documents[0]["token_ids"] is None:
        raise ValueError(f"the document of step {step:,} is not kept")
    document, row = documents[0], series.size - 1
    loss, excess = float(series["loss"][row]), float(series.excess.values()[row])
    usual = f", {abs(excess):.2f} {'above' if excess > 0 else 'below'} the average of its source then"
    lines = [
        f"Step {step:,}: {document['source'] or 'unknown source'}, {document['shard']} row {document['row']}",
        f"Loss {loss:.3f} nats per token{usual if np.isfinite(excess) else ''}; accuracy "
        f"{100 * float(series['accuracy'][row]):.1f} %, gradient norm {float(series['gradient_norm'][row]):.3g}, "
        f"learning rate {float(series['learning_rate'][row]):.2e}; {len(document['token_ids']):,} tokens read of "
        f"{document['document_bytes'] or 0:,} bytes",
    ]
    decode = decoder(store.run().get("tokenizer"))
    if decode is None:
        return "\n".join([*lines, "The record holds no tokenizer that could spell it."])
    ids = document["token_ids"].tolist()
    lines += ["", printable(decode(ids))]
    if document["token_losses"] is not None:
        losses = np.asarray(document["token_losses"], dtype=np.float64)
        lines += ["", "What surprised most, nats, with the truth in brackets behind what came before it:"]
        for place in np.argsort(-np.nan_to_num(losses), kind="stable")[:SURPRISES].tolist():
            before, truth = decode(ids[max(0, place + 1 - BEFORE) : place + 1]), decode([ids[place + 1]])
            lines.append(f"{losses[place]:6.2f}  {one_line(before)}[{one_line(truth)}]")
    return "\n".join(lines)


def printable(text: str) -> str:
    """Text that can do nothing to a terminal: control and format characters but line breaks and tabs are U+FFFD `�`."""
    steering = ("Cc", "Cf", "Cs", "Co", "Cn")
    return "".join(
        c if c in "\n\t" or unicodedata.category(c) not in steering else "\N{REPLACEMENT CHARACTER}" for c in text
    )


def one_line(text: str) -> str:
    """`printable` with line breaks and tabs as they are written in Python."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")
