"""The canonical form of a call: the kept routes of `Binder` give what binding and flattening anew gives."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils import _pytree as pytree

from gaudicc.calling import Binder, Calling, Parameter, bind
from gaudicc.errors import InputError


def forward(a: Any, b: Any, c: Any = 3, *rest: Any, d: Any = None, **more: Any) -> None: ...


def calling(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Calling:
    signature = inspect.signature(forward)
    parameters = tuple(
        Parameter(p.name, p.kind.name, p.default is p.empty, None if p.default is p.empty else p.default)
        for p in signature.parameters.values()
    )
    _, in_spec = pytree.tree_flatten(bind(signature, args, kwargs))
    return Calling(in_spec, (), {}, in_spec, parameters=parameters)


LEAF = st.one_of(st.integers(), st.none(), st.booleans(), st.just(torch.ones(2)), st.text(max_size=2))
VALUE = st.one_of(LEAF, st.lists(LEAF, max_size=2), st.dictionaries(st.sampled_from("xy"), LEAF, max_size=2))
ARGS = st.lists(VALUE, min_size=2, max_size=5).map(tuple)
KWARGS = st.dictionaries(st.sampled_from(["d", "e", "f"]), VALUE, max_size=3)


@given(args=ARGS, kwargs=KWARGS, others=st.lists(st.tuples(ARGS, KWARGS), max_size=4))
def test_a_kept_route_gives_what_binding_anew_gives(
    args: tuple[Any, ...], kwargs: dict[str, Any], others: list[tuple[tuple[Any, ...], dict[str, Any]]]
) -> None:
    form = calling(args, kwargs)
    binder = Binder(form)
    for more_args, more_kwargs in [(args, kwargs), *others, (args, kwargs)]:
        expected, spec = pytree.tree_flatten(bind(form.signature, more_args, more_kwargs))
        if spec == form.in_spec:
            found = binder(more_args, more_kwargs)
            assert len(found) == len(expected)
            assert all(ours is theirs or ours == theirs for ours, theirs in zip(found, expected, strict=True))
        else:
            with pytest.raises(InputError, match="nested otherwise"):
                binder(more_args, more_kwargs)


def test_the_order_of_keywords_does_not_matter() -> None:
    form = calling((1, 2), {"d": 3, "e": 4, "f": 5})
    binder = Binder(form)
    for kwargs in ({"f": 5, "e": 4, "d": 3}, {"b": 2, "e": 4, "f": 5, "d": 3}):
        assert binder((1,) if "b" in kwargs else (1, 2), kwargs) == binder((1, 2), {"d": 3, "e": 4, "f": 5})


def test_arguments_that_do_not_fit() -> None:
    binder = Binder(calling((1, 2), {}))
    for _ in range(2):
        with pytest.raises(InputError, match="do not fit the model"):
            binder((1,), {})
