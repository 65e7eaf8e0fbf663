"""The check that caches held as state equal caches that are passed: both programs, on calls that hand them on."""

from __future__ import annotations

import torch

from gaudicc.calling import GrowingCache, marker_of
from gaudicc.errors import NumericsError, Where
from gaudicc.padding.trials import resized
from gaudicc.program import InputKind, OutputKind, Program
from gaudicc.verify import differs

_CALLS = 6
_RESTART = 3  # the call that begins anew, with other caches than the one before gave back


def compare_growing(before: Program, after: Program, stage: str) -> None:
    """Runs both programs on a sequence of calls, each of which takes the caches that the one before gave back.

    At every call the rows behind the valid ones are poison: NaN, the smallest integer, True. They must reach no output, and
    must be there afterwards.

    Args:
        before: takes and returns the caches.
        after: holds them as state.
        stage: the pass, for the error.

    Raises:
        NumericsError: something differs by a bit.
    """
    caches = {cache.state: cache for cache in after.calling.caches}
    names = {spec.source: spec.name for spec in after.inputs if spec.kind is InputKind.STATE and spec.source in caches}
    given: dict[str, torch.Tensor] = {}
    for number in range(_CALLS):
        inputs = _inputs(before, number)
        if number % _RESTART and _fit(before, given):
            inputs |= given
        state = {name: _buffer(after, caches[source], inputs[name]) for source, name in names.items()}
        old, new = before.run(inputs), after.run({**_marked(after, inputs, caches, names), **state})
        for index, (a, b, spec) in enumerate(zip(old, new, after.outputs, strict=True)):
            cache = caches.get(str(spec.target)) if spec.kind is OutputKind.STATE else None
            if difference := differs(a if cache is None else _buffer(after, cache, a), b, bitwise=True):
                what = f"pass {stage} changed output {index} of call {number}: {difference}"
                raise NumericsError(what, where=Where(stage=stage))
            if cache is not None:
                given[names[cache.state]] = a


def _inputs(program: Program, number: int) -> dict[str, torch.Tensor]:
    """The example at sizes that vary from call to call."""
    inputs = dict(program.example)
    for place, dim in enumerate(program.dimensions):
        name, at = dim.positions[0]
        size = inputs[name].shape[at]
        size = (size, dim.low, min(size + 1, dim.high))[(number + place) % 3]
        for name, at in dim.positions:
            inputs[name] = resized(inputs[name], at, size)
    return inputs


def _fit(program: Program, given: dict[str, torch.Tensor]) -> bool:
    """Whether these caches can be passed on: short enough, and all whose sizes are equal are among them."""
    for dim in program.dimensions:
        lengths = [given[name].shape[at] if name in given else -1 for name, at in dim.positions]
        if max(lengths) >= 0 and (min(lengths) < 0 or max(lengths) > dim.high):
            return False
    return True


def _buffer(program: Program, cache: GrowingCache, rows: torch.Tensor) -> torch.Tensor:
    """The state buffer that holds these rows, and poison behind them."""
    empty = program.tensors[cache.state]
    if rows.dtype.is_floating_point or rows.dtype.is_complex:
        poison: float | int | bool = float("nan")
    else:
        poison = True if rows.dtype is torch.bool else torch.iinfo(rows.dtype).min
    buffer = torch.full_like(empty, poison, memory_format=torch.contiguous_format)
    buffer.narrow(cache.dim, 0, rows.shape[cache.dim]).copy_(rows)
    return buffer


def _marked(
    program: Program, inputs: dict[str, torch.Tensor], caches: dict[str, GrowingCache], names: dict[str, str]
) -> dict[str, torch.Tensor]:
    """The user inputs of the program that holds the caches."""
    dims = {program.calling.paths[cache.argument]: (names[cache.state], cache.dim) for cache in caches.values()}
    fed: dict[str, torch.Tensor] = {}
    for spec in program.user_inputs():
        name, dim = dims.get(spec.source, (spec.name, 0))
        fed[spec.name] = inputs[name] if name == spec.name else marker_of(inputs[name], dim)
    return fed
