"""Capture, mending: which Python exceptions are what the user's program does, and which are capture's own."""

from __future__ import annotations

import ast
import builtins
import os
import sys
import sysconfig
from collections.abc import Iterator
from types import CodeType, FrameType, FunctionType, TracebackType

import torch

from gaudicc.capture import source_lines
from gaudicc.capture.mend.source import parsed_file
from gaudicc.errors import DynamicControlFlowError, GaudiccError, Where

_HERE = os.path.dirname(os.path.abspath(__file__)) + os.sep
_CAPTURE = os.path.dirname(_HERE[:-1]) + os.sep
# Rewritten code calls Python's operators and builtins through these: what they raise, eager Python raises.
_OPERATORS = tuple(
    os.path.join(_HERE, name) for name in ("values.py", "operators.py", "builtin.py", "containers.py", "partial.py")
)
_TORCH = os.path.dirname(os.path.abspath(torch.__file__)) + os.sep
# What torch itself calls: Python's library, and sympy for its sizes.
_LIBRARIES = tuple(os.path.join(os.path.dirname(_TORCH[:-1]), name) + os.sep for name in ("sympy", "mpmath", "numpy"))
_PYTHON = sysconfig.get_path("stdlib") + os.sep
_INSTALLED = (sysconfig.get_path("purelib") + os.sep, sysconfig.get_path("platlib") + os.sep)
_TORCH_MODELS = (os.path.join(_TORCH, "nn") + os.sep, os.path.join(_TORCH, "distributions") + os.sep)


def is_user_file(filename: str) -> bool:
    """Whether code of a file belongs to the model: neither capture itself nor the machinery of torch and its libraries."""
    if filename.startswith(_TORCH):
        return filename.startswith(_TORCH_MODELS) and "torch/nn/modules/module.py" not in filename
    if filename.startswith(_PYTHON) and not filename.startswith(_INSTALLED):
        return False
    return not filename.startswith((_CAPTURE, *_LIBRARIES))


def is_installed(filename: str) -> bool:
    """Whether a file belongs to an installed library."""
    return filename.startswith(_INSTALLED)


class NeedsRewrite(BaseException):
    """A function that has not been rewritten reads a tensor, or would get a value that only rewritten code can hold.

    Args:
        frame: the frame of the function; None: the innermost of the user's in the traceback.
        function: the function itself, where it has not been called yet.
    """

    def __init__(self, frame: FrameType | None = None, function: FunctionType | None = None) -> None:
        super().__init__()
        # Taken while it runs: a generator that has stopped does not know any more who called it.
        self.frames, self.function = callers(frame), function


def callers(frame: FrameType | None) -> list[tuple[FrameType, int]]:
    """A running frame and those that called it with their lines, innermost first."""
    frames = []
    while frame is not None:
        frames.append((frame, frame.f_lineno))
        frame = frame.f_back
    return frames


def frames_of(traceback: TracebackType | None) -> list[tuple[FrameType, int]]:
    """Every frame of a traceback with its line, outermost first."""
    frames = []
    while traceback is not None:
        frames.append((traceback.tb_frame, traceback.tb_lineno))
        traceback = traceback.tb_next
    return frames


def place(frame: FrameType, line: int) -> str:
    """`file:line` of a frame."""
    return source_lines.place(frame.f_code.co_filename, line)


def user_frame(error: BaseException) -> tuple[FrameType, int] | None:
    """The innermost frame of the user's code, inside the model, in the traceback of an error of capture."""
    return next(iter(user_frames(error)), None)


def user_frames(error: BaseException) -> list[tuple[FrameType, int]]:
    """The frames of the user's code, inside the model, in the traceback of an error of capture, innermost first."""
    frames = frames_of(error.__traceback__)
    tracers = [i for i, (frame, _) in enumerate(frames) if frame.f_code.co_filename.endswith("torch/export/_trace.py")]
    frames = frames[tracers[-1] :] if tracers else frames
    return [item for item in reversed(frames) if is_user_file(item[0].f_code.co_filename)]


def is_path_outcome(error: Exception) -> bool:
    """Whether eager Python would raise this error on the path being run.

    Only what the user's own frames raise counts: an error from inside torch may be one of tracing. An index out of
    range is the exception: it says the same in both worlds.
    """
    if isinstance(error, GaudiccError):
        return False
    frames = frames_of(error.__traceback__)
    if isinstance(error, IndexError):
        return True
    raised_in = frames[-1][0].f_code.co_filename
    if isinstance(error, AssertionError):
        return is_user_file(raised_in)
    return is_user_file(raised_in) or raised_in in _OPERATORS


def source_of(error: BaseException) -> str:
    """`file:line` of the user's statement that raised."""
    found = user_frame(error)
    return place(*found) if found else here()


def user_stack(boundary: CodeType | None = None) -> Iterator[FrameType]:
    """The user's frames that are running now, innermost first, up to the frame that runs `boundary`."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code is not boundary:
        if is_user_file(frame.f_code.co_filename):
            yield frame
        frame = frame.f_back


def here() -> str:
    """`file:line` of the user's statement that is running now."""
    own = (frame for frame in user_stack() if not frame.f_code.co_filename.startswith(_TORCH))
    return next((place(frame, frame.f_lineno) for frame in own), "unknown")


def refuse_if_caught(error: Exception, boundary: CodeType | None) -> None:
    """Refuse an exception that depends on data when a handler of the user's stands around it.

    Args:
        error: what would be raised.
        boundary: the code that called the model: frames beyond it are not the user's.

    Raises:
        DynamicControlFlowError: which handler would have to be decided at run time.
    """
    for frame in user_stack(boundary):
        line = _handler_line(frame, error)
        if line is not None:
            raise DynamicControlFlowError(
                f"{type(error).__name__} is raised depending on a tensor, and line {line} would catch it",
                where=Where(source=source_of(error) if error.__traceback__ else here()),
                hint="test the condition with an `if` in place of try/except",
            )


def _handler_line(frame: FrameType, error: Exception) -> int | None:
    tree = parsed_file(frame.f_code.co_filename)
    for node in ast.walk(tree) if tree else ():
        if not isinstance(node, ast.Try) or not node.handlers:
            continue
        if not node.body[0].lineno <= frame.f_lineno <= (node.body[-1].end_lineno or 0):
            continue
        for handler in node.handlers:
            if handler.type is None or isinstance(error, _handled_types(handler.type, frame)):
                return handler.lineno
    return None


def _handled_types(node: ast.expr, frame: FrameType) -> tuple[type, ...]:
    if isinstance(node, ast.Tuple):
        return tuple(kind for item in node.elts for kind in _handled_types(item, frame))
    if isinstance(node, ast.Attribute):
        owners = _lookup(node.value.id, frame) if isinstance(node.value, ast.Name) else None
        found = getattr(owners, node.attr, BaseException)
    else:
        found = _lookup(node.id, frame) if isinstance(node, ast.Name) else BaseException
    return (found,) if isinstance(found, type) else (BaseException,)


def _lookup(name: str, frame: FrameType) -> object:
    for scope in (frame.f_locals, frame.f_globals):
        if name in scope:
            return scope[name]
    return getattr(builtins, name, BaseException)
