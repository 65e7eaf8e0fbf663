"""Capture, mending: which functions run while values are undecided that only rewritten ones can hold."""

from __future__ import annotations

import gc
import itertools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CodeType, FrameType
from typing import Any

from gaudicc.capture.mend.outcomes import NeedsRewrite, is_user_file, user_stack
from gaudicc.errors import DynamicControlFlowError


class Watch:
    """Asks for a rewrite of functions that would meet an undecided value.

    Args:
        is_rewritten: whether code is the result of a rewrite.

    Attributes:
        boundary: the code that called the model: frames beyond it are not the user's.
    """

    def __init__(self, is_rewritten: Callable[[CodeType], bool]) -> None:
        self.boundary: CodeType | None = None
        self._is_rewritten = is_rewritten
        self._profile: Callable[[FrameType, str, Any], None] | None = None

    def require_rewritten(self, depth: int | None = None) -> None:
        """Ask for a rewrite of the calling functions: all of them, or only so many, innermost first.

        Raises:
            NeedsRewrite: one of them has not been rewritten.
        """
        for frame in itertools.islice(user_stack(self.boundary), depth):
            if not self._is_rewritten(frame.f_code):
                raise NeedsRewrite(frame)

    def taint(self) -> None:
        """An undecided value was stored in the model: from now on only rewritten functions may run."""
        self.require_rewritten()
        gc.disable()  # what the collector calls is no part of the model
        self._profile = self._called
        sys.setprofile(self._profile)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Undo what `taint` does to the interpreter.

        Raises:
            DynamicControlFlowError: something else took the watch away.
        """
        before, collecting = sys.getprofile(), gc.isenabled()
        try:
            yield
            if self._profile is not None and sys.getprofile() is not self._profile:
                raise DynamicControlFlowError(
                    "an undecided value is stored in the model, and the functions that run could not be watched",
                    hint="capture without a profiler, or keep the value in a variable in place of an attribute",
                )
        finally:
            if self._profile is not None:
                sys.setprofile(before)
                if collecting:
                    gc.enable()

    def _called(self, frame: FrameType, event: str, _arg: Any) -> None:
        code = frame.f_code
        called = event == "call" and not code.co_filename.startswith("<")
        if called and is_user_file(code.co_filename) and not self._is_rewritten(code):
            raise NeedsRewrite(frame)
