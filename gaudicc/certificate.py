"""What is proved of a compiled model, per bucket; what was assumed; what is not known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gaudicc.buckets import Bucket
from gaudicc.invariants import Invariant, verdict_of
from gaudicc.nodes import is_op, op_name
from gaudicc.padding.certificate import NOT_PADDED, certificate_of
from gaudicc.plan import HostBranch, HostLoop, HostOp, Plan
from gaudicc.program import Program
from gaudicc.targets import Support


@dataclass(frozen=True)
class BucketCertificate:
    """What holds for the recorded graphs of one bucket.

    Attributes:
        bucket: its sizes.
        proved: invariants checked on its static program.
        evidenced: calls in the unique graphs that a source says the target runs.
        presumed: op -> why the table only presumes that it runs.
        host: ops left on the host, with their source lines.
        reads: conditions that the host reads between recorded graphs, each of which drains the device, with their source lines.
    """

    bucket: str
    proved: tuple[str, ...]
    evidenced: int
    presumed: Mapping[str, str]
    host: tuple[str, ...]
    reads: tuple[str, ...] = ()


@dataclass(frozen=True)
class Certificate:
    """The certificate of a compiled model.

    Attributes:
        target: the chip whose table was used.
        buckets: one entry per bucket.
        padding: what is proved of pads, per output, and every mask with the op that demanded it; or why nothing is padded.
        assumed: what the proofs rest on.
        unproved: what nobody checked.
    """

    target: str
    buckets: tuple[BucketCertificate, ...]
    padding: tuple[str, ...]
    assumed: tuple[str, ...]
    unproved: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Plain data for `--json`."""
        return {
            "target": self.target,
            "buckets": [
                {
                    "bucket": b.bucket,
                    "proved": list(b.proved),
                    "evidenced": b.evidenced,
                    "presumed": dict(b.presumed),
                    "host": list(b.host),
                    "reads": list(b.reads),
                }
                for b in self.buckets
            ],
            "padding": list(self.padding),
            "assumed": list(self.assumed),
            "unproved": list(self.unproved),
        }

    def __str__(self) -> str:
        lines = [f"certificate for {self.target}"]
        for entry in self.buckets:
            lines.append(f"  {entry.bucket or 'the only shape'}: {', '.join(entry.proved)}")
            lines.append(
                f"    {entry.evidenced} calls evidenced, {len(entry.presumed)} ops presumed, {len(entry.host)} on the host"
            )
            lines += [f"    presumed: {op}: {why}" for op, why in entry.presumed.items()]
            lines += [f"    on the host: {op}" for op in entry.host]
            lines += [f"    read by the host: {condition}" for condition in entry.reads]
        lines += [f"  padding: {entry}" for entry in self.padding]
        lines += [f"  assumed: {entry}" for entry in self.assumed]
        return "\n".join([*lines, *(f"  not proved: {entry}" for entry in self.unproved)])


ASSUMED = (
    "the target's table: made from public sources for Gaudi software 1.19; later releases may differ",
    "PyTorch's fake implementations give the shapes, dtypes and strides that the kernels give",
)
UNPROVED = (
    "nothing was run on a Gaudi: that the device accepts these graphs is a claim of the table, not an observation",
)


def certify(
    programs: Mapping[Bucket, Program], plans: Mapping[Bucket, Plan], ensured: frozenset[Invariant]
) -> Certificate:
    """Builds the certificate from the static programs.

    Args:
        programs: the static program of every bucket.
        plans: the plan of every bucket.
        ensured: the invariants that were checked on every static program.
    """
    entries = tuple(_entry(bucket, program, plans[bucket], ensured) for bucket, program in programs.items())
    program = next(iter(programs.values()))
    target = program.target.name if program.target else ""
    return Certificate(target, entries, _padding(program), ASSUMED, UNPROVED)


def _padding(program: Program) -> tuple[str, ...]:
    if program.padded is not None:
        return tuple(str(certificate_of(program)).splitlines())
    return tuple(note for note in program.notes if note.startswith(NOT_PADDED))


def _entry(bucket: Bucket, program: Program, plan: Plan, ensured: frozenset[Invariant]) -> BucketCertificate:
    presumed: dict[str, str] = {}
    counts: Counter[Support] = Counter()
    for _, module in program.graphs():
        for node in module.graph.nodes:
            if is_op(node):
                verdict = verdict_of(node, program)
                counts[verdict.support] += 1
                if verdict.support is Support.PRESUMED:
                    presumed.setdefault(op_name(node), verdict.reason)
    host = tuple(f"{step.op} ({step.source})" for step in plan.all_steps() if isinstance(step, HostOp))
    reads = tuple(
        f"{step.condition} ({step.source})" if isinstance(step, HostBranch) and step.source else step.condition
        for step in plan.all_steps()
        if isinstance(step, (HostBranch, HostLoop))
    )
    proved = tuple(sorted(invariant.name for invariant in ensured))
    return BucketCertificate(str(bucket), proved, counts[Support.EVIDENCED], presumed, host, reads)
