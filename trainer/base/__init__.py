"""Devices, signals and files: the lowest layer, which imports nothing of ours but `errors` and `common`."""
