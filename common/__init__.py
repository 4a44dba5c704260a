"""Torch-free code that `trainer` and `viz` share."""
