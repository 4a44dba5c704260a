import fcntl
import json
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.viz.conftest import Metrics, execute
from viz.record.runs import FoundRun, delete_run, find_runs
from viz.record.schema import rows_of
from viz.record.writer import StoreWriter
from viz.views.run_list import confirm_text, describe_runs

Make = Callable[..., Path]
VIZ = Path("training_viz")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def make(root: Path, metrics: Metrics) -> Make:
    """`make("earlier/a", "a")`: a run in the two folders of that place, as the trainer leaves it."""

    def make(place: str, run_id: str, *, documents: int = 3, saved: tuple[int, ...] = (2, 3), **about: Any) -> Path:
        viz, checkpoints = root / VIZ / place, root / "checkpoints" / place
        mark = {"run_id": run_id, "test": "test" in place, "viz": str(viz), "checkpoints": str(checkpoints)}
        for folder in (viz, checkpoints):
            folder.mkdir(parents=True, exist_ok=True)
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


def find_one(viz: Path = VIZ) -> FoundRun:
    (run,) = find_runs(viz, program=viz.absolute().parents[len(viz.parts) - 1] / "train_slimpajama.py")
    return run


def test_every_place_is_searched_and_the_newest_run_comes_first(make: Make) -> None:
    for place, run_id, started in (("", "b", 2), ("test", "c", 3), ("earlier/a", "a", 1), ("test/earlier/d", "d", 4)):
        make(place, run_id, started=started)
    runs = find_runs(VIZ)
    assert [run.run_id for run in runs] == ["d", "c", "b", "a"]
    assert [run.is_test for run in runs] == [True, True, False, False]


def test_what_is_known_about_a_run(make: Make, root: Path) -> None:
    make("", "a", documents=0, saved=())
    run = find_one()
    assert (run.documents, run.loss, run.newest_checkpoint, run.why_not) == (0, None, None, "there is no checkpoint")
    shutil.rmtree(VIZ)
    viz = make("", "a", documents=250, config={"num_steps": 1000})
    run = find_one()
    assert (run.source, run.model, run.documents, run.steps_asked) == ("python-library", "small 13.8 M", 250, 1000)
    assert run.loss == pytest.approx(sum(range(50, 250)) / 200)
    assert (run.outcome, run.is_running, run.newest_checkpoint) == ("done", False, 3)
    assert run.checkpoints == root / "checkpoints"
    assert run.bytes_on_disk == (viz / "run.db").stat().st_size + len(b"picture") + 2 * (1000 + len(b"digest"))


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
def test_the_command_that_resumes_a_run(make: Make, place: str, about: dict[str, Any], words: str) -> None:
    make(place, "a", **about)
    run = find_one()
    assert run.resume_command == f"python train_slimpajama.py {words}"
    assert run.resume_command in describe_runs([run])


