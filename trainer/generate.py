"""`python -m trainer.generate [CHECKPOINT] --prompt TEXT`: let a trained model go on from a text."""

import argparse
import sys
from collections.abc import Sequence

from trainer.arguments import CommandParser, exit_code_of, whole_number
from trainer.base.device import choose_device, choose_dtype
from trainer.errors import Diverged, UserError
from trainer.interop.load import open_trained_model

# What a terminal would obey instead of show. Generated text is nobody's to trust.
_CONTROL_CHARACTERS = dict.fromkeys([*range(0x09), *range(0x0B, 0x20), *range(0x7F, 0xA0)], "\N{REPLACEMENT CHARACTER}")


def generate(arguments: argparse.Namespace) -> None:
    """Write the prompt and what the model makes of it to standard output, each token as soon as it is chosen.

    Raises:
        UserError: no such checkpoint, or a prompt that can't be encoded.
        Diverged: the logits are not finite.
    """
    if not arguments.prompt:
        raise UserError("--prompt is empty: the model needs a text to go on from")
    trained = open_trained_model(arguments.checkpoint, arguments.checkpoint_dir)
    tokenizer = trained.tokenizer
    try:
        prompt_ids = tokenizer.EncodeAsIds(arguments.prompt)
    except UnicodeEncodeError:
        raise UserError("--prompt is not valid Unicode") from None
    if not prompt_ids:  # a tokenizer of others may drop spaces
        raise UserError("--prompt holds nothing that this checkpoint's tokenizer keeps")
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
        raise Diverged(f"\n{error}: this checkpoint's training has diverged, name an earlier one") from error
    _write("\n")


def _write(text: str) -> None:
    sys.stdout.write(text.translate(_CONTROL_CHARACTERS) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = CommandParser(prog="python -m trainer.generate", description="Let a trained model go on from a text.")
    parser.add_checkpoint()
    parser.add_argument("--prompt", required=True, metavar="TEXT", help="the text to go on from")
    parser.add_argument("--max-new-tokens", type=whole_number(1), default=200, metavar="N", help="default: 200")
    parser.add_argument(
        "--temperature", type=_temperature, default=0.8, metavar="X", help="0: always the likeliest (default: 0.8)"
    )
    parser.add_argument(
        "--top-k", type=whole_number(0), default=50, metavar="K", help="choose among K tokens, 0: all (default: 50)"
    )
    parser.add_argument(
        "--seed", type=whole_number(0), default=0, metavar="N", help="same seed, same text (default: 0)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: auto)")
    return parser.parse_args(argv)


def _temperature(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number from 0 on, found {text!r}")
    return value


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code of `contract.md`: 0, 2 for the user's input, 4 diverged, 130 after Ctrl-C."""
    return exit_code_of(lambda: generate(_parse(argv)))


if __name__ == "__main__":
    sys.exit(main())
