import fcntl
import json
import shlex
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.viz.conftest import Metrics
from viz.record.runs import confirm_text, delete_run, describe_runs, find_runs
from viz.record.schema import rows_of
from viz.record.writer import StoreWriter

Make = Callable[..., Path]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that a person stands in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def make(root: Path, metrics: Metrics) -> Make:
    """`make("earlier/a", "a")`: a run in the two folders of that place, as the trainer leaves it."""

    def make(place: str, run_id: str, *, documents: int = 3, saved: tuple[int, ...] = (2, 3), **about: Any) -> Path:
        viz, checkpoints = root / "training_viz" / place, root / "checkpoints" / place
        for folder in (viz, checkpoints):
            folder.mkdir(parents=True, exist_ok=True)
            mark = {"run_id": run_id, "test": "test" in place, "viz": str(viz), "checkpoints": str(checkpoints)}
            (folder / ".run").write_text(json.dumps(mark))
        described = {"run_id": run_id, "source": "python-library", "model": "small 13.8 M", "started": 1.0}
        described |= {"config": {"num_steps": 10}, "outcome": "done"}
        store = StoreWriter(viz / "run.db", described | about)
        for step in range(documents):
            store.add_rows(rows_of(metrics(step, loss=float(step))))
        store.close()
        (viz / "training_step_000003.png").write_bytes(b"picture")
        for number in saved:
            (checkpoints / f"checkpoint_step_{number}.bin").write_bytes(b"x" * 1000)
            (checkpoints / f"checkpoint_step_{number}.bin.sha256").write_bytes(b"digest")
        return viz

    return make


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    with (folder / ".run.lock").open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(b"4711")
        file.flush()
        yield


def files(*folders: Path) -> set[Path]:
    return {path for folder in folders for path in folder.rglob("*")}


def test_every_place_is_looked_at_and_the_newest_comes_first(make: Make) -> None:
    for place, run_id, started in (("", "b", 2), ("test", "c", 3), ("earlier/a", "a", 1), ("test/earlier/d", "d", 4)):
        make(place, run_id, started=started)
    runs = find_runs(Path("training_viz"))
    assert [run.run_id for run in runs] == ["d", "c", "b", "a"]
    assert [run.is_test for run in runs] == [True, True, False, False]


def test_what_is_known_of_a_run(make: Make, root: Path) -> None:
    viz = make("", "a", documents=250, config={"num_steps": 1000})
    (run,) = find_runs(root / "training_viz")
    assert (run.source, run.model, run.documents, run.steps_asked) == ("python-library", "small 13.8 M", 250, 1000)
    assert run.loss == pytest.approx(sum(range(50, 250)) / 200)
    assert (run.outcome, run.is_running, run.newest_checkpoint) == ("done", False, 3)
    assert run.checkpoints == root / "checkpoints"
    assert run.bytes_on_disk == (viz / "run.db").stat().st_size + len(b"picture") + 2 * (1000 + len(b"digest"))


def test_a_run_without_a_step_has_no_loss(make: Make) -> None:
    make("", "a", documents=0, saved=())
    (run,) = find_runs(Path("training_viz"))
    assert run.loss is None and run.documents == 0 and run.newest_checkpoint is None
    assert run.why_not == "there is no checkpoint"


@pytest.mark.parametrize(
    ("place", "about", "words"),
    [
        ("", {}, "--resume a"),
        ("earlier/a", {}, "--resume a"),
        ("test/earlier/a", {}, "--resume a"),
        ("", {"config": {"num_steps": 3}}, "--resume a --steps 6"),
        ("", {"config": {"num_steps": 2}}, "--resume a --steps 6"),
        ("", {"outcome": "documents ended"}, "--resume a --repeat"),
    ],
)
def test_the_command_that_goes_on(
    make: Make, root: Path, monkeypatch: pytest.MonkeyPatch, place: str, about: dict[str, Any], words: str
) -> None:
    make(place, "a", **about)
    monkeypatch.setattr("viz.record.runs.PROGRAM", root / "train_slimpajama.py")
    (run,) = find_runs(Path("training_viz"))
    assert run.resume_command == f"python train_slimpajama.py {words}"
    assert f"    to go on: {run.resume_command}" in describe_runs([run]).splitlines()


