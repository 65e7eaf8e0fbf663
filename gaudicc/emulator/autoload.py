"""`habana_frameworks.autoload`: torch loads the package by itself, without the program importing it, but in lazy mode.

Source: HabanaAI/gaudi-pytorch-bridge 1.19.0, `autoload/__init__.py` and the entry point of `setup.py`.
"""

from __future__ import annotations

import importlib
import os
import sys

__all__ = ["__autoload", "is_autoload_enabled"]

PACKAGE = "habana-torch-plugin"
ENTRY_POINTS = "[torch.backends]\ndevice_backend = habana_frameworks.autoload:__autoload\n"
_LOADED = "habana_frameworks.torch"


def is_autoload_enabled() -> bool:
    """What `PT_HPU_AUTOLOAD` says, else whether lazy mode is off."""
    asked = os.environ.get("PT_HPU_AUTOLOAD")
    return asked == "1" if asked in ("0", "1") else os.environ.get("PT_HPU_LAZY_MODE", "1") != "1"


def __autoload() -> None:
    """Torch calls it at the end of its own import."""
    if _LOADED not in sys.modules and is_autoload_enabled():
        importlib.import_module(_LOADED)


def catch_up() -> None:
    """Where torch was imported before the package was served, do what it would have done."""
    if "torch" in sys.modules and os.environ.get("TORCH_DEVICE_BACKEND_AUTOLOAD", "1") != "0":
        __autoload()
