"""What the tests of mended functions share: inputs that take every path, and a model whose forward is a plain function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from gaudicc.capture.mend import MendedExport, export_mending
from gaudicc.capture.mend.oracle import differences

NAN, INF = float("nan"), float("inf")
VECTORS = [
    (torch.tensor(values),)
    for values in (
        [1.0, 2.0, 3.0], [-1.0, -2.0, -3.0], [0.0, 0.0, 0.0], [2.0, -1.0, 0.5], [-2.0, 3.0, 1.0], [NAN, 1.0, 2.0],
        [3.0, -5.0, 1.0], [0.0, 1.0, -1.0], [-0.0, 2.0, 2.0], [INF, 1.0, 1.0],
    )
]  # fmt: skip
Body = Callable[..., Any]


class Wrap(nn.Module):
    """A model whose forward is a plain function of the tests."""

    def __init__(self, body: Body) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: torch.Tensor) -> Any:
        return self.body(x)


def check(model: nn.Module, calls: list[tuple[Any, ...]], **options: Any) -> MendedExport:
    """Mends a model by the first call, and compares it with eager on all of them."""
    assert len(calls) >= 10
    mended = export_mending(model.eval(), calls[0], **options)
    assert mended.rewritten
    assert differences(model, mended, calls) == []
    return mended
