"""What the user holds after compiling: called like the model, and open to inspection."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import fx

from gaudicc.buckets import Bucket, BucketSet
from gaudicc.calling import Binder
from gaudicc.calls import Prologue, bucket_for, choice_text, exact, inputs_by_name, refuse_ambient, unflatten
from gaudicc.certificate import Certificate, certify
from gaudicc.errors import BucketMissError, InputError, RecordForbiddenError, Where
from gaudicc.growing_caches import GrowingCaches
from gaudicc.invariants import Invariant
from gaudicc.lower import lower
from gaudicc.padding import Divisible, HostPadding, in_parts
from gaudicc.plan import Plan, Record
from gaudicc.program import InputKind, Program
from gaudicc.runtime.device import Device, records_loops
from gaudicc.runtime.runner import Runner
from gaudicc.stats import ModelledSeconds, Stats
from gaudicc.trace import CompileTrace

log = logging.getLogger("gaudicc")


class CompiledModel:
    """A compiled model. Call it with the arguments of the model it was compiled from.

    Attributes:
        program: the symbolic program, after its passes.
        buckets: the buckets it can serve.
        trace: one record per pass.
        stats: counters, and the modelled time of each bucket.
        notes: what capture and device selection have to say.
    """

    def __init__(
        self,
        program: Program,
        programs: Mapping[Bucket, Program],
        buckets: BucketSet,
        trace: CompileTrace,
        device: Device,
        *,
        ensured: frozenset[Invariant],
        borrow: bool = False,
        own_state: bool = True,
        notes: tuple[str, ...] = (),
        compile_bucket: Callable[[Bucket], Program] | None = None,
        divided: Sequence[Divisible] = (),
    ) -> None:
        self.program = program
        self.buckets = buckets
        self.trace = trace
        self.notes = notes
        self._programs = dict(programs)
        self.stats = Stats(modelled_seconds=ModelledSeconds(self._programs))
        self._loops = records_loops(device)
        self._plans = {bucket: lower(static, bucket, loops=self._loops) for bucket, static in programs.items()}
        self._device = device
        self._ensured, self._borrow = ensured, borrow
        states = {spec.source: program.tensors[spec.source] for spec in program.inputs if spec.kind is InputKind.STATE}
        grown = {cache.state for cache in program.calling.caches}  # no model's own
        with torch.inference_mode(False):  # later calls may be outside, and write it
            self._state = {n: state.clone() if own_state or n in grown else state for n, state in states.items()}
        self._runners: dict[Bucket, Runner] = {}
        self._recording = threading.Lock()
        self._compile_bucket = compile_bucket
        self._divided = divided
        self._forbidden = False
        self._prologue = Prologue(program)
        self._padding = None if program.padded is None else HostPadding(program, views=borrow)
        self._binder = Binder(program.calling)
        self._growing = GrowingCaches(program, self._state, device.fetch) if grown else None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the model.

        Raises:
            InputError: arguments that the model does not take, or static ones that differ from those at compile time.
            ShapeError: a size that no guard admits; BucketMissError: no bucket for it; StateError: a cache is overwritten.
            RecordForbiddenError: its bucket is not recorded, after `forbid_records`.
            AutocastError: autocast is active.
        """
        refuse_ambient()
        leaves = self._binder(args, kwargs)
        if self._growing is not None:
            return self._grow(self._growing, leaves)
        tensors, sizes = self._prologue.bind(leaves)
        results = self._serve(tensors, sizes)
        self.stats.calls += 1
        return unflatten(self.program, results, leaves)

    def _grow(self, growing: GrowingCaches, given: Sequence[Any]) -> Any:
        """One call of a model that holds caches as state."""
        leaves, foreign = growing.take(given, self._prologue)
        tensors, sizes = self._prologue.bind(leaves)
        with growing.holding(foreign, sizes) as held:
            results = self._serve(tensors, sizes)
            self.stats.calls += 1
            self.stats.copied_caches += len(foreign)
            return unflatten(self.program, results, leaves, held)

    def _serve(self, tensors: list[torch.Tensor], sizes: Mapping[str, int]) -> tuple[torch.Tensor, ...]:
        """Runs a call in its bucket; where none holds it, in several calls, if some size may be divided."""
        try:
            bucket = self._choose(sizes)
        except BucketMissError:
            if not self._divided:
                raise
            return in_parts(self._divided, self.buckets, tensors, sizes, self._run)
        return self._run(bucket, tensors, sizes)

    def _choose(self, sizes: Mapping[str, int]) -> Bucket:
        """The cheapest bucket that dominates; without padding, the one of exactly these sizes."""
        try:
            return self.buckets.choose(sizes) if self._padding is not None else exact(self.program, self.buckets, sizes)
        except BucketMissError:
            self.stats.misses += 1
            if self._compile_bucket is None or self._forbidden:
                raise
        return self._add(bucket_for(sizes, self.program.dimensions, exact=self._padding is None))

    def _add(self, bucket: Bucket) -> Bucket:
        """Compiles a bucket that was missed."""
        assert self._compile_bucket is not None
        with self._recording:
            if bucket not in self.buckets:
                log.warning("no bucket fits, compiling %s during a call", bucket)
                static = self._compile_bucket(bucket)
                self._plans[bucket] = lower(static, bucket, loops=self._loops)
                self._programs[bucket] = static
                self.buckets = BucketSet([*self.buckets, bucket], self.buckets.cost)
        return bucket

    def _run(self, bucket: Bucket, tensors: list[torch.Tensor], sizes: Mapping[str, int]) -> tuple[torch.Tensor, ...]:
        """Replays a bucket on inputs of the logical sizes."""
        runner = self._runners.get(bucket) or self._runner_in_call(bucket)
        self.stats.real += sum(tensor.numel() for tensor in tensors)
        if self._padding is None:
            self.stats.padded += sum(tensor.numel() for tensor in tensors)
            return runner.run(tensors)
        physical = bucket.as_dict()
        feed = [*self._padding.pad(inputs_by_name(self.program, tensors), physical, sizes).values()]
        self.stats.padded += sum(tensor.numel() for tensor in feed[: len(tensors)])
        return self._padding.slice(runner.run(feed), physical, sizes)

    def _runner_in_call(self, bucket: Bucket) -> Runner:
        """The runner of a bucket that was not recorded when a call came for it."""
        if self._forbidden:
            raise RecordForbiddenError(f"bucket {bucket} is not recorded", where=Where(stage="the call"))
        if len(self.buckets) > 1:
            log.warning("recording bucket %s during a call; warm_up() does it before", bucket)
        return self._runner(bucket)

    def _runner(self, bucket: Bucket) -> Runner:
        if (runner := self._runners.get(bucket)) is None:
            with self._recording:
                runner = self._runners.get(bucket) or self._record(bucket)
        return runner

    def _record(self, bucket: Bucket) -> Runner:
        static = self._programs[bucket]
        bound = static.bound()
        bound |= {spec.name: self._state[spec.source] for spec in static.inputs if spec.kind is InputKind.STATE}
        runner = Runner(self._plans[bucket], bound, self._device, self.stats, borrow=self._borrow)
        self.stats.bytes_held += runner.bytes_held
        self._runners[bucket] = runner
        return runner

    def warm_up(self, progress: Callable[[int, int, Bucket], None] | None = None) -> None:
        """Records every bucket, so that no later call does. If it is interrupted, another call goes on where it was.

        Args:
            progress: called before each bucket with how many are done, how many there are, and the bucket.
        """
        for done, bucket in enumerate(self.buckets):
            if progress is not None:
                progress(done, len(self.buckets), bucket)
            self._runner(bucket)

    def forbid_records(self) -> None:
        """From now on a call whose bucket is not recorded raises: no request ever waits for a recording."""
        self._forbidden = True

    def plan(self, bucket: Bucket | Mapping[str, int] | None = None) -> Plan:
        """The plan of a bucket; of the only one, if there is one.

        Raises:
            BucketMissError: there is no such bucket.
        """
        return self._plans[self._named(bucket)]

    def graph(self, bucket: Bucket | Mapping[str, int] | None = None) -> fx.GraphModule | dict[str, fx.GraphModule]:
        """The graph recorded for a bucket: a GraphModule, or one per segment where the plan has several."""
        graphs = [step.graph for step in self.plan(bucket).all_steps() if isinstance(step, Record)]
        return graphs[0] if len(graphs) == 1 else {f"segment_{i}": graph for i, graph in enumerate(graphs)}

    def static_program(self, bucket: Bucket | Mapping[str, int] | None = None) -> Program:
        """The static program of a bucket, after all passes."""
        return self._programs[self._named(bucket)]

    def _named(self, bucket: Bucket | Mapping[str, int] | None) -> Bucket:
        if bucket is None:
            if len(self.buckets) != 1:
                raise BucketMissError("no bucket was named", hint=f"name one of {'; '.join(map(str, self.buckets))}")
            return next(iter(self.buckets))
        found = bucket if isinstance(bucket, Bucket) else Bucket.of(bucket)
        if found not in self._programs:
            raise BucketMissError(f"no bucket is {found}", hint=f"the buckets are {'; '.join(map(str, self.buckets))}")
        return found

    @property
    def guards(self) -> str:
        """The prologue as Python: what every call is checked for, and which bucket is chosen for it."""
        return f"{self._prologue}\n{choice_text(self.program, self.buckets)}".strip()

    @property
    def certificate(self) -> Certificate:
        """What is proved, per bucket, what was assumed, what is not."""
        return certify(self._programs, self._plans, self._ensured)

    def session(self) -> CompiledModel:
        """The same compiled model with state of its own, starting from the model's; weights and programs are shared."""
        return type(self)(
            self.program, self._programs, self.buckets, self.trace, self._device,
            ensured=self._ensured, borrow=self._borrow, notes=self.notes,
            compile_bucket=self._compile_bucket, divided=self._divided,
        )  # fmt: skip

    def share_state(self, other: CompiledModel) -> None:
        """Uses the state of another model where both have it; of a cache that grows, where it is of the same size."""
        for name, state in self._state.items():
            shared = other._state.setdefault(name, state)
            self._state[name] = shared if shared.shape == state.shape else state
        if self._growing is not None:
            self._growing = GrowingCaches(self.program, self._state, self._device.fetch)

    def report(self, folder: str | Path) -> Path:
        """Writes one self-contained HTML page: passes with their diffs, guards, buckets, certificate.

        Args:
            folder: made if it is not there.

        Returns:
            The page.

        Raises:
            InputError: the folder cannot be written.
        """
        from gaudicc.report import write_report  # needs jinja2, which a server need not load

        try:
            plans, proved = map(str, self._plans.values()), str(self.certificate)
            return write_report(Path(folder), self.trace, guards=self.guards, certificate=proved, plans=plans)
        except OSError as error:
            raise InputError(f"cannot write the report: {error}", hint="give another path") from error

    def save(self, path: str | Path) -> None:
        """Writes a bundle: programs as data, tensors as safetensors, no code.

        State is saved as it was when the model was compiled: a loaded model starts anew.

        Args:
            path: a folder, or a file that ends in `.zip`.
        """
        from gaudicc.bundle import write_bundle

        programs = {f"bucket:{bucket}": static for bucket, static in self._programs.items()}
        sizes, proved = [list(b.sizes) for b in self.buckets], sorted(invariant.name for invariant in self._ensured)
        manifest = {"buckets": sizes, "dims": list(self.buckets.dims), "proved": proved, "notes": list(self.notes)}
        write_bundle(Path(path), {"symbolic": self.program, **programs}, manifest)