def test_the_command_names_unusual_folders(make: Make, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make("earlier/a", "a")

    def command(viz: str) -> str:
        (run,) = find_runs(Path(viz), program=root / "train_slimpajama.py")
        return str(run.resume_command)

    (root / "below").mkdir()
    monkeypatch.chdir(root / "below")
    assert command("../training_viz") == f"python ../train_slimpajama.py --out {root} --resume a"
    monkeypatch.chdir(root)
    shutil.move("training_viz", "below/training_viz")
    shutil.move("checkpoints", "below/checkpoints")
    assert command("below/training_viz") == "python train_slimpajama.py --out below --resume a"
    (root / "below").rename(root / "two words\n")
    printed = command("two words\n/training_viz")
    assert printed.isprintable()
    shell = ["bash", "-c", f"printf '%s|' {printed}"]
    words = subprocess.run(shell, capture_output=True, text=True, check=True).stdout.split("|")
    assert words == ["python", "train_slimpajama.py", "--out", "two words\n", "--resume", "a", ""]
    (root / "two words\n").rename(root / "it's")
    shutil.move("it's/training_viz", "it's/pictures")
    assert shlex.split(command("it's/pictures"))[2:] == [
        *("--viz-dir", "it's/pictures"), *("--checkpoint-dir", "it's/checkpoints"), *("--resume", "a")
    ]  # fmt: skip


def test_record_and_checkpoints_in_unrelated_folders(make: Make, root: Path) -> None:
    viz = make("", "a")
    shutil.move("checkpoints", "elsewhere")
    for folder in (viz, root / "elsewhere"):
        mark = {"run_id": "a", "test": False, "viz": str(viz), "checkpoints": str(root / "elsewhere")}
        (folder / ".run").write_text(json.dumps(mark))
    assert find_one().resume_command == "python train_slimpajama.py --checkpoint-dir elsewhere --resume a"


def test_a_copy_has_its_own_checkpoints_or_none(make: Make, root: Path) -> None:
    make("earlier/a", "a")
    for name in ("training_viz", "checkpoints"):
        shutil.copytree(root / name, root / "copy" / name)
    run = find_one(Path("copy/training_viz"))
    assert run.checkpoints == root / "copy" / "checkpoints" / "earlier" / "a"
    delete_run(run)
    shutil.copytree(root / VIZ, root / "record_alone")
    run = find_one(Path("record_alone"))
    assert run.checkpoints is None
    delete_run(run)
    assert find_one().newest_checkpoint == 3


def test_a_running_run_is_detected_and_nothing_is_written(make: Make, root: Path) -> None:
    viz = make("", "a", outcome=None)
    before = files(root)
    assert not find_one().is_running and files(root) == before
    with locked(viz):
        run = find_one()
        assert run.is_running and run.resume_command is None and run.why_not == "it is running"
        assert "    running; " in describe_runs([run])
        before = files(root)
        with pytest.raises(ValueError, match=r"in use by a run \(process 4711\): stop the run first"):
            delete_run(run)
        assert files(root) - {root / "checkpoints" / ".run.lock"} == before
    assert not find_one().is_running


def _overwrite(path: Path) -> None:
    path.write_bytes(b"not a database, " * 100)


def _overwrite_middle(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(8192)
        file.write(b"\xff" * (path.stat().st_size - 8192))


def _replace(path: Path) -> None:
    path.unlink()
    execute(path, "CREATE TABLE run (id)")


@pytest.mark.parametrize(
    "damage",
    [
        _overwrite, _overwrite_middle, _replace, "DELETE FROM run", "DROP TABLE steps", "PRAGMA user_version = 99",
        "UPDATE run SET config = '[]'", "UPDATE run SET started = 'yesterday'",
    ],
)  # fmt: skip
def test_a_run_that_can_not_be_read_is_listed_with_the_reason(make: Make, damage: Any) -> None:
    """After damage to its record: a function or an SQL statement."""
    path = make("", "a") / "run.db"
    execute(path, damage) if isinstance(damage, str) else damage(path)
    run = find_one()
    assert (run.run_id, run.newest_checkpoint) == ("a", 3)
    assert str(VIZ / "run.db") in run.problem and "\n" not in run.problem
    assert run.resume_command is None and run.why_not == "its record can't be read"
    assert run.problem in describe_runs([run])
    delete_run(run)
    assert not find_runs(VIZ)


def test_a_record_of_an_earlier_version_can_not_be_resumed_but_a_missing_one_can(make: Make) -> None:
    viz = make("", "a")
    execute(viz / "run.db", "PRAGMA user_version = 3")
    run = find_one()
    assert run.documents == 3 and not run.problem and "earlier version" in run.why_not
    (viz / "run.db").unlink()
    run = find_one()
    assert "run.db" in run.problem and str(run.resume_command).endswith("--resume a")


def test_a_foreign_file_is_never_deleted(root: Path) -> None:
    VIZ.mkdir()
    _overwrite(VIZ / "run.db")
    with pytest.raises(ValueError, match="no run with an id"):
        delete_run(find_one())
    assert files(VIZ) == {VIZ / "run.db"}


def test_the_table(make: Make) -> None:
    assert "python train_slimpajama.py --test" in describe_runs([])
    make("", "20261126-030512-ab12", source="a\x1b[2J/" + "long" * 20, documents=3)
    make("earlier/a", "20261125-030512-ab12", outcome=None)
    runs = find_runs(VIZ)
    lines = describe_runs(runs).splitlines()
    assert lines[0].split() == ["run", "started", "data", "model", "documents", "loss", "(last", "200)"]
    assert "a�[2J/lo" in lines[1] and "…" in lines[1] and "small 13.8 M" in lines[1]
    assert lines[1].split()[-4:] == ["3", "of", "10", "1.0000"]
    assert lines[2].startswith("    done; ") and lines[5].startswith("    ended unexpectedly; ") and len(lines) == 7
    assert all(line.isprintable() for line in lines)
    commands = [str(run.resume_command) for run in runs]
    assert all(len(line) <= 100 for line in lines if not line.endswith(tuple(commands)))


def test_deleting_removes_the_files_of_the_run_and_nothing_else(make: Make, root: Path) -> None:
    make("", "b")
    kept = files(root)
    viz, checkpoints = make("earlier/a", "a"), root / "checkpoints" / "earlier" / "a"
    for path in (viz / "training_latest.png", checkpoints / ".checkpoint_step_9.bin.4711.tmp"):
        path.touch()
    (viz / ".training_latest.png.4711.tmp").touch()
    run = next(run for run in find_runs(VIZ) if run.run_id == "a")
    first, *folders, _ = confirm_text(run).splitlines()
    assert "run a (3 documents, " in first
    assert folders[0].startswith("  training_viz/earlier/a: .training_latest.png.4711.tmp, run.db, 2 charts (")
    names = [f"checkpoint_step_{number}.bin{ending}" for number in (2, 3) for ending in ("", ".sha256")]
    assert folders[1] == f"  checkpoints/earlier/a: .checkpoint_step_9.bin.4711.tmp, {', '.join(names)} (2.0 kB)"
    delete_run(run)
    assert files(root) == kept
    delete_run(find_one())
    assert files(root) == {root / VIZ, root / "checkpoints"}  # the usual folders stay


@pytest.mark.parametrize("name", ["notes.txt", "run.db-backup", "training_notes.png", ".hidden"])
def test_files_of_the_user_and_their_folder_stay(make: Make, root: Path, name: str) -> None:
    viz = make("test/earlier/a", "a")
    mine = {viz / name, root / "checkpoints" / "test" / "earlier" / "a" / "checkpoint_step_2-good.bin"}
    for path in mine:
        path.write_text("mine")
    delete_run(find_one())
    assert {path for path in files(root) if path.is_file()} == mine
    assert not find_runs(VIZ)


def test_a_delete_that_fails_can_be_repeated(make: Make, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail at the first removal, the second, and so on until one succeeds."""
    unlink = Path.unlink
    for allowed in range(100):
        for folder in (root / VIZ, root / "checkpoints"):
            shutil.rmtree(folder, ignore_errors=True)
        make("earlier/a", "a")
        run, left = find_one(), allowed

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
            assert allowed > 6 and not (VIZ / "earlier").exists()
            return
        again = find_one()
        assert again.run_id == "a"
        delete_run(again)
        assert not [path for path in files(VIZ, root / "checkpoints") if path.is_file()]


def test_a_run_that_has_moved_is_not_deleted(make: Make, root: Path) -> None:
    viz = make("", "a")
    run = find_one()
    shutil.rmtree(viz)
    make("", "b")
    with pytest.raises(ValueError, match=r"run b.*not a"):
        delete_run(run)
    run = find_one()
    (root / "checkpoints" / ".run").write_text(json.dumps({"run_id": "c", "viz": "elsewhere"}))
    with pytest.raises(ValueError, match=r"no longer in .*checkpoints"):
        delete_run(run)
    assert {"run.db", "checkpoint_step_3.bin"} <= {path.name for path in files(root)}


@pytest.mark.parametrize("place", ["", "earlier/a"])
def test_checkpoints_that_were_set_aside_belong_to_the_run(make: Make, root: Path, place: str) -> None:
    """For a run in the usual folders, and for one that was archived after a rollback."""
    make(place, "a")
    earlier = root / "checkpoints" / "earlier"
    for name, size in (("a-before-going-back-to-2", 50_000), ("another-before-going-back-to-2", 1)):
        (earlier / name).mkdir(parents=True)
        (earlier / name / "checkpoint_step_9.bin").write_bytes(b"x" * size)
    run = find_one()
    assert run.bytes_on_disk > 50_000 and run.newest_checkpoint == 3
    assert "a-before-going-back-to-2" in confirm_text(run) and "checkpoint_step_9.bin" in confirm_text(run)
    delete_run(run)
    assert {path.name for path in earlier.iterdir()} == {"another-before-going-back-to-2"}
