"""The record of a run: its store, charts, page and exports. Imports neither `torch` nor `trainer`.

In a notebook, `viz.load()` returns the steps of a run as a DataFrame, and `viz.show()` its chart.
"""

from viz.notebook import load, show

__all__ = ["load", "show"]
