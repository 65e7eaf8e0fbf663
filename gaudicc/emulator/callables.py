"""`make_graphed_callables` and `TensorPacker`: forward and backward of a function as two HPU graphs.

Source of names and forms: HabanaAI/gaudi-pytorch-bridge 1.19.0, `hpu/graphs.py`. Both captures are dry runs here, whatever
is asked for: they take back what they wrote and what they drew, so that the first call counts once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from gaudicc.emulator.generator import hpu_generator
from gaudicc.emulator.graph import HPUGraph, graph

Function = Callable[..., Any]


class TensorPacker:
    """Takes the tensors out of nested containers and puts them back.

    Args:
        is_out_pack: accepted.
        verbose: print the types of values that stay as they are.
    """

    class Index:
        """The place of a tensor."""

        def __init__(self, value: int) -> None:
            self.value = value

        def __repr__(self) -> str:
            return f"#{self.value}"

    def __init__(self, is_out_pack: bool = False, verbose: bool = False) -> None:
        self._verbose = verbose

    def pack(self, outs: Any) -> tuple[tuple[Tensor, ...], Any]:
        """The tensors of a value, and the value with their places `#0`, `#1`, ... in their stead."""
        tensors: list[Tensor] = []

        def place(leaf: Any) -> Any:
            if isinstance(leaf, Tensor):
                tensors.append(leaf)
                return self.Index(len(tensors) - 1)
            if self._verbose:
                print(f"[WARNING] Variable of type {type(leaf)} will not be dynamic")
            return leaf

        metadata = _mapped(outs, place)
        return tuple(tensors), metadata

    def unpack(self, tensors: Sequence[Tensor], metadata: Any) -> Any:
        """The value again, with these tensors in the places."""
        return _mapped(metadata, lambda leaf: tensors[leaf.value] if isinstance(leaf, self.Index) else leaf)


def _mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """A value with its leaves changed; dicts keep their class."""
    if isinstance(value, dict):
        copied = value.copy()
        for key, item in value.items():
            copied[key] = _mapped(item, change)
        return copied
    if isinstance(value, (list, tuple)):
        items = [_mapped(item, change) for item in value]
        return tuple(items) if isinstance(value, tuple) else items
    return change(value)


def make_graphed_callables(
    callables: Any,
    sample_args: Any,
    warmups: int = 0,
    allow_unused_input: bool = False,
    asynchronous: bool = False,
    disable_tensor_cache: bool = False,
    dry_run: bool = False,
) -> Any:
    """Captures forward and backward of functions on sample arguments.

    Args:
        callables: a function or module, or a tuple of them; tensors in, tensors out.
        sample_args: their arguments, a tuple for each; the graphs keep these tensors and later calls are copied into them.
        warmups: runs before the capture.
        allow_unused_input: an input may have no gradient.
        asynchronous: accepted; every replay is done when it returns.
        disable_tensor_cache: accepted; memory is not freed here.
        dry_run: accepted.

    Returns:
        What was given, with graphs behind it; a module runs as before when its training flag differs from now.
    """
    single = not isinstance(callables, tuple)
    functions: tuple[Function, ...] = (callables,) if single else callables
    samples = (sample_args,) if single else sample_args
    results = tuple(
        _graphed(function, tuple(args), warmups, allow_unused_input)
        for function, args in zip(functions, samples, strict=True)
    )
    return results[0] if single else results


def _graphed(function: Function, args: tuple[Tensor, ...], warmups: int, allow_unused: bool) -> Function:
    for _ in range(warmups):
        function(*args)
    recorded = _Recorded(function, args, allow_unused)
    if not isinstance(function, nn.Module):
        return recorded
    module: Any = function
    original, training = module.forward, module.training

    def forward(*user: Any) -> Any:
        return recorded(*user) if module.training == training else original(*user)

    module.forward = forward
    return function


class _Recorded:
    """A function as two graphs: calls copy their arguments in, replay, and give the captured results."""

    def __init__(self, function: Function, args: tuple[Tensor, ...], allow_unused: bool) -> None:
        parameters = function.parameters() if isinstance(function, nn.Module) else ()
        self.inputs = args
        self.parameters = tuple(each for each in parameters if each.requires_grad)
        self.wanted = tuple(each for each in (*args, *self.parameters) if each.requires_grad)
        self.forward, self.backward = HPUGraph(), HPUGraph()
        with _taking_back(), graph(self.forward, dry_run=True):
            outputs = function(*args)
        self.alone = isinstance(outputs, Tensor)
        self.outputs: tuple[Tensor, ...] = (outputs,) if self.alone else tuple(outputs)
        live = [each for each in self.outputs if each.requires_grad]
        self.grad_outputs = [torch.empty_like(each) if each.requires_grad else None for each in self.outputs]
        given = [each for each in self.grad_outputs if each is not None]
        with _taking_back(), graph(self.backward, dry_run=True):
            found = torch.autograd.grad(live, self.wanted, given, allow_unused=allow_unused) if live else ()
        grads = dict(zip(map(id, self.wanted), found, strict=False))
        self.grads = [grads.get(id(each)) for each in (*args, *self.parameters)]

    def __call__(self, *args: Tensor) -> Any:
        outputs = _Replay.apply(self, *args, *self.parameters)
        return outputs[0] if self.alone else outputs


class _Replay(torch.autograd.Function):
    """Replays the forward graph, and for gradients the backward graph."""

    @staticmethod
    def forward(ctx: Any, recorded: _Recorded, *args: Tensor) -> tuple[Tensor, ...]:
        ctx.recorded = recorded
        for into, new in zip(recorded.inputs, args, strict=False):
            into.detach().copy_(new)
        recorded.forward.replay()
        return tuple(each.detach() for each in recorded.outputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        recorded = ctx.recorded
        for into, new in zip(recorded.grad_outputs, grads, strict=True):
            if into is not None:
                into.copy_(new)
        recorded.backward.replay()
        return (None, *(None if each is None else each.detach() for each in recorded.grads))


@contextmanager
def _taking_back() -> Any:
    """A block whose random draws do not count."""
    state = hpu_generator().get_state()
    try:
        yield
    finally:
        hpu_generator().set_state(state)
