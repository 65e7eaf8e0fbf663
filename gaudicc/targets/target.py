"""A chip's table with its overlays, and the lookup that every pass, rule and check asks.

Order of the answer: what no overlay can change (host arithmetic, complex), then the overlays, the last one first, then
the chip's table.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from gaudicc.errors import TargetError, Where
from gaudicc.own_tables import own_table
from gaudicc.targets.conditions import CONDITIONS, Call, Condition, Sizes
from gaudicc.targets.dtypes import COMPLEX, DEVICE, accepts, code, narrowed
from gaudicc.targets.model import Compile, Engine, Kind, Lazy, Mode, OverlayRow, Row, Support, Verdict
from gaudicc.targets.table import read_overlay, read_table

if TYPE_CHECKING:
    import torch

TABLES = Path(__file__).parent
SHIPPED_OVERLAYS = ("supplement.json", "reported_bad.json")
RELEASE = "1.19.0"

# Arithmetic on sizes and containers that the host does before a recorded graph runs.
HOST = frozenset(
    f"aten::{name}"
    for name in (
        "sym_size.int", "sym_stride.int", "sym_numel", "sym_storage_offset", "sym_size", "sym_stride",
        "sym_constrain_range", "sym_constrain_range_for_size", "_assert_scalar", "_assert_tensor_metadata",
    )
) | {"getitem"}  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Target:
    """A chip and what its software is known to run.

    Attributes:
        name: `gaudi2` or `gaudi3`.
        rows: the chip's table by op.
        overlays: statements that win over the table, the strongest first.
        verdicts: what was said of calls, by all that it depends on (`judge_call`).
    """

    name: str
    rows: Mapping[str, Row]
    overlays: Mapping[str, tuple[OverlayRow, ...]]
    verdicts: dict[Hashable, Verdict] = field(default_factory=dict, init=False, repr=False)

    def lookup(
        self,
        op: object,
        dtypes: Iterable[torch.dtype | str] = (),
        mode: Mode = Mode.LAZY,
        sizes: Sizes | None = None,
        arguments: Mapping[str, object] | None = None,
    ) -> Verdict:
        """Say whether the target runs an op.

        Args:
            op: `aten.add.Tensor`, `aten::add.Tensor`, or a node's target; `aten.mm.default` is `aten::mm`.
            dtypes: dtypes of the tensor operands in schema order, then of a `dtype` argument if there is one.
            mode: the execution mode.
            sizes: sizes of the tensor operands, where known; conditions on sizes need them.
            arguments: all arguments by schema name, where known; conditions on arguments need them.

        Returns:
            A verdict, with a reason; never raises.
        """
        name = op_name(op)
        call = Call(tuple(code(dtype) for dtype in dtypes), mode, sizes, arguments)
        if name in HOST or is_arithmetic(op):
            reason = "arithmetic on sizes or containers, done by the host; nothing reaches the device"
            return Verdict(Support.EVIDENCED, Engine.NONE, reason, "torch.fx", RELEASE)
        if name.startswith("gaudicc::"):
            reason = "a semantic op of gaudicc must be lowered before it can run on the device"
            return Verdict(Support.NO, Engine.UNKNOWN, reason, "gaudicc", RELEASE)
        if held := COMPLEX.intersection(call.dtypes):
            reason = f"the device holds no complex tensor ({min(held)}); the bridge raises"
            return Verdict(Support.NO, Engine.NONE, reason, "backend/helpers/tensor_utils.cpp", RELEASE)
        for spelling in (name, _judged_as(self.rows, name, mode)):
            for overlay in self.overlays.get(spelling, ()):
                if _applies(overlay, call):
                    return _of_overlay(overlay, call)
        verdict = _of_table(self.rows, name, call)
        if name in self.rows or isinstance(op, str):
            return verdict
        # Newer than the tables, but upstream may know its parts; a higher-order op has none.
        return replace(verdict, composite=hasattr(op, "_can_decompose") and op._can_decompose())


def load_target(name: str, overlay: str | Path | None = None, *, shipped: bool = False) -> Target:
    """Load a target by name.

    Args:
        name: `gaudi2` or `gaudi3`.
        overlay: a JSON file with the user's own rows, which win over all others (docs/targets.md), those of the folder
            `GAUDICC_TABLES` included.
        shipped: leave that folder out.

    Raises:
        TargetError: the name is unknown, or a file is malformed.
    """
    known = sorted(path.stem for path in TABLES.glob("gaudi*.json"))
    if name not in known:
        raise TargetError(
            f"unknown target {name!r}",
            where=Where(stage="loading the target"),
            hint=f"known targets: {', '.join(known)}",
        )
    chip, rows = read_table(TABLES / f"{name}.json")
    own = None if shipped else own_table(f"{name}.overlay.json")
    files = [TABLES / file for file in SHIPPED_OVERLAYS] + [Path(file) for file in (own, overlay) if file]
    overlays: dict[str, tuple[OverlayRow, ...]] = {}
    for file in files:
        for row in read_overlay(file):
            overlays[row.op] = (row, *overlays.get(row.op, ()))
    return Target(chip, rows, overlays)


def op_name(op: object) -> str:
    """The name of an op as the tables spell it: `aten.mm.default`, `aten::mm` and the OpOverload are all `aten::mm`."""
    name = str(op) if isinstance(op, str) or hasattr(op, "_schema") else getattr(op, "__name__", str(op))
    if "::" not in name and "." in name:
        name = name.replace(".", "::", 1)
    return name.removesuffix(".default")


def is_arithmetic(op: object) -> bool:
    """Whether a function computes on Python numbers and containers: `operator.mul`, `math.ceil`, `torch.sym_max`."""
    name, module = getattr(op, "__name__", ""), getattr(op, "__module__", "")
    return module in ("_operator", "math", "builtins") or (module == "torch" and name.startswith("sym_"))


def _applies(overlay: OverlayRow, call: Call) -> bool:
    if call.mode not in overlay.modes:
        return False
    if overlay.when is not None and not CONDITIONS[overlay.when].holds(call):
        return False
    if overlay.dtypes and not call.dtypes:
        return False  # it speaks of some dtypes, and these are not known
    return not set(call.dtypes) - (set(overlay.dtypes) or DEVICE)


def _of_overlay(row: OverlayRow, call: Call) -> Verdict:
    narrow = narrowed(call.dtypes, call.mode)
    return Verdict(row.support, row.engine, f"{row.op}: {row.reason}", row.source, row.release, row.dynamic, narrow)


def _of_table(rows: Mapping[str, Row], name: str, call: Call) -> Verdict:
    row = rows.get(name)
    if row is None:
        return Verdict(Support.NO, Engine.UNKNOWN, f"no source knows {name}", "none of the sources", RELEASE)
    judged = _judged_as(rows, name, call.mode)
    if judged != name:
        return _of_table(rows, judged, call)
    support, reason = _placement(row, call.mode)
    broken = _broken(row, call)
    if broken is not None:
        support, reason = Support.NO, broken.reason
    elif row.dynamic:
        support, reason = Support.NO, "its output size, or a host read, depends on data: it splits the recorded graph"
    elif support is Support.EVIDENCED:
        support, reason = _dtypes(row, call)
    return Verdict(
        support,
        row.engine,
        f"{name}: {reason}",
        row.source,
        row.release,
        dynamic=row.dynamic or (broken is not None and broken.dynamic),
        narrowed=narrowed(call.dtypes, call.mode),
        composite=broken is None and row.kind in (Kind.IMPLICIT, Kind.EXPLICIT) and row.lazy is not Lazy.NATIVE,
    )


def _judged_as(rows: Mapping[str, Row], name: str, mode: Mode) -> str:
    """The op whose row decides: where the mode makes in-place and out variants functional, that form's."""
    functionalized = mode is Mode.COMPILE and name in rows and rows[name].compile is Compile.FUNCTIONALIZED
    return (functionalized and _functional(rows, name)) or name


