"""`python -m viz chart [DIR]` and `python -m viz export [DIR]`: pictures and JSON files, made again from the store."""

import argparse
import sqlite3
import sys
from pathlib import Path

from viz.chart_files import draw_run
from viz.charts import Chart
from viz.exports import Exporter
from viz.filesystem import replace_file
from viz.reader import StoreReader


def main(arguments: list[str] | None = None) -> int:
    """Exit code: 0, or 2 with one line for a folder that holds no readable store."""
    parser = argparse.ArgumentParser(prog="python -m viz", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, help_text in (("chart", "draw the run as of its last step"), ("export", "write the JSON files")):
        command = commands.add_parser(name, help=help_text)
        command.add_argument("dir", nargs="?", type=Path, default=Path("training_viz"), help="default: training_viz")
        if name == "chart":
            command.add_argument("-o", "--output", type=Path, metavar="FILE", help="default: the numbered file in DIR")
    chosen = parser.parse_args(arguments)
    try:
        with StoreReader(chosen.dir / "run.db") as store:
            columns = store.columns()
            if chosen.command == "export":
                Exporter().export(store, columns, chosen.dir)
                print(f"metrics_history.json, text_samples.json and run.json in {chosen.dir}")
                return 0
            step = int(columns["steps"][-1]) + 1 if len(columns["steps"]) else 0
            path = chosen.output
            if path is None:
                path = draw_run(Chart(), store, columns, chosen.dir, step)
            else:
                sample, evaluations = store.latest_text_sample(step), store.evaluations(step)
                replace_file(path, [Chart().draw(store.run(), columns, sample, step, evaluations)])
            print(path)
    except (OSError, ValueError, sqlite3.OperationalError) as error:  # the last: a store that is held all the while
        print(f"python -m viz: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
