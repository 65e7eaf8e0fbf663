"""`flex_attention` on the device: the device has no kernel for it, so torch's own formula runs as plain ops.

Source: PyTorch's `torch/_higher_order_ops/flex_attention.py`, which runs it so on every device without a kernel.
HabanaAI/gaudi-pytorch-bridge 1.19.0 does not name it, so `hpu_backend` leaves the node to eager mode as any other
higher-order op.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch._higher_order_ops import flex_attention as found
from torch._higher_order_ops.flex_attention import flex_attention_backward, sdpa_dense, sdpa_dense_backward

from gaudicc.emulator.tensor import HpuTensor


def dense(*args: Any, **kwargs: Any) -> Any:
    """Attention by torch's formula; a function of this module, for graphs name what they call by its module."""
    return sdpa_dense(*args, **kwargs)


def dense_backward(*args: Any, **kwargs: Any) -> Any:
    """The same for its gradient."""
    return sdpa_dense_backward(*args, **kwargs)


_FORWARD: Any = found
DENSE: dict[Any, Callable[..., Any]] = {_FORWARD: dense, flex_attention_backward: dense_backward}
"""The operators, and what computes each in a compiled graph."""


def register() -> None:
    """Let the operator take device tensors, once per process."""
    _FORWARD.py_impl(HpuTensor)(dense)
