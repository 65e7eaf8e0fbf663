"""Functions as strangers write them, each with the inputs that it is tried on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Function = Callable[..., Any]


class Cases:
    """A decorator that keeps functions by name.

    Attributes:
        functions: name -> the function and its inputs.
    """

    def __init__(self) -> None:
        self.functions: dict[str, tuple[Function, tuple[Tensor, ...]]] = {}
        self._generator = torch.Generator().manual_seed(0)

    def __call__(self, *inputs: Tensor) -> Callable[[Function], Function]:
        def keep(function: Function) -> Function:
            self.functions[function.__name__] = function, inputs
            return function

        return keep

    def floats(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self._generator)

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=self._generator)
