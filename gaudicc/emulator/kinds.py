"""Classes of tensors that programs make, on the device: subclasses of `Parameter`, and tensors that change device in place.

On a Gaudi a class of the user's holds a device tensor as it holds any other, and `tensor.data = other` or a module's `to` changes
what is behind a tensor, never its class, its identity or what a program has set on it. A device tensor here has a class of
its own: one that is both stands in for the user's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import swap_tensors

from gaudicc.emulator.tensor import HpuTensor

_USERS = "_gaudicc_users_class"
_OURS = frozenset({"raw", "_is_param"})
_ON_DEVICE: dict[type, type] = {}
_PLAIN_DATA: Any = torch._C.TensorBase.data
_PLAIN_SUBCLASS: Any = Tensor._make_subclass
_PLAIN_PARAMETER: Any = nn.Parameter.__new__


def register() -> None:
    """Change torch, once per process."""
    changed: Any = torch
    changed.Tensor.data = property(_PLAIN_DATA.__get__, _set_data)
    # dynamo compares signatures with a rule of its own, and lets this one pass
    changed.Tensor._make_subclass = staticmethod(lambda *args, **named: make_subclass(*args, **named))
    changed.nn.Parameter.__new__ = staticmethod(_parameter)
    changed.nn.Module._apply = _in_place(nn.Module._apply)


def make_subclass(cls: type, data: Tensor, require_grad: bool = False, **named: Any) -> Tensor:
    """`torch.Tensor._make_subclass`: an instance of a class that shares a tensor's memory, on its device."""
    users = getattr(cls, _USERS, cls)
    if not isinstance(data, HpuTensor) or issubclass(users, HpuTensor):
        made: Tensor = _PLAIN_SUBCLASS(users, data, require_grad, **named)
        return made
    if users not in _ON_DEVICE:
        _ON_DEVICE[users] = type(users)(
            users.__name__, (users, HpuTensor), {_USERS: users, "__module__": users.__module__}
        )
    wrapper: Tensor = HpuTensor.__new__(_ON_DEVICE[users], data.raw)
    return wrapper.requires_grad_(require_grad)


def _parameter(cls: type, data: Any = None, requires_grad: bool = True) -> Any:
    if cls is not nn.Parameter and isinstance(data, HpuTensor):
        return make_subclass(cls, data, requires_grad)
    return _PLAIN_PARAMETER(cls, data, requires_grad)


def _set_data(self: Tensor, value: Tensor) -> None:
    if isinstance(value, HpuTensor):
        change_device(self, value)
    else:
        _PLAIN_DATA.__set__(self, value)


def change_device(tensor: Tensor, value: Tensor) -> None:
    """`tensor.data = value` where one is on the host and the other on the device.

    Args:
        tensor: keeps its identity, class and attributes; its gradient goes along.
        value: what is behind it from now on.

    Raises:
        RuntimeError: a graph of autograd holds the tensor.
    """
    wants, grad, tensor.grad = tensor.requires_grad, tensor.grad, None
    shell = _of_class(_users_class(tensor), value, wants)
    shell.__dict__.update({name: kept for name, kept in tensor.__dict__.items() if name not in _OURS})
    try:
        swap_tensors(tensor, shell)
    except RuntimeError:
        tensor.grad = grad
        raise
    if grad is not None:
        tensor.grad = grad.to(value.device)


def _users_class(tensor: Tensor) -> type:
    if type(tensor) is HpuTensor:
        return nn.Parameter if isinstance(tensor, nn.Parameter) else Tensor
    found: type = getattr(type(tensor), _USERS, type(tensor))
    return found


def _of_class(users: type, value: Tensor, requires_grad: bool) -> Tensor:
    """A new tensor of a class over another's memory."""
    shell = HpuTensor(value.raw) if isinstance(value, HpuTensor) else value.detach()
    if users is Tensor:
        return shell.requires_grad_(requires_grad)
    if users is nn.Parameter:
        return nn.Parameter(shell, requires_grad)
    return make_subclass(users, shell, requires_grad)


def _in_place(original: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """A module's `to` sets the data of its parameters, as on the device; one that a graph still holds is replaced."""
    plain: Any = torch._has_compatible_shallow_copy_type

    def compatible(left: Tensor, right: Tensor) -> bool:
        return isinstance(left, HpuTensor) or isinstance(right, HpuTensor) or bool(plain(left, right))

    def apply_to(self: nn.Module, fn: Any, recurse: bool = True) -> nn.Module:
        changed: Any = torch
        before = changed._has_compatible_shallow_copy_type
        changed._has_compatible_shallow_copy_type = compatible
        try:
            return original(self, fn, recurse)
        except RuntimeError as error:
            if "swap" not in str(error) and "use_count" not in str(error):
                raise
            changed._has_compatible_shallow_copy_type = lambda left, right: False
            return original(self, fn, recurse)
        finally:
            changed._has_compatible_shallow_copy_type = before

    return apply_to
