"""Capture, mending: `with` of rewritten functions, whose managers may have effects when a path leaves early."""

from __future__ import annotations

import contextlib
from typing import Any

from gaudicc.capture.mend.context import Context, active
from gaudicc.capture.mend.outcomes import here, is_user_file
from gaudicc.errors import DynamicControlFlowError, Where


def manager(value: Any) -> Any:
    """What a `with` statement enters: managers of torch are taken as they are, any other is watched."""
    context = active()
    return value if context is None or _is_torchs(value) else _Watched(context, value)


def _is_torchs(value: Any) -> bool:
    if isinstance(value, contextlib._GeneratorContextManager):
        generator: Any = value.gen
        return not is_user_file(generator.gi_code.co_filename)
    return isinstance(value, contextlib.nullcontext) or type(value).__module__.split(".")[0] == "torch"


class _Watched:
    """A manager whose exit would run once for all paths, also for those that left its block by another way."""

    def __init__(self, context: Context, inner: Any) -> None:
        self._context, self._inner = context, inner
        self._before = 0

    def __enter__(self) -> Any:
        self._before = self._context.departures
        return self._inner.__enter__()

    def __exit__(self, *error: Any) -> Any:
        if error[0] is None and self._context.departures != self._before:
            raise DynamicControlFlowError(
                f"a path leaves a `with` block of {type(self._inner).__name__} early, depending on a tensor",
                where=Where(source=here()),
                hint="leave the function, loop or block after the `with` statement",
            )
        return self._inner.__exit__(*error)
