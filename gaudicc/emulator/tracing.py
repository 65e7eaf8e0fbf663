"""Lets torch.compile see a device tensor as a plain tensor on `hpu`, and never look into the emulator itself.

Private names of torch._dynamo are used here only; a test pins each.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from gaudicc.emulator.tensor import HpuTensor

_ASKED_BY = frozenset({"_wrap", "infer_subclass_type"})


def prepare() -> None:
    """Change dynamo, once per process; called when a program first compiles for `hpu`."""
    from torch._dynamo import trace_rules
    from torch._dynamo.variables import builder as found
    from torch._subclasses.fake_tensor import FakeTensorMode

    builder: Any = found
    original = builder.is_traceable_wrapper_subclass
    if getattr(original, "gaudicc", False):
        return

    def is_traceable(value: Any) -> bool:
        """Yes where dynamo decides whether to make a tensor of it, no where it would look for inner tensors."""
        if isinstance(value, HpuTensor):
            return sys._getframe(1).f_code.co_name in _ASKED_BY
        return bool(original(value))

    is_traceable.__dict__["gaudicc"] = True
    builder.is_traceable_wrapper_subclass = is_traceable
    # A constant made on the device while tracing stays on the host until it runs, as where torch has no CUDA.
    FakeTensorMode.avoid_device_init = property(lambda mode: True)  # type: ignore[assignment, method-assign]
    # The device's own files are skipped; those of `surface` and `ops`, which programs call, are traced like any other.
    trace_rules.SKIP_DIRS.extend(file.as_posix() for file in Path(__file__).parent.glob("*.py"))
    trace_rules._recompile_re()
