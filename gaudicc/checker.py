"""check(): capture -> what stands between a model and the target, op by op, with source lines; nothing is compiled."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch._decomp import decomposition_table

from gaudicc.capture import capture
from gaudicc.capture.mend import DECIDES
from gaudicc.errors import CaptureError
from gaudicc.fake_values import fakes
from gaudicc.invariants import needs_decomposition
from gaudicc.nodes import is_op, val
from gaudicc.passes.bound_dynamic_ops import BoundDynamicOps
from gaudicc.passes.canonicalize_layers import CanonicalizeLayers
from gaudicc.passes.decompose import Decompose
from gaudicc.passes.legalize_dtypes import LegalizeDtypes
from gaudicc.passes.legalize_ops import ALL_RULES, LegalizeOps
from gaudicc.program import Program
from gaudicc.rules import complex_pairs, fourier
from gaudicc.rules.bounded_forms import FORMS
from gaudicc.targets import Support, Target, load_target
from gaudicc.targets.calls import OpCall, judge_call, on_meta, parts_of
from gaudicc.targets.findings import Finding, find
from gaudicc.targets.target import RELEASE, op_name

_STANDS = (Support.EVIDENCED, Support.PRESUMED)
NO_REMEDY = "none: compile refuses it, or leaves it on the host with on_unsupported='host'"
_BOUNDED = (
    f"{BoundDynamicOps.name}: a tensor of the largest length and a count, where the program implies such a length"
)


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why capture failed.

    Attributes:
        kind: the class of the error, e.g. `DynamicControlFlowError`.
        what: what went wrong.
        where: the user's line and the stage; empty if none is known.
        hint: what to do.
    """

    kind: str
    what: str
    where: str
    hint: str

    def __str__(self) -> str:
        return (
            f"capture stops: {self.what}\n  kind: {self.kind}\n  where: {self.where or 'unknown'}\n  to do: {self.hint}"
        )


