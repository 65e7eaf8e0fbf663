"""What a legalisation rule is: the ops it matches, a check that fails with a reason, a rewrite in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import fx

from gaudicc.fake_values import fakes
from gaudicc.pipeline import Numerics


def always(*args: Any, **kwargs: Any) -> None:
    """The check of a rule that fits every call of its ops."""


@dataclass(frozen=True)
class Rule:
    """Replaces calls of some ops by legal ones.

    Attributes:
        name: kebab-case, for the trace and the docs.
        ops: the overloads it matches.
        rewrite: plain PyTorch with the op's own arguments; traced on the fake values of a call and spliced in.
        check: called with the fake arguments; returns why the rule does not fit, or None.
        numerics: whether the result is bitwise that of the op.
        cost: what the rewrite moves or computes beyond the op, one sentence.
    """

    name: str
    ops: tuple[Any, ...]
    rewrite: Callable[..., Any]
    cost: str
    check: Callable[..., str | None] = always
    numerics: Numerics = Numerics.BITWISE

    def misfit(self, node: fx.Node) -> str | None:
        """Why this rule does not fit a call, or None if it does."""
        return self.check(*fakes(node.args), **fakes(node.kwargs))
