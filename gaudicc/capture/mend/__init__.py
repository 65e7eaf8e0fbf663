"""Capture, mending: torch.export for models whose Python decides on the values of tensors (docs/control_flow.md)."""

from __future__ import annotations

from gaudicc.capture.mend.context import Flag
from gaudicc.capture.mend.export import DECIDES, MendedExport, export_mending
from gaudicc.capture.mend.raises import carry_flags

__all__ = ["DECIDES", "Flag", "MendedExport", "carry_flags", "export_mending"]
