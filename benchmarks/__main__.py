"""`python -m benchmarks step | run | growth | generate | startup | chart | page`: a table each, measured now."""

import argparse
import importlib
import sys

from benchmarks import WINDOW
from trainer.arguments import whole_number
from trainer.config import MODEL_SIZES
from trainer.errors import RunError

WHAT = {
    "step": "the bare step: against the machine's roofline, eager, in fp32, on mixed lengths; where its time goes",
    "run": "the whole run against the bare step and the Trainer of transformers",
    "growth": "step time and memory of `tiny` at the beginning and at the end of a long run",
    "generate": "a hundred tokens, against transformers",
    "chart": "a look at a run and its picture, by the length of the run",
    "page": "the page in a browser, by the length of the run",
    "startup": "--test from the return key to the last file",
}


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Each prints one table, measured now.")
    commands = parser.add_subparsers(dest="what", required=True)
    for name, told in WHAT.items():
        command = commands.add_parser(name, help=told, description=told)
        if name == "growth":
            command.add_argument("--steps", type=whole_number(3 * WINDOW), default=100_000, help="default: 100,000")
            continue
        if name in ("chart", "page"):
            lengths = {"type": whole_number(1), "nargs": "+", "default": [100, 10_000, 100_000, 1_000_000]}
            command.add_argument("--documents", metavar="N", help="lengths of the runs", **lengths)
            continue
        command.add_argument("--rounds", type=whole_number(1), default=5, help="turns of each contender (default: 5)")
        if name != "startup":
            command.add_argument("--size", choices=MODEL_SIZES, default="small", help="default: small")
    arguments = vars(parser.parse_args(words))
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
