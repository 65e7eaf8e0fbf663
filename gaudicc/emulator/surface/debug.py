"""`habana_frameworks.torch.utils.debug`, `.experimental` and `internal.bridge_config`.

Source: HabanaAI/gaudi-pytorch-bridge 1.19.0, `utils/`, `internal/bridge_config/`, `scripts/env_flags.yaml`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from typing import Any

from torch import Tensor

from gaudicc.emulator.emulation import current
from gaudicc.emulator.surface.marks import no_op

__all__ = [
    "_bridge_cleanup", "_data_ptr", "_get_device_type", "_get_fallback_op_count", "_hg_print", "_is_log_python_enabled",
    "env_setting", "synDeviceType",
]  # fmt: skip


def _get_fallback_op_count() -> dict[str, int]:
    """How often each op ran on the host since the device started."""
    counts: dict[str, int] = {}
    for fallback in current().judge.fallbacks:
        counts[fallback.op] = counts.get(fallback.op, 0) + 1
    return counts


def _bridge_cleanup() -> None:
    """Forgets all compiled recipes, as a process does that starts anew."""
    current().flush()
    current().recipes.known.clear()


@no_op("it writes to a log of the bridge")
def _hg_print(*args: Any) -> None:
    """Accepted."""


def _is_log_python_enabled(level: object = None) -> bool:
    """No: there is no log."""
    return False


def _data_ptr(tensor: Tensor) -> int:
    """The address of a tensor's first element."""
    return tensor.data_ptr()


class synDeviceType(Enum):
    """Chips, with the runtime's numbers."""

    synDeviceGaudi = 1
    synDeviceGaudi2 = 4
    synDeviceGaudi3 = 5


def _get_device_type() -> synDeviceType:
    """The chip that is emulated."""
    return synDeviceType.synDeviceGaudi2 if current().settings.target == "gaudi2" else synDeviceType.synDeviceGaudi3


@contextmanager
def env_setting(name: str, value: object) -> Iterator[None]:
    """A block in which a switch of the bridge has a value; see `bridge_setting`."""
    before = os.environ.get(name)
    os.environ[name] = _text(value)
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def bridge_setting(name: str) -> Callable[..., Any]:
    """What `bridge_config.get_NAME` and `set_NAME` do: read or write the environment variable NAME.

    Only the variables named in `gaudicc.emulator.settings` change anything here, and those were read at the start.

    Raises:
        AttributeError: the name begins with neither `get_` nor `set_`.
    """
    verb, _, variable = name.partition("_")
    variable = variable.upper()
    if verb == "get" and variable == "PT_ENABLE_INT64_SUPPORT":
        return lambda: current().settings.int64
    if verb == "get":
        return lambda: _value(os.environ.get(variable, ""))
    if verb == "set":
        return lambda value: os.environ.__setitem__(variable, _text(value))
    raise AttributeError(f"module 'habana_frameworks.torch.internal.bridge_config' has no attribute {name!r}")


def _text(value: object) -> str:
    return str(int(value)) if isinstance(value, bool) else str(value)


def _value(text: str) -> Any:
    lowered = text.lower()
    if lowered in ("", "0", "false"):
        return False
    if lowered in ("1", "true"):
        return True
    return int(text) if text.isdigit() else text
