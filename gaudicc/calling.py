"""How a model is called: its own signature, and the one canonical form of all calls that mean the same."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch.utils import _pytree as pytree

from gaudicc.errors import InputError


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of the model's own signature.

    Attributes:
        name: its name.
        kind: one of `inspect.Parameter`'s kinds, by name (`POSITIONAL_OR_KEYWORD`).
        required: it has no default.
        default: the default, a plain value.
    """

    name: str
    kind: str
    required: bool = True
    default: Any = None


@dataclass(frozen=True)
class Calling:
    """How the model is called: from Python arguments to the root graph's user inputs and back.

    Attributes:
        in_spec: pytree of `(args, kwargs)` in the canonical form of the model's own signature.
        paths: path of every leaf of `in_spec`, in order.
        static: leaf index -> the value every call must have (numbers, strings, None).
        out_spec: pytree of the output.
        literals: leaf index of the output -> value, where an output is not a tensor.
        parameters: the model's own signature.
    """

    in_spec: pytree.TreeSpec
    paths: tuple[str, ...]
    static: Mapping[int, Any]
    out_spec: pytree.TreeSpec
    literals: Mapping[int, Any] = field(default_factory=dict)
    parameters: tuple[Parameter, ...] = ()

    @cached_property
    def signature(self) -> inspect.Signature:
        """The model's signature as Python knows it."""
        return inspect.Signature([_parameter(entry) for entry in self.parameters])


def _parameter(entry: Parameter) -> inspect.Parameter:
    default = inspect.Parameter.empty if entry.required else entry.default
    return inspect.Parameter(entry.name, getattr(inspect.Parameter, entry.kind), default=default)


def bind(
    signature: inspect.Signature, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The canonical form of a call: two calls that mean the same, by position, keyword or default, give the same.

    Parameters with a default go by keyword: wrappers that add arguments of their own (transformers' output recorders) look
    for them there, and would pass one twice that came by position.

    Raises:
        InputError: the arguments do not fit the signature.
    """
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        raise InputError(
            f"the arguments do not fit the model: {error}", hint=f"its signature is {signature}"
        ) from error
    bound.apply_defaults()
    starred = any(p.kind is p.VAR_POSITIONAL and bound.arguments[p.name] for p in signature.parameters.values())
    positional: list[Any] = []
    keywords: dict[str, Any] = {}
    for parameter in signature.parameters.values():
        value = bound.arguments[parameter.name]
        if parameter.kind is parameter.VAR_POSITIONAL:
            positional.extend(value)
        elif parameter.kind is parameter.VAR_KEYWORD:
            keywords.update(value)
        elif parameter.kind is parameter.POSITIONAL_ONLY or (
            parameter.kind is parameter.POSITIONAL_OR_KEYWORD and (starred or parameter.default is parameter.empty)
        ):
            positional.append(value)
        else:
            keywords[parameter.name] = value
    return tuple(positional), dict(sorted(keywords.items()))
