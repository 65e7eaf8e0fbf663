"""LM inference, fifth step: one entry point of a model, captured once with symbolic sizes, recorded per bucket on first use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.export import Dim
from torch.utils import _pytree as pytree

from gaudicc.buckets import Bucket
from gaudicc.capture import capture
from gaudicc.collector import collector_paused
from gaudicc.compiler import split_pipeline
from gaudicc.lower import lower
from gaudicc.passes import DEFAULT_PIPELINE
from gaudicc.passes.check_integers import CheckIntegers
from gaudicc.passes.choose_branches import ChooseBranches
from gaudicc.passes.pad import Pad
from gaudicc.passes.partition_layers import PartitionLayers
from gaudicc.passes.specialize import Specialize
from gaudicc.passes.split_attention import SplitAttention
from gaudicc.passes.stagger_rows import StaggerRows
from gaudicc.pipeline import Pipeline
from gaudicc.program import InputKind, OutputKind, OutputSpec, Program
from gaudicc.runtime.device import Device, records_loops
from gaudicc.runtime.runner import Counters, Runner
from gaudicc.targets import Target
from gaudicc.verify import Level

Shapes = Mapping[str, Mapping[int, Any]]

# What is pad is declared by the steps themselves: rows behind a length are masked and written to dump rows. The host reads
# nothing between two tokens, so it decides no branch either.
# Slices of attention and of rows overlap two engines, and sub-graphs are launched; the CPU is one engine and launches nothing.
_PASSES = tuple(step for step in DEFAULT_PIPELINE if not isinstance(step, (ChooseBranches, Pad)))
_FOR_ENGINES = (PartitionLayers, SplitAttention, StaggerRows)


class EntryPoint:
    """One module whose buffers are the state that it shares with other entry points.

    Args:
        module: captured on first use.
        example: arguments by name, each varying size 2 or more.
        dims: argument name -> position -> name, smallest and largest size of what varies; a size that cannot vary is left out.
        target: the chip.
        device: records.
        counters: counted into.
        ranges: `(argument or buffer, lowest, highest)`: what the caller sees to that integers hold.
        level: what is checked after each pass.
    """

    def __init__(
        self,
        module: nn.Module,
        example: Mapping[str, Tensor],
        dims: Mapping[str, Mapping[int, tuple[str, int, int]]],
        *,
        target: Target,
        device: Device,
        counters: Counters,
        ranges: tuple[tuple[str, int, int], ...] = (),
        level: Level = Level.OPS,
    ) -> None:
        self._module, self._example, self._dims = module, dict(example), dims
        self._target, self._device, self._counters, self._level = target, device, counters, level
        checks = CheckIntegers(ranges=(), kept=ranges)
        passes = [checks if isinstance(step, CheckIntegers) else step for step in _PASSES]
        passes = [step for step in passes if device.name != "cpu" or not isinstance(step, _FOR_ENGINES)]
        self._symbolic, self._static = split_pipeline(passes)
        self._program: Program | None = None
        self._runners: dict[Bucket, Runner] = {}

    @property
    def buckets(self) -> tuple[Bucket, ...]:
        """The buckets recorded so far."""
        return tuple(self._runners)

    @property
    def program(self) -> Program:
        """The symbolic program, captured on first use."""
        if self._program is None:
            made: dict[str, Any] = {}
            shapes = {
                name: {
                    position: made.setdefault(dim, Dim(dim, min=low, max=high))
                    for position, (dim, low, high) in where.items()
                }
                for name, where in self._dims.items()
            }
            with collector_paused():
                program = as_state(capture(self._module, (), dict(self._example), dynamic_shapes=shapes or None))
                program.target = self._target
                self._program, _ = self._symbolic.run(program, level=self._level)
        return self._program

    def runner(self, bucket: Bucket) -> Runner:
        """The recorded bucket; recorded now if it was not."""
        runner = self._runners.get(bucket)
        if runner is None:
            with collector_paused():
                static = self.static_program(bucket)
                plan = lower(static, bucket, loops=records_loops(self._device))
                runner = Runner(plan, static.bound(), self._device, self._counters, borrow=True)
            self._runners[bucket] = runner
        return runner

    def static_program(self, bucket: Bucket) -> Program:
        """The program of one bucket, after all passes."""
        sizes = {dim.name: bucket[dim.name] for dim in self.program.dimensions}
        steps = tuple(
            replace(step, sizes=tuple(sizes.items())) if isinstance(step, Specialize) else step
            for step in self._static.passes
        )
        pipeline = Pipeline(steps, initial=self._static.initial, phase=str(bucket) or "static")
        program, _ = pipeline.run(self.program, level=self._level)
        return program


def as_state(program: Program) -> Program:
    """Makes the buffers that a step returns new values of into state.

    Args:
        program: of a module that returns `(result, {buffer name: new value})`, the buffers in its submodule `state`.
    """
    count = len(program.outputs)
    _, written = pytree.tree_unflatten(list(range(count)), program.calling.out_spec)
    targets = {index: f"state.{name}" for name, index in written.items()}
    inputs = tuple(
        replace(spec, kind=InputKind.STATE) if spec.source in targets.values() else spec for spec in program.inputs
    )
    outputs = tuple(
        OutputSpec(OutputKind.STATE, targets[index]) if index in targets else spec
        for index, spec in enumerate(program.outputs)
    )
    return replace(program, inputs=inputs, outputs=outputs)
