"""Capture, mending: what an attempt at capture must leave as it found it."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from gaudicc.capture.mend.heap import Heap


@contextmanager
def no_traces(model: nn.Module) -> Iterator[None]:
    """Restore attributes and containers of the model, globals of its modules, RNGs and torch's global modes."""
    heap = Heap.take((model, *module_globals(model)), marked=False)
    rng, python_rng, dtype = torch.get_rng_state(), random.getstate(), torch.get_default_dtype()
    grad, numpy_rng = torch.is_grad_enabled(), _numpy_random()
    numpy_state = numpy_rng.get_state() if numpy_rng else None
    try:
        yield
    finally:
        heap.restore()
        torch.set_rng_state(rng)
        random.setstate(python_rng)
        torch.set_default_dtype(dtype)
        torch.set_grad_enabled(grad)
        if numpy_rng:
            numpy_rng.set_state(numpy_state)


def _numpy_random() -> Any:
    numpy = sys.modules.get("numpy")
    return numpy.random if numpy else None


def module_globals(model: nn.Module) -> list[Any]:
    """Containers among the globals that the classes of the model's modules were defined beside.

    The dicts themselves are not copied: their entries that `global` statements rebind are handled by `Globals`.
    """
    names = {type(module).__module__ for module in model.modules()}
    names.add(getattr(model.forward, "__module__", ""))
    spaces = [vars(sys.modules[name]) for name in names if name in sys.modules and not name.startswith("torch.")]
    return [value for space in spaces for value in space.values() if type(value) in (list, dict, set)]