def _functional(rows: Mapping[str, Row], name: str) -> str | None:
    """The functional form of a variant: `aten::add_.Tensor` -> `aten::add.Tensor`, `aten::mm.out` -> `aten::mm`."""
    base, _, overload = name.partition(".")
    overload = overload.removesuffix("_out").removesuffix("out")
    plain = base.removesuffix("_")
    # The out form of `aten::mul.Tensor` is `aten::mul.out`.
    forms = (f"{plain}.{overload}",) if overload else (plain, f"{plain}.Tensor")
    return next((form for form in forms if form != name and form in rows), None)


def _placement(row: Row, mode: Mode) -> tuple[Support, str]:
    """What the mode says of an op before dtypes and conditions."""
    if row.kind is Kind.BACKEND:
        return Support.NO, "a node of the vendor's own graph that Python cannot call"
    if row.lazy is Lazy.NO:
        return Support.NO, "neither a device nor a host kernel serves it"
    if row.lazy is Lazy.FALLBACK:
        return Support.NO, "only the host has a kernel: eager fallback, fatal inside a recorded graph"
    if row.kind is Kind.IMPLICIT and row.lazy is not Lazy.NATIVE:
        return Support.NO, "a composite without a device kernel: legal once decomposed, its parts decide"
    if mode is Mode.COMPILE:
        # What a view decomposes into are views, and these are placed.
        is_view = row.engine is Engine.NONE and row.compile is Compile.DECOMPOSED
        return (Support.EVIDENCED, "") if is_view else _compile_placement(row.compile)
    if row.lazy is Lazy.COMPOSITE:
        return Support.PRESUMED, "a composite that no source names: its parts decide"
    return Support.EVIDENCED, ""


