"""Capture, mending: boolean algebra over traced 0-d predicates, with what is known already folded away."""

from __future__ import annotations

import torch

Pred = torch.Tensor | None  # None: always true


class Predicates:
    """Conjunctions of traced booleans.

    Every predicate is known by the set of literals it is the conjunction of, so that `a & (a & b)`, a test repeated
    under itself, and `a & ~(a & b)` cost at most one node.
    """

    def __init__(self) -> None:
        self._literals: dict[int, dict[int, torch.Tensor]] = {}
        self._negated: dict[int, torch.Tensor] = {}
        self._and: dict[tuple[int, int], torch.Tensor] = {}
        self._alive: list[torch.Tensor] = []  # ids stay unique while the tensors live

    def literals(self, pred: Pred) -> dict[int, torch.Tensor]:
        """The literals whose conjunction `pred` is."""
        return {} if pred is None else self._literals.get(id(pred), {id(pred): pred})

    def negate(self, pred: torch.Tensor) -> torch.Tensor:
        """`~pred`; negating twice gives the same tensor back."""
        if id(pred) not in self._negated:
            opposite = torch.logical_not(pred)
            self._negated[id(pred)], self._negated[id(opposite)] = opposite, pred
            self._alive += [pred, opposite]
        return self._negated[id(pred)]

    def decided(self, test: torch.Tensor, *given: Pred) -> bool | None:
        """What `test` must be wherever all of `given` hold, or None."""
        known = {key for pred in given for key in self.literals(pred)}
        if all(literal in known for literal in self.literals(test)):
            return True
        return False if id(self.negate(test)) in known else None

    def both(self, left: Pred, right: Pred) -> Pred:
        """`left & right`."""
        if left is None or right is None:
            return right if left is None else left
        of_left, of_right = self.literals(left), self.literals(right)
        if of_right.keys() <= of_left.keys():
            return left
        if of_left.keys() <= of_right.keys():
            return right
        key = (id(left), id(right))
        if key not in self._and:
            joint = self._and[key] = torch.logical_and(left, right)
            self._literals[id(joint)] = of_left | of_right
            self._alive += [left, right, joint]
        return self._and[key]

    def without(self, pred: Pred, gone: torch.Tensor) -> torch.Tensor:
        """`pred & ~gone`."""
        known = self.literals(pred)
        rest = [literal for key, literal in self.literals(gone).items() if key not in known]
        joint = self.both(pred, self.negate(rest[0] if len(rest) == 1 else gone))
        assert joint is not None
        return joint

    def either(self, left: torch.Tensor | None, right: torch.Tensor) -> torch.Tensor:
        """`left | right`, where None is false."""
        return right if left is None else torch.logical_or(left, right)
