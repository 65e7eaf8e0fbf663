"""Registers `hpu` with torch as a device written in Python, under the dispatch key PrivateUse1.

It cannot be taken back: a process is either emulated or not. Private torch names are used here and in `patches`.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.library import Library, fallthrough_kernel
from torch.utils import backend_registration

from gaudicc.emulator.dispatch import dispatch
from gaudicc.emulator.emulation import current
from gaudicc.emulator.tensor import DEVICE, HpuTensor
from gaudicc.emulator.transfers import copy

_LIBRARIES: list[Library] = []


class _Guard(torch._C._acc.DeviceGuard):
    """There is one device, so nothing is switched."""

    def type_(self) -> Any:
        return torch._C._autograd.DeviceType.PrivateUse1


class _Hooks(torch._C._acc.PrivateUse1Hooks):
    """What torch asks of a backend."""

    def is_available(self) -> bool:
        return True

    def has_primary_context(self, device: int) -> bool:
        return True

    def is_built(self) -> bool:
        return True


def register(module: ModuleType) -> None:
    """Make `hpu` a device of this process.

    Args:
        module: becomes `torch.hpu`; it must be complete.
    """
    backend_registration._setup_privateuseone_for_python_backend(DEVICE, module, _Hooks(), _Guard())
    everything = Library("_", "IMPL")
    everything.fallback(_without_tensor, "PrivateUse1")
    everything.fallback(fallthrough_kernel, "AutocastPrivateUse1")
    aten = Library("aten", "IMPL")
    # Reached from C++ with the Python key switched off, where the fallback above cannot be called: `torch.tensor` in a mode.
    aten.impl("empty_strided", _empty_strided, "PrivateUse1")
    aten.impl("_copy_from", _copy_from, "PrivateUse1")
    aten.impl("_local_scalar_dense", _local_scalar_dense, "PrivateUse1")
    _LIBRARIES.extend((everything, aten))


def _without_tensor(op: Any, *args: Any, **kwargs: Any) -> Any:
    """Ops that carry no device tensor, such as factories, come here instead of `HpuTensor.__torch_dispatch__`."""
    return dispatch(op, args, kwargs)


def _empty_strided(*args: Any, **kwargs: Any) -> Any:
    return dispatch(torch.ops.aten.empty_strided.default, args, kwargs)


def _local_scalar_dense(tensor: Tensor) -> Any:
    """`torch.tensor([x])` reads a device tensor x."""
    return dispatch(torch.ops.aten._local_scalar_dense.default, (tensor,), {})


def _copy_from(source: Tensor, destination: Tensor, non_blocking: bool = False) -> Tensor:
    def on_device(*_: Any) -> Any:
        assert isinstance(destination, HpuTensor)
        return dispatch(torch.ops.aten.copy_.default, (destination, source), {})

    copied: Tensor = copy(current(), on_device, (destination, source), {})
    return copied
