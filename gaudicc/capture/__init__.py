"""Capture: nn.Module, function, ExportedProgram, `.pt2` or Dynamo graph -> Program."""

from gaudicc.capture.capture import CapturedSide, capture, capture_sides

__all__ = ["CapturedSide", "capture", "capture_sides"]
