"""Arguments and results keep the model's own form: every kind of parameter, every nesting, every output type."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import gaudicc
from gaudicc.errors import InputError


class Affine(nn.Module):
    """Positional, keyword, keyword-only and variadic arguments."""

    def forward(
        self,
        x: Tensor,
        scale: float = 2.0,
        *more: Tensor,
        shift: Tensor | None = None,
        mode: str = "add",
        **named: Tensor,
    ) -> Tensor:
        x = x * scale
        for other in more:
            x = x + other
        if shift is not None:
            x = x + shift if mode == "add" else x - shift
        for name in sorted(named):
            x = x + named[name]
        return x


X, Y = torch.arange(3.0), torch.ones(3)

CALLS: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    ((X,), {}),
    ((X, 3.0), {}),
    ((X, 3.0, Y, Y), {}),
    ((), {"x": X, "scale": 0.5}),
    ((X,), {"shift": Y}),
    ((X,), {"shift": Y, "mode": "subtract"}),
    ((X,), {"extra": Y, "another": Y * 2}),
    ((X, 1.0, Y), {"extra": Y, "shift": Y}),
]


@pytest.mark.parametrize(("args", "kwargs"), CALLS)
def test_every_kind_of_argument(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    model = Affine().eval()
    compiled = gaudicc.compile(model, args, kwargs)
    torch.testing.assert_close(compiled(*args, **kwargs), model(*args, **kwargs))


@pytest.mark.parametrize(
    "call",
    [
        lambda model: model(X, Y, 3),
        lambda model: model(X, y=Y, power=3),
        lambda model: model(y=Y, x=X),
        lambda model: model(X, Y),
    ],
)
def test_calls_that_mean_the_same_are_the_same(call: Any) -> None:
    def model(x: Tensor, y: Tensor, power: int = 3) -> Tensor:
        return x**power + y

    compiled = gaudicc.compile(model, (X, Y))
    torch.testing.assert_close(call(compiled), call(model))


@pytest.mark.parametrize("given", [{"scale": 3.0}, {"scale": 2}, {"mode": "subtract"}, {"scale": True}])
def test_another_static_argument_is_refused_and_named(given: dict[str, Any]) -> None:
    compiled = gaudicc.compile(Affine().eval(), (X,))
    (name,) = given
    with pytest.raises(InputError, match=f"argument {name} is") as caught:
        compiled(X, **given)
    assert "fixed when the model is compiled" in caught.value.todo


def test_a_tensor_where_none_was_and_none_where_a_tensor_was() -> None:
    with pytest.raises(InputError):
        gaudicc.compile(Affine().eval(), (X,))(X, shift=Y)
    with pytest.raises(InputError, match="shift"):
        gaudicc.compile(Affine().eval(), (X,), {"shift": Y})(X)


@pytest.mark.parametrize("wrong", [X.double(), X.long(), [0.0, 1.0, 2.0], None])
def test_another_type_is_refused(wrong: Any) -> None:
    with pytest.raises(InputError):
        gaudicc.compile(Affine().eval(), (X,))(wrong)


Point = namedtuple("Point", ["x", "y"])


@dataclass
class Answer:
    value: Tensor
    parts: list[Tensor]
    note: str | None = None


def leaves_of(x: Tensor) -> Any:
    return {
        "tuple": (x, x + 1),
        "list": [x, [x * 2, ()]],
        "dict": {"a": x, "b": {"c": x + 3}},
        "named": Point(x, (x - 1,)),
        "ordered": OrderedDict(first=x, second=x * 5),
        "plain": (None, 3, 1.5, "text", True, x),
    }


@pytest.mark.parametrize("kind", ["tuple", "list", "dict", "named", "ordered", "plain"])
def test_results_come_back_in_the_models_own_type(kind: str) -> None:
    def model(x: Tensor) -> Any:
        return leaves_of(x)[kind]

    found, expected = gaudicc.compile(model, (X,))(X + 1), model(X + 1)
    assert type(found) is type(expected)
    assert str(found) == str(expected)


def test_a_dataclass_the_model_returns() -> None:
    class Model(nn.Module):
        def forward(self, x: Tensor) -> Answer:
            return Answer(x + 1, [x, x * 2], "done")

    found = gaudicc.compile(Model().eval(), (X,))(X)
    assert isinstance(found, Answer)
    assert str(found) == str(Answer(X + 1, [X, X * 2], "done"))


def test_a_model_output_of_transformers() -> None:
    pytest.importorskip("transformers", reason="needs gaudicc[models]")
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    class Model(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return BaseModelOutputWithPooling(last_hidden_state=x * 2, hidden_states=(x, x + 1))

    found = gaudicc.compile(Model().eval(), (X,))(X)
    assert type(found) is BaseModelOutputWithPooling
    assert found.pooler_output is None
    assert list(found.keys()) == ["last_hidden_state", "hidden_states"]
    assert torch.equal(found.hidden_states[1], X + 1)


TREES = st.recursive(
    st.just("leaf"),
    lambda inner: st.one_of(
        st.lists(inner, max_size=2), st.tuples(inner, inner), st.dictionaries(st.sampled_from("abc"), inner, max_size=2)
    ),
    max_leaves=4,
)


def filled(tree: Any, leaf: Any) -> Any:
    if isinstance(tree, dict):
        return {key: filled(item, leaf) for key, item in tree.items()}
    return leaf if tree == "leaf" else type(tree)(filled(item, leaf) for item in tree)


@given(tree=TREES)
def test_any_nesting_of_arguments_and_results(tree: Any) -> None:
    def model(pack: Any, x: Tensor) -> Any:
        return torch.utils._pytree.tree_map(lambda leaf: leaf + x, pack), x

    pack = filled(tree, Y)
    compiled = gaudicc.compile(model, (pack, X))
    assert str(compiled(pack, X)) == str(model(pack, X))


def test_containers_nested_otherwise_are_refused() -> None:
    compiled = gaudicc.compile(lambda pair: pair["a"] + pair["b"], ({"a": X, "b": Y},))
    for wrong in ({"a": X}, {"a": X, "b": [Y]}, [X, Y]):
        with pytest.raises(InputError, match="nested otherwise"):
            compiled(wrong)
