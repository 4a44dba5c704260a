"""`python -m trainer.evaluate [CHECKPOINT] [--text FILE]`: measure how well a trained model predicts a text."""

import argparse
import math
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from common.terminal_text import one_line
from trainer.arguments import CommandParser, exit_code_of
from trainer.assemble import held_out_of_run
from trainer.base.device import choose_device, choose_dtype
from trainer.config import FIELDS, TrainingConfig
from trainer.data.document_filter import hash_text
from trainer.data.document_stream import DocumentStream
from trainer.data.sample_stream import SampleStream
from trainer.data.sources import DataSource, Shard, kind_of
from trainer.data.tokenizer import Tokenizer
from trainer.errors import UserError
from trainer.interop.load import TrainedModel, open_trained_model
from trainer.observe.evaluation import Evaluator
from trainer.records import Cursor, Document, Evaluation, Origin, Sample
from trainer.run.checkpoints import RUN_STATE, misfit

MOST_SOURCES = 20
"""Sources with a line of their own in the table: those with the most predictions."""


def evaluate(arguments: argparse.Namespace) -> None:
    """Measure the model of a checkpoint on a text and print a table.

    Raises:
        UserError: the checkpoint or the text is missing or invalid, or there is nothing to predict.
        SourceUnreachable: without `--text`, the data of the checkpoint's run can't be read.
    """
    trained = open_trained_model(arguments.checkpoint, arguments.checkpoint_dir)
    config = _settings(trained, arguments)
    device = choose_device(arguments.device)
    model = trained.model.to(device, choose_dtype(config.dtype, device))
    unit, text, samples = _samples(arguments.text, config, trained)
    found = Evaluator(lambda: model, {f"--text {arguments.text}": samples}).measure(f"--text {arguments.text}")
    step = trained.state.get("step")
    after = f" (after {step:,} documents)" if isinstance(step, int) else ""
    print(f"{trained.path}{after}, evaluated on {found[0].documents:,} {unit} {text}")
    if isinstance(samples, SampleStream) and (skipped := samples.state_dict()["skipped"]):
        reasons = (f"{count:,} {one_line(reason[:120])}" for reason, count in sorted(skipped.items()))
        print("Skipped: " + ", ".join(reasons))
    print("\n".join(_table(found, unit)))


def _settings(trained: TrainedModel, arguments: argparse.Namespace) -> TrainingConfig:
    """The settings of the checkpoint's run, or the defaults; flags of this command override both."""
    kept = trained.state.get("config")
    known = {key: value for key, value in kept.items() if key in FIELDS} if isinstance(kept, dict) else {}
    typed = {"max_seq_length": arguments.max_seq_length, "text_column": arguments.text_column}
    return TrainingConfig(**known | {key: value for key, value in typed.items() if value is not None})


def _held_out(config: TrainingConfig, trained: TrainedModel) -> Iterable[Sample]:
    if missing := misfit(trained.state, {name: RUN_STATE[name] for name in ("source", "samples")}):
        raise UserError(
            f"{trained.path} does not name the held-out documents of its run ({missing!r} is missing): "
            "pass a text with --text"
        )
    return held_out_of_run(config, trained.state, trained.tokenizer, lambda line: print(line, file=sys.stderr))


def _samples(text: str | None, config: TrainingConfig, trained: TrainedModel) -> tuple[str, str, Iterable[Sample]]:
    """Return the unit of a sample, a description of the text, and the samples: of `--text`, or held out without it."""
    if text is None:
        held_out = _held_out(config, trained)
        return "held-out documents", f"of {one_line(trained.state['source']['name'][:40])}", held_out
    path, length, tokenizer = Path(text), config.max_seq_length, trained.tokenizer
    if text == "-":
        return "windows", f"of {length} tokens of standard input", windows(_read(text), text, tokenizer, length)
    if path.is_dir() or not os.access(path, os.R_OK):
        why = " is a folder: pass one file" if path.is_dir() else ": no such file, or the file can't be read"
        raise UserError(f"--text {text}{why}")
    kind = kind_of(path.name) if path.is_file() else None  # a pipe has no meaningful name
    if kind is None or kind == "paragraphs":
        return "windows", f"of {length} tokens of {text}", windows(_read(text), text, tokenizer, length)
    source = DataSource(text, "", (Shard(kind, text, text),))
    documents = DocumentStream(source=source, text_column=config.text_column)
    samples = SampleStream(documents, tokenizer, length, hold_out=False, should_stop=lambda: False)
    return "documents", f"of {text}, at most {length} tokens per document", samples


