"""Capture: calls of functions that are run on the host before the program (`gaudicc.host_calls`).

Such a function is met while the model is exported. Export then starts again with its results as further inputs, which the
function gives back instead of computing them. transformers writes what no graph of its vision and audio towers can hold as pure
functions that take their result from a dict `kwargs` if it is there; others are marked by `gaudicc.on_host`.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import cache, partial, wraps
from types import FunctionType
from typing import Any, TypeVar
from unittest.mock import patch

import torch
from torch import nn
from torch.export import Dim
from torch.utils import _pytree as pytree

from gaudicc.capture.shapes import UNBOUNDED
from gaudicc.errors import CaptureError, Where
from gaudicc.host_calls import HostCall, Place, operands_of

_LIBRARY = "transformers"
_marked = False
Function = TypeVar("Function", bound=Callable[..., Any])


class HostCallMet(BaseException):
    """A call that is not among the known ones. No Exception: the user's own code must not catch it."""

    def __init__(self, call: HostCall) -> None:
        super().__init__()
        self.call = call


@dataclass
class _Run:
    """One run of the model.

    Attributes:
        leaves: of the model's own arguments.
        calls: the known calls.
        given: the results of each.
        at: how many were made so far.
    """

    leaves: list[Any]
    calls: Sequence[HostCall]
    given: list[list[torch.Tensor]]
    at: int = 0
    places: dict[int, Place] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.places = {id(leaf): Place(i) for i, leaf in enumerate(self.leaves) if isinstance(leaf, torch.Tensor)}

    def answer(self, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """The result of a call, made in the graph where it reads anything but arguments of the model and such results."""
        tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        known = bool(tensors) and all(id(tensor) in self.places for tensor in tensors)
        if not known or any(map(_hands_over, [*args, *kwargs.values()])):
            return function(*args, **kwargs)
        places = pytree.tree_map(lambda leaf: self.places.get(id(leaf), leaf), (args, kwargs))
        if self.at == len(self.calls):
            raise HostCallMet(HostCall(function, *places))
        call, given = self.calls[self.at], self.given[self.at]
        self.at += 1
        before = len(self.leaves) + sum(map(len, self.given[: self.at - 1]))
        self.places |= {id(tensor): Place(before + i) for i, tensor in enumerate(given)}
        if call.function is not function or (call.args, call.kwargs) != places:
            raise CaptureError(
                f"{function.__name__} is called otherwise, or at another time, than in the run before",
                where=Where(stage="capture"),
                hint="let the model call what is computed on the host in the same order each time",
            )
        return call.made(given)


def _hands_over(value: Any) -> bool:
    """Whether an argument is a dict of tensors, from which the function may take what was computed already."""
    return isinstance(value, dict) and any(isinstance(leaf, torch.Tensor) for leaf in pytree.tree_leaves(value))


_active: ContextVar[_Run | None] = ContextVar("the run of the model that is captured", default=None)


def _call(function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    run = _active.get()
    return function(*args, **kwargs) if run is None else run.answer(function, args, kwargs)


def on_host(function: Function) -> Function:
    """Marks a function to be run on the host before the program, its results being inputs of it.

    Args:
        function: pure, of inputs of the model as they are given and of plain values. It may loop over their values, and give
            tensors of any shape; in eager PyTorch it is called as ever.
    """
    global _marked
    _marked = True

    @wraps(function)
    def marked(*args: Any, **kwargs: Any) -> Any:
        return _call(function, args, kwargs)

    return marked  # type: ignore[return-value]


def named(call: HostCall, before: Sequence[HostCall], args: tuple[Any, ...], kwargs: dict[str, Any]) -> HostCall:
    """A call that was met, with what it gives for an example.

    Args:
        call: as it was met.
        before: the calls before it.
        args: the example.
        kwargs: the example.
    """
    operands = operands_of(before, args, kwargs)
    flat, spec = pytree.tree_flatten(call.run(operands))
    tensors = [i for i, value in enumerate(flat) if isinstance(value, torch.Tensor)]
    numbers = {at: Place(i) for i, at in enumerate(tensors)}
    result = pytree.tree_unflatten([numbers.get(i, value) for i, value in enumerate(flat)], spec)
    names = tuple(f"{call.function.__name__}_{len(before)}_{i}" for i in range(len(tensors)))
    places = [place for place in pytree.tree_leaves((call.args, call.kwargs)) if isinstance(place, Place)]
    lays_out = any(operands[place.leaf].is_floating_point() for place in places)
    return replace(call, names=names, result=result, lays_out=lays_out)


def with_host_sizes(
    shapes: Mapping[str, Any] | None,
    calls: Sequence[HostCall],
    keywords: Mapping[str, Any],
    declared: Mapping[int, Any],
) -> Mapping[str, Any] | None:
    """The declared sizes with those of what the host computes, which are dynamic.

    Rows that are as many as those of an input in the example are declared equal to them. Others are one more than the largest
    declared size at most: so many tokens have at most so many pictures, and one more end of a picture than pictures.

    Args:
        shapes: as declared, by argument name.
        calls: what the host computes.
        keywords: the example, the results of the calls among them.
        declared: size in the example -> the only Dim of that size.
    """
    if shapes is None or not any(call.names for call in calls):
        return shapes
    most = max(
        (high for dim in declared.values() if (high := getattr(dim, "max", UNBOUNDED)) < UNBOUNDED), default=None
    )
    other = Dim.AUTO if most is None else Dim.AUTO(max=most + 1)
    sizes = {
        name: {dim: declared.get(keywords[name].shape[dim], other) for dim in _dims_of(call, keywords[name])}
        for call in calls
        for name in call.names
    }
    return {**shapes, **sizes}


def _dims_of(call: HostCall, tensor: torch.Tensor) -> list[int]:
    """The dims whose size may depend on data: the first one, and those as long, as in a mask. Others are features."""
    whole = call.lays_out and tensor.is_floating_point()
    return [dim for dim, size in enumerate(tensor.shape) if whole or size == tensor.shape[0]]


@contextmanager
def hosting(module: nn.Module, calls: Sequence[HostCall], keywords: Mapping[str, Any]) -> Iterator[None]:
    """Inside, `forward` takes the results of calls by their names, and a call that is not among them stops it.

    Its signature names what `**kwargs` takes: torch.export loses the sizes of what it does not name.

    Args:
        module: the model.
        calls: the known calls.
        keywords: what it is called with, results included.
    """
    forward, signature = module.forward, inspect.signature(module.forward)
    entries = [entry for entry in signature.parameters.values() if entry.kind is not entry.VAR_KEYWORD]
    more = [name for name in keywords if name not in signature.parameters]
    if not (more or _marked or _LIBRARY in sys.modules):
        yield
        return

    @wraps(forward)
    def hosted(*args: Any, **kwargs: Any) -> Any:
        given = [[kwargs.pop(name) for name in call.names] for call in calls]
        token = _active.set(_Run(pytree.tree_leaves((args, dict(sorted(kwargs.items())))), calls, given))
        try:
            return forward(*args, **kwargs)
        finally:
            _active.reset(token)

    entries += [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in more]
    hosted.__signature__ = signature.replace(parameters=entries)  # type: ignore[attr-defined]
    own = vars(module).get("forward")
    module.forward = hosted
    try:
        with _watching_library():
            yield
    finally:
        if own is not None:
            module.forward = own
        else:
            del module.forward


@contextmanager
def _watching_library() -> Iterator[None]:
    """Inside, those functions of transformers go through `_call` that its models expect to be computed before."""
    with ExitStack() as patches:
        for library in [name for name in sys.modules if name.startswith(f"{_LIBRARY}.")]:
            for function in list(vars(sys.modules[library]).values()):
                if isinstance(function, FunctionType) and function.__module__ == library and _hosted(function):
                    patches.enter_context(_watching(function))
        yield


def _hosted(function: FunctionType) -> bool:
    """Whether a function takes its result out of a dict `kwargs` if it is there: transformers' sign for what no graph holds."""
    code = function.__code__
    return "kwargs" in code.co_varnames[1 : code.co_argcount] and "pop" in code.co_names


@contextmanager
def _watching(function: FunctionType) -> Iterator[None]:
    code, itself = function.__code__, _itself(function)
    scope: dict[str, Any] = {}
    exec(f"def {function.__name__}(*args, **kwargs): return _gaudicc_calls[{function.__name__!r}](args, kwargs)", scope)
    table = function.__globals__.setdefault("_gaudicc_calls", {})
    with patch.dict(table, {function.__name__: partial(_call, itself)}):
        function.__code__ = scope[function.__name__].__code__
        try:
            yield
        finally:
            function.__code__ = code


@cache
def _itself(function: FunctionType) -> FunctionType:
    """A function of the same code, which stays as it is."""
    parts = function.__code__, function.__globals__, function.__name__, function.__defaults__, function.__closure__
    copied = FunctionType(*parts)
    copied.__kwdefaults__ = function.__kwdefaults__
    return copied
