"""`flex_attention` on the device: the device has no kernel for it, so torch's own formula runs as plain ops.

Source: PyTorch's `torch/_higher_order_ops/flex_attention.py`, which runs it so on every device without a kernel.
"""

from __future__ import annotations

from typing import Any

from torch._higher_order_ops import flex_attention as found

from gaudicc.emulator.tensor import HpuTensor


def register() -> None:
    """Let the operator take device tensors, once per process."""
    operator: Any = found
    operator.py_impl(HpuTensor)(_dense)


def _dense(*args: Any, **kwargs: Any) -> Any:
    from torch._higher_order_ops.flex_attention import sdpa_dense

    return sdpa_dense(*args, **kwargs)
