"""Carries out a Plan: records its segments on a device once, then replays them for every call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch

from gaudicc.errors import LoweringError, StateError, Where
from gaudicc.nodes import outputs_of, val
from gaudicc.plan import Barrier, BufferKind, HostBranch, HostLoop, HostOp, HostTrips, Plan, Record, Ref, Step
from gaudicc.runtime.device import Device, Recording, Segment


@dataclass
class Counters:
    """What a runner did since it was made.

    Attributes:
        records: recordings made.
        replays: recordings replayed.
        host_ops: ops run on the host.
        host_bytes: bytes that a real device would have moved for them.
        host_reads: conditions that the host read, of branches and of loops that data ends.
    """

    records: int = 0
    replays: int = 0
    host_ops: int = 0
    host_bytes: int = 0
    host_reads: int = 0


Values = dict[str, Any]


class Runner:
    """One plan on one device.

    Args:
        plan: what to do.
        bound: buffer name -> tensor, for everything bound once: weights, constants and state.
        device: records the segments.
        counters: counted into; shared by the runners of a model.
        borrow: outputs may be the recordings' own buffers, valid until the next run.

    Attributes:
        bytes_held: bytes that the recordings hold.
    """

    def __init__(
        self, plan: Plan, bound: Mapping[str, torch.Tensor], device: Device, counters: Counters, *, borrow: bool = False
    ) -> None:
        self.plan = plan
        self.inputs = [name for name, kind in plan.buffers.items() if kind is BufferKind.INPUT]
        self._bound = dict(bound)
        self._counters = counters
        self._borrow = borrow
        self.bytes_held = 0
        self._only: Recording | None = None
        # Host ops and loops compute with what lies where the model is.
        self._stays = all(isinstance(step, (Record, HostBranch)) for step in plan.all_steps())
        self._homes: dict[str, torch.device] = {}
        if len(plan.steps) == 1 and isinstance(plan.steps[0], Record):
            self._only = self._record(plan.steps[0], device)
        else:
            self._steps = tuple(self._prepare(step, device) for step in plan.steps)
        self._fetch = device.fetch
        self._states = [name for name, kind in plan.buffers.items() if kind is BufferKind.STATE]

    def run(self, inputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Carries the plan out once.

        Args:
            inputs: one tensor per input buffer, in order, of the bucket's shapes.

        Returns:
            The plan's outputs.
        """
        if self._only is not None:
            self._counters.replays += 1
            return self._only.replay(*inputs)
        for name in self._states:  # host ops read them, and the writes below are the host's
            self._fetch(self._bound[name])
        values: Values = {**self._bound, **dict(zip(self.inputs, inputs, strict=True))}
        for step in self._steps:
            step(values)
        results = tuple(self._fresh(values, name) for name in self.plan.outputs)
        # What is read is taken before anything is written: the new value of one state may be the old one of another.
        for state, new in [(state, self._fresh(values, name)) for state, name in self.plan.writes]:
            self._bound[state].copy_(new)
        return results

    def _fresh(self, values: Values, name: str) -> torch.Tensor:
        shared = self.plan.buffers[name] is not BufferKind.VALUE
        result: torch.Tensor = values[name].clone() if shared else values[name]
        return result.to(self._homes.get(name, result.device))

    def _record(self, step: Record, device: Device) -> Recording:
        placeholders = [node.name for node in step.graph.graph.nodes if node.op == "placeholder"]
        names = dict(zip(placeholders, step.inputs, strict=True))
        bound = {name: self._bound[buffer] for name, buffer in names.items() if buffer in self._bound}
        state = {
            name: step.outputs.index(buffer)
            for name, buffer in names.items()
            if self.plan.buffers[buffer] is BufferKind.STATE and buffer in step.outputs
        }
        constants = frozenset(name for name in bound if self.plan.buffers[names[name]] is BufferKind.CONSTANT)
        stays = self._stays and len(self.plan.steps) > 1
        segment = Segment(step.graph, bound, state, constants, stays)
        if stays:
            self._homes |= {
                name: val(output).device
                for name, output in zip(step.outputs, outputs_of(step.graph.graph), strict=True)
            }
        recording = device.record(segment, borrow=self._borrow and len(self.plan.steps) == 1)
        self._counters.records += 1
        self.bytes_held += recording.bytes_held
        return recording

    def _prepare(self, step: Step, device: Device) -> Callable[[Values], None]:
        if isinstance(step, Record):
            return self._replay_step(step, device)
        if isinstance(step, HostOp):
            return self._host_step(step)
        if isinstance(step, HostBranch):
            return self._branch_step(step, device)
        if isinstance(step, HostLoop):
            return self._loop_step(step, device)
        if isinstance(step, HostTrips):
            return self._trips_step(step, device)
        if isinstance(step, Barrier):
            return lambda values: None  # the CPU device is synchronous
        raise LoweringError(f"unknown step {type(step).__name__}", where=Where(stage="the runner"))

    def _replay_step(self, step: Record, device: Device) -> Callable[[Values], None]:
        recording = self._record(step, device)
        wanted = [name for name in step.inputs if name not in self._bound]
        outputs = [name for name in step.outputs if name not in self._bound]

        def replay(values: Values) -> None:
            self._counters.replays += 1
            values.update(zip(outputs, recording.replay(*[values[name] for name in wanted]), strict=True))

        return replay

    def _host_step(self, step: HostOp) -> Callable[[Values], None]:
        def run(values: Values) -> None:
            args, kwargs = _resolve((step.args, step.kwargs), values)
            with torch.no_grad():
                result = step.op(*args, **kwargs)
            self._counters.host_ops += 1
            self._counters.host_bytes += step.bytes_moved
            results = result if isinstance(result, (tuple, list)) else (result,)
            values.update(zip(step.outputs, results, strict=True))

        return run

    def _branch_step(self, step: HostBranch, device: Device) -> Callable[[Values], None]:
        then = [self._prepare(inner, device) for inner in step.then]
        otherwise = [self._prepare(inner, device) for inner in step.otherwise]

        def branch(values: Values) -> None:
            for inner in then if self._read(values[step.condition]) else otherwise:
                inner(values)

        return branch

    def _read(self, condition: torch.Tensor) -> bool:
        self._counters.host_reads += 1
        return bool(condition)

    def _loop_step(self, step: HostLoop, device: Device) -> Callable[[Values], None]:
        body = [self._prepare(inner, device) for inner in step.body]

        def loop(values: Values) -> None:
            for _ in count() if step.limit is None else range(step.limit):
                for inner in body:
                    inner(values)
                if not self._read(values[step.condition]):
                    return
            raise StateError(f"a loop did not end within {step.limit} repetitions", hint="raise the declared maximum")

        return loop

    def _trips_step(self, step: HostTrips, device: Device) -> Callable[[Values], None]:
        replay = self._replay_step(step.body, device)
        number, *inputs = step.body.inputs
        carried = inputs[: len(step.start)]

        def trips(values: Values) -> None:
            count = int(values[step.trips]) if isinstance(step.trips, str) else step.trips
            inside = {
                **values,
                **{name: values[start].contiguous() for name, start in zip(carried, step.start, strict=True)},
            }
            stacks = [torch.zeros(shape, dtype=dtype, device=place) for shape, dtype, place in step.stacks]
            for trip in range(count):
                inside[number] = torch.tensor(trip)
                replay(inside)
                results = [inside[name] for name in step.body.outputs]
                inside.update(zip(carried, (value.contiguous() for value in results), strict=False))
                for stack, row in zip(stacks, results[len(carried) :], strict=True):
                    stack[trip] = row
            values.update(zip(step.outputs, [*(inside[name] for name in carried), *stacks], strict=True))

        return trips


def _resolve(arg: Any, values: Values) -> Any:
    if isinstance(arg, Ref):
        return values[arg.name]
    if isinstance(arg, (tuple, list)):
        return type(arg)(_resolve(item, values) for item in arg)
    if isinstance(arg, dict):
        return {key: _resolve(item, values) for key, item in arg.items()}
    return arg
