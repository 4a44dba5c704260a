"""`python -m trainer.generate [CHECKPOINT] --prompt TEXT`: continue a text with a trained model."""

import argparse
import sys
from collections.abc import Sequence

from trainer.arguments import CommandParser, exit_code_of, whole_number
from trainer.base.device import choose_device, choose_dtype
from trainer.errors import Diverged, UserError
from trainer.interop.load import open_trained_model

# Generated text is untrusted, and a terminal would execute control characters instead of showing them.
_CONTROL_CHARACTERS = dict.fromkeys([*range(0x09), *range(0x0B, 0x20), *range(0x7F, 0xA0)], "\N{REPLACEMENT CHARACTER}")


def generate(arguments: argparse.Namespace) -> None:
    """Print the prompt and its continuation, each token as soon as it is chosen.

    Raises:
        UserError: the checkpoint does not exist or is invalid, or the prompt can't be encoded.
        Diverged: weights or logits are not finite.
    """
    if not arguments.prompt:
        raise UserError("--prompt is empty: pass the text to continue")
    trained = open_trained_model(arguments.checkpoint, arguments.checkpoint_dir)
    tokenizer = trained.tokenizer
    try:
        prompt_ids = tokenizer.EncodeAsIds(arguments.prompt)
    except UnicodeEncodeError:
        raise UserError("--prompt is not valid Unicode: pass text in the encoding of your terminal") from None
    if not prompt_ids:  # a tokenizer from elsewhere may drop spaces
        raise UserError(
            "--prompt has no tokens: this checkpoint's tokenizer drops all of its characters, so pass another text"
        )
    device = choose_device(arguments.device)
    model = trained.model.to(device, choose_dtype("auto", device))
    ids = model.stream(
        prompt_ids,
        len(prompt_ids) + arguments.max_new_tokens,
        temperature=arguments.temperature,
        top_k=arguments.top_k or None,
        seed=arguments.seed,
    )
    _write(arguments.prompt)
    try:
        for text in tokenizer.decode_stream(ids):
            _write(text)
    except FloatingPointError as error:
        raise Diverged(f"\n{error}: this checkpoint is from a diverged run, so use an earlier one") from error
    _write("\n")


def _write(text: str) -> None:
    sys.stdout.write(text.translate(_CONTROL_CHARACTERS) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = CommandParser(prog="python -m trainer.generate", description="Continue a text with a trained model.")
    parser.add_checkpoint()
    parser.add_argument("--prompt", required=True, metavar="TEXT", help="the text to continue")
    parser.add_argument(
        "--max-new-tokens",
        type=whole_number(1),
        default=200,
        metavar="N",
        help="number of tokens to generate (default: 200)",
    )
    parser.add_argument(
        "--temperature",
        type=_temperature,
        default=0.8,
        metavar="X",
        help="randomness; 0 always takes the most likely token (default: 0.8)",
    )
    parser.add_argument(
        "--top-k",
        type=whole_number(0),
        default=50,
        metavar="K",
        help="sample from the K most likely tokens, or from all with 0 (default: 50)",
    )
    parser.add_argument(
        "--seed", type=whole_number(0), default=0, metavar="N", help="the same seed gives the same text (default: 0)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: auto)")
    return parser.parse_args(argv)


def _temperature(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number of at least 0, found {text!r}")
    return value


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0, 2 (user input), 4 (diverged), 5 (machine) or 130 (Ctrl-C)."""
    return exit_code_of(lambda: generate(_parse(argv)))


if __name__ == "__main__":
    sys.exit(main())
