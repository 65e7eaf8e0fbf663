"""What `habana_frameworks.torch.utils.experimental` has beside `utils.debug`.

Source: HabanaAI/gaudi-pytorch-bridge 1.19.0, `utils/experimental/__init__.py`; `_set_is_dynamic_quantization` and
`_set_scale_attributes` came later, intel/neural-compressor calls them.
"""

from __future__ import annotations

from typing import Any

from gaudicc.emulator.surface.device import init
from gaudicc.emulator.surface.marks import no_op, refused

__all__ = [
    "_compute_stream", "_is_available", "_is_fp16_supported", "_is_model_param_initialized", "_is_optim_state_initialized",
    "_record_param", "_record_params", "_reset_device_memory", "_set_is_dynamic_quantization",
    "_set_profiler_tracer_memory", "_set_scale_attributes",
]  # fmt: skip

_reset_device_memory = refused(
    "utils.experimental._reset_device_memory", "it wipes the card for the vendor's own tests"
)


def _is_available() -> bool:
    """Whether there is a device; opens it."""
    init()
    return True


@no_op("it names parameters for a memory tracer of the bridge")
def _record_param(*_: Any, **__: Any) -> None:
    """Accepted."""


@no_op("it names parameters for a memory tracer of the bridge")
def _record_params(model: Any = None, optimizer: Any = None, force_model_update: bool = False) -> None:
    """Accepted."""


def _is_model_param_initialized() -> bool:
    """No: the bridge sets what it answers from in another scope, so it stays as it began."""
    return False


_is_optim_state_initialized = _is_model_param_initialized


@no_op("nothing is traced; the account says what the device did")
def _set_profiler_tracer_memory(device_id: int) -> int:
    """Accepted."""
    return 0


def _is_fp16_supported() -> bool:
    """Yes: only the first Gaudi had no float16."""
    return True


def _compute_stream() -> int:
    """The handle of the default stream."""
    return 0


@no_op("it tells the graph compiler where scales come from, and changes no result")
def _set_is_dynamic_quantization(dynamic: bool) -> None:
    """Accepted; later than release 1.19."""


@no_op("it tells the graph compiler where scales come from, and changes no result")
def _set_scale_attributes(*args: Any) -> None:
    """Accepted; later than release 1.19."""
