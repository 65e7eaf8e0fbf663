"""Capture, mending: torch.export for models whose Python decides on the values of tensors (docs/control-flow.md)."""

from __future__ import annotations

from gaudicc.capture.mend.context import Flag
from gaudicc.capture.mend.export import MendedExport, export_mending

__all__ = ["Flag", "MendedExport", "export_mending"]
