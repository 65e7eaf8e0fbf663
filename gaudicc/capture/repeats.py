"""Capture, around export: layers that make the same calls are traced once.

Tracing costs 100 ms a layer, and most models are one layer many times. The first layer of a kind is traced as it is, while
its calls into torch are noted. The Python of every later one is run as well, but each of its calls is answered from the
notes once it was seen to be the same call: same function, same literals, same wiring, operands of the same type. At the first
call that differs the layer is traced after all. In the graph a layer is then one node, `gaudicc_capture.layer`;
`outline.py` turns these into calls of one region body.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial, wraps
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from gaudicc.capture.layer_calls import LayerCalls, Notes
from gaudicc.collector import collector_paused

Result = TypeVar("Result")
_LIBRARY = torch.library.Library("gaudicc_capture", "DEF")
_LIBRARY.define("layer(Tensor[] operands, Tensor[] results) -> Tensor[]")


def _fake(operands: list[Tensor], results: list[Tensor]) -> list[Tensor]:
    return [torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device) for x in results]


torch.library.register_fake("gaudicc_capture::layer", _fake, lib=_LIBRARY)


layer_op: torch._ops.OpOverload = torch.ops.gaudicc_capture.layer.default
"""What a layer is in an exported graph: its operands, and what stands for its results in the first layer of its kind."""


class TensorKeptError(BaseException):
    """A layer left a tensor where tracing cannot follow it. No Exception: the user's own code must not catch it."""


class _Repeats:
    """The kinds of layers met so far in one model, and what layers leave behind besides what they return."""

    def __init__(self) -> None:
        self.left: list[MutableMapping[str, Tensor]] = []
        self._kinds: dict[type, list[Notes]] = {}
        self._ran: set[int] = set()

    def run(self, layer_id: int, kind: type, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Runs a layer, traced as far as it has to be."""
        if layer_id in self._ran:  # what it left in itself the first time would hide what it leaves now
            return forward(*args, **kwargs)
        self._ran.add(layer_id)
        kinds = self._kinds.setdefault(kind, [])
        known, held = list(kinds), [_holders(notes) for notes in kinds]
        before = [dict(left) for left in self.left]
        layer = LayerCalls(kinds)
        with layer:
            result = forward(*args, **kwargs)
        noted = self._kind(layer, (result, self._changes(before))) if layer.kinds else None
        if noted is not None:
            mine = layer.notes.made_in((result, self._changes(before)))
            result = self._replace(mine, layer_op(layer.notes.operands, noted.results), result)
            del mine
        else:
            if layer.kinds:
                layer.trace_all()
            result = pytree.tree_map(layer.actual, result)
            for left in self.left:
                left.update({name: layer.actual(value) for name, value in left.items()})
            result = self._remember(kinds, layer.notes, result, before)
        del layer
        if any(_holders(notes) > then for notes, then in zip(known, held, strict=True)):
            raise TensorKeptError  # a tensor of another layer stands for one of this layer's, out of reach
        return result

    def _kind(self, layer: LayerCalls, left: Any) -> Notes | None:
        """The kind of a layer whose calls were all answered, if it gives the same results."""
        notes = layer.notes
        wanted = [notes.numbers[id(tensor)] for tensor in notes.made_in(left)]
        for kind in layer.kinds:
            if len(kind.calls) == len(notes.calls) and wanted == [kind.numbers[id(x)] for x in kind.results]:
                return kind
        return None

    def _remember(self, kinds: list[Notes], notes: Notes, result: Any, before: list[dict[str, Tensor]]) -> Any:
        notes.results = notes.made_in((result, self._changes(before)))
        if not notes.repeatable or not notes.results:
            return result
        kinds.append(notes)
        return self._replace(notes.results, layer_op(notes.operands, notes.results), result)

    def _changes(self, before: list[dict[str, Tensor]]) -> list[Tensor]:
        pairs = zip(self.left, [*before, *({} for _ in self.left)], strict=False)
        return [value for left, old in pairs for name, value in left.items() if old.get(name) is not value]

    def _replace(self, old: list[Tensor], new: list[Tensor], result: Any) -> Any:
        known = {id(a): b for a, b in zip(old, new, strict=True)}
        for left in self.left:
            left.update({name: known.get(id(value), value) for name, value in left.items()})
        return pytree.tree_map(lambda leaf: known.get(id(leaf), leaf), result)


def _holders(notes: Notes) -> int:
    """How many references there are to the tensors that a layer made."""
    return sum(sys.getrefcount(tensor) for tensor in notes.made)


_plainly: ContextVar[bool] = ContextVar("trace every layer", default=False)
_active: ContextVar[_Repeats | None] = ContextVar("the repeats of the model that this thread traces", default=None)


def may_keep(left: MutableMapping[str, Tensor]) -> None:
    """Says that the layers of the model that is being traced leave tensors in a mapping besides what they return."""
    if (active := _active.get()) is not None:
        active.left.append(left)


def every_layer_traced(export: Callable[..., Result]) -> Callable[..., Result]:
    """The same export with `traced_once` tracing every layer: for graphs that are to be compared node by node."""

    @wraps(export)
    def run(*args: Any, **kwargs: Any) -> Result:
        token = _plainly.set(True)
        try:
            return export(*args, **kwargs)
        finally:
            _plainly.reset(token)

    return run


def traced_once(model: nn.Module, export: Callable[[], Result], fits: Callable[[Result], bool]) -> Result:
    """Exports a model, layers that repeat traced once; as it is where a layer leaves tensors elsewhere, or export fails.

    Args:
        model: its `nn.ModuleList`s are looked through, outermost first.
        export: exports it; called again where the first time was in vain.
        fits: whether one layer can stand for the others in an export.
    """
    layers = _repeated_layers(model)
    if not layers or _plainly.get():
        return export()
    try:
        with _watched(layers), collector_paused():
            exported = export()
    except (Exception, TensorKeptError):  # export itself tells what is wrong, at the user's own lines
        return export()
    return exported if fits(exported) else export()


def _repeated_layers(model: nn.Module) -> list[nn.Module]:
    """The layers of lists that hold several of one class, outermost lists only."""
    found: list[nn.Module] = []
    for child in model.children():
        kinds = [type(layer) for layer in child.children()] if isinstance(child, nn.ModuleList) else []
        found += child.children() if len(kinds) != len(set(kinds)) else _repeated_layers(child)
    return found


@contextmanager
def _watched(layers: list[nn.Module]) -> Iterator[None]:
    """Lets these layers run through the repeats of this thread; other threads run them as ever."""
    # Tracing wraps modules in proxies of other classes, which share their attributes.
    wanted = {id(vars(layer)) for layer in layers}
    forwards = {type(layer): type(layer).forward for layer in layers}

    def watch(kind: type, forward: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(forward)
        def run(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            active = _active.get()
            if active is None or id(vars(self)) not in wanted:
                return forward(self, *args, **kwargs)
            return active.run(id(vars(self)), kind, partial(forward, self), args, kwargs)

        return run

    token = _active.set(_Repeats())
    try:
        for kind, forward in forwards.items():
            kind.forward = watch(kind, forward)
        yield
    finally:
        for kind, forward in forwards.items():
            kind.forward = forward
        _active.reset(token)