@dataclass(frozen=True, slots=True)
class Checked:
    """One op with the target's verdict, and what gaudicc does about it.

    Attributes:
        finding: the verdict, over all calls that share it.
        remedies: the passes and rules that would rewrite those calls; empty for an op that runs as it is.
    """

    finding: Finding
    remedies: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Plain data for `json.dumps`."""
        return {**self.finding.as_json(), "remedies": list(self.remedies)}


@dataclass(frozen=True, slots=True)
class Findings:
    """What `check` found.

    Attributes:
        target: the chip.
        release: the software release that its table speaks of.
        ops: every op, the worst support first; empty if capture failed.
        obstacle: why capture failed, or None.
        notes: what capture has to say (hooks found, functions rewritten), and how many bodies layers share.
    """

    target: str
    release: str
    ops: tuple[Checked, ...] = ()
    obstacle: Obstacle | None = None
    notes: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[Finding]:
        return (entry.finding for entry in self.ops)

    @property
    def refused(self) -> tuple[Checked, ...]:
        """The ops that nothing here makes legal."""
        return tuple(entry for entry in self.ops if any(NO_REMEDY in remedy for remedy in entry.remedies))

    @property
    def hazards(self) -> dict[str, int]:
        """64-bit and complex dtype -> calls that touch it."""
        return _count(self, lambda finding: finding.hazards)

    @property
    def dynamic(self) -> dict[str, int]:
        """Data-dependent construct -> calls; the functions too whose Python decides on tensors."""
        decisions = [note.removeprefix(DECIDES) for note in self.notes if note.startswith(DECIDES)]
        return {
            **_count(self, lambda finding: finding.dynamic),
            **{f"a decision on a tensor in {function}": 1 for function in decisions},
        }

    def as_json(self) -> dict[str, Any]:
        """Plain data for `json.dumps`."""
        obstacle = self.obstacle
        return {
            "target": self.target,
            "release": self.release,
            "obstacle": obstacle and {name: getattr(obstacle, name) for name in ("kind", "what", "where", "hint")},
            "ops": [entry.as_json() for entry in self.ops],
            "hazards": self.hazards,
            "dynamic": self.dynamic,
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        lines = [f"target {self.target}, table of Gaudi software {self.release}; nothing was run on a Gaudi"]
        if self.obstacle is not None:
            lines += [str(self.obstacle), "No op is listed: the graph ends where capture stops."]
        if self.ops:
            head = ("op", "calls", "status", "engine", "hazards", "where")
            lines += ["", *text_table(head, [_row(entry.finding) for entry in self.ops]), "", self._summary()]
        troubled = [entry for entry in self.ops if entry.remedies]
        if troubled:
            lines += ["", "what is not legal as it stands, and what the passes do about it:"]
        for entry in troubled:
            finding = entry.finding
            lines.append(f"  {finding.op} x{finding.count}  {', '.join(finding.sources) or 'no source line'}")
            lines.append(f"    why: {finding.reason}")
            if finding.host_bytes != 0:
                lines.append(f"    eager fallback would move: {_moved(finding.host_bytes)}")
            lines += [f"    dynamic: {construct}" for construct in finding.dynamic]
            lines += [f"    remedy: {remedy}" for remedy in entry.remedies]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    def _summary(self) -> str:
        counts = _count(self, lambda finding: (finding.support,))
        parts = [", ".join(f"{count} calls {word.replace('_', ' ')}" for word, count in counts.items())]
        parts += [f"dtype hazards: {', '.join(f'{d} in {n} calls' for d, n in self.hazards.items()) or 'none'}"]
        parts += [f"dynamic constructs: {', '.join(f'{d} in {n} calls' for d, n in self.dynamic.items()) or 'none'}"]
        return "\n".join(parts)


def check(
    model: Any,
    example_inputs: Any = (),
    example_kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic_shapes: Any = None,
    target: str = "gaudi3",
) -> Findings:
    """Lists what a model asks of the target. Captures only: nothing is compiled or recorded.

    Args:
        model: as in `gaudicc.compile`.
        example_inputs: positional arguments, or a dict of keyword arguments.
        example_kwargs: keyword arguments.
        dynamic_shapes: as in `gaudicc.compile`.
        target: the chip: `gaudi2` or `gaudi3`.

    Returns:
        The findings. A model that cannot be captured gives one that says where and why, instead of the ops.

    Raises:
        InputError: the arguments do not fit the model.
        TargetError: the target is unknown.
    """
    chip = load_target(target)
    try:
        program = capture(model, example_inputs, example_kwargs, dynamic_shapes=dynamic_shapes)
    except CaptureError as error:
        obstacle = Obstacle(type(error).__name__, error.what, str(error.where), error.todo)
        return Findings(chip.name, RELEASE, obstacle=obstacle)
    program.target = chip
    remedies = _remedies(program, chip)
    ops = tuple(Checked(each, remedies.get((each.op, each.reason), ())) for each in find(program.root, chip))
    layers = CanonicalizeLayers().run(program.copy()).notes
    return Findings(chip.name, RELEASE, ops, notes=(*program.notes, *layers))


def _remedies(program: Program, target: Target) -> dict[tuple[str, str], tuple[str, ...]]:
    """(op, reason of its verdict) -> what the passes do about these calls."""
    found: dict[tuple[str, str], dict[str, None]] = {}
    for _, module in program.graphs():
        for node in module.graph.nodes:
            if not is_op(node):
                continue
            call = OpCall(node.target, fakes(node.args), fakes(node.kwargs))
            verdict = judge_call(target, call)
            if needs_decomposition(node, program) or verdict.support not in _STANDS:
                remedies = found.setdefault((op_name(node.target), verdict.reason), {})
                bounded = verdict.dynamic and node.target in FORMS
                remedy = (_BOUNDED,) if bounded else _remedy(node, call, program, target)
                remedies.update(dict.fromkeys(remedy))
    return {key: tuple(remedies) for key, remedies in found.items()}


def _remedy(node: fx.Node, call: OpCall, program: Program, target: Target) -> Iterator[str]:
    """What happens to one call: decomposition first, then pairs for complex values, a rule for what is still not legal."""
    if not needs_decomposition(node, program):
        complex_values = any(map(_is_complex, (*node.all_input_nodes, node)))
        yield _pairs(node) if complex_values else _rule(call)
        return
    yield f"{Decompose.name}: taken apart before its parts are judged"
    for part in parts_of(call) or ():
        gives = bool(part.op._schema.returns)  # what gives nothing, a check of values, is dropped
        if gives and judge_call(target, part).support not in _STANDS:
            yield f"its part {op_name(part.op)}: {_rule(part)}"


def _is_complex(node: fx.Node) -> bool:
    return isinstance(val(node), torch.Tensor) and bool(val(node).is_complex())


def _pairs(node: fx.Node) -> str:
    known = node.target in complex_pairs.RULES or node.target in fourier.RULES
    return f"{LegalizeDtypes.name}: on pairs of reals" if known else NO_REMEDY


def _rule(call: OpCall) -> str:
    """The first rule of legalize-ops that fits a call, or PyTorch's decomposition, or why neither does."""
    misfits = []
    try:
        static = on_meta(call)  # numbers for sizes: a rule's check must not add guards to symbols
    except ValueError as error:
        return f"none: {error}"
    for rule in ALL_RULES:
        if call.op in rule.ops:
            reason = rule.check(*static.args, **static.kwargs)
            if reason is None:
                return f"{LegalizeOps.name}: rule {rule.name} ({rule.numerics.value}; costs {rule.cost})"
            misfits.append(f"rule {rule.name} does not fit: {reason}")
    if call.op in _decompositions():
        return f"{LegalizeOps.name}: PyTorch's decomposition, whose parts are judged in turn"
    return "; ".join([NO_REMEDY, *misfits])


def _decompositions() -> Mapping[Any, Any]:
    return decomposition_table


def _moved(size: int | None) -> str:
    return "as many bytes as data says" if size is None else f"{size} bytes per call of the model"


def _count(findings: Findings, words: Any) -> dict[str, int]:
    counts: dict[str, int] = {}
    for finding in findings:
        for word in words(finding):
            counts[word] = counts.get(word, 0) + finding.count
    return dict(sorted(counts.items()))


def _row(finding: Finding) -> tuple[str, ...]:
    places = ", ".join(finding.sources[:2]) + (
        f" and {len(finding.sources) - 2} more" if len(finding.sources) > 2 else ""
    )
    status = finding.support.replace("_", " ")
    return finding.op, str(finding.count), status, finding.engine, " ".join(finding.hazards) or "-", places


def text_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Lines of a table in plain text, columns aligned on the left."""
    table = [head, *rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
