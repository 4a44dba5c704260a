from pathlib import Path

import numpy as np
import pytest

import viz
from tests.viz.conftest import Metrics, run_python
from viz.record.reader import StoreReader
from viz.record.schema import rows_of
from viz.record.writer import StoreWriter


def test_load_returns_the_steps_as_a_frame(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with StoreReader(filled / "run.db") as store:
        columns = store.columns()
    frame = viz.load(filled)
    assert frame.index.name == "step" and frame.index.tolist() == list(range(20))
    assert list(frame.columns) == [name for name in columns if name != "steps"]
    for name in frame.columns:
        assert frame[name].tolist() == columns[name].tolist()
    assert frame.groupby("source")["loss"].count().to_dict() == {"python-code": 10, "python-docs": 10}
    assert viz.load(str(filled / "run.db")).equals(frame)
    monkeypatch.chdir(filled.parent)
    filled.rename("training_viz")
    assert viz.load().equals(frame)


def test_load_reads_a_run_while_it_trains(tmp_path: Path, metrics: Metrics) -> None:
    writer = StoreWriter(tmp_path / "run.db", {"run_id": "r1"})
    assert len(viz.load(tmp_path)) == 0
    writer.add_rows(rows_of(metrics(0, loss=None) | {"loss": float("nan")}))
    writer.flush()
    assert np.isnan(viz.load(tmp_path)["loss"].tolist()).all()
    writer.close()


def test_show_returns_the_chart_as_an_image(filled: Path) -> None:
    image = viz.show(filled)
    assert image.size == (1600, 1000)
    dark = viz.show(filled / "run.db", step=10, dark=True, size=(1200, 800))
    assert dark.size == (1200, 800)
    assert np.asarray(dark.convert("L")).mean() < 128 < np.asarray(image.convert("L")).mean()
    assert image._repr_png_().startswith(b"\x89PNG")
    for step in (-1, 21):
        with pytest.raises(ValueError, match="has 20 documents"):
            viz.show(filled, step=step)


def test_a_folder_without_a_readable_run_is_one_line(tmp_path: Path) -> None:
    for ask in (viz.load, viz.show):
        with pytest.raises(ValueError, match=r"^there is no run in .* \(no run.db\)$"):
            ask(tmp_path / "run.db")
    (tmp_path / "run.db").write_bytes(b"not a database, " * 100)
    for ask in (viz.load, viz.show):
        with pytest.raises(ValueError, match=r"run\.db can't be read"):
            ask(tmp_path)


def test_importing_the_package_loads_no_library() -> None:
    script = "import viz, sys; print(*{'pandas', 'PIL', 'numpy', 'matplotlib', 'torch'} & sys.modules.keys())"
    assert run_python("-c", script).stdout == "\n"
