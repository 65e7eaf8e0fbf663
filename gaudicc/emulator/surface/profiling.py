"""Profilers of the package: accepted, for nothing is timed here; the account says what the device did.

Source: HabanaAI/gaudi-pytorch-bridge 1.19.0, `utils/profiler/`, `profiler/ProfilerApi.py`, `low_overhead_profiler/`,
`activity_profiler/`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from enum import Enum
from typing import Any

from gaudicc.emulator.surface.marks import no_op

__all__ = ["_setup_profiler", "_start_profiler", "_stop_profiler"]

_WHY = "nothing is traced; the account says what the device did"


def _accepted(name: str, instead: str = "") -> Callable[[], None]:
    def accept() -> None:
        if instead:
            warnings.warn(
                f"habana_frameworks.torch.profiler.{name} is deprecated; use {instead}", UserWarning, stacklevel=2
            )

    accept.__name__ = name
    return no_op(_WHY)(accept)


_INNER = "habana_frameworks.torch.utils.profiler"
_setup_profiler = _accepted("_setup_profiler")
_start_profiler = _accepted("_start_profiler")
_stop_profiler = _accepted("_stop_profiler")
setup_profiler = _accepted("setup_profiler", f"{_INNER}._setup_profiler")
start_profiler = _accepted("start_profiler", f"{_INNER}._start_profiler")
stop_profiler = _accepted("stop_profiler", f"{_INNER}._stop_profiler")
start, stop, flush = _accepted("start"), _accepted("stop"), _accepted("flush")


class DebugActivity(Enum):
    """What a trace of the device may hold beside ops."""

    SYNAPSE_FUNCTION_CALLS = 1
    BRIDGE_FUNCTION_CALLS = 2


@no_op(f"{_WHY}; torch's own profiler runs as on any device")
def register_habana_activity_profiler(*_: Any) -> None:
    """Accepted."""
