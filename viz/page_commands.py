"""The commands of the page: `python -m viz serve` and `report`."""

import argparse
from collections.abc import Callable
from pathlib import Path

from common.terminal_text import one_line
from viz.page.guard import name_in
from viz.page.process import PORT, listen, opening_lines
from viz.page.report import make_report
from viz.page.serving import serve
from viz.record.files import replace_file
from viz.record.run_folder import record_of

Command = Callable[[argparse.Namespace], int]


def add_page_commands(
    add: Callable[[str, Command, str], argparse.ArgumentParser], add_folder: Callable[[argparse.ArgumentParser], None]
) -> None:
    """`add`: a command by its name, what carries it out, and its help; `add_folder`: the folder of a run to it."""
    page = add("serve", _serve, "open a page on a run: while it trains, after it ended, or on a copy")
    add_folder(page)
    page.add_argument(
        "others", nargs="*", type=Path, metavar="OTHER", help="folders of further runs, to compare it with"
    )
    page.add_argument("--port", type=_port, metavar="N", help=f"default: the first free one from {PORT} on")
    page.add_argument(
        "--allow-host", type=_host, action="append", default=[], metavar="NAME",
        help="also answer requests that call this machine by NAME (repeatable)",
    )  # fmt: skip
    take = add("report", _report, "the run as one HTML file that needs no server and no network")
    add_folder(take)
    take.add_argument(
        "other", nargs="?", type=Path, metavar="OTHER", help="folder of a further run, to compare it with"
    )
    take.add_argument("-o", "--output", type=Path, metavar="FILE.html", help="default: report.html, here")


def _port(text: str) -> int:
    number = int(text) if text.isascii() and text.isdigit() else 0
    if not 1 <= number <= 65_535:
        raise argparse.ArgumentTypeError(f"expected a port from 1 to 65535, found {text!r}")
    return number


def _host(text: str) -> str:
    name = name_in(f"//{text}")
    if name is None or name_in(f"//{text}:1") is None:
        raise argparse.ArgumentTypeError(f"expected the name of a machine, as a browser would write it, found {text!r}")
    return name


def _serve(chosen: argparse.Namespace) -> int:
    for other in chosen.others:
        record_of(other)
    if chosen.dir.is_file():
        record_of(chosen.dir)  # refuses what is not a run.db
    try:
        listening = listen(chosen.port)
    except OSError as error:
        raise ValueError(f"{error.strerror}: name another --port") from error
    waits = ""
    try:
        record_of(chosen.dir)
    except ValueError as error:
        waits = f"{error}: the page waits for one"

    def say(port: int) -> None:
        lines = [*([one_line(waits)] if waits else []), *opening_lines(port), "Ctrl-C ends it"]
        print("\n".join(lines), flush=True)

    serve(chosen.dir, chosen.others, listening, chosen.allow_host, ready=say)
    return 0


def _report(chosen: argparse.Namespace) -> int:
    path = chosen.output or Path("report.html")
    others = [record_of(chosen.other)] if chosen.other else []
    replace_file(path, [make_report(record_of(chosen.dir), others)])
    print(f"{path} ({path.stat().st_size / 1e6:.1f} MB)")
    return 0
