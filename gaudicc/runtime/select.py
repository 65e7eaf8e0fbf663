"""Which device runs the plans: by name, or the best that answers."""

from __future__ import annotations

from gaudicc.errors import DeviceError
from gaudicc.runtime.cpu import CpuDevice
from gaudicc.runtime.device import Device
from gaudicc.runtime.hpu_software import emulated, installed

NAMES = ("auto", "cpu", "hpu", "cuda")


def open_device(name: str) -> tuple[Device, str]:
    """Opens a device.

    Args:
        name: `cpu`, `cuda`, `hpu`, or `auto`: a real Gaudi if one answers, else cpu; never an emulated one and never cuda.

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
        return _best()
    if name == "hpu":
        from gaudicc.runtime.hpu import open_hpu

        return open_hpu()
    if name == "cuda":
        from gaudicc.runtime.cuda import open_cuda  # loaded for those who ask for it only

        cuda, found = open_cuda()
        return cuda, f"device cuda, as asked: {found}"
    raise DeviceError(f"device {name!r} cannot be recorded on by this version of gaudicc", hint="use device='cpu'")


def _best() -> tuple[Device, str]:
    """A real Gaudi if one answers, else the CPU."""
    if not installed() or emulated():
        why = "the Gaudi here is emulated" if installed() else "habana_frameworks is not installed"
        return CpuDevice(), f"device cpu: {why}"
    from gaudicc.runtime.hpu import open_hpu

    try:
        return open_hpu()
    except DeviceError as error:
        return CpuDevice(), f"device cpu: {error.what}"
