"""`habana_frameworks.torch.hpu`, which is also `torch.hpu`: the device and its switches.

Source: HabanaAI/gaudi-pytorch-bridge 1.19.0, `hpu/__init__.py`.
"""

from __future__ import annotations

import os
import warnings
from typing import Any

import torch

from gaudicc.emulator.emulation import current
from gaudicc.emulator.surface.marks import no_op, refused
from gaudicc.emulator.surface.typed import TYPES
from gaudicc.targets.target import RELEASE

Device = torch.device | str | int | None
_SWITCHES = {"deterministic": False, "inference": False, "quantization": False, "matmul3d_2d": False, "sif": False}

__all__ = [
    "_get_device_index",
    "_is_in_bad_fork",
    "_lazy_init",
    "can_device_access_peer",
    "current_device",
    "device",
    "device_count",
    "device_of",
    "disable_const_section_serialization",
    "disable_dynamic_shape",
    "disable_inference_mode",
    "disable_matmul3d_2d_reshape",
    "disable_optim_output_sif",
    "disable_quantization",
    "enable_const_section_serialization",
    "enable_dynamic_shape",
    "enable_inference_mode",
    "enable_matmul3d_2d_reshape",
    "enable_optim_output_sif",
    "enable_quantization",
    "getDeterministic",
    "get_amp_supported_dtype",
    "get_arch_list",
    "get_autocast_hpu_dtype",
    "get_device_capability",
    "get_device_name",
    "get_device_properties",
    "get_dynamic_shape_status",
    "get_gencode_flags",
    "get_sync_debug_mode",
    "init",
    "is_autocast_hpu_enabled",
    "is_available",
    "is_bf16_supported",
    "is_initialized",
    "memory_usage",
    "setDeterministic",
    "set_autocast_hpu_dtype",
    "set_autocast_hpu_enabled",
    "set_device",
    "set_sync_debug_mode",
    "synchronize",
    "utilization",
]  # fmt: skip


def init() -> None:
    """Opens the device."""
    current().acquire()


_lazy_init = init


def is_initialized() -> bool:
    """Whether the device is open."""
    return current().acquired


def late_attribute(name: str) -> Any:
    """`torch.hpu._initialized`, which activation checkpointing asks for, and the types of `typed`.

    Raises:
        AttributeError: any other name.
    """
    if name == "_initialized":
        return is_initialized()
    if name in TYPES:
        return TYPES[name]
    raise AttributeError(f"module 'habana_frameworks.torch.hpu' has no attribute {name!r}")


def is_available() -> bool:
    """Whether there is a device."""
    return True


def device_count() -> int:
    """One; asking does not open it."""
    return 1


def current_device() -> int:
    """The index of the one device."""
    init()
    return 0


def _get_device_index(device: Device = None, optional: bool = False) -> int:
    if isinstance(device, int):
        return device
    return (torch.device(device).index or 0) if device is not None else 0


def _is_in_bad_fork() -> bool:
    return False


def _checked(device: Device) -> None:
    if _get_device_index(device) != 0:
        raise AssertionError("Invalid device id")


def set_device(device: Device) -> None:
    """Selects the device, of which there is one.

    Raises:
        AssertionError: another one is asked for.
    """
    if _get_device_index(device) != 0:
        raise AssertionError("As HABANA_VISIBLE_MODULES is not provided, the only supported device idx is 0.")


class device:
    """A block in which a device is selected, of which there is one."""

    def __init__(self, device: Device) -> None:
        set_device(device)

    def __enter__(self) -> None:
        """Nothing to switch."""

    def __exit__(self, *_: object) -> None:
        """Nothing to switch back."""


class device_of(device):
    """A block in which the device of a tensor is selected."""

    def __init__(self, obj: torch.Tensor) -> None:
        super().__init__(0)


def get_device_name(device: Device = None) -> str:
    """GAUDI2 or GAUDI3."""
    init()
    _checked(device)
    return current().settings.target.upper()


def get_device_capability(device: Device = None) -> str:
    """The software release that is emulated."""
    _checked(device)
    return RELEASE


def get_device_properties(device: Device = None) -> str:
    """Name and memory as text."""
    _checked(device)
    return f"(name={get_device_name()}, total_memory={current().settings.memory}, emulated=True)"


