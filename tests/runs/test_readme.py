"""The README and the docs are true: commands, links, flags, queries."""

import importlib
import json
import re
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import tomllib
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import PROJECT, command_environment, make_texts
from tests.runs.conftest import SMALL, Capture, Train
from trainer.arguments import _parser

PAGES = {
    path.relative_to(PROJECT).as_posix(): path.read_text(encoding="utf-8")
    for path in (PROJECT / "README.md", PROJECT / "CONTRIBUTING.md", *sorted((PROJECT / "docs").glob("*.md")))
}
README, LESSON = PAGES["README.md"], PAGES["docs/lesson.md"]


def commands_of(page: str) -> list[str]:
    """The lines of the shell blocks of a page."""
    blocks = re.findall(r"```bash\n(.*?)```", page, re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


COMMANDS = commands_of(README)


def test_the_two_commands_of_a_newcomer_come_first() -> None:
    assert COMMANDS[0] == "pip install -r requirements.txt && python train_slimpajama.py --test"
    assert COMMANDS[1] == "pip install -r requirements-dev.txt && pytest"


def test_every_command_works(train: Train, tmp_path: Path, capsys: Capture) -> None:
    """Each command of the README and of two pages, with flags that make it small, in the folder that the one before
    it left."""
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "one.txt").write_text("\n\n".join(make_texts(60)))
    assert train("--dataset", "notes", "--steps", 20) == 0  # the run that the page assumes
    commands = [*COMMANDS[2:], *commands_of(PAGES["docs/chart.md"]), *commands_of(PAGES["docs/page.md"])]
    ran = [follow(command, train, capsys) for command in commands]
    assert {"train_slimpajama.py", "viz", "trainer.generate", "trainer.evaluate", "trainer.export"} <= {*ran}


@pytest.mark.full
def test_the_lesson_can_be_taught(train: Train, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "notes.txt").write_text("\n\n".join(make_texts(60)))
    ran = [follow(command, train, capsys) for command in commands_of(LESSON)]
    assert ran.count("train_slimpajama.py") == 3 and ran.count("viz") >= 3
    inline = [line for line in re.findall(r"`(python [^`]+)`", LESSON) if line != "python -m viz document"]
    assert len(inline) >= 3
    for command in inline:
        follow(command, train, capsys)


def follow(command: str, train: Train, capsys: Capture) -> str:
    """Run a smaller version of a command in this process and check its output. Returns the program or module."""
    program, *words = shlex.split(command)
    if program == "sqlite3":
        ask_store(words[0], words[1].replace("1000", "10"))
        return program
    assert program == "python"
    if words[0] == "train_slimpajama.py":
        if "--resume" in words:
            assert train(*words[1:], "--steps", 45, small=False) == 0
        else:
            data = [] if "--dataset" in words else ["--dataset", "notes"]
            assert train(*words[1:], *SMALL, *data, "--steps", 42, small=False) == 0
        return words[0]
    if words[1:3] == ["viz", "serve"]:
        look_at_page(words[3:], Path.cwd())
        return words[1]
    words = [{"796": "15", "50": "15", "500": "10"}.get(word, word) for word in words]
    few = ["--frames", "5"] if "timelapse" in words else []
    capsys.readouterr()
    module = importlib.import_module("viz.__main__" if words[1] == "viz" else words[1])
    assert module.main([*words[2:], *few]) == 0
    shown = capsys.readouterr().out
    said = {
        "trainer.generate": r"def main\(",
        "trainer.evaluate": "checkpoints/checkpoint_step_",
        "trainer.export": "Wrote my-model from checkpoints/",
        "viz chart": r"run\.png\n",
        "viz timelapse": r"timelapse\.gif \(\d+ frames\)\n",
        "viz runs": "run +started",
        "viz compare": r"(.* is better by |No difference found: ).*nats per token over \d+ shared documents",
        "viz document": "Step 15: .*\nLoss",
        "viz report": r"report\.html \(\d+\.\d MB\)\n",
    }
    name = f"viz {words[2]}" if words[1] == "viz" else words[1]
    assert words[0] == "-m" and re.match(said[name], shown), shown
    return words[1]


