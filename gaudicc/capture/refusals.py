"""Capture, first step: what is refused by name before anything is traced."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from gaudicc.errors import AutocastError, GradError, InputError, TrainingModeError, UnsupportedInputError

_PLAIN = (torch.Tensor, nn.Parameter, nn.Buffer)


def refuse_ambient() -> None:
    """Refuses an active autocast region: its casts would be baked in, or missed, without a word.

    Raises:
        AutocastError: autocast is enabled for any device.
    """
    for device in ("cpu", "cuda", "hpu"):
        try:
            active = torch.is_autocast_enabled(device)
        except RuntimeError:  # this torch does not know the device type
            continue
        if active:
            raise AutocastError(f"autocast is enabled for {device!r}")


def refuse_script(model: Any) -> None:
    """Refuses TorchScript.

    Raises:
        UnsupportedInputError: the model is a script module or function.
    """
    if isinstance(model, (torch.jit.ScriptModule, torch.jit.ScriptFunction)):
        raise UnsupportedInputError("the model is TorchScript", hint="pass the Python code it was scripted from")


def refuse_model(model: nn.Module) -> None:
    """Refuses modules that cannot be compiled, naming the part at fault.

    Raises:
        UnsupportedInputError: torchbind objects, tensor subclasses, a `device_map`.
        TrainingModeError: any submodule is in training mode.
    """
    training = [name or type(model).__name__ for name, module in model.named_modules() if module.training]
    if training:
        more = f" and {len(training) - 1} more" if len(training) > 1 else ""
        raise TrainingModeError(f"{training[0]} is in training mode{more}")
    if device_map := getattr(model, "hf_device_map", None):
        raise UnsupportedInputError(
            f"the model is spread by a device_map over {sorted({str(v) for v in device_map.values()})}",
            hint="load it without device_map, on one device",
        )
    for name, tensor in _tensors(model).items():
        refuse_subclass(tensor, name)
    for path, module in model.named_modules():
        for attribute, value in vars(module).items():
            if isinstance(value, torch.ScriptObject):
                raise UnsupportedInputError(
                    f"{path or 'the model'}.{attribute} is a torchbind object", hint="replace it by tensors"
                )


def refuse_mixed_devices(model: nn.Module, leaves: Iterable[tuple[str, Any]]) -> None:
    """Refuses weights and arguments on several devices, naming one tensor of each.

    Raises:
        UnsupportedInputError: there is more than one device.
    """
    arguments = {f"argument {path}": leaf for path, leaf in leaves if isinstance(leaf, torch.Tensor)}
    devices: dict[str, str] = {}
    for name, tensor in {**_tensors(model), **arguments}.items():
        devices.setdefault(tensor.device.type, name)
    if len(devices) > 1:
        places = ", ".join(f"{name} on {device}" for device, name in devices.items())
        raise UnsupportedInputError(
            f"the model mixes devices: {places}", hint="move all to one device: model.to('cpu')"
        )


def _tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def refuse_subclass(value: torch.Tensor, name: str) -> None:
    """Refuses tensor subclasses (quantised, distributed, nested): their meaning is not in the graph.

    Raises:
        UnsupportedInputError: `value` is not a plain tensor.
    """
    kind = type(value)
    if kind not in _PLAIN and not isinstance(value, torch._subclasses.FakeTensor):
        raise UnsupportedInputError(
            f"{name} is a tensor subclass ({kind.__module__}.{kind.__qualname__})",
            hint="pass plain tensors: dequantise or gather it first",
        )
    if value.layout is not torch.strided:
        raise UnsupportedInputError(f"{name} has layout {value.layout}", hint="pass it as a dense tensor: x.to_dense()")


def refuse_inputs(leaves: Iterable[tuple[str, Any]]) -> None:
    """Refuses argument leaves that gaudicc cannot treat as a tensor or a static value.

    Raises:
        GradError: a tensor requires grad.
        UnsupportedInputError: a tensor subclass, or an object that is neither tensor nor plain value.
    """
    for path, leaf in leaves:
        if isinstance(leaf, torch.Tensor):
            refuse_subclass(leaf, path)
            if leaf.requires_grad:
                raise GradError(f"argument {path} requires grad")
        elif not is_static(leaf):
            raise UnsupportedInputError(
                f"argument {path} is a {type(leaf).__module__}.{type(leaf).__qualname__}",
                hint="pass tensors, numbers, strings, None and containers of these; register other containers "
                "with torch.utils._pytree.register_pytree_node or torch.export.register_dataclass",
            )


def is_static(leaf: Any) -> bool:
    """Whether a leaf is a plain value that every call must repeat."""
    plain = (bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.layout, torch.memory_format)
    return leaf is None or isinstance(leaf, plain)


def hooks_of(model: nn.Module) -> tuple[str, ...]:
    """Forward hooks found on the model; they are captured with it and listed for the user."""
    found = []
    for path, module in model.named_modules():
        for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values()):
            name = getattr(hook, "__qualname__", type(hook).__qualname__)
            found.append(f"forward hook {name} on {path or type(model).__name__} is captured with the model")
    return tuple(found)


def check_examples(args: Any, kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Brings `example_inputs` / `example_kwargs` to (args, kwargs).

    Args:
        args: a tuple or list of positional arguments, a dict of keyword arguments, or one tensor.
        kwargs: a mapping of keyword arguments, or None.

    Raises:
        InputError: neither form fits.
    """
    if isinstance(args, torch.Tensor):
        args = (args,)
    if isinstance(args, Mapping):
        if kwargs:
            raise InputError(
                "example_inputs is a dict and example_kwargs is given too",
                hint="pass keyword arguments in one of the two",
            )
        args, kwargs = (), args
    if not isinstance(args, (tuple, list)) or not isinstance(kwargs or {}, Mapping):
        raise InputError(
            f"example_inputs is a {type(args).__name__}",
            hint="pass a tuple of positional arguments, or a dict of keyword arguments",
        )
    return tuple(args), dict(kwargs or {})


def leaf_paths(signature_names: list[str], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Every leaf of the arguments with the path a user would write, e.g. `cache[0][1]`."""
    named = [*zip(signature_names, args, strict=False)]
    named += [(f"args[{i}]", arg) for i, arg in enumerate(args[len(signature_names) :])]
    named += list(kwargs.items())
    return [
        (name + pytree.keystr(path), leaf)
        for name, value in named
        for path, leaf in pytree.tree_flatten_with_path(value)[0]
    ]