def can_device_access_peer(device: Device, peer_device: Device) -> bool:
    """Raises: there is one device, and it is not its own peer."""
    _checked(device)
    _checked(peer_device)
    raise AssertionError("Both the ids are same.")


def get_gencode_flags() -> str:
    """Empty, as on a Gaudi."""
    return ""


def get_arch_list() -> list[str]:
    """The name of the device."""
    return [get_device_name()]


def is_bf16_supported() -> bool:
    """Yes."""
    return True


def synchronize(device: Device = None) -> None:
    """Runs what lazy mode has gathered and waits for it."""
    init()
    current().synchronize("synchronize")


utilization = refused("torch.hpu.utilization", "it is measured by hl-smi on a card")
memory_usage = refused("torch.hpu.memory_usage", "it is measured by hl-smi on a card; use memory_stats")


@no_op("work here is done at once in any case")
def set_sync_debug_mode(debug_mode: object) -> None:
    """Kept in `PT_ENABLE_HABANA_STREAMASYNC`, as there."""
    os.environ["PT_ENABLE_HABANA_STREAMASYNC"] = str(debug_mode)


def get_sync_debug_mode() -> int:
    """What `set_sync_debug_mode` was given, a number.

    Raises:
        KeyError: it was not called, and the variable is unset.
    """
    return int(os.environ["PT_ENABLE_HABANA_STREAMASYNC"])


def setDeterministic(val: bool) -> None:
    """Deprecated in favour of `torch.use_deterministic_algorithms`; remembered, the CPU's kernels stay as they are."""
    warnings.warn("torch.hpu.setDeterministic is deprecated: use torch.use_deterministic_algorithms", stacklevel=2)
    _SWITCHES["deterministic"] = val


def getDeterministic() -> bool:
    """What `setDeterministic` was told."""
    warnings.warn(
        "torch.hpu.getDeterministic is deprecated: use torch.are_deterministic_algorithms_enabled", stacklevel=2
    )
    return _SWITCHES["deterministic"]


def set_autocast_hpu_enabled(enabled: bool) -> None:
    """Turns autocast on or off."""
    torch.set_autocast_enabled("hpu", enabled)


def is_autocast_hpu_enabled() -> bool:
    """Whether autocast is on."""
    return torch.is_autocast_enabled("hpu")


def set_autocast_hpu_dtype(dtype: torch.dtype) -> None:
    """The dtype that autocast casts to."""
    torch.set_autocast_dtype("hpu", dtype)


def get_autocast_hpu_dtype() -> torch.dtype:
    """The dtype that autocast casts to."""
    return torch.get_autocast_dtype("hpu")


def get_amp_supported_dtype() -> list[torch.dtype]:
    """What `torch.autocast` may be asked for."""
    return [torch.bfloat16, torch.float16]


def enable_dynamic_shape() -> None:
    """Remembered; recipes stay static here."""
    current().dynamic_shapes = True


def disable_dynamic_shape() -> None:
    """Remembered."""
    current().dynamic_shapes = False


def get_dynamic_shape_status() -> bool:
    """What it was set to; an HPU graph capture turns it off and leaves it off."""
    return current().dynamic_shapes


def _switch(name: str, on: bool) -> Any:
    @no_op("it chooses kernels or layouts and changes no result")
    def switch() -> None:
        _SWITCHES[name] = on

    return switch


enable_inference_mode, disable_inference_mode = _switch("inference", True), _switch("inference", False)
enable_quantization, disable_quantization = _switch("quantization", True), _switch("quantization", False)
enable_matmul3d_2d_reshape, disable_matmul3d_2d_reshape = _switch("matmul3d_2d", True), _switch("matmul3d_2d", False)
enable_optim_output_sif, disable_optim_output_sif = _switch("sif", True), _switch("sif", False)


def enable_const_section_serialization(path: str, clear_path: bool = False, use_compression: bool = False) -> None:
    """Writes each marked constant to a file below `path/0` when the next graph compiles; nothing is compressed."""
    current().constants.enable(str(path), clear=clear_path)


def disable_const_section_serialization() -> None:
    """Writes no more."""
    current().constants.disable()
