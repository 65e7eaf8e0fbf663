"""The user's source lines: of a node while torch.export traces it, and of an error that capture meets."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

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

    torch before 2.8 does not say where it leaves the others out.
    """
    if not hasattr(TracerBase, "_filter_traceback_frames"):
        yield
        return
    with patch.object(TracerBase, "_filter_traceback_frames", _of_user):
        yield


def _of_user(tracer: TracerBase, stack: traceback.StackSummary) -> traceback.StackSummary:
    start = next((i for i, frame in enumerate(stack) if frame.name == "forward"), len(stack))
    frames = [frame for frame in stack[start:] if _is_users(frame)]
    kept = [frame for frame in frames[:-1] if frame.name == "forward"] + frames[-1:]
    return traceback.StackSummary.from_list(kept)


def _last_of_users(stack: traceback.StackSummary) -> str | None:
    frames = [frame for frame in stack if _is_users(frame)]
    return place(frames[-1].filename, frames[-1].lineno or 0) if frames else None


def place(filename: str, line: int) -> str:
    """`folder/file:line`, as errors show it."""
    return f"{'/'.join(filename.split('/')[-2:])}:{line}"


def _is_users(frame: traceback.FrameSummary) -> bool:
    models = "/models/" in frame.filename
    return "/torch/" not in frame.filename and (models or not frame.filename.startswith(_OURS))
