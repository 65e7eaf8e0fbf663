"""Where torch asks C++ for something that a device written in Python cannot give, torch is changed in this process.

Each change: a module's `to` keeps its parameters' identity, assigning a device tensor to a CPU tensor's `data` works, a
generator for `hpu` can be made, `torch.accelerator` answers, `fork_rng` keeps the device's state, a saved device tensor comes
back on the device, and torch's own layers do not take `hpu` for a device that has their fused kernels: on a Gaudi it is no
PrivateUse1 device.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from gaudicc.emulator import backend, collectives, flexible, kinds, saving, streams, tracing
from gaudicc.emulator.emulation import current
from gaudicc.emulator.tensor import DEVICE, HpuTensor


def apply() -> None:
    """Make the changes, once per process."""
    tensor, library = _changeable()
    kinds.register()
    tensor.pin_memory, tensor.is_pinned = _pin_memory, _is_pinned
    library.Generator = _Generator
    library.Stream, library.Event = _Stream, _Event
    _share_services(library)
    library.random.fork_rng = _forking(library.random.fork_rng)
    library.utils.backend_registration._privateuse1_backend_name = "privateuseone"
    saving.register()
    collectives.register()
    flexible.register()
    if current().settings.lazy:
        library.compile = _preparing(library.compile)
    else:
        backend.register()


_SERVICES = (
    "empty_cache", "max_memory_allocated", "max_memory_reserved", "memory_allocated", "memory_reserved", "memory_stats",
    "reset_accumulated_memory_stats", "reset_peak_memory_stats", "synchronize",
)  # fmt: skip


def _share_services(library: Any) -> None:
    """`torch.accelerator` asks C++ for what `torch.hpu` knows; older torch has fewer of these, or none."""
    accelerator = getattr(library, "accelerator", None)
    for name in _SERVICES:
        if hasattr(accelerator, name):
            setattr(accelerator, name, getattr(library.hpu, name))


def _preparing(original: Callable[..., Any]) -> Callable[..., Any]:
    """Lazy mode has no backend that works; those of torch, which `flex_attention` uses, see device tensors all the same."""

    @wraps(original)
    def compile(*args: Any, **kwargs: Any) -> Any:
        tracing.prepare()
        backend.register_refusal()
        return original(*args, **kwargs)

    return compile


def _changeable() -> tuple[Any, Any]:
    """What is changed, as mypy lets it be."""
    return Tensor, torch


def _forking(original: Callable[..., Any]) -> Callable[..., Any]:
    """`fork_rng()` keeps the state of `hpu` unless another device is named."""

    def fork_rng(*args: Any, device_type: str = DEVICE, **kwargs: Any) -> Any:
        return original(*args, device_type=device_type, **kwargs)

    return fork_rng


_CpuGenerator: Any = torch.Generator


class _Generator(_CpuGenerator):  # type: ignore[misc]
    """A CPU generator that says it is the device's when it was made for it."""

    def __new__(cls, device: Any = "cpu") -> Any:
        """Made on the CPU: torch asks C++ for one on the device."""
        made = _CpuGenerator.__new__(cls, "cpu")
        made.on = torch.device(device)
        return made

    def __init__(self, device: Any = "cpu") -> None:
        super().__init__()

    @property
    def device(self) -> torch.device:
        """Where it was made for."""
        on: torch.device = self.on
        return on


class _OursToo(type):
    """The type of a class of torch's that makes ours for `hpu`, where torch asks C++ for one."""

    theirs: Any
    ours: Any

    def __call__(cls, *args: Any, **named: Any) -> Any:
        device = named.get("device", args[0] if args else None)
        if isinstance(device, (str, torch.device)) and torch.device(device).type == DEVICE:
            return cls.ours(**{name: value for name, value in named.items() if name != "device"})
        return cls.theirs(*args, **named)

    def __instancecheck__(cls, found: object) -> bool:
        return isinstance(found, (cls.theirs, cls.ours))


class _Stream(metaclass=_OursToo):
    """`torch.Stream`."""

    theirs, ours = torch.Stream, streams.Stream


class _Event(metaclass=_OursToo):
    """`torch.Event`."""

    theirs, ours = torch.Event, streams.Event


def _pin_memory(self: Tensor, device: Any = None) -> Tensor:
    """A copy that answers True to `is_pinned`; the memory is plain."""
    if isinstance(self, HpuTensor):
        raise RuntimeError(f"cannot pin '{self.device}' only dense CPU tensors can be pinned")  # noqa: TRY004
    copy = self.clone()
    copy._gaudicc_pinned = True  # type: ignore[attr-defined]
    return copy


def _is_pinned(self: Tensor, device: Any = None) -> bool:
    return bool(getattr(self, "_gaudicc_pinned", False))
