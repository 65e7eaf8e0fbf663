"""Ops gathered since the last flush, and the recipes compiled for them: one flush is one look into the recipe cache.

Lazy mode flushes at `mark_step` and host reads, eager mode after every op. Values are computed at once on the CPU; what is
gathered here is the graph's form only. Two flushes share a recipe if they ran the same ops on the same wiring, shapes,
dtypes, strides and Python numbers. Source: HabanaAI/gaudi-pytorch-bridge 1.19.0, `habana_lazy/`,
`backend/kernel/hpu_habana_launch_op_pt.cpp`. A real flush drops ops whose results nobody holds any more; this one keeps
them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from gaudicc.emulator.events import EventDispatcher, EventId
from gaudicc.emulator.ledger import Kind, Ledger, user_line
from gaudicc.emulator.pricing import Form, GatheredOp, Price
from gaudicc.targets.calls import tensors_in

Signature = tuple[Hashable, ...]
IDENTITIES = frozenset({"aten::detach", "aten::alias", "aten::lift_fresh"})
"""Ops that give their input back: no node of a graph."""


class Given(NamedTuple):
    """The n-th input of a graph."""

    number: int
    form: Form


class Made(NamedTuple):
    """The n-th result in a graph."""

    number: int


class Step:
    """The graph gathered since the last flush.

    A tensor is known by what made it: the n-th input of the graph, or the n-th result in it.
    """

    def __init__(self) -> None:
        self._entries: list[Signature] = []
        self._forms: list[Form] = []
        self._computing: list[tuple[str, Hashable, int, int, str]] = []
        self._serial = object()
        self._inputs = 0

    @property
    def computes(self) -> bool:
        """Whether the device has work to do."""
        return bool(self._computing)

    def __len__(self) -> int:
        return len(self._entries)

    def add(
        self, name: str, args: tuple[object, ...], kwargs: Mapping[str, object], results: object, *, computes: bool
    ) -> None:
        """Gather one op.

        Args:
            name: the op.
            args: what it was called with, raw CPU tensors in place of the device's.
            kwargs: the same.
            results: what it gave; a tensor that it wrote to counts as a new result.
            computes: whether the device has work to do; a view is none.
        """
        if name in IDENTITIES:
            self._name(next(tensors_in(results)), self._describe(next(tensors_in(args))))
            return
        described, first = self._describe(args), len(self._forms)
        options = self._describe(kwargs)
        for tensor in tensors_in(results):
            self._name(tensor, Made(len(self._forms)))
            self._forms.append(_form(tensor))
        # What a result looks like follows from the operands, but for sizes that depend on values.
        self._entries.append((name, described, options, *self._forms[first:]))
        if computes:
            self._computing.append((name, described, first, len(self._forms), user_line()))

    def signature(self) -> Signature:
        """What decides whether a recipe can be used again."""
        return tuple(self._entries)

    def ops(self) -> list[GatheredOp]:
        """What computes in it, in order."""
        return [
            GatheredOp(name, self._resolved(args), tuple(self._forms[first:end]), source)
            for name, args, first, end, source in self._computing
        ]

    def _resolved(self, described: object) -> Any:
        """An argument as a `Form`, True or a tuple of these; any other as None."""
        if isinstance(described, Given):
            return described.form
        if isinstance(described, Made):
            return self._forms[described.number]
        if described == ("bool", "True"):
            return True
        if isinstance(described, tuple) and not (described and isinstance(described[0], str)):
            return tuple(map(self._resolved, described))
        return None

    def _name(self, tensor: torch.Tensor, name: Hashable) -> None:
        tensor._gaudicc_name = (self._serial, name)  # type: ignore[attr-defined]

    def _describe(self, value: object) -> Hashable:
        if isinstance(value, torch.Tensor):
            owner, name = getattr(value, "_gaudicc_name", (None, None))
            if owner is not self._serial:
                name = Given(self._inputs, _form(value))
                self._name(value, name)
                self._inputs += 1
            return name
        if isinstance(value, Mapping):
            return tuple((key, self._describe(item)) for key, item in value.items())
        if isinstance(value, Iterable) and not isinstance(value, str):
            return tuple(self._describe(item) for item in value)
        if isinstance(value, torch.Generator):
            return "generator"
        return (type(value).__name__, repr(value))


class Recipe(NamedTuple):
    """A compiled graph.

    Attributes:
        name: in metrics and events.
        price: what a run of it costs, modelled.
    """

    name: str
    price: Price


class Recipes:
    """The recipe cache, and the step whose graph comes next.

    Args:
        ledger: where compiles and hits are counted.
        max_ops: ops after which a step flushes by itself.
        price: what a graph costs; asked once for each recipe.
        compiled: told of each new recipe, gives the seconds that compiling it took.
        launch: told of each recipe that is to run.
    """

    def __init__(
        self,
        ledger: Ledger,
        max_ops: int,
        price: Callable[[Sequence[GatheredOp]], Price],
        compiled: Callable[[Price], float],
        launch: Callable[[Price], None],
    ) -> None:
        self.step = Step()
        self.known: dict[Signature, Recipe] = {}
        self._ledger, self._max_ops = ledger, max_ops
        self._price, self._compiled, self._launch = price, compiled, launch

    def add(
        self, name: str, args: tuple[object, ...], kwargs: Mapping[str, object], results: object, *, computes: bool
    ) -> None:
        """Gather one op, and flush if the step is full; arguments as for `Step.add`."""
        self.step.add(name, args, kwargs, results, computes=computes)
        if len(self.step) >= self._max_ops:
            self.flush()

    def flush(self) -> bool:
        """Look up the gathered graph, compile it if it is new, run it, and start the next step.

        Returns:
            Whether there was anything to run.
        """
        step, self.step = self.step, Step()
        if not step.computes:
            return False
        self._launch(self._look_up(step).price)
        return True

    def _look_up(self, step: Step) -> Recipe:
        """Count a hit, or a miss and a compilation, and tell the event dispatcher."""
        dispatcher, signature, ops = EventDispatcher.instance(), step.signature(), len(step)
        recipe = self.known.get(signature)
        if recipe is not None:
            self._ledger.add(Kind.HIT, recipe.name)
            dispatcher.publish(EventId.CACHE_HIT, [("recipe_id", recipe.name)])
            return recipe
        recipe = self.known[signature] = Recipe(f"recipe_{len(self.known)}", self._price(step.ops()))
        seconds = self._compiled(recipe.price)
        self._ledger.add(Kind.COMPILE, "a graph of 1 op" if ops == 1 else f"a graph of {ops} ops", seconds=seconds)
        dispatcher.publish(EventId.CACHE_MISS, [("recipe_id", recipe.name)])
        microseconds = str(max(round(seconds * 1e6), 1))
        dispatcher.publish(EventId.GRAPH_COMPILATION, [("duration", microseconds), ("recipe", recipe.name)])
        return recipe


def _form(tensor: torch.Tensor) -> Form:
    strides = tuple(tensor.stride()) if tensor.layout is torch.strided else ()
    return Form(tuple(tensor.shape), tensor.dtype, strides)