def windows(text: str, name: str, tokenizer: Tokenizer, max_seq_length: int) -> Iterator[Sample]:
    """Yield a whole text in samples of at most `max_seq_length` tokens.

    Each sample starts with the last token of the one before, so every token but the first is predicted exactly once.
    """
    ids = tokenizer.EncodeAsIds(text)
    text_hash, size = hash_text(text), len(text.encode())
    for first in range(0, len(ids) - 1, max_seq_length - 1):
        window = ids[first : first + max_seq_length]
        yield Sample(
            document=Document(text, name, Origin(name, 0), Cursor()),
            ids=window,
            text_hash=text_hash,
            document_bytes=size,
            predicted_bytes=int(tokenizer.piece_bytes[window[1:]].sum()),
            stream_state={},
        )


def _read(text: str) -> str:
    """Read the text that `--text` names; - is standard input."""
    if text == "-" and sys.stdin is None:
        raise UserError("--text -: standard input is closed: pass a file or a pipe")
    try:
        return (sys.stdin.buffer.read() if text == "-" else Path(text).read_bytes()).decode()
    except OSError as error:
        raise UserError(f"--text {text}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"--text {text} is not UTF-8 text (byte {error.start:,}): decompress a compressed file first, as in "
            "zcat FILE | python -m trainer.evaluate --text -"
        ) from None


def _table(found: Sequence[Evaluation], unit: str) -> list[str]:
    """Format one line for the whole text and, if there are several sources, one line per source."""
    whole, *sources = found
    sources.sort(key=lambda part: -part.tokens)
    shown = [(one_line(part.source[:40]), part) for part in sources[:MOST_SOURCES]] if len(sources) > 1 else []
    rows = [
        ("", unit, "predictions", "nats/token", "perplexity", "bits/byte", "accuracy"),
        *(
            (
                name,
                f"{part.documents:,}",
                f"{part.tokens:,}",
                f"{part.loss:.4f}",
                f"{math.exp(min(part.loss, 700)):,.2f}",
                f"{part.bits_per_byte:.4f}",
                f"{part.accuracy:.1%}",
            )
            for name, part in [*shown, ("all", whole)]
        ),
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        f"{name:<{widths[0]}}  " + "  ".join(f"{cell:>{width}}" for cell, width in zip(cells, widths[1:], strict=True))
        for name, *cells in rows
    ]
    if len(sources) > MOST_SOURCES:
        lines.append(f"({len(sources) - MOST_SOURCES:,} more sources are included only in `all`)")
    return lines


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = CommandParser(
        prog="python -m trainer.evaluate",
        description="Measure how well a trained model predicts a text: loss, bits per byte, accuracy.",
    )
    parser.add_checkpoint()
    parser.add_argument(
        "--text",
        metavar="FILE",
        help="a text file, measured in windows; a .jsonl or .json file (also with .gz or .zst) or a .parquet file, "
        "with one document per row, truncated as in training; or - for standard input "
        "(default: the held-out documents of the checkpoint's run)",
    )
    parser.add_argument(
        "--max-seq-length", type=int, metavar="N", help="most tokens per window or document (default: as in training)"
    )
    parser.add_argument("--text-column", metavar="NAME", help="column with the text of a row (default: as in training)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: auto)")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0, 2 (user input), 3 (source unreachable), 4, 5 or 130 (Ctrl-C)."""
    return exit_code_of(lambda: evaluate(_parse(argv)))


if __name__ == "__main__":
    sys.exit(main())
