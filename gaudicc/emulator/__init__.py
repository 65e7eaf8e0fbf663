"""An emulated `hpu` device: programs written for a Gaudi run on a CPU and see `habana_frameworks.torch`.

`install()` serves the package from memory and makes `hpu` a device of this process when a program imports it. It is
asked for, never found: gaudicc itself does not use it, and beside the real package it refuses. What is emulated, what is
not and why: `docs/emulator.md`, `docs/emulator_symbols.md`.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from typing import TYPE_CHECKING

from gaudicc.emulator.children import is_stand_in
from gaudicc.emulator.tree import ROOT, TORCH, Finder, loaded
from gaudicc.errors import DeviceError

if TYPE_CHECKING:
    from gaudicc.emulator.emulation import Emulation
    from gaudicc.emulator.ledger import Ledger

__all__ = ["account", "install"]


def install() -> None:
    """Serve `habana_frameworks` from memory in this process, from now until its end.

    The device starts with what the environment says when the program first imports `habana_frameworks.torch`.

    Raises:
        DeviceError: the real package is there.
    """
    if any(isinstance(finder, Finder) for finder in sys.meta_path):
        return
    found = importlib.util.find_spec(ROOT)
    if loaded() or (found is not None and not is_stand_in(found)):
        raise DeviceError(
            "habana_frameworks is installed: emulated and real device cannot share a process",
            hint="run the program as it is, or use an environment without Gaudi's software",
        )
    sys.meta_path.insert(0, Finder(_bring_up))


def account() -> Ledger:
    """What happened on the emulated device so far.

    Raises:
        DeviceError: no program has started it.
    """
    from gaudicc.emulator.emulation import current

    return current().ledger


def _bring_up() -> Emulation:
    """Start the device and make it known to torch.

    Raises:
        DeviceError: this torch takes no device that is written in Python.
    """
    import torch

    if not hasattr(torch._C, "_acc"):
        raise DeviceError(
            f"torch {torch.__version__} takes no device that is written in Python",
            hint="emulate with torch 2.10 or later; programs compiled with gaudicc load on older ones as well",
        )
    from gaudicc.emulator import autocast, device, emulation, metrics, ops, patches

    known = emulation.started()
    emulated = emulation.start()
    if not known:
        metrics.start_metrics()
        device.register(importlib.import_module(f"{TORCH}.hpu"))
        autocast.register()
        ops.register()
        patches.apply()
    return emulated
