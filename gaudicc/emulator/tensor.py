"""The tensor that lives on the emulated device: a wrapper whose device is `hpu:0`, around a plain CPU tensor.

The wrapper has no storage of its own; methods that reach for storage or values on the host are answered here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

DEVICE = "hpu"
FREED = "_gaudicc_freed"
"""Marks the CPU tensor of an intermediate that an HPU graph has given back."""
_DATA: Any = torch._C.TensorBase.data


class HpuTensor(Tensor):
    """A tensor on the device.

    Attributes:
        raw: the CPU tensor that holds its values; views share its storage.
    """

    raw: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls: type[HpuTensor], raw: Tensor, requires_grad: bool | None = None) -> Any:
        """Wraps a CPU tensor, sharing its memory.

        With `requires_grad` it makes a parameter on the device that the values are on: programs call the class of a
        parameter, which on a Gaudi is torch's own.
        """
        if requires_grad is not None:
            return torch.nn.Parameter(raw, requires_grad)
        wrapper: HpuTensor = Tensor._make_wrapper_subclass(
            cls,
            raw.size(),
            strides=raw.stride(),
            storage_offset=raw.storage_offset(),
            dtype=raw.dtype,
            layout=raw.layout,
            device=torch.device(DEVICE, 0),
        )
        wrapper.raw = raw
        return wrapper

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Runs an op on the device."""
        from gaudicc.emulator.dispatch import dispatch

        return dispatch(func, args, kwargs or {})

    def __coerce_same_metadata_as_tangent__(self, metadata: Any, expected_type: Any = None) -> HpuTensor:
        """A gradient of a compiled graph is a tensor like any other."""
        return self

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        text: str = torch._tensor_str._str(self.detach().cpu(), tensor_contents=tensor_contents)
        extras = [f"device='{self.device}'"]
        if self.requires_grad:
            extras.append(f"grad_fn=<{type(self.grad_fn).__name__}>" if self.grad_fn else "requires_grad=True")
        kind = "Parameter containing:\n" if isinstance(self, torch.nn.Parameter) else ""
        return f"{kind}{text[:-1]}, {', '.join(extras)})"

    def __format__(self, format_spec: str) -> str:
        """`f"{loss:.2f}"` reads the value, as of any tensor of no dims that is no parameter."""
        if self.dim() == 0 and not isinstance(self, torch.nn.Parameter):
            return format(self.item(), format_spec)
        return object.__format__(self, format_spec)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        """A copy in memory of its own; a parameter stays one, and the gradient is copied too."""
        if id(self) in memo:
            known: Tensor = memo[id(self)]
            return known
        if not self.is_leaf:
            raise RuntimeError(
                "Only Tensors created explicitly by the user support the deepcopy protocol at the moment"
            )
        copy: Tensor = HpuTensor(self.raw.clone(memory_format=torch.preserve_format))
        if isinstance(self, torch.nn.Parameter):
            copy = torch.nn.Parameter(copy, requires_grad=self.requires_grad)
        else:
            copy.requires_grad_(self.requires_grad)
        memo[id(self)] = copy
        if self.grad is not None:
            copy.grad = self.grad.__deepcopy__(memo)
        return copy

    def __reduce_ex__(self, protocol: Any) -> Any:
        from gaudicc.emulator.saving import rebuild

        return rebuild, (self.raw.detach(), self.requires_grad, isinstance(self, torch.nn.Parameter))

    @property
    def data(self) -> Tensor:
        """The same memory without a gradient history."""
        return self.detach()

    @data.setter
    def data(self, other: Tensor) -> None:
        from gaudicc.emulator.kinds import change_device

        if isinstance(other, HpuTensor):
            self.point_to(other.raw)
        else:
            change_device(self, other)

    def point_to(self, raw: Tensor) -> None:
        """Makes this tensor another view: of `raw`'s memory, with its shape, strides and dtype."""
        shell = HpuTensor(raw)
        _DATA.__set__(self, shell)
        self.raw = raw

    def data_ptr(self) -> int:
        """The address of the first element."""
        return self.raw.data_ptr()

    def untyped_storage(self) -> torch.UntypedStorage:
        """The memory behind it, on the host."""
        return self.raw.untyped_storage()

    def numpy(self, *, force: bool = False) -> Any:
        """The values as a numpy array; on the device only with `force`."""
        if not force:
            raise TypeError(
                "can't convert hpu:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory first."
            )
        return self.detach().cpu().numpy()

    def __array__(self, dtype: Any = None) -> Any:
        return self.numpy() if dtype is None else self.numpy().astype(dtype, copy=False)

    def tolist(self) -> Any:
        """The values as nested lists."""
        return self.detach().cpu().tolist()

    def record_stream(self, stream: Any) -> None:
        """Nothing to do: the emulated device never reuses memory that a stream may still read."""

    def __dlpack__(self, *_: Any, **__: Any) -> Any:
        raise BufferError("the emulated hpu device has no DLPack: C++ code cannot see its memory")


def raw_of(value: object) -> object:
    """The CPU tensor behind a device tensor; any other value as it is.

    Raises:
        RuntimeError: the tensor is an intermediate of an HPU graph that has freed it.
    """
    if not isinstance(value, HpuTensor):
        return value
    if getattr(value.raw, FREED, False):
        raise RuntimeError("Empty tensor optional: an HPU graph with disable_tensor_cache has freed this intermediate")
    return value.raw
