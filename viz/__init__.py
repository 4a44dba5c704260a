"""The record of a run: its store, pictures and exports. Imports neither `torch` nor `trainer`."""
