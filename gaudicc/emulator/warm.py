"""Imports all of the emulator without starting a device: for a process that others are forked from."""

import importlib

from gaudicc.emulator import autocast, device, metrics, ops, patches, tree

for _file in sorted({file for files in tree.MODULES.values() for file in files}):
    importlib.import_module(f"gaudicc.emulator.surface.{_file}")

__all__ = ["autocast", "device", "metrics", "ops", "patches"]
