"""The colours as colour-blind readers see them."""

from collections.abc import Sequence

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from viz.charts.style import DARK, LIGHT, LINE_STYLES, Palette

# Machado, Oliveira & Fernandes 2009, severity 1: linear RGB as it looks without one kind of cones.
SEEN_AS = {
    "all cones": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def nearest(colours: Sequence[str], eye: str) -> float:
    """Return the smallest distance between two colours, CIELAB delta E 1976; 2.3 is just noticeable side by side."""
    rgb = np.array([to_rgb(colour) for colour in colours])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4) @ np.array(SEEN_AS[eye]).T
    ratio = np.clip(linear, 0, 1) @ XYZ.T / [0.9505, 1, 1.089]
    x, y, z = np.where(ratio > 0.008856, np.cbrt(ratio), 7.787 * ratio + 16 / 116).T
    lab = np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=1)
    apart = np.linalg.norm(lab[:, None] - lab[None], axis=2)
    return float(apart[np.triu_indices(len(colours), 1)].min())


@pytest.mark.parametrize("eye", SEEN_AS)
@pytest.mark.parametrize("palette", [LIGHT, DARK])
def test_colours_are_distinguishable(palette: Palette, eye: str) -> None:
    assert nearest(palette.sources, eye) > 25
    assert nearest([palette.main, palette.second, palette.held_out], eye) > 10  # the last one has points too
    assert len(set(LINE_STYLES)) == len(palette.sources) == 7


def test_the_distance_check_can_fail() -> None:
    assert nearest(["#d55e00", "#b98200"], "all cones") > 25  # orange and ochre
    assert nearest(["#d55e00", "#b98200"], "deuteranopia") < 5
