"""Capture: where the model's Python makes a plain number of a dynamic size, as `for t in range(x.shape[1])` does."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch

from gaudicc.capture.source_lines import running_line


@contextmanager
def noting_fixed_sizes() -> Iterator[list[str]]:
    """Notes the `file:line` of the user's code at which a dynamic size becomes a plain number, and is fixed by that."""
    places: list[str] = []
    plain = torch.SymInt.__index__

    def index(self: Any) -> int:
        asked_by_torch = "/torch/" in sys._getframe(1).f_code.co_filename
        if not asked_by_torch and self.node.expr.free_symbols and (line := running_line()):
            places.append(line)
        return int(plain(self))

    with patch.object(torch.SymInt, "__index__", index):
        yield places
