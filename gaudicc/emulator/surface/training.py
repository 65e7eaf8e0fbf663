"""Modules of training that suites import beside what they need: every name in them is there, and refuses when called."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn

from gaudicc.emulator.surface.marks import no_op, refused

__all__: list[str] = []

FusedAdamW = refused("hpex.optimizers.distributed.FusedAdamW", "it serves training over several cards")


class HabanaParameterWrapper(nn.Parameter):
    """What parameters are while weights are shared; no parameter here is one."""


@no_op("modules keep their parameters' identity here, so shared weights stay shared")
def enable_weight_sharing() -> None:
    """Accepted."""


@no_op("gradients are computed op by op, with the same values")
def enable_compiled_autograd(**kwargs: Any) -> None:
    """Forgets what was compiled."""
    warnings.warn("compiled autograd is not emulated: backward runs op by op", UserWarning, stacklevel=2)
    torch._dynamo.reset()


def refused_name(name: str) -> Any:
    """A function that refuses.

    Raises:
        AttributeError: for names that Python itself asks for.
    """
    if name.startswith("__"):
        raise AttributeError(name)
    return refused(f"hpex.experimental.transformer_engine.{name}", "it serves training")
