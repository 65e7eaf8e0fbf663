"""Capture, mending: torch.export of a model whose Python decides on tensors, after rewriting the functions that do.

Plain export comes first: a model without such decisions pays nothing. Where it stops at one, the function at fault is
rewritten, its code swapped in until capture ends, and capture starts again.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from types import CodeType, FrameType
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.nn.modules import container
from torch.utils import _pytree as pytree

from gaudicc.capture import source_lines
from gaudicc.capture.assignments import assigned_buffers, refuse_lost
from gaudicc.capture.mend.context import Context, Flag, Unreachable, activate
from gaudicc.capture.mend.data_trip import NeedsRegion, NeedsUnrolling
from gaudicc.capture.mend.internals import quiet, stops_at_data
from gaudicc.capture.mend.interpose import Interpose
from gaudicc.capture.mend.merge import settle
from gaudicc.capture.mend.outcomes import NeedsRewrite, place, user_frames
from gaudicc.capture.mend.packed import packed_sequences
from gaudicc.capture.mend.recurrent import Recurrences
from gaudicc.capture.mend.source import nested_codes
from gaudicc.capture.mend.swap import Swaps, rewritten_code
from gaudicc.capture.mend.texts import no_frozen_text
from gaudicc.capture.mend.tidy import own_outputs, tidy
from gaudicc.capture.mend.traces import module_globals, no_traces
from gaudicc.capture.mend.trip_state import NeedsFirstTrip
from gaudicc.capture.mend.trips import keeping_loops
from gaudicc.capture.outline import are_whole
from gaudicc.capture.outline_loops import refusal_of_loops
from gaudicc.capture.repeats import traced_once
from gaudicc.errors import DynamicControlFlowError, Where

DECIDES = "decides on a tensor or loops over a size, rewritten for capture: "
"""How the note on a rewritten function begins."""

_LOCK = threading.RLock()
"""One mending at a time: it swaps code of functions that other captures may be running."""


@dataclass(frozen=True, slots=True)
class MendedExport:
    """A captured model, and what had to be done to capture it.

    Attributes:
        exported: the program; with flags, its outputs are `(outputs of the model, bool [number of flags])`.
        rewritten: the functions that were rewritten, each as `name (file:line)`.
        flags: what each element of the extra output means; at most one of them is true.
    """

    exported: ExportedProgram
    rewritten: tuple[str, ...] = ()
    flags: tuple[Flag, ...] = ()

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program on this machine: returns what the model returns, or raises what it raises."""
        return self.outputs(self.exported.module()(*args, **kwargs))

    def outputs(self, outputs: Any) -> Any:
        """What the model returns, out of the outputs of the program.

        Raises:
            Exception: the user's own exception, of the flag that is set.
        """
        if not self.flags:
            return outputs
        outputs, values = outputs
        for flag, value in zip(self.flags, values, strict=True):
            if value:
                raise flag.error
        return outputs


def export_mending(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any] | None = None,
    dynamic_shapes: Any = None,
    *,
    max_trips: int | None = None,
    keep_loops: bool = True,
) -> MendedExport:
    """Capture a model with non-strict torch.export, rewriting the Python functions that decide on tensors.

    Args:
        model: the model, in evaluation mode.
        args: example inputs; which path they take does not matter.
        kwargs: likewise, by keyword.
        dynamic_shapes: as for `torch.export.export`.
        max_trips: most trips of a loop that only data ends; more raise `LoopOverflowError` when the program runs.
        keep_loops: trace loops over dynamic sizes as one trip; otherwise they are unrolled, which fixes the size.

    Returns:
        The program. Every side of every decision is in it, selected by `where`.

    Raises:
        DynamicControlFlowError: a decision or loop that cannot be mended; names the line and what to write.
    """

    def export() -> ExportedProgram:
        # Only where it is needed: under one more mode, torch asks in attention whether a piece of unknown length is empty.
        recurs = any(isinstance(part, torch.nn.RNNBase) for part in model.modules())
        steps = Recurrences() if recurs and keep_loops else nullcontext()
        packed = packed_sequences() if recurs else nullcontext()
        with packed, assigned_buffers(model) as assigned, no_frozen_text(), keeping_loops(keep_loops), steps:
            exported = torch.export.export(model, args, kwargs, dynamic_shapes=dynamic_shapes, strict=False)
        refuse_lost(exported, assigned)
        own_outputs(exported)
        return exported

    with _LOCK:
        try:
            with no_traces(model), quiet():
                return MendedExport(traced_once(model, export, lambda exported: are_whole(exported.graph)))
        except (Exception, NeedsRewrite) as error:
            if not isinstance(error, NeedsRewrite) and not stops_at_data(error):
                raise
            first = error
        return _Mending(model, export, max_trips, keep_loops).run(first)


