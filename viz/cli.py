"""`python -m viz`: look at runs. Draw, compare, list, export and serve what their stores hold."""

import argparse
import io
import os
import re
import sqlite3
import sys
import typing
from collections.abc import Callable
from pathlib import Path

from common.file_replacement import replace_file
from common.terminal_text import one_line
from viz.charts.chart_files import draw_picture, draw_run, numbered_steps
from viz.charts.comparison_figure import SIZE as COMPARISON_SIZE
from viz.charts.comparison_figure import draw_comparison
from viz.charts.figure import SIZE, Chart
from viz.charts.timelapse import FRAMES, SECONDS, make_timelapse
from viz.charts.timelapse import SIZE as TIMELAPSE_SIZE
from viz.page.http import name_in
from viz.page.process import PORT, listen, opening_lines, serve
from viz.page.report import make_report
from viz.record.exports import Exporter
from viz.record.reader import StoreReader
from viz.record.runs import delete_run, find_runs, record_of
from viz.views.comparison import compare
from viz.views.document import describe_document
from viz.views.run_list import confirm_text, describe_runs
from viz.views.run_view import Viewer

CommandFunction = Callable[[argparse.Namespace], int]
"""Executes a command: takes its arguments, returns the exit code."""

FOLDER = Path("training_viz")
PAIR_ONLY = "The ± describes this pair of runs, not how far two seeds of the same settings differ"


