"""Devices, signals and files: what every other package builds on."""
