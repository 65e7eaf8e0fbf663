"""How a model is called: its own signature, and the one canonical form of all calls that mean the same."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch.utils import _pytree as pytree

from gaudicc.errors import InputError, Where
from gaudicc.host_calls import HostCall, with_results


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


@dataclass(frozen=True, slots=True)
class Raise:
    """An exception that the model raises or not, depending on the values of tensors.

    Attributes:
        error: the exception, as the user's code made it.
        source: the user's `file:line` that raises it.
    """

    error: Exception
    source: str


@dataclass(frozen=True, slots=True)
class GrowingCache:
    """A tensor that the model takes and gives back with more rows, held between calls in a state buffer.

    Attributes:
        state: source name of the buffer.
        argument: leaf index of the arguments where a call hands it over.
        result: leaf index of the output where it comes back, as a view of the buffer.
        dim: along which it grows.
        dimension: name of the dimension that is its rows before a call.
        grown: its rows after the call: Python (`+ - * // %`, `min`, `max`) over dimension names.
    """

    state: str
    argument: int
    result: int
    dim: int
    dimension: str
    grown: str


def marker_of(cache: torch.Tensor, dim: int) -> torch.Tensor:
    """What a call passes on of a cache that is held: its rows as the size of an int8 tensor, 1 in every other dim."""
    shape = [size if at == dim else 1 for at, size in enumerate(cache.shape)]
    return torch.zeros(shape, dtype=torch.int8, device=cache.device)


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
        raises: what each element of the program's flag output means; at most one of them is true.
        caches: arguments that the compiled model holds as state instead of copying them at each call.
        hosted: what the host computes before a call, as further keywords of the canonical form.
    """

    in_spec: pytree.TreeSpec
    paths: tuple[str, ...]
    static: Mapping[int, Any]
    out_spec: pytree.TreeSpec
    literals: Mapping[int, Any] = field(default_factory=dict)
    parameters: tuple[Parameter, ...] = ()
    raises: tuple[Raise, ...] = ()
    caches: tuple[GrowingCache, ...] = ()
    hosted: tuple[HostCall, ...] = ()

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


class Binder:
    """The leaves of a call's canonical form; called for every call, so that what depends only on its form is kept.

    Args:
        calling: of the program that is called.
    """

    def __init__(self, calling: Calling) -> None:
        self._signature = calling.signature
        self._in_spec = calling.in_spec
        self._hosted = calling.hosted
        self._routes: dict[tuple[Any, ...], Route | None] = {}

    def __call__(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any]:
        """The leaves in the order of the calling's `in_spec`.

        Raises:
            InputError: the arguments do not fit the signature, or are nested otherwise than at compile time.
        """
        given = (*args, *kwargs.values())
        form = (len(args), *kwargs)
        if form not in self._routes:
            self._routes[form] = self._route(len(args), kwargs)
        route = self._routes[form]
        if route is not None and all(type(value) in _LEAVES for value in given):
            return [default if place is None else given[place] for place, default in route]
        bound = bind(self._signature, args, kwargs)
        if self._hosted:
            bound = bound[0], with_results(self._hosted, *bound)
        leaves, spec = pytree.tree_flatten(bound)
        if spec != self._in_spec:
            raise InputError(
                "the arguments are nested otherwise than at compile time",
                where=Where(stage="the call"),
                hint=f"the model was compiled for {self._in_spec}",
            )
        return leaves

    def _route(self, count: int, kwargs: Mapping[str, Any]) -> Route | None:
        """Where each leaf comes from in calls of this form whose arguments are all leaves; None if they cannot be."""
        marks = [object() for _ in range(count + len(kwargs))]
        bound = bind(self._signature, tuple(marks[:count]), dict(zip(kwargs, marks[count:], strict=True)))
        leaves, spec = pytree.tree_flatten(bound)
        places = {id(mark): place for place, mark in enumerate(marks)}
        return [(places.get(id(leaf)), leaf) for leaf in leaves] if spec == self._in_spec else None


Route = list[tuple[int | None, Any]]

_LEAVES = {torch.Tensor, torch.nn.Parameter, int, float, bool, str, type(None)}
