"""`habana_frameworks.torch.core`: flushing, and what prepares a model for inference.

Source: HabanaAI/gaudi-pytorch-bridge 1.19.0, `core/step_closure.py`, `core/quantization.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

from gaudicc.emulator.emulation import current
from gaudicc.emulator.surface.device import enable_inference_mode
from gaudicc.emulator.surface.internal import is_lazy
from gaudicc.emulator.surface.marks import no_op
from gaudicc.emulator.tensor import HpuTensor
from gaudicc.errors import DeviceError

__all__ = [
    "_check_params_as_const",
    "_mark_params_as_const",
    "_mark_step_if_lazy",
    "add_step_closure",
    "hpu_inference_initialize",
    "hpu_inference_set_env",
    "hpu_initialize",
    "hpu_reset_env",
    "hpu_set_env",
    "hpu_set_inference_env",
    "hpu_teardown_inference_env",
    "is_lazy",
    "iter_mark_step",
    "mark_step",
]  # fmt: skip

_CLOSURES: list[Callable[[], None]] = []
CONST_ID = "_gaudicc_const_id"


def mark_step(device_str: str = "", sync: bool = False) -> None:
    """Runs what lazy mode has gathered, then the step closures; in the other modes it does nothing.

    Inside a capture it ends one recorded sub-graph and begins the next.
    """
    if not is_lazy():
        return
    current().acquire()
    current().flush()
    closures = _CLOSURES[:]
    _CLOSURES.clear()
    for closure in closures:
        closure()


_mark_step_if_lazy = mark_step


def iter_mark_step(device_str: str = "") -> None:
    """The same, at the end of an iteration."""
    mark_step(device_str)


def add_step_closure(closure: Callable[..., None], args: tuple[Any, ...] = ()) -> None:
    """Calls a function after the next `mark_step`; nothing in the other modes."""
    if is_lazy():
        _CLOSURES.append(lambda: closure(*args))


def hpu_inference_initialize(
    model: nn.Module | None = None,
    mark_only_scales_as_const: bool = False,
    optimizer: object = None,
    args: object = None,
) -> None:
    """Marks the parameters and buffers of a model on the device as constant; recipes here do not depend on it."""
    enable_inference_mode()
    if is_lazy():
        _mark_params_as_const(model, mark_only_scales_as_const)
        _check_params_as_const(model, mark_only_scales_as_const)


def hpu_set_inference_env(model: nn.Module | None = None) -> nn.Module | None:
    """Prepares inference; called before the model moves. Convolution and batch norm stay two ops here.

    Returns:
        The model.
    """
    enable_inference_mode()
    return model


@no_op("it turns off the switches of hpu_set_inference_env, which change no result")
def hpu_teardown_inference_env() -> None:
    """Accepted."""


hpu_initialize, hpu_set_env, hpu_reset_env = hpu_inference_initialize, hpu_set_inference_env, hpu_teardown_inference_env
hpu_inference_set_env = hpu_set_inference_env  # the name since release 1.20


def _state(model: nn.Module | None, only_scales: bool) -> Iterator[tuple[str, Tensor]]:
    state: dict[str, Tensor] = model.state_dict(keep_vars=True) if model is not None else {}
    return ((name, tensor) for name, tensor in state.items() if not only_scales or "scale" in name)


def _mark_params_as_const(
    model: nn.Module | None = None, only_scales: bool = False, console_prints: bool = False
) -> None:
    for name, tensor in _state(model, only_scales):
        if not hasattr(tensor, CONST_ID):
            setattr(tensor, CONST_ID, name)
            if isinstance(tensor, HpuTensor):
                current().constants.mark(tensor.raw)


def _check_params_as_const(model: nn.Module | None = None, only_scales: bool = False) -> None:
    kept = {id(tensor) for module in (model,) if module for tensor in (*module.parameters(), *module.buffers())}
    for name, tensor in _state(model, only_scales):
        if id(tensor) in kept and not hasattr(tensor, CONST_ID):  # a hook may make others anew for each state dict
            raise DeviceError(f"{name} is not marked as constant", hint="call hpu_inference_initialize(model) first")
