"""`python -m benchmarks step | run | growth | generate | startup | chart | page`: measure now and print a table."""

import argparse
import importlib
import sys

from benchmarks import WINDOW
from trainer.arguments import whole_number
from trainer.config import MODEL_SIZES
from trainer.errors import RunError

WHAT = {
    "step": "the bare step: compared with the roofline, eager, in fp32, on mixed lengths; where its time goes",
    "run": "the whole run, compared with the bare step and the Trainer of transformers",
    "growth": "step time and memory of `tiny` at the beginning and at the end of a long run",
    "generate": "time to generate 100 tokens, compared with transformers",
    "chart": "time to read a run and draw its chart, by length of the run",
    "page": "the page in a browser, by length of the run",
    "startup": "time of --test, from the return key to the last file",
}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Each benchmark prints a table.")
    commands = parser.add_subparsers(dest="what", required=True)
    for name, summary in WHAT.items():
        command = commands.add_parser(name, help=summary, description=summary)
        if name == "growth":
            command.add_argument(
                "--steps", type=whole_number(3 * WINDOW), default=100_000, help="run length (default: 100,000)"
            )
            continue
        if name in ("chart", "page"):
            lengths = {"type": whole_number(1), "nargs": "+", "default": [100, 10_000, 100_000, 1_000_000]}
            command.add_argument("--documents", metavar="N", help="run lengths (default: 100 to 1,000,000)", **lengths)
            continue
        command.add_argument("--rounds", type=whole_number(1), default=5, help="turns per contender (default: 5)")
        if name != "startup":
            command.add_argument("--size", choices=MODEL_SIZES, default="small", help="model size (default: small)")
    arguments = vars(parser.parse_args(argv))
    try:
        importlib.import_module(f"benchmarks.{arguments.pop('what')}").main(**arguments)
    except KeyboardInterrupt:
        return 130
    except RunError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
