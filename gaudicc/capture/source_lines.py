"""The user's source lines: of a node while torch.export traces it, and of an error that capture meets."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from unittest.mock import patch

from torch.fx import proxy
from torch.fx.proxy import TracerBase

_OURS = str(Path(__file__).parent.parent)


def user_line(error: BaseException) -> str | None:
    """The innermost `file:line` of a traceback that is neither torch's nor gaudicc's own."""
    return _last_of_users(traceback.extract_tb(error.__traceback__))


def running_line() -> str | None:
    """The innermost `file:line` that is running now and is neither torch's nor gaudicc's own."""
    return _last_of_users(traceback.extract_stack())


@contextmanager
def every_frame() -> Iterator[None]:
    """Lets nodes carry the line of a helper or plain function: by itself torch.export keeps frames called `forward` only.

    It also reads the source lines of all frames of every node, most of them its own, which took a twentieth of a capture.
    torch before 2.8 does not say where it leaves frames out.
    """
    if not hasattr(TracerBase, "_filter_traceback_frames"):
        yield
        return
    with (
        patch.object(proxy, "CapturedTraceback", _Stack),
        patch.object(TracerBase, "_filter_traceback_frames", lambda _, stack: stack),
    ):
        yield


class _Stack:
    """In place of torch's class of this name: the user's frames alone."""

    @staticmethod
    def extract() -> _Stack:
        return _Stack()

    def summary(self) -> traceback.StackSummary:
        """From the first `forward` on: the user's frames of this name, and the innermost one."""
        stack = [frame for frame, _ in traceback.walk_stack(sys._getframe(1))][::-1]
        start = next((i for i, frame in enumerate(stack) if frame.f_code.co_name == "forward"), len(stack))
        frames = [frame for frame in stack[start:] if _is_users(frame.f_code.co_filename)]
        kept = [frame for frame in frames[:-1] if frame.f_code.co_name == "forward"] + frames[-1:]
        return traceback.StackSummary.from_list(
            [traceback.FrameSummary(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name) for frame in kept]
        )


def _last_of_users(stack: traceback.StackSummary) -> str | None:
    frames = [frame for frame in stack if _is_users(frame.filename)]
    return place(frames[-1].filename, frames[-1].lineno or 0) if frames else None


def place(filename: str, line: int) -> str:
    """`folder/file:line`, as errors show it."""
    return f"{'/'.join(filename.split('/')[-2:])}:{line}"


@cache
def _is_users(filename: str) -> bool:
    return "/torch/" not in filename and ("/models/" in filename or not filename.startswith(_OURS))