def look_at_page(words: Sequence[str], folder: Path) -> None:
    command = [sys.executable, "-m", "viz", "serve", *words]
    with subprocess.Popen(command, cwd=folder, env=command_environment(), stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        address = server.stdout.readline().removeprefix("The page: ").strip()
        with urllib.request.urlopen(f"{address}/api/run") as answer:
            assert json.load(answer)["steps"] > 0
        server.send_signal(signal.SIGINT)
        assert server.wait(20) == 130 and "ssh -L" in server.stdout.read()


def test_a_notebook_shows_a_run(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    assert train("--steps", 20) == 0
    (block,) = re.findall(r"## In a notebook\n\n```python\n(.*?)```", README, re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(block.replace("viz.show(", "shown = viz.show("), "README.md", "exec"), names)  # noqa: S102  # our own
    assert len(names["steps"]) == 20 and names["shown"].size == (1600, 1000)


def ask_store(store: str, sql: str) -> None:
    """A query returns rows, in Python and in the `sqlite3` program if there is one."""
    if shutil.which("sqlite3"):
        done = subprocess.run(["sqlite3", store, sql], capture_output=True, text=True, check=True)
        assert done.stdout.strip(), sql
    with sqlite3.connect(store) as database:
        assert database.execute(sql).fetchall(), sql
    database.close()


def test_the_readme_is_short() -> None:
    assert len(README.split()) <= 2200


def test_everything_to_install_exists() -> None:
    """The table's arguments for pip and the Hub: files that exist, and the range of torch."""
    section = README.partition("## Install")[2].partition("\n## ")[0]
    asked = re.findall(r"`((?:python3 -m venv [^`]*)?pip [^`]+)`", section)
    assert len(asked) >= 6
    needed = (PROJECT / "requirements.txt").read_text()
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    for command in asked:
        words = shlex.split(command.rpartition("&& ")[2])
        if "-r" in words:
            assert (PROJECT / words[words.index("-r") + 1]).exists(), command
        if words[-1] == ".":  # leaves any torch alone that is new enough
            assert "torch>=2.11" in project["dependencies"], command
        for word in words:
            if word.startswith("torch"):
                assert f"{word}\n" in needed
    assert re.search(r"`hf download DKYoon/SlimPajama-6B --repo-type dataset --include ", section)


def test_exactly_the_existing_flags_are_documented() -> None:
    known = {flag for action in _parser()._actions for flag in action.option_strings if flag.startswith("--")}
    assert set(re.findall(r"--[a-z][a-z-]+", PAGES["docs/flags.md"])) == known


def test_the_readme_links_to_every_page() -> None:
    linked = set(re.findall(r"\]\(((?:docs/)?[\w-]+\.md)", README))
    assert linked == PAGES.keys() - {"README.md"} | {"CHANGELOG.md"}


@pytest.mark.parametrize("page", PAGES)
def test_linked_files_and_named_modules_exist(page: str) -> None:
    text = PAGES[page]
    for name in re.findall(r"`((?:trainer|viz|common|tests|scripts|benchmarks)/[\w/]+\.\w+)", text):
        assert (PROJECT / name).exists(), name
    for link in re.findall(r"\]\((?!http)([^)]+)\)", text):
        name, _, anchor = link.partition("#")
        target = (PROJECT / page).parent / name if name else PROJECT / page
        assert target.exists(), link
        assert not anchor or anchor in anchors_of(target.read_text(encoding="utf-8")), link


def anchors_of(page: str) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", page, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


def test_the_queries_of_the_docs_return_rows(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each line of the shell blocks, and the Python blocks one after the other."""
    assert train("--steps", 100, "--evaluation-interval", 50, "--display-samples", 10) == 0
    monkeypatch.setattr(sys, "path", [str(PROJECT), *sys.path])
    blocks = re.findall(r"```(bash|python)\n(.*?)```", (PROJECT / "docs" / "files.md").read_text("utf-8"), re.DOTALL)
    shown: list[object] = []
    names: dict[str, object] = {"print": lambda *values: shown.extend(values)}
    for kind, block in blocks:
        if kind == "python":
            before = len(shown)
            exec(compile(block, "docs/files.md", "exec"), names)  # noqa: S102  # our own documentation
            assert len(shown) - before >= block.count("print(")
            continue
        for line in block.splitlines():
            program, store, sql = shlex.split(line)
            assert program == "sqlite3"
            ask_store(store, sql)
    assert shown and all(len(value) > 0 for value in shown)  # type: ignore[arg-type]


def test_the_reliability_table_names_tests_that_exist() -> None:
    page = (PROJECT / "docs" / "reliability.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| **")]
    assert len(rows) >= 15
    for row in rows:
        links = re.findall(r"\[(test_\w+)\]\(\.\./(tests/(?:\w+/)+(\w+)\.py)\)", row.rsplit("|", 2)[1])
        assert links, row
        assert all(shown == name and (PROJECT / path).exists() for shown, path, name in links), row
