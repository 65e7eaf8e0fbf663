"""Which device runs the plans: by name, or the best that answers."""

from __future__ import annotations

import importlib.util

from gaudicc.errors import DeviceError
from gaudicc.runtime.cpu import CpuDevice
from gaudicc.runtime.device import Device

NAMES = ("auto", "cpu", "hpu", "cuda")


def open_device(name: str) -> tuple[Device, str]:
    """Opens a device.

    Args:
        name: `cpu`, or `auto`: a real Gaudi if one answers, else cpu; never an emulated one and never cuda.

    Returns:
        The device, and a sentence that says which one was chosen and why.

    Raises:
        DeviceError: the name is unknown, or nothing answers by it.
    """
    if name not in NAMES:
        raise DeviceError(f"unknown device {name!r}", hint=f"choose one of {', '.join(NAMES)}")
    if name == "cpu":
        return CpuDevice(), "device cpu, as asked"
    if name == "auto":
        why = "habana_frameworks is not installed" if not gaudi_software() else "gaudicc cannot record on hpu yet"
        return CpuDevice(), f"device cpu: {why}"
    raise DeviceError(f"device {name!r} cannot be recorded on by this version of gaudicc", hint="use device='cpu'")


def gaudi_software() -> bool:
    """Whether the Gaudi software is installed; says nothing of whether a card answers."""
    return importlib.util.find_spec("habana_frameworks") is not None
