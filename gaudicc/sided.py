"""A model that decides on sizes, compiled once for every side of its decisions; called like any compiled model."""

from __future__ import annotations

import math
from collections import ChainMap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from gaudicc.buckets import Bucket, BucketForm, BucketSet
from gaudicc.capture import CapturedSide
from gaudicc.capture.decisions import Decision, refuse_decision
from gaudicc.certificate import Certificate
from gaudicc.compiled import CompiledModel
from gaudicc.errors import InputError, ModelRaisedError, Where
from gaudicc.program import Program
from gaudicc.stats import ModelledSeconds
from gaudicc.trace import CompileTrace


@dataclass(frozen=True, slots=True)
class CompiledSide:
    """What serves the sizes on one side of a model's decisions.

    Attributes:
        captured: the side as captured.
        model: compiled from its program.
    """

    captured: CapturedSide
    model: CompiledModel


class SidedModel(CompiledModel):
    """The compiled model of the first side, which hands calls of other sizes to those of the others.

    What is asked about programs, plans and buckets is answered for the first side; `sides` has them all.

    Attributes:
        sides: all sides, this model's own first. State, counters and trace are common to them.
    """

    sides: tuple[CompiledSide, ...]

    def join(self, own: CapturedSide, others: Sequence[CompiledSide]) -> None:
        """Makes one model of several.

        Args:
            own: the side that this model was compiled from.
            others: the other sides.
        """
        self.sides = (CompiledSide(own, self), *others)
        programs = ChainMap(*(side.model._programs for side in self.sides))
        self.stats.modelled_seconds = ModelledSeconds(programs)
        for side in others:
            side.model.stats = self.stats
            side.model.share_state(self)
        self.trace = CompileTrace([record for side in self.sides for record in side.model.trace.records])
        leaves = {spec.name: self.program.calling.paths.index(spec.source) for spec in self.program.user_inputs()}
        self._places = {
            dim.name: (leaves[name], at) for dim in self.program.dimensions for name, at in dim.positions[:1]
        }

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the model; raises what a compiled model raises."""
        model = self._choose_side(self._binder(args, kwargs)).model
        return super().__call__(*args, **kwargs) if model is self else model(*args, **kwargs)

    def _choose_side(self, leaves: Sequence[Any]) -> CompiledSide:
        sizes: dict[str, int] = {}
        for name, (leaf, at) in self._places.items():
            given = leaves[leaf]
            if not isinstance(given, torch.Tensor) or given.dim() <= at:
                return self.sides[0]  # which says what is wrong with it
            low, high = self.sides[0].captured.ranges[name]
            sizes[name] = given.shape[at]
            if not low <= sizes[name] <= high:
                path = self.program.calling.paths[leaf]
                raise self.program.range_error(f"{path}.shape[{at}]", name, sizes[name], (low, high))
        for entry in self.sides[0].captured.raising:
            if entry.when.holds(sizes):
                raise ModelRaisedError(
                    f"the model raises {type(entry.error).__name__} where {entry.when.text}: {entry.error}",
                    where=Where(source=entry.when.source, stage="the call"),
                    hint="give it sizes that it takes",
                )
        return next(side for side in self.sides if side.captured.serves(sizes))

    def warm_up(self, progress: Callable[[int, int, Bucket], None] | None = None) -> None:
        """Records every bucket of every side; arguments as those of a compiled model."""
        super().warm_up(progress)
        for side in self.sides[1:]:
            side.model.warm_up(progress)

    def forbid_records(self) -> None:
        """From now on a call whose bucket is not recorded raises, on every side."""
        super().forbid_records()
        for side in self.sides[1:]:
            side.model.forbid_records()

    @property
    def guards(self) -> str:
        """Which side serves a call, and the prologue of each."""
        lines = [
            f"{name} = {self.program.calling.paths[leaf]}.shape[{at}]" for name, (leaf, at) in self._places.items()
        ]
        for number, side in enumerate(self.sides):
            prologue = super().guards if side.model is self else side.model.guards
            lines.append(f"{'elif' if number else 'if'} {side.captured}:")
            lines += [f"    {line}" for line in prologue.splitlines() or ["pass"]]
        return "\n".join(lines)

    @property
    def certificate(self) -> Certificate:
        """What is proved on every side."""
        own = super().certificate
        parts = [(side, own if side.model is self else side.model.certificate) for side in self.sides]
        return replace(
            own,
            buckets=tuple(
                replace(entry, bucket=f"{entry.bucket or 'static'} where {side.captured}")
                for side, part in parts
                for entry in part.buckets
            ),
            padding=tuple(f"where {side.captured}: {line}" for side, part in parts for line in part.padding),
        )

    def session(self) -> SidedModel:
        """The same model with state of its own, starting from the model's."""
        made = super().session()
        assert isinstance(made, SidedModel)
        made.join(self.sides[0].captured, [replace(side, model=side.model.session()) for side in self.sides[1:]])
        return made

    def save(self, path: str | Path) -> None:
        """Refuses: a bundle holds one side.

        Raises:
            InputError: always.
        """
        raise InputError(
            f"the model has {len(self.sides)} sides, a bundle holds one: {'; '.join(str(side.captured) for side in self.sides)}",
            hint="narrow the Dims to one side, compile and save each by itself",
        )


