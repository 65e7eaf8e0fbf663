"""Capture: nn.Module, function, ExportedProgram, `.pt2` or Dynamo graph -> Program."""

from gaudicc.capture.capture import capture

__all__ = ["capture"]
