"""Imports all of the emulator without starting a device: for a process that others are forked from."""

import importlib

from gaudicc.emulator import autocast, device, emulation, metrics, ops, patches, tree

for _file in sorted({file for files in tree.MODULES.values() for file in files}):
    importlib.import_module(f"gaudicc.emulator.surface.{_file}")
emulation.read_target("gaudi2")

__all__ = ["autocast", "device", "emulation", "metrics", "ops", "patches"]
