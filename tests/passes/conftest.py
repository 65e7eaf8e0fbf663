"""What the tests of passes share: a small function as a Program, one pass run alone under all checks, text for journals."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from gaudicc.capture import capture
from gaudicc.pipeline import CAPTURED, Pass, Pipeline
from gaudicc.printing import program_text
from gaudicc.program import Program
from gaudicc.targets import load_target
from gaudicc.trace import PassRecord
from gaudicc.verify import Level

CaptureOf = Callable[..., Program]
Alone = Callable[[Pass, Program], tuple[Program, PassRecord]]


class _Function(nn.Module):
    def __init__(self, function: Callable[..., Any], weights: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.function = function
        for name, weight in weights.items():
            self.register_parameter(name, nn.Parameter(weight))

    def forward(self, x: torch.Tensor, *rest: torch.Tensor) -> Any:
        return self.function(x, *rest, **dict(self.named_parameters()))


@pytest.fixture(scope="session")
def capture_of() -> CaptureOf:
    """`capture_of(function, x, *rest, dynamic=None, **weights)`: the program of a function, for gaudi3."""

    def make(
        function: Callable[..., Any], *inputs: torch.Tensor, dynamic: Any = None, **weights: torch.Tensor
    ) -> Program:
        program = capture(_Function(function, weights).eval(), inputs, dynamic_shapes=dynamic)
        program.target = load_target("gaudi3")
        return program

    return make


@pytest.fixture(scope="session")
def alone() -> Alone:
    """`alone(step, program)`: one pass, its promises checked, numerics included."""

    def run(step: Pass, program: Program) -> tuple[Program, PassRecord]:
        after, (record,) = Pipeline((step,), initial=CAPTURED | step.requires).run(program, level=Level.NUMERICS)
        return after, record

    return run


@pytest.fixture(scope="session")
def text_of() -> Callable[[Program], str]:
    """The printed program without engines, module paths and source lines, which move."""
    return lambda program: re.sub(r"  # .*", "", program_text(program))
