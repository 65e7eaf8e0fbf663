"""Capture, around export: sizes of 0 and 1 are sizes like any other, and what the model's Python asks of a size is written down.

torch.export takes a dynamic size for at least 2, and refuses what its solver cannot prove. Here `decisions.py` judges instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch.export import _trace
from torch.fx.experimental.symbolic_shapes import ConstraintViolationError, DimConstraints, ShapeEnv
from torch.nn import functional

from gaudicc.fake_values import ones_are_sizes


@contextmanager
def exact_sizes() -> Iterator[None]:
    """Inside, an export keeps every decision on sizes as a guard of its shape environment, and fails on none.

    A decision that leaves one size only still fails: then every size is a graph of its own.
    """
    with ExitStack() as patches:
        patches.enter_context(ones_are_sizes())
        patches.enter_context(patch.object(ShapeEnv, "create_symbol", _create_symbol))
        patches.enter_context(patch.object(_trace, _solve.__name__, _keep))
        patches.enter_context(patch.object(DimConstraints, _own_words.__name__, _words))
        patches.enter_context(patch.object(functional, _attention.__name__, _settle))
        yield


_solve = vars(_trace)["produce_guards_and_solve_constraints"]
_own_words = DimConstraints.prettify_results
_own_create_symbol = ShapeEnv.create_symbol
_attention = functional.scaled_dot_product_attention


def _keep(fake_mode: Any, *args: Any, **kwargs: Any) -> None:
    try:
        _solve(fake_mode, *args, **kwargs)
    except ConstraintViolationError:
        if any(value.is_number for value in fake_mode.shape_env.replacements.values()):
            raise


def _words(solved: DimConstraints, *args: Any) -> str:
    """What torch says of conditions that it cannot prove; it has no words where one of them leaves a single size."""
    try:
        return _own_words(solved, *args)
    except AssertionError:
        return ""


def _create_symbol(
    env: ShapeEnv, value: int, source: Any, dynamic_dim: Any, constraint_dim: Any = None, *args: Any, **kwargs: Any
) -> Any:
    """Does not take a size for positive that may be 0, which would answer `x.shape[0] == 0` without a guard."""
    if getattr(getattr(constraint_dim, "vr", None), "lower", None) == 0:
        kwargs["positive"] = None
    return _own_create_symbol(env, value, source, dynamic_dim, constraint_dim, *args, **kwargs)


def _settle(*args: Any, is_causal: Any = False, **kwargs: Any) -> torch.Tensor:
    """Takes a condition on sizes for `is_causal`, which torch wants as a bool.

    In `is_causal = query.shape[2] > 1 and mask is None` it is the condition itself, where that does not hold.
    """
    kwargs["is_causal"] = bool(is_causal)
    return _attention(*args, **kwargs)