def main(arguments: list[str] | None = None) -> int:
    """Run a command; return exit code 0, or 2 after one line that says why it failed."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that lacks `→` must not stop the command
    chosen = _parser().parse_args(arguments)
    command: CommandFunction = chosen.execute
    try:
        code = command(chosen)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # `| head` closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        return _refuse(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except (ValueError, sqlite3.Error) as error:  # sqlite3: the store is damaged, or locked for too long
        return _refuse(str(error))


def _refuse(why: str) -> int:
    print(f"python -m viz: {one_line(why)}", file=sys.stderr)
    return 2


class VizParser(argparse.ArgumentParser):
    """argparse that exits with one line instead of printing its usage."""

    def error(self, message: str) -> typing.NoReturn:
        self.exit(2, f"python -m viz: {message} ({self.prog} --help lists the options)\n")


def _parser() -> argparse.ArgumentParser:
    parser = VizParser(
        prog="python -m viz",
        description="Look at runs: draw, compare, list, export and serve what their stores hold.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, execute: CommandFunction, help_text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=help_text, description=f"{help_text[:1].upper()}{help_text[1:]}.")
        command.set_defaults(execute=execute)
        return command

    def add_folder(command: argparse.ArgumentParser) -> None:
        command.add_argument(
            "dir", nargs="?", type=Path, default=FOLDER, metavar="DIR", help=f"folder of the run (default: {FOLDER})"
        )

    def add_look(command: argparse.ArgumentParser, size: tuple[int, int]) -> None:
        usual = f"{size[0]}x{size[1]}"
        command.add_argument("--size", type=_size, default=size, metavar="WxH", help=f"in pixels (default: {usual})")
        command.add_argument("--dark", action="store_true", help="light on dark background")

    chart = add("chart", _chart, "draw the chart of a run, as of its last step or an earlier one")
    add_folder(chart)
    chart.add_argument(
        "-o", "--output", type=Path, metavar="FILE.png",
        help="default: the numbered file in DIR; chart.png in the current folder with --step, --size or --dark",
    )  # fmt: skip
    chart.add_argument("--step", type=_count, metavar="N", help="draw the run as it was after N documents")
    chart.add_argument("--all", action="store_true", help="redraw the numbered charts in DIR, as many as the run keeps")
    add_look(chart, SIZE)
    lapse = add("timelapse", _timelapse, "draw the run as an animation (.gif or .png)")
    add_folder(lapse)
    lapse.add_argument("-o", "--output", type=Path, metavar="FILE", help="default: timelapse.gif")
    lapse.add_argument(
        "--frames", type=_count, default=FRAMES, metavar="N", help=f"number of frames (default: {FRAMES})"
    )
    lapse.add_argument(
        "--seconds", type=_seconds, default=SECONDS, metavar="S", help=f"duration in seconds (default: {SECONDS:g})"
    )
    add_look(lapse, TIMELAPSE_SIZE)
    read = add("document", _document, "print the document of a step, and the tokens that surprised the model most")
    read.add_argument("step", type=_step, metavar="STEP", help="0-based, as on the axis of the chart")
    add_folder(read)
    runs = add("runs", _runs, "list the runs in a folder, with the command that resumes each")
    add_folder(runs)
    runs.add_argument("--delete", metavar="ID", help="delete a run and its checkpoints, after confirmation")
    runs.add_argument("--yes", action="store_true", help="delete without confirmation")
    pair = add("compare", _compare, "compare two runs, document by document")
    for name in ("a", "b"):
        pair.add_argument(name, metavar=name.upper(), help="a folder with a run, or the id of a run")
    pair.add_argument(
        "--in",
        dest="dir",
        type=Path,
        default=FOLDER,
        metavar="DIR",
        help=f"folder to look for ids in (default: {FOLDER})",
    )
    pair.add_argument(
        "--since", type=_step, default=0, metavar="STEP", help="compare only documents from this step of A on"
    )
    pair.add_argument("-o", "--output", type=Path, metavar="FILE", help="image file (default: comparison.png)")
    add_look(pair, COMPARISON_SIZE)
    page = add("serve", _serve, "serve a page that shows a run: while it trains, afterwards, or from a copy")
    add_folder(page)
    page.add_argument("others", nargs="*", type=Path, metavar="OTHER", help="folders of other runs to compare it with")
    page.add_argument("--port", type=_port, metavar="N", help=f"default: the first free port from {PORT}")
    page.add_argument(
        "--allow-host", type=_host, action="append", default=[], metavar="NAME",
        help="also accept requests for the host NAME (repeatable)",
    )  # fmt: skip
    report = add("report", _report, "export the page to one HTML file that needs no server and no network")
    add_folder(report)
    report.add_argument("other", nargs="?", type=Path, metavar="OTHER", help="folder of another run to compare it with")
    report.add_argument("-o", "--output", type=Path, metavar="FILE.html", help="default: report.html")
    add_folder(add("export", _export, "write the JSON files of a run"))
    return parser


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
    width, height = (int(found[1]), int(found[2])) if found else (0, 0)
    if not (640 <= width <= 12_000 and width <= 2 * height <= 2.2 * width):
        raise argparse.ArgumentTypeError(
            f"expected pixels such as 1600x1000 (width 640 to 12000, height 0.5 to 1.1 times that), found {text!r}"
        )
    return width, height


def _count(text: str) -> int:
    number = _step(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a positive whole number, found {text!r}")
    return number


def _step(text: str) -> int:
    digits = text.replace(",", "")  # as charts print it
    if not digits.isascii() or not digits.isdigit():
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 0, found {text!r}")
    return int(digits)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.1 <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f"expected 0.1 to 3600 seconds, found {text!r}")
    return seconds


def _port(text: str) -> int:
    number = int(text) if text.isascii() and text.isdigit() else 0
    if not 1 <= number <= 65_535:
        raise argparse.ArgumentTypeError(f"expected a port from 1 to 65535, found {text!r}")
    return number


def _host(text: str) -> str:
    name = name_in(f"//{text}")
    if name is None or name_in(f"//{text}:1") is None:
        raise argparse.ArgumentTypeError(f"expected a host name or address without a port, found {text!r}")
    return name


def _chart(chosen: argparse.Namespace) -> int:
    if chosen.all and (chosen.output or chosen.step):
        raise ValueError("--all redraws the numbered charts of the folder: omit --output and --step")
    path: Path | None = chosen.output
    if path is None and not chosen.all and (chosen.step or chosen.dark or chosen.size != SIZE):
        path = Path("chart.png")  # the numbered charts all have the default size, at the intervals of the run
    if path is not None and path.suffix.lower() != ".png":
        raise ValueError(f"{path}: the name of a chart must end in .png")
    record = record_of(chosen.dir)
    if path is not None:
        picture = draw_picture(record, chosen.step, chosen.size, chosen.dark)
        replace_file(path, lambda file: file.write(picture), durable=False)
        print(path)
        return 0
    with StoreReader(record / "run.db") as store:
        chart, viewer = Chart(chosen.size, dark=chosen.dark), Viewer(store)
        for step in numbered_steps(viewer) if chosen.all else [viewer.look().step]:
            print(draw_run(chart, viewer, record, step), flush=True)
    return 0


def _timelapse(chosen: argparse.Namespace) -> int:
    path = chosen.output or Path("timelapse.gif")
    frames = make_timelapse(
        record_of(chosen.dir), path, frames=chosen.frames, seconds=chosen.seconds, size=chosen.size, dark=chosen.dark
    )
    print(f"{path} ({frames} frame{'' if frames == 1 else 's'})")
    return 0


def _document(chosen: argparse.Namespace) -> int:
    with StoreReader(record_of(chosen.dir) / "run.db") as store:
        print(describe_document(store, chosen.step))
    return 0


def _runs(chosen: argparse.Namespace) -> int:
    if not chosen.dir.is_dir():
        raise ValueError(f"{chosen.dir} is not a folder")
    inner = chosen.dir / "training_viz"  # as created by --out
    found = find_runs(chosen.dir) or (find_runs(inner) if inner.is_dir() else [])
    if chosen.delete is None:
        print(describe_runs(found))
        return 0
    run = next((run for run in found if run.run_id == chosen.delete), None)
    if run is None:
        known = ", ".join(run.run_id for run in found) or "none"
        raise ValueError(f"--delete {chosen.delete}: {chosen.dir} has no run with that id (it has: {known})")
    if run.is_running:
        raise ValueError(f"run {run.run_id} is running: stop it first")
    if not chosen.yes:
        print(confirm_text(run))
        try:
            answer = input("Delete them? [y/N] ")
        except EOFError:
            answer = ""
            print()
        if answer.strip().lower() not in ("y", "yes"):
            print("Nothing was deleted.")
            return 0
    delete_run(run)
    print(f"Deleted run {run.run_id}.")
    return 0


def _compare(chosen: argparse.Namespace) -> int:
    path = chosen.output or Path("comparison.png")
    if path.suffix.lower() != ".png":
        raise ValueError(f"{path}: the name of a comparison chart must end in .png")
    folders = [_folder_of(name, chosen.dir) for name in (chosen.a, chosen.b)]
    with StoreReader(folders[0] / "run.db") as first, StoreReader(folders[1] / "run.db") as second:
        found = compare(first, second, since=chosen.since)
    about = [
        f"{name}: {folder} (run {what}, {total:,} document{'' if total == 1 else 's'})"
        for name, folder, what, total in zip("AB", folders, found.about, found.totals, strict=True)
    ]
    print("\n".join(map(one_line, [found.sentence(), *about, *found.notes(), PAIR_ONLY])), flush=True)
    picture = draw_comparison(found, dark=chosen.dark, size=chosen.size)
    replace_file(path, lambda file: file.write(picture), durable=False)
    print(path)
    return 0


def _folder_of(name: str, root: Path) -> Path:
    """Return the record folder of a run given by its folder, its `run.db` or its id."""
    if Path(name).exists():
        return record_of(Path(name))
    known = {run.run_id: run.record for run in find_runs(root)}
    if name not in known:
        there = ", ".join(known) or "none"
        raise ValueError(f"{name} is neither the folder of a run nor the id of a run in {root} (it has: {there})")
    return known[name]


def _serve(chosen: argparse.Namespace) -> int:
    for other in chosen.others:
        record_of(other)
    if chosen.dir.is_file():
        record_of(chosen.dir)  # fails if it is not a run.db
    try:
        listening = listen(chosen.port)
    except OSError as error:
        raise ValueError(f"{error.strerror}: choose another --port") from error
    waits = ""
    try:
        record_of(chosen.dir)
    except ValueError as error:
        waits = f"{error}: the page waits for a run"

    def announce(port: int) -> None:
        lines = [*([one_line(waits)] if waits else []), *opening_lines(port), "Ctrl-C stops it"]
        print("\n".join(lines), flush=True)

    serve(chosen.dir, chosen.others, listening, chosen.allow_host, ready=announce)
    return 0


def _report(chosen: argparse.Namespace) -> int:
    path = chosen.output or Path("report.html")
    others = [record_of(chosen.other)] if chosen.other else []
    content = make_report(record_of(chosen.dir), others)
    replace_file(path, lambda file: file.write(content), durable=False)
    print(f"{path} ({path.stat().st_size / 1e6:.1f} MB)")
    return 0


def _export(chosen: argparse.Namespace) -> int:
    record = record_of(chosen.dir)
    with StoreReader(record / "run.db") as store:
        Exporter().export(store, store.columns(), record)
    print(f"metrics_history.json, text_samples.json and run.json in {record}")
    return 0
