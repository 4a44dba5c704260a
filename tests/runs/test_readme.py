"""What the README promises is what there is."""

import re
import shlex
import sys
from pathlib import Path

import pytest

from tests.conftest import PROJECT, make_texts
from tests.runs.conftest import SMALL, Train
from trainer.arguments import _parser, parse_arguments

README = (PROJECT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
COMMANDS = [line for block in BLOCKS for line in block.splitlines() if line.strip()]


def test_the_two_commands_of_a_newcomer_come_first() -> None:
    assert COMMANDS[0] == "pip install -r requirements.txt && python train_slimpajama.py --test"
    assert COMMANDS[1] == "pip install -r requirements-dev.txt && pytest"


def test_every_command_works(train: Train, tmp_path: Path, run_command: object) -> None:
    """In the order of the page, each in the folder that the one before left, made small by flags at its end."""
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "one.txt").write_text("\n\n".join(make_texts(40)))
    ran = []
    for command in COMMANDS[2:]:
        program, *words = shlex.split(command)
        assert program == "python"
        if words[0] == "train_slimpajama.py":
            if "--dataset" in words:
                assert train(*words[1:], *SMALL, small=False) == 0
            elif "--resume" in words:
                assert train(*words[1:], "--steps", 60, small=False) == 0
            else:  # would go to the Hub
                parse_arguments(words[1:]).merge()
        else:
            done = run_command(*words[2:], cwd=tmp_path, module=words[1])  # type: ignore[operator]
            said = {
                "trainer.generate": "def main(",
                "trainer.evaluate": "checkpoints/checkpoint_step_",
                "trainer.export": "Wrote my-model from checkpoints/",
            }
            assert words[0] == "-m" and done.stdout.startswith(said[words[1]])
        ran.append(words[0])
    assert len(ran) >= 4 and "-m" in ran


def test_every_flag_is_told_and_no_other() -> None:
    known = {flag for action in _parser()._actions for flag in action.option_strings if flag.startswith("--")}
    section = README.partition("## Flags")[2].partition("## Files")[0]
    told = set(re.findall(r"--[a-z][a-z-]+", section))
    assert told == known


@pytest.mark.parametrize("folder", ["trainer", "viz"])
def test_links_and_rooms_that_are_named_exist(folder: str) -> None:
    for name in re.findall(rf"`?({folder}/\w+\.py)", README) + re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (PROJECT / name).exists(), name


def test_python_blocks_of_the_docs_run(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert train("--steps", 100) == 0
    monkeypatch.setattr(sys, "path", [str(PROJECT), *sys.path])
    for block in re.findall(r"```python\n(.*?)```", (PROJECT / "docs" / "files.md").read_text(), re.DOTALL):
        exec(compile(block, "docs/files.md", "exec"), {})  # noqa: S102  # our own documentation


def test_what_may_be_relied_on_names_tests_that_exist() -> None:
    page = (PROJECT / "docs" / "reliability.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| **")]
    assert len(rows) >= 15
    for row in rows:
        links = re.findall(r"\[(test_\w+)\]\(\.\./(tests/\w+/(\w+)\.py)\)", row.rsplit("|", 2)[1])
        assert links, row
        assert all(shown == name and (PROJECT / path).exists() for shown, path, name in links), row
