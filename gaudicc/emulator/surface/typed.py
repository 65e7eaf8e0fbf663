"""`torch.hpu.FloatTensor` and its kind: tensors on the device of one dtype.

Source: HabanaAI/gaudi-pytorch-bridge 1.19.0, `hpu/__init__.py`. There each is a subclass of Tensor; here a call gives a plain
tensor of the device, and `isinstance` asks for device and dtype, as torch's own such types do.
"""

from __future__ import annotations

from typing import Any

import torch

from gaudicc.emulator.tensor import DEVICE

_DTYPES = {
    "BFloat16Tensor": torch.bfloat16,
    "BoolTensor": torch.bool,
    "ByteTensor": torch.uint8,
    "CharTensor": torch.int8,
    "DoubleTensor": torch.float64,
    "FloatTensor": torch.float32,
    "HalfTensor": torch.float16,
    "IntTensor": torch.int32,
    "LongTensor": torch.int64,
    "ShortTensor": torch.int16,
}


class _Typed(type):
    dtype: torch.dtype

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, torch.Tensor) and instance.device.type == DEVICE and instance.dtype == cls.dtype

    def __call__(cls, *args: Any, **kwargs: Any) -> torch.Tensor:
        for name, own in (("device", DEVICE), ("dtype", cls.dtype)):
            if kwargs.get(name, own) not in (own, None):
                raise RuntimeError(f"legacy constructor expects {name}: {own} but {name}: {kwargs[name]} was passed")
        return torch.tensor(*args, **kwargs | {"device": DEVICE, "dtype": cls.dtype})


TYPES: dict[str, type] = {name: _Typed(name, (), {"dtype": dtype}) for name, dtype in _DTYPES.items()}
