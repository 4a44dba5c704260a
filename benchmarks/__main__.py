"""`python -m benchmarks step | run | growth | generate | startup`: each prints one table, measured here and now."""

import argparse


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").partition(": ")[2])
    parser.add_argument("what", choices=("step", "run", "growth", "generate", "startup"))
    parser.add_argument("--model-size", default="small")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contender")
    parser.add_argument("--steps", type=int, default=100_000, help="of `growth`")
    arguments = parser.parse_args()
    if arguments.what == "step":
        from benchmarks import step

        step.main(arguments.model_size, arguments.rounds)
    elif arguments.what == "run":
        from benchmarks import run

        run.main(arguments.model_size, arguments.rounds)
    elif arguments.what == "growth":
        from benchmarks import growth

        growth.main(arguments.steps)
    elif arguments.what == "generate":
        from benchmarks import generate

        generate.main(arguments.model_size, arguments.rounds)
    else:
        from benchmarks import startup

        startup.main(arguments.rounds)


if __name__ == "__main__":
    main()