def test_a_command_names_the_folders_where_they_are_not_the_usual_ones(
    make: Make, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make("earlier/a", "a")
    monkeypatch.setattr("viz.record.runs.PROGRAM", root / "train_slimpajama.py")

    def command(viz: Path | str) -> str | None:
        return find_runs(Path(viz))[0].resume_command

    (root / "below").mkdir()
    monkeypatch.chdir(root / "below")
    assert command("../training_viz") == f"python ../train_slimpajama.py --out {root} --resume a"
    monkeypatch.chdir(root)
    shutil.move("training_viz", "below/training_viz")
    shutil.move("checkpoints", "below/checkpoints")
    assert command("below/training_viz") == "python train_slimpajama.py --out below --resume a"
    (root / "below").rename(root / "two words\n")
    said = str(command("two words\n/training_viz"))
    assert said.isprintable()
    shell = ["bash", "-c", f"printf '%s|' {said}"]
    words = subprocess.run(shell, capture_output=True, text=True, check=True).stdout.split("|")
    assert words == ["python", "train_slimpajama.py", "--out", "two words\n", "--resume", "a", ""]
    (root / "two words\n").rename(root / "it's")
    shutil.move("it's/training_viz", "it's/pictures")
    assert shlex.split(str(command("it's/pictures")))[2:] == [
        *("--viz-dir", "it's/pictures"), *("--checkpoint-dir", "it's/checkpoints"), *("--resume", "a")
    ]  # fmt: skip


def test_halves_at_different_places(make: Make, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    viz = make("", "a")
    monkeypatch.setattr("viz.record.runs.PROGRAM", root / "train_slimpajama.py")
    shutil.move("checkpoints", "elsewhere")
    for folder in (viz, root / "elsewhere"):
        mark = {"run_id": "a", "test": False, "viz": str(viz), "checkpoints": str(root / "elsewhere")}
        (folder / ".run").write_text(json.dumps(mark))
    (run,) = find_runs(viz)
    assert run.resume_command == "python train_slimpajama.py --checkpoint-dir elsewhere --resume a"


def test_a_copy_has_its_own_checkpoints_or_none(make: Make, root: Path) -> None:
    make("earlier/a", "a")
    for name in ("training_viz", "checkpoints"):
        shutil.copytree(root / name, root / "copy" / name)
    (run,) = find_runs(root / "copy" / "training_viz")
    assert run.checkpoints == root / "copy" / "checkpoints" / "earlier" / "a"
    delete_run(run)
    shutil.copytree(root / "training_viz", root / "record_alone")
    (run,) = find_runs(root / "record_alone")
    assert run.checkpoints is None
    delete_run(run)
    (run,) = find_runs(root / "training_viz")
    assert run.newest_checkpoint == 3


def test_a_run_that_lives_is_seen_and_no_trace_is_left(make: Make, root: Path) -> None:
    viz = make("", "a", outcome=None)
    before = files(root)
    assert not find_runs(viz)[0].is_running and files(root) == before
    with locked(viz):
        (run,) = find_runs(viz)
        assert run.is_running and run.resume_command is None and run.why_not == "it is running"
        assert "    running; " in describe_runs([run])
        before = files(root)
        with pytest.raises(ValueError, match=r"in use by a run \(process 4711\): stop it first"):
            delete_run(run)
        assert files(root) - {root / "checkpoints" / ".run.lock"} == before
    assert not find_runs(viz)[0].is_running


def _break_text(path: Path) -> None:
    path.write_bytes(b"not a database, " * 100)


def _break_middle(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(8192)
        file.write(b"\xff" * (path.stat().st_size - 8192))


def _break_foreign(path: Path) -> None:
    path.unlink()
    database = sqlite3.connect(path)
    database.execute("CREATE TABLE run (id)")
    database.commit()
    database.close()


def _change(sql: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        database = sqlite3.connect(path)
        database.execute(sql)
        database.commit()
        database.close()

    return change


@pytest.mark.parametrize(
    "damage",
    [
        _break_text,
        _break_middle,
        _break_foreign,
        _change("DELETE FROM run"),
        _change("DROP TABLE steps"),
        _change("UPDATE run SET config = '[]'"),
        _change("UPDATE run SET started = 'yesterday'"),
        _change("PRAGMA user_version = 99"),
    ],
)
def test_what_can_not_be_read_is_listed_with_the_reason(make: Make, damage: Callable[[Path], None]) -> None:
    viz = make("", "a")
    damage(viz / "run.db")
    (run,) = find_runs(viz)
    assert (run.run_id, run.newest_checkpoint) == ("a", 3)
    assert str(viz / "run.db") in run.problem and "\n" not in run.problem
    assert run.resume_command is None and run.why_not == "its record can't be read"
    assert run.problem in describe_runs([run])
    delete_run(run)
    assert not find_runs(viz)


def test_a_record_that_is_gone_can_be_begun_again(make: Make) -> None:
    viz = make("", "a")
    (viz / "run.db").unlink()
    (run,) = find_runs(viz)
    assert run.problem.endswith("run.db is gone") and str(run.resume_command).endswith("--resume a")


def test_a_record_of_an_earlier_version_is_not_gone_on_with(make: Make) -> None:
    viz = make("", "a")
    _change("PRAGMA user_version = 3")(viz / "run.db")
    (run,) = find_runs(viz)
    assert run.documents == 3 and not run.problem and "earlier version" in run.why_not


def test_a_foreign_file_is_not_ours_to_delete(root: Path) -> None:
    viz = root / "training_viz"
    viz.mkdir()
    _break_text(viz / "run.db")
    (run,) = find_runs(viz)
    with pytest.raises(ValueError, match="no run with an id: remove it by hand"):
        delete_run(run)
    assert files(viz) == {viz / "run.db"}


def test_the_table(make: Make) -> None:
    assert describe_runs([]) == "No runs here. A first one: python train_slimpajama.py --test"
    make("", "20261126-030512-ab12", source="a\x1b[2J/" + "long" * 20, documents=3)
    make("earlier/a", "20261125-030512-ab12", outcome=None)
    lines = describe_runs(find_runs(Path("training_viz"))).splitlines()
    assert lines[0].split() == ["run", "started", "data", "model", "documents", "loss", "(last", "200)"]
    assert "a�[2J/lo" in lines[1] and "…" in lines[1] and "small 13.8 M" in lines[1]
    assert lines[1].split()[-4:] == ["3", "of", "10", "1.0000"]
    assert "kB on disk" in lines[2] and lines[2].startswith("    done; ") and lines[5].startswith("    cut off; ")
    assert len(lines) == 7 and all(len(line) <= 100 for line in lines if "to go on" not in line)
    assert all(line.isprintable() for line in lines)


def test_deleting_removes_what_is_of_the_run_and_nothing_else(make: Make, root: Path) -> None:
    make("", "b")
    kept = files(root)
    viz = make("earlier/a", "a")
    checkpoints = root / "checkpoints" / "earlier" / "a"
    more = [viz / "training_latest.png", checkpoints / ".checkpoint_step_9.bin.4711.tmp"]
    for path in more:
        path.touch()
    run = next(run for run in find_runs(root / "training_viz") if run.run_id == "a")
    first, *folders, last = confirm_text(run).splitlines()
    assert first.startswith("Delete run a (3 documents, ") and last == "Nothing else in these folders is touched."
    assert folders[0].startswith(f"  {viz.relative_to(root)}: run.db, 2 charts (")
    names = [f"checkpoint_step_{number}.bin{ending}" for number in (2, 3) for ending in ("", ".sha256")]
    assert folders[1] == f"  checkpoints/earlier/a: .checkpoint_step_9.bin.4711.tmp, {', '.join(names)} (2.0 kB)"
    delete_run(run)
    assert files(root) == kept
    assert [run.run_id for run in find_runs(root / "training_viz")] == ["b"]


@pytest.mark.parametrize("name", ["notes.txt", "run.db-backup", "training_notes.png", ".hidden"])
def test_a_file_of_a_person_stays_and_its_folder(make: Make, root: Path, name: str) -> None:
    viz = make("test/earlier/a", "a")
    (viz / name).write_text("mine")
    (root / "checkpoints" / "test" / "earlier" / "a" / "checkpoint_step_2-good.bin").write_text("mine")
    delete_run(find_runs(root / "training_viz")[0])
    assert {path for path in files(root) if path.is_file()} == {
        viz / name,
        root / "checkpoints" / "test" / "earlier" / "a" / "checkpoint_step_2-good.bin",
    }
    assert not find_runs(root / "training_viz")


def test_the_folders_of_a_run_that_is_not_earlier_stay(make: Make, root: Path) -> None:
    viz = make("", "a")
    delete_run(find_runs(viz)[0])
    assert files(root) == {viz, root / "checkpoints"}


def test_a_delete_that_fails_can_be_made_again(make: Make, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail at the first removal, the second, and so on until one gets through."""
    viz = root / "training_viz"
    unlink = Path.unlink
    for allowed in range(100):
        shutil.rmtree(viz, ignore_errors=True)
        shutil.rmtree(root / "checkpoints", ignore_errors=True)
        make("earlier/a", "a")
        (run,) = find_runs(viz)
        left = allowed

        def fail(path: Path, missing_ok: bool = False) -> None:
            nonlocal left
            if left == 0 and path.name != ".run.lock":
                raise OSError(5, "Input/output error", str(path))
            left -= 1
            unlink(path, missing_ok)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "unlink", fail)
            try:
                delete_run(run)
            except OSError:
                failed = True
            else:
                failed = False
        if not failed:
            assert allowed > 6
            assert not viz.joinpath("earlier").exists()
            return
        (again,) = find_runs(viz)
        assert again.run_id == "a"
        delete_run(again)
        assert not [path for path in files(viz, root / "checkpoints") if path.is_file()]


def test_what_has_moved_meanwhile_is_not_deleted(make: Make, root: Path) -> None:
    viz = make("", "a")
    (run,) = find_runs(viz)
    shutil.rmtree(viz)
    make("", "b")
    with pytest.raises(ValueError, match="holds run b now, not a"):
        delete_run(run)
    (run,) = find_runs(viz)
    (root / "checkpoints" / ".run").write_text(json.dumps({"run_id": "c", "viz": "elsewhere"}))
    with pytest.raises(ValueError, match=r"no longer in .*checkpoints: look again"):
        delete_run(run)
    assert {"run.db", "checkpoint_step_3.bin"} <= {path.name for path in files(root)}


@pytest.mark.parametrize("place", ["", "earlier/a"])
def test_checkpoints_that_were_set_aside_are_counted_asked_about_and_deleted(
    make: Make, root: Path, place: str
) -> None:
    """Of a run that lives in the usual folders, and of one that was archived after it had gone back."""
    make(place, "a")
    aside = root / "checkpoints" / "earlier" / "a-before-going-back-to-2"
    aside.mkdir(parents=True, exist_ok=True)
    (aside / "checkpoint_step_9.bin").write_bytes(b"x" * 50_000)
    other = root / "checkpoints" / "earlier" / "another-before-going-back-to-2"
    other.mkdir()
    (other / "checkpoint_step_9.bin").write_bytes(b"x")
    (run,) = find_runs(Path("training_viz"))
    assert run.bytes_on_disk > 50_000 and run.newest_checkpoint == 3
    assert "a-before-going-back-to-2" in confirm_text(run) and "checkpoint_step_9.bin" in confirm_text(run)
    delete_run(run)
    assert not aside.exists() and (other / "checkpoint_step_9.bin").exists()
