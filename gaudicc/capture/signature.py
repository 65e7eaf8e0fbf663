"""Capture, second step: the model's own signature gives every call one canonical form."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from types import FunctionType
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from gaudicc.calling import Parameter, bind
from gaudicc.capture.refusals import is_static
from gaudicc.capture.transformers_cache import register_cache
from gaudicc.errors import InputError, UnsupportedInputError


class FunctionModule(nn.Module):
    """A plain function seen as a module, so that capture has one front door.

    torch.export names inputs by the signature of `forward`, and keeps the source lines of frames of that name only. So
    a Python function becomes `forward` itself, under that name; what else can be called is wrapped.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.forward = _as_forward(function)
        self.training = False


def _as_forward(function: Callable[..., Any]) -> Callable[..., Any]:
    if isinstance(function, FunctionType):
        code = function.__code__.replace(co_name="forward")
        named = FunctionType(code, function.__globals__, "forward", function.__defaults__, function.__closure__)
        named.__kwdefaults__ = function.__kwdefaults__
        return named

    def forward(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    forward.__signature__ = _signature_of(function)  # type: ignore[attr-defined]
    return forward


def _signature_of(function: Callable[..., Any]) -> inspect.Signature:
    try:
        return inspect.signature(function)
    except ValueError as error:
        raise InputError(
            f"{function!r} has no signature that Python knows", hint="wrap it: lambda x: function(x)"
        ) from error


class CallForm:
    """Binds arguments to the model's signature, defaults included.

    Two calls that mean the same (positional or by keyword, default given or left out) get the same form.

    Args:
        function: the model's forward, or a plain function.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.signature = _signature_of(function)
        kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        self.positional = [p.name for p in self.signature.parameters.values() if p.kind in kinds]

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The canonical (args, kwargs); see `gaudicc.calling.bind`."""
        return bind(self.signature, args, kwargs)

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """The signature as data.

        Raises:
            UnsupportedInputError: a default is no plain value.
        """
        return tuple(_parameter(entry) for entry in self.signature.parameters.values())

    def complete_shapes(self, spec: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any] | None:
        """Spells out `dynamic_shapes` for every argument of the canonical form, as torch.export wants it.

        Args:
            spec: what the user gave: a dict by argument name, a tuple by position, or None.
            args: canonical positional arguments.
            kwargs: canonical keyword arguments.

        Raises:
            InputError: `spec` is of another form, or a name in it is no argument of the model.
        """
        if spec is None:
            return None
        if not isinstance(spec, (tuple, list, Mapping)):
            raise InputError(
                f"dynamic_shapes is a {type(spec).__name__}", hint='write {"argument": {dim: Dim(...)}}, or "auto"'
            )
        if isinstance(spec, (tuple, list)):
            spec = dict(zip(self.positional, spec, strict=False))
        names = [*self.positional[: len(args)], *kwargs]
        if unknown := sorted(set(spec) - set(names)):
            raise InputError(
                f"dynamic_shapes names {unknown[0]!r}", hint=f"the model's arguments are {', '.join(names)}"
            )
        shapes: dict[str, Any] = {
            name: _full(spec.get(name), value) for name, value in zip(self.positional, args, strict=False)
        }
        rest = args[len(self.positional) :]
        if rest:
            variadic = next(p.name for p in self.signature.parameters.values() if p.kind is p.VAR_POSITIONAL)
            shapes[variadic] = tuple(_full(None, value) for value in rest)
        shapes.update({name: _full(spec.get(name), value) for name, value in kwargs.items()})
        return shapes


def _parameter(entry: inspect.Parameter) -> Parameter:
    if entry.default is inspect.Parameter.empty:
        return Parameter(entry.name, entry.kind.name)
    if any(not is_static(leaf) for leaf in pytree.tree_leaves(entry.default)):
        raise UnsupportedInputError(
            f"the default of argument {entry.name} is a {type(entry.default).__qualname__}",
            hint="use a plain default and make the object inside forward",
        )
    return Parameter(entry.name, entry.kind.name, required=False, default=entry.default)


def _full(spec: Any, value: Any) -> Any:
    """A dynamic-shape spec with the structure of `value`: None at every leaf that is not named."""
    if isinstance(value, torch.Tensor) or spec is not None:
        return spec
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        return type(value)(_full(None, item) for item in value)
    if isinstance(value, dict):
        return {key: _full(None, item) for key, item in value.items()}
    return pytree.tree_map(lambda _: None, value)


def register_types(value: Any) -> None:
    """Registers dataclasses and transformers' caches found in arguments or outputs, so that they come back as they are."""
    kind = type(value)
    if kind.__module__ == "transformers.cache_utils":
        register_cache(kind)
    elif kind not in pytree.SUPPORTED_NODES and is_dataclass(value) and not isinstance(value, type):
        torch.export.register_dataclass(kind)
    for child in _children(value):
        register_types(child)


def _children(value: Any) -> list[Any]:
    if is_dataclass(value) and not isinstance(value, type):
        return [getattr(value, name) for name in value.__dataclass_fields__]
    if type(value).__name__ == "EncoderDecoderCache":
        return [value.self_attention_cache, value.cross_attention_cache]
    if isinstance(value, Mapping):
        return list(value.values())
    return list(value) if isinstance(value, (list, tuple)) else []