def compile_sides(
    sides: Sequence[CapturedSide],
    buckets: BucketForm,
    compile_side: Callable[[CapturedSide, BucketForm, type[CompiledModel]], CompiledModel],
) -> CompiledModel:
    """Compiles every side of a model.

    Args:
        sides: as captured.
        buckets: of the whole model.
        compile_side: compiles the program of one side, with its buckets, to a compiled model of the class it is given.
    """
    first, *others = sides
    if not others and not first.raising:
        return compile_side(first, buckets, CompiledModel)
    models = [
        compile_side(side, _on_side(side.program, buckets), CompiledModel if side is not first else SidedModel)
        for side in sides
    ]
    model = models[0]
    assert isinstance(model, SidedModel)
    model.join(first, [CompiledSide(*pair) for pair in zip(others, models[1:], strict=True)])
    return model


def _on_side(program: Program, buckets: BucketForm) -> BucketForm:
    """The buckets of a side: no size beyond its own, none that serves nothing there."""
    if not program.dimensions:
        return None
    names = [dim.name for dim in program.dimensions]
    if not isinstance(buckets, (list, tuple)) or not all(name in entry for entry in buckets for name in names):
        return buckets
    fitted = [{dim.name: min(entry[dim.name], dim.high) for dim in program.dimensions} for entry in buckets]
    serving = [entry for entry in fitted if all(entry[dim.name] >= dim.low for dim in program.dimensions)]
    return serving or [{dim.name: dim.high for dim in program.dimensions}]


def admitted(side: CapturedSide, buckets: BucketSet) -> BucketSet:
    """Buckets whose physical sizes are on the side too: what is left out was written for no other size.

    Args:
        side: what they are for; almost always the only one, which admits all.
        buckets: of its program.

    Raises:
        UnsupportedInputError: no bucket can be raised to sizes on the side.
    """
    raised = (_raised(side, bucket) for bucket in buckets)
    found = dict.fromkeys(bucket for bucket in raised if bucket is not None)
    if not found:
        refuse_decision(side.when[0][0])
    return BucketSet(found, buckets.cost)


def _raised(side: CapturedSide, bucket: Bucket) -> Bucket | None:
    """The next larger bucket that any one entry of the decisions admits: the smallest that one has.

    Where sizes hang together no larger one may be admitted: then the largest that is serves all that can come.
    """
    for lower in (False, True):
        found = [sizes for entry in side.when if (sizes := _fitted(side, entry, bucket, lower)) is not None]
        if found:
            return Bucket.of(min(found, key=lambda sizes: math.prod(sizes.values())))
    return None


def _fitted(side: CapturedSide, entry: Sequence[Decision], bucket: Bucket, lower: bool) -> dict[str, int] | None:
    sizes: dict[str, int] = {}
    for name, size in bucket.as_dict().items():
        low, high = side.ranges.get(name, (0, size))
        tests = [decision for decision in entry if name in decision.sizes and set(decision.sizes) <= {*sizes, name}]
        joined = lower and any(len(decision.sizes) > 1 for decision in tests)
        order = [*range(size, max(size, high) + 1), *(range(size - 1, low - 1, -1) if joined else ())]
        fitting = (n for n in order if all(decision.holds({**sizes, name: n}) for decision in tests))
        if (fits := next(fitting, None)) is None:
            return None
        sizes[name] = fits
    return sizes