class _Mending:
    """One capture with rewriting."""

    def __init__(
        self, model: nn.Module, export: Callable[[], ExportedProgram], max_trips: int | None, keep_loops: bool
    ) -> None:
        self._model, self._export, self._max_trips, self._keep_loops = model, export, max_trips, keep_loops
        self._swaps = Swaps()
        self._rewritten: list[str] = []
        self._flags: tuple[Flag, ...] = ()
        self._first_apart: set[str] = set()
        self._regions: set[str] = set()
        self._unrolled: dict[str, DynamicControlFlowError] = {}

    def run(self, error: BaseException) -> MendedExport:
        """Rewrite and try again until capture gets through."""
        forward = self._model.forward
        had_own = "forward" in vars(self._model)
        wrapper = self._wrap(forward)
        try:
            self._model.forward = wrapper
            self._rewrite(error)
            while True:
                try:
                    with no_traces(self._model), quiet():
                        exported = self._export()
                except (Exception, NeedsRewrite, NeedsFirstTrip, NeedsRegion, NeedsUnrolling) as again:
                    self._rewrite(again)
                    continue
                tidy(exported.graph_module)
                why = refusal_of_loops(exported.graph_module) if self._regions else None
                if why is not None:
                    self._rewrite(NeedsUnrolling(next(iter(self._regions)), why))
                    continue
                return MendedExport(exported, tuple(self._rewritten), self._flags)
        finally:
            self._swaps.undo()
            if had_own:
                self._model.forward = forward
            else:
                del self._model.forward

    def _wrap(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(forward)

        @functools.wraps(forward)
        def traced(*args: Any, **kwargs: Any) -> Any:
            context = Context((self._model, *module_globals(self._model)), self._max_trips, self._swaps.is_rewritten)
            context.keeps_loops, context.first_apart = self._keep_loops, self._first_apart
            context.regions, context.unrolled = self._regions, self._unrolled
            context.watch.boundary = traced.__code__  # type: ignore[attr-defined]
            before = dict(self._model._buffers)
            with activate(context), context.watch.watching(), Interpose(context):
                outputs = _outputs(context, forward, args, kwargs)
            # torch.export notes what is assigned to a buffer last; merging the sides of a branch assigns nothing
            for name, buffer in self._model._buffers.items():
                if buffer is not before.get(name):
                    setattr(self._model, name, buffer)
            self._flags = tuple(flag for flag, _ in context.flags.values())
            return (outputs, torch.stack([value for _, value in context.flags.values()])) if self._flags else outputs

        traced.__signature__ = signature  # type: ignore[attr-defined]
        return traced

    def _rewrite(self, error: BaseException) -> None:
        """Rewrite the function that `error` stopped in."""
        if isinstance(error, NeedsFirstTrip):
            self._first_apart.add(error.place)
            return
        if isinstance(error, NeedsRegion):
            self._regions.add(error.place)
            return
        if isinstance(error, NeedsUnrolling):
            self._regions.remove(error.place)
            self._unrolled[error.place] = error.why
            return
        function = getattr(error, "function", None)
        if function is not None:
            code, name, where = function.__code__, function.__qualname__, place_of(function.__code__)
        else:
            code, name, where = self._code_at_fault(error)
        if self._swaps.is_rewritten(code):
            raise _refusal(error, code, where) from error
        new = rewritten_code(code, name)
        if new is None:
            raise _refusal(error, code, where, "its source is missing") from error
        self._swaps.replace(code, new)
        self._rewritten.append(f"{name} ({place_of(code)})")

    def _code_at_fault(self, error: BaseException) -> tuple[CodeType, str, str]:
        frames = getattr(error, "frames", None) or user_frames(error)
        dynamic = isinstance(error, (NeedsRewrite, DynamicControlFlowError)) or stops_at_data(error)
        if isinstance(error, RecursionError) and frames:
            raise _endless(*frames[0]) from error
        owner = _owner(frames)
        if not dynamic or owner is None:
            raise error
        return owner[0].f_code, _qualified_name(owner[0]), place(*owner)


def _owner(frames: Sequence[tuple[FrameType, int]]) -> tuple[FrameType, int] | None:
    """The innermost function; of a comprehension, a generator expression or a look-up in a ModuleList, the one around it."""
    part: CodeType | None = None
    for frame, line in frames:
        code = frame.f_code
        if code.co_name in ("<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>"):
            part = part or code
        elif not _looks_up(code) and (part is None or part in nested_codes(code)):  # another may run the generator
            return frame, line
    return None


def _looks_up(code: CodeType) -> bool:
    return code.co_filename == container.__file__ and code.co_name in ("__getitem__", "_get_abs_string_index")


def _endless(frame: FrameType, line: int) -> DynamicControlFlowError:
    return DynamicControlFlowError(
        f"nothing but data ends the recursion of {frame.f_code.co_name}",
        where=Where(source=place(frame, line)),
        hint="write it as a loop, or give it a depth that Python counts",
    )


def _outputs(context: Context, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    try:
        outputs = forward(*args, **kwargs)
    except Unreachable:
        raise DynamicControlFlowError(
            "every path through the model raises", where=_where(forward), hint="mend the model in eager PyTorch first"
        ) from None
    try:
        return pytree.tree_map(lambda leaf: settle(context, leaf), outputs)
    except DynamicControlFlowError as error:
        raise DynamicControlFlowError(error.what, where=_where(forward), hint=error.todo) from error


def _where(forward: Callable[..., Any]) -> Where:
    code = getattr(getattr(inspect.unwrap(forward), "__func__", forward), "__code__", None)
    return Where(source=place_of(code)) if code else Where()


def _qualified_name(frame: FrameType) -> str:
    code: CodeType = frame.f_code
    if hasattr(code, "co_qualname"):
        return str(code.co_qualname)
    owner = frame.f_locals.get("self")
    classes = type(owner).__mro__ if owner is not None else ()
    found = next((kind for kind in classes if getattr(vars(kind).get(code.co_name), "__code__", None) is code), None)
    return f"{found.__name__}.{code.co_name}" if found else code.co_name


def place_of(code: CodeType) -> str:
    """`file:line` of a function."""
    return source_lines.place(code.co_filename, code.co_firstlineno)


def _refusal(error: BaseException, code: CodeType, source: str, why: str = "") -> BaseException:
    if isinstance(error, DynamicControlFlowError):
        where = error.where if error.where.source else Where(source=source)
        return DynamicControlFlowError(error.what, where=where, hint=error.todo)
    text = str(error).split("\n", maxsplit=1)[0]
    what = f"Python decides on the value of a tensor in {code.co_name}" + (
        f" and {why}" if why else f": {text}" if text else ""
    )
    return DynamicControlFlowError(what, where=Where(source=source))
