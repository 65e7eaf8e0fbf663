"""Capture, around export: sizes of 0 and 1 are sizes like any other, and what the model's Python asks of a size is written down.

torch.export takes a dynamic size for at least 2, and refuses what its solver cannot prove. Here `decisions.py` judges instead.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import sympy
import torch
from torch._export import non_strict_utils
from torch.export import _trace
from torch.fx.experimental import symbolic_shapes
from torch.fx.experimental.symbolic_shapes import ConstraintViolationError, DimConstraints, ShapeEnv, _lru_cache
from torch.nn import functional

from gaudicc.capture.fixed_sizes import spans_of
from gaudicc.capture.size_factories import sizes_make_tensors
from gaudicc.capture.size_forms import sizes_stay, wherever_imported
from gaudicc.capture.size_trials import only_value
from gaudicc.fake_values import ones_are_sizes
from gaudicc.fake_views import reshapes_for_all_sizes, views_as_laid_out


@contextmanager
def exact_sizes() -> Iterator[None]:
    """Inside, an export keeps every decision on sizes as a guard of its shape environment, and fails on none.

    A decision that leaves one size only still fails: then every size is a graph of its own. What is the same for all declared
    sizes is no decision.
    """
    with ExitStack() as patches:
        patches.enter_context(ones_are_sizes())
        patches.enter_context(reshapes_for_all_sizes())
        patches.enter_context(views_as_laid_out())
        patches.enter_context(sizes_stay())
        patches.enter_context(sizes_make_tensors())
        patches.enter_context(patch.object(non_strict_utils, "ShapeEnv", _ExactSizes))
        patches.enter_context(patch.object(_trace, _solve.__name__, _keep))
        patches.enter_context(patch.object(DimConstraints, _own_words.__name__, _words))
        patches.enter_context(wherever_imported(functional, _attention, _settle))
        patches.enter_context(patch.object(torch.Tensor, _squeeze.__name__, _squeezed))
        patches.enter_context(wherever_imported(torch, torch.squeeze, _squeezed))
        patches.enter_context(patch.object(symbolic_shapes, _not_of_users.__name__, _no_line_of_users))
        yield


_solve = vars(_trace)["produce_guards_and_solve_constraints"]
_own_words = DimConstraints.prettify_results
_attention = functional.scaled_dot_product_attention
_squeeze = torch.Tensor.squeeze
_not_of_users = symbolic_shapes.uninteresting_files
_OWN = frozenset(map(str, Path(__file__).parent.rglob("*.py")))


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


class _ExactSizes(ShapeEnv):
    """What torch knows of the sizes of an export, in later passes as well."""

    def create_symbol(self, *args: Any, **kwargs: Any) -> Any:
        """Does not take a size for positive that may be 0, which would answer `x.shape[0] == 0` without a guard."""
        given = inspect.signature(super().create_symbol).bind(*args, **kwargs)
        declared = getattr(given.arguments.get("constraint_dim"), "vr", None)
        if getattr(declared, "lower", None) == 0:
            given.arguments["positive"] = None
        return super().create_symbol(*given.args, **given.kwargs)

    def _set_replacement(self, a: sympy.Symbol, tgt: sympy.Expr, msg: str) -> None:
        """Does not wait for a length that turned out to be a number, as that of a slice of nothing, to be that of a result."""
        super()._set_replacement(a, tgt, msg)
        if tgt.is_number and a in self.pending_fresh_unbacked_symbols:
            self.pending_fresh_unbacked_symbols.remove(a)

    @_lru_cache  # torch empties it when it learns more
    def _maybe_evaluate_static(
        self, expr: sympy.Basic, *, compute_hint: bool = False, **kwargs: Any
    ) -> sympy.Basic | None:
        """Knows of an expression what it is for all declared sizes, besides what torch can prove."""
        known: sympy.Basic | None = super()._maybe_evaluate_static(expr, compute_hint=compute_hint, **kwargs)
        if known is not None or compute_hint:
            return known
        replaced = self.replace(expr)
        spans = spans_of(replaced, self)
        value = None if spans is None else only_value(replaced, spans)
        return None if value is None else sympy.sympify(value)


def _no_line_of_users() -> set[str]:
    """The files whose lines are not named where a size is decided on: torch's, and those of capture itself."""
    return _not_of_users() | _OWN


# Its arguments are named as torch names them, for whoever gives them by name.
def _squeezed(input: torch.Tensor, dim: Any = None) -> torch.Tensor:
    """Decides whether a dynamic size is 1, where torch takes it for larger."""
    given = () if dim is None else (dim,)
    asked = range(input.dim()) if dim is None else dim if isinstance(dim, (tuple, list)) else given
    dims = sorted({place % input.dim() for place in asked if -input.dim() <= place < input.dim()}, reverse=True)
    if not any(_is_size(input.shape[place]) for place in dims):
        return _squeeze(input, *given)
    for place in dims:
        if not _is_size(input.shape[place]):
            input = _squeeze(input, place)
        elif input.shape[place] == 1:
            input = input.select(place, 0)
    return input


def _is_size(size: int | torch.SymInt) -> bool:
    """Whether a size is dynamic and known before the program runs."""
    return isinstance(size, torch.SymInt) and size.node.has_hint()


def _settle(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: Any = False,
    **kwargs: Any,
) -> torch.Tensor:
    """Takes a condition on sizes for `is_causal`, which torch wants as a bool.

    In `is_causal = query.shape[2] > 1 and mask is None` it is the condition itself, where that does not hold.
    """
    return _attention(query, key, value, attn_mask, dropout_p, bool(is_causal), **kwargs)
