"""Constant sections: what `hpu_inference_initialize` marks is written to files when the next graph compiles, one file each.

Source: HabanaAI/gaudi-pytorch-bridge 1.19.0, `tests/pytest_working/lazy/test_hpu_inference_const_section.py`. The content is
the tensor's bytes; a Gaudi's own is its compiler's and may be compressed. Nothing here reads the files again.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from torch import Tensor

DEVICE = "0"
"""The one device's number: the folder of its constants."""


class ConstantSections:
    """Marked constants, and the folder they go to."""

    def __init__(self) -> None:
        self._folder: Path | None = None
        self._marked: list[Tensor] = []
        self._written = 0

    def enable(self, path: str, *, clear: bool) -> None:
        """Write constants below a path from the next compilation on.

        Args:
            path: the folder; it is made if it is not there.
            clear: remove the device's folder in it first, and nothing else.
        """
        self._folder, self._written = Path(path) / DEVICE, 0
        if clear:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True, exist_ok=True)

    def disable(self) -> None:
        """Write no more."""
        self._folder = None

    def mark(self, raw: Tensor) -> None:
        """Take a constant's CPU tensor into account."""
        self._marked.append(raw)

    def compiled(self) -> None:
        """A graph was compiled: write the constants that are not yet written."""
        if self._folder is None:
            return
        for number in range(self._written, len(self._marked)):
            data = self._marked[number].detach().contiguous().view(-1).view(torch.uint8)
            (self._folder / f"const_{number}").write_bytes(bytes(data.numpy()))
        self._written = len(self._marked)
