"""Capture, mending: one trip of a loop over pieces, done to the whole tensor that they are pieces of.

It runs first on fake pieces of an unknown length, and of lengths 1 and 0: it must make the same calls whatever the length is.
The dims of that length are then known by their size, and `piece_rules` says of each call whether it keeps rows apart.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from gaudicc.capture.mend.context import Access, Context, Kind
from gaudicc.capture.mend.internals import between, known_true, same_expression
from gaudicc.capture.mend.loops import Step, trip
from gaudicc.capture.mend.marks import modes, refuse_changes, refuse_modes
from gaudicc.capture.mend.operators import fail
from gaudicc.capture.mend.outcomes import here
from gaudicc.capture.mend.piece_calls import Calls
from gaudicc.capture.mend.piece_rules import NotApart
from gaudicc.capture.mend.pieces import Split, Zipped
from gaudicc.capture.mend.trip_changes import Changes, Grown, changes_of
from gaudicc.capture.mend.trip_state import rehearsal, standing_apart, without
from gaudicc.capture.mend.truth import fresh_test
from gaudicc.capture.mend.values import Lost, Pieces
from gaudicc.errors import DynamicControlFlowError, InputError, Where

_LONGEST = 2**20


def run_pieces(context: Context, items: Any, body: Callable[[Any], Any], access: Access) -> bool:
    """A `for` over pieces; whether it could be done to the whole. Where it could not, there are pieces to go through one by one.

    Raises:
        DynamicControlFlowError: it could not, and how many pieces there are is not known.
    """
    if id(items) in context.splits:
        splits: tuple[Split, ...] = (context.splits[id(items)][1],)
        single, pieces = True, (items,)
    elif isinstance(items, Zipped):
        splits, single, pieces = items.splits, False, items.pieces
    else:
        return False
    before = context.state(access)
    try:
        _Whole(context, splits, single, body, access).run()
    except NotApart as error:
        if any(part.is_endless for part in pieces):
            raise DynamicControlFlowError(
                f"a loop over pieces whose lengths depend on data {error}",
                where=Where(source=here()),
                hint="let all rows of the tensor go through the layers at once, with a mask of which rows belong together",
            ) from None
        context.restore(before, access)
        return False
    return True


class _Whole:
    """One loop over pieces."""

    def __init__(
        self, context: Context, splits: tuple[Split, ...], single: bool, body: Callable[[Any], Any], access: Access
    ) -> None:
        self._context, self._splits, self._single, self._body, self._access = context, splits, single, body, access
        self._before = context.state(access)
        self._rows = splits[0].whole.shape[splits[0].dim]

    def run(self) -> None:
        """Does to the whole what a trip does to a piece, and leaves a list that knows it."""
        context, access = self._context, self._access
        sizes = [entry.whole.shape[entry.dim] for entry in self._splits]
        if not all(known_true(size == self._rows) for size in sizes):
            raise NotApart("goes over tensors of different lengths")
        with rehearsal(context), standing_apart(context):
            length = between(context.numbers.read(torch.empty((), dtype=torch.int64)), 2, _LONGEST)  # type: ignore[arg-type]
            calls, changes = self._trip(Calls(length, self._fakes(length)))
            dims = [_only_dim(grown, length) for grown in changes.grown]
            context.restore(self._before, access)
            self._trip(Calls(1, self._fakes(1), expected=calls))
            context.restore(self._before, access)
            empty = self._of_empty(calls)
        wholes = [entry.whole for entry in self._splits]
        if empty is not None:
            fail(fresh_test(self._splits[0].lengths.eq(0).any()), empty)
        _, changes = self._trip(Calls(self._rows, wholes, expected=calls, same=self._same_piece()))
        lists = [(grown.container, grown.appended()[0]) for grown in changes.grown]
        context.restore(self._before, access)
        access.write(without(self._before, changes.lost, None, here()).variables)
        for (container, value), dim in zip(lists, dims, strict=True):
            list.append(container, Lost() if dim is None else Pieces(value, dim))

    def _of_empty(self, calls: Calls) -> Exception | None:
        """What a piece without rows raises; where it would do something else, that it cannot be served."""
        try:
            self._trip(Calls(0, self._fakes(0), expected=calls))
        except NotApart:
            return InputError(
                "a piece has no rows, of which the loop over pieces does something else", where=Where(source=here())
            )
        except Exception as error:
            return error.with_traceback(None)
        finally:
            self._context.restore(self._before, self._access)
        return None

    def _fakes(self, length: Any) -> list[torch.Tensor]:
        return [
            entry.whole.new_empty([*entry.whole.shape[: entry.dim], length, *entry.whole.shape[entry.dim + 1 :]])
            for entry in self._splits
        ]

    def _trip(self, calls: Calls) -> tuple[Calls, Changes]:
        """One trip; what it does is what was expected, to the last call and what it keeps."""
        context, access, mode = self._context, self._access, modes()
        flags, item = len(context.flags), calls.pieces[0] if self._single else tuple(calls.pieces)
        context.recorders.append(calls)
        try:
            with standing_apart(context) as around, context.scope(Kind.LOOP) as scope:
                ending = trip(context, scope, Step(True, item), self._body, access)
        finally:
            context.recorders.remove(calls)
        refuse_modes(mode, modes())
        if ending is not None or scope.exits or around.exits or len(context.flags) > flags:
            raise NotApart("is left early, or raises an exception that depends on data")
        after = context.state(access)
        refuse_changes(self._before.heap.marks, after.heap.marks)
        changes = changes_of(self._before, after)
        if changes.places:
            raise NotApart("hands something on from piece to piece")
        calls.keep([item for grown in changes.grown for item in grown.appended()])
        return calls, changes

    def _same_piece(self) -> torch.Tensor:
        """Which rows belong to one piece, bool `[rows, rows]`; an error where the lengths do not add up, as torch has it."""
        lengths, rows = self._splits[0].lengths, self._rows
        total = self._context.numbers.tensor(rows) if isinstance(rows, torch.SymInt) else rows
        message = f"split_with_sizes expects split_sizes to sum exactly to the size at dimension {self._splits[0].dim}"
        fail(fresh_test(lengths.sum().ne(total)), RuntimeError(message))
        fail(
            fresh_test(lengths.lt(0).any()),
            RuntimeError("split_with_sizes expects split_sizes have only non-negative entries"),
        )
        ends = lengths.to(torch.int64).cumsum(0)
        piece = ends.unsqueeze(0).le(torch.arange(rows, device=lengths.device).unsqueeze(1)).sum(1)
        return piece.unsqueeze(1).eq(piece.unsqueeze(0))


def _only_dim(grown: Grown, length: Any) -> int | None:
    """The dim along which the tensors that a loop appends make one; None if they do not."""
    (first, *others) = grown.appended()
    if others or not isinstance(first, torch.Tensor):
        return None
    dims = [dim for dim, size in enumerate(first.shape) if same_expression(size, length)]
    return dims[0] if len(dims) == 1 else None