def _compile_placement(placement: Compile) -> tuple[Support, str]:
    if placement is Compile.EAGER:
        return Support.NO, "hpu_backend places it outside the cluster, which breaks the recorded graph"
    if placement is Compile.NO:
        return Support.NO, "no source places it in a cluster of hpu_backend"
    if placement is Compile.DECOMPOSED:
        return Support.PRESUMED, "hpu_backend decomposes it before placement: its parts decide"
    if placement is Compile.FUNCTIONALIZED:
        return Support.PRESUMED, "hpu_backend functionalises it, and no source knows its functional form"
    return Support.EVIDENCED, ""


def _broken(row: Row, call: Call) -> Condition | None:
    for name in row.when:
        condition = CONDITIONS[name]
        if call.mode in condition.modes and condition.holds(call):
            return condition
    return None


def _dtypes(row: Row, call: Call) -> tuple[Support, str]:
    """The worst answer over the operands."""
    answers = [accepts(listed, dtype, call.mode) for listed, dtype in _pairs(row.operands, call.dtypes)]
    if not answers and row.operands[0] == "?":
        answers = [(Support.PRESUMED, "no source names the dtypes it takes")]
    support, note = max(answers, key=lambda answer: answer[0].rank, default=(Support.EVIDENCED, ""))
    if support is not Support.EVIDENCED:
        return support, note
    where = "as a view or logical copy" if row.engine is Engine.NONE else f"on {row.engine.value}"
    reason = f"runs {where}" + (f" ({row.evidence})" if row.evidence else "")
    narrow = narrowed(call.dtypes, call.mode)
    return support, reason + (f"; {' and '.join(narrow)} narrowed to 32 bits by the device" if narrow else "")


def _pairs(operands: tuple[str, ...], dtypes: tuple[str, ...]) -> list[tuple[str, str]]:
    """Match dtypes with operands: a starred operand takes what the ones after it leave, and the last one repeats."""
    star = next((at for at, operand in enumerate(operands) if operand.endswith("*")), len(operands) - 1)
    tail = operands[star + 1 :]
    middle = max(0, len(dtypes) - star - len(tail))
    listed = (*operands[:star], *(operands[star],) * middle, *tail)
    return list(zip(listed, dtypes, strict=False))


def with_composite_parts(verdict: Verdict, parts: Iterable[Verdict]) -> Verdict:
    """The verdict of a composite whose parts are known: that of the worst part, on the engines of all.

    Args:
        verdict: the composite's own verdict.
        parts: the verdict of each part; none for an op that does nothing here, such as a cast to the same dtype.
    """
    known = list(parts)
    if not known:
        reason = "does nothing for these arguments: it has no parts"
        return replace(verdict, support=Support.EVIDENCED, engine=Engine.NONE, reason=reason)
    worst = max(known, key=lambda part: part.support.rank)
    engines = {part.engine for part in known} - {Engine.NONE}
    engine = next(iter(engines)) if len(engines) == 1 else Engine.MME_TPC if Engine.MME in engines else Engine.TPC
    return replace(
        worst,
        engine=engine if engines else Engine.NONE,
        reason=f"of its parts ({len(known)}) the worst decides: {worst.reason}",
        dynamic=any(part.dynamic for part in known),
        narrowed=tuple(sorted(set(verdict.narrowed).union(*(part.narrowed for part in known)))),
        composite=True,
    )
