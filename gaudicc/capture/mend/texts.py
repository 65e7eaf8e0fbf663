"""Capture, mending: numbers read from tensors must not become text or keys, where their value would be frozen unseen."""

from __future__ import annotations

import ast
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Any
from unittest.mock import patch

from gaudicc.capture.mend.internals import SYMBOLIC, is_data_dependent
from gaudicc.capture.mend.outcomes import is_user_file, place
from gaudicc.capture.mend.source import parsed_file
from gaudicc.capture.mend.values import Choice
from gaudicc.errors import DynamicControlFlowError, Where

_MENDING = os.path.dirname(os.path.abspath(__file__)) + os.sep
UNKNOWN = "<a number read from a tensor>"
"""What stands for such a number in the message of an exception."""


@contextmanager
def no_frozen_text() -> Iterator[None]:
    """Refuses the user's code the text and the hash of what depends on data; in a `raise` it gets `UNKNOWN`."""
    with ExitStack() as stack:
        for kind in (*SYMBOLIC, Choice):
            stack.enter_context(patch.object(kind, "__repr__", _text_of(kind.__repr__)))
            stack.enter_context(patch.object(kind, "__hash__", _hash_of(kind.__hash__)))
        yield


def _text_of(plain: Callable[[Any], str]) -> Callable[[Any], str]:
    def text(self: Any) -> str:
        frame = _reader(sys._getframe(1))
        if not is_user_file(frame.f_code.co_filename) or _decided(self):
            return plain(self)
        if _raises(frame):
            return UNKNOWN
        raise DynamicControlFlowError(
            f"{_kind(self)} becomes text",
            where=Where(source=place(frame, frame.f_lineno)),
            hint="leave the text out, or write it from the model's outputs after the call",
        )

    return text


def _hash_of(plain: Callable[[Any], int]) -> Callable[[Any], int]:
    def hashed(self: Any) -> int:
        frame = _reader(sys._getframe(1))
        if not is_user_file(frame.f_code.co_filename) or _decided(self):
            return plain(self)
        raise DynamicControlFlowError(
            f"{_kind(self)} is the key of a dict or an element of a set",
            where=Where(source=place(frame, frame.f_lineno)),
            hint="look it up in a list, or in a tensor by indexing",
        )

    return hashed


def _kind(value: Any) -> str:
    return "a value that another path does not have" if isinstance(value, Choice) else "a number read from a tensor"


def _decided(value: Any) -> bool:
    return not isinstance(value, Choice) and not is_data_dependent(value)


def _reader(frame: FrameType) -> FrameType:
    """The frame that asks, where mending asks for it."""
    while frame.f_code.co_filename.startswith(_MENDING) and frame.f_back is not None:
        frame = frame.f_back
    return frame


def _raises(frame: FrameType) -> bool:
    """Whether the statement that a frame runs is a `raise` or an `assert`."""
    tree = parsed_file(frame.f_code.co_filename)
    return any(
        isinstance(node, (ast.Raise, ast.Assert)) and node.lineno <= frame.f_lineno <= (node.end_lineno or 0)
        for node in (ast.walk(tree) if tree else ())
    )
