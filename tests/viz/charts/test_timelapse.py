from pathlib import Path

import pytest
from PIL import Image

from tests.viz.conftest import write_store
from viz.charts.timelapse import make_timelapse


@pytest.mark.parametrize("name", ["run.gif", "run.PNG"])
def test_a_time_lapse_shows_the_run_from_start_to_end(filled: Path, name: str) -> None:
    assert make_timelapse(filled, filled / name, frames=4, seconds=1.2, size=(400, 250)) == 4
    with Image.open(filled / name) as film:
        assert film.n_frames == 4 and film.size == (400, 250)
        durations, frames = [], []
        for number in range(4):
            film.seek(number)
            durations.append(film.info["duration"])
            frames.append(film.convert("RGB").tobytes())
    assert durations == [300, 300, 300, 2000]
    assert len(set(frames)) == 4


def test_a_short_run_has_a_frame_for_each_document(filled: Path) -> None:
    assert make_timelapse(filled, filled / "run.gif", frames=60, size=(400, 250)) == 19  # from the second document on


def test_impossible_time_lapses_are_refused(filled: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.raises(ValueError, match=r"must end in \.gif or \.png"):
        make_timelapse(filled, filled / "run.mp4")
    for frames, seconds in ((1, 1.0), (601, 60.0), (100, 1.0)):
        with pytest.raises(ValueError, match="has 2 to 600 frames"):
            make_timelapse(filled, filled / "run.gif", frames=frames, seconds=seconds)
    empty = write_store(tmp_path_factory.mktemp("empty"))
    with pytest.raises(ValueError, match="has no steps yet"):
        make_timelapse(empty, empty / "run.gif")
    assert not list(empty.glob("*.gif*"))
