"""The snapshot of what a model can reach: containers of the user's own classes are copied and refilled by Python's methods."""

from __future__ import annotations

from collections import OrderedDict, defaultdict, deque
from typing import Any

import pytest

from gaudicc.capture.mend.heap import contents, refill, same_contents


class Makes(OrderedDict[str, Any]):
    """Gives a new object for every look-up, as transformers' table of activations does."""

    def __getitem__(self, key: str) -> Any:
        return [super().__getitem__(key)]

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)


class Counts(list[int]):
    def __iter__(self) -> Any:
        raise AssertionError("asked")


@pytest.mark.parametrize(
    ("container", "change"),
    [
        (Makes(a=1, b=2), lambda made: made.pop("a")),
        (Makes(a=1, b=2), lambda made: made.update(a=3)),
        (Counts([1, 2]), lambda made: made.append(3)),
        (defaultdict(int, a=1), lambda made: made["b"]),
        (deque([1, 2], maxlen=2), lambda made: made.append(3)),
        ({1, 2}, lambda made: made.add(3)),
        ({"a": 1}, lambda made: made.clear()),
    ],
)
def test_a_container_holds_what_it_held(container: Any, change: Any) -> None:
    held = contents(container)
    change(container)
    assert not same_contents(contents(container), held)
    refill(container, held)
    assert same_contents(contents(container), held)
