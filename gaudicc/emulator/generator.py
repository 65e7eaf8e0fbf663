"""The device's random generator: a CPU generator of its own, so that device and host draw separate sequences.

The same seed gives the same state as on the CPU; the numbers are the CPU's, not Gaudi's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

_DEVICE = torch.Generator()
_DEVICE.manual_seed(torch.initial_seed())


def hpu_generator() -> torch.Generator:
    """The default generator of the device."""
    return _DEVICE


@contextmanager
def using_hpu_generator() -> Iterator[None]:
    """Ops that take no generator draw from the device's inside; the CPU's sequence is not touched."""
    host = torch.default_generator.get_state()
    torch.default_generator.set_state(_DEVICE.get_state())
    try:
        yield
    finally:
        _DEVICE.set_state(torch.default_generator.get_state())
        torch.default_generator.set_state(host)
