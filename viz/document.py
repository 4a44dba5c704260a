"""The document of a step in words for a terminal: where it is from, how it went, what it says, what surprised most."""

import numpy as np

from viz.reader import StoreReader
from viz.series import Series
from viz.terminal import harmless, one_line
from viz.token_text import decoder

SURPRISES = 10
BEFORE = 8  # tokens of context


def describe_document(store: StoreReader, step: int) -> str:
    """The lines about a step. Raises ValueError where the run has no such step, or its document is not kept."""
    series = Series()
    series.extend(store.columns(below_step=step + 1))
    if not series.size or int(series["steps"][-1]) != step:
        known = store.columns()["steps"]
        there = f"they are {known[0]:,} to {known[-1]:,}" if len(known) else "it has none yet"
        raise ValueError(f"the run has no step {step:,}: {there}")
    documents = store.documents(step)
    if not documents:
        raise ValueError(f"the document of step {step:,} is not kept")
    if documents[0]["token_ids"] is None:
        where = one_line(f"{documents[0]['shard']} row {documents[0]['row']}")
        raise ValueError(f"the tokens of step {step:,} are no longer kept: its document is {where}")
    document, row = documents[0], series.size - 1
    loss, excess = float(series["loss"][row]), float(series.excess.values()[row])
    usual = f", {abs(excess):.2f} {'above' if excess > 0 else 'below'} the average of its source then"
    lines = [
        f"Step {step:,}: {one_line(document['source'] or 'unknown source')}, {one_line(str(document['shard']))} row "
        f"{document['row']}",
        f"Loss {loss:.3f} nats per token{usual if np.isfinite(excess) else ''}; accuracy "
        f"{100 * float(series['accuracy'][row]):.1f} %, gradient norm {float(series['gradient_norm'][row]):.3g}, "
        f"learning rate {float(series['learning_rate'][row]):.2e}; {len(document['token_ids']):,} tokens read"
        + (f" of {document['document_bytes']:,} bytes" if document["document_bytes"] is not None else ""),
    ]
    decode = decoder(store.run().get("tokenizer"))
    if decode is None:
        return "\n".join([*lines, "The record holds no tokenizer that could spell it."])
    ids = document["token_ids"].tolist()
    lines += ["", harmless(decode(ids))]
    if document["token_losses"] is not None:
        losses = np.asarray(document["token_losses"], dtype=np.float64)
        lines += ["", "What surprised most, nats, with the truth in brackets behind what came before it:"]
        for place in np.argsort(-np.nan_to_num(losses), kind="stable")[:SURPRISES].tolist():
            before, truth = decode(ids[max(0, place + 1 - BEFORE) : place + 1]), decode([ids[place + 1]])
            lines.append(f"{losses[place]:6.2f}  {one_line(before)}[{one_line(truth)}]")
    return "\n".join(lines)
