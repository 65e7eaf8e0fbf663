import operator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from gaudicc.errors import UnsupportedOpError, Where
from gaudicc.interpreter import Judge
from gaudicc.targets import Mode, load_target

TARGET = load_target("gaudi3")
aten = torch.ops.aten
X = torch.linspace(-2, 2, 12).view(3, 4)


def wrapped(value: int) -> int:
    """A value as int32 holds it."""
    return (value + 2**31) % 2**32 - 2**31


def test_legal_call_runs_and_is_counted() -> None:
    judge = Judge(TARGET)
    result = judge.call(aten.mm.default, (X, X.t()))
    assert isinstance(result, torch.Tensor)
    assert torch.equal(result, X @ X.t())
    assert (judge.calls, judge.fallbacks, dict(judge.presumed)) == (1, [], {})


def test_composite_runs_by_its_parts() -> None:
    judge = Judge(TARGET)
    result = judge.call(aten.scaled_dot_product_attention.default, (X[None], X[None], X[None]))
    assert isinstance(result, torch.Tensor)
    torch.testing.assert_close(result, torch.nn.functional.scaled_dot_product_attention(X[None], X[None], X[None]))
    assert judge.calls > 5
    assert not judge.presumed


@pytest.mark.parametrize("op", [aten.histc.default, aten.nonzero.default, aten.unique_consecutive.default])
def test_unsupported_call_raises_with_its_place(op: OpOverload) -> None:
    with pytest.raises(UnsupportedOpError) as caught:
        Judge(TARGET).call(op, (X.flatten(),), {}, Where(source="model.py:7"))
    assert "model.py:7" in str(caught.value)


def test_on_host_the_call_is_counted_with_its_bytes() -> None:
    judge = Judge(TARGET, on_unsupported="host")
    result = judge.call(aten.histc.default, (X, 4))
    assert isinstance(result, torch.Tensor)
    assert torch.equal(result, torch.histc(X, 4))
    (fallback,) = judge.fallbacks
    assert (fallback.op, fallback.bytes) == ("aten::histc", 12 * 4 + 4 * 4)
    assert "eager fallback" in fallback.reason


def test_presumed_calls_are_counted_apart() -> None:
    judge = Judge(TARGET)
    judge.call(aten.index.Tensor, (X, [torch.tensor([0])]))
    assert dict(judge.presumed) == {"aten::index.Tensor": 1}


@pytest.mark.parametrize("on_unsupported", ["error", "host"])
@pytest.mark.parametrize(
    ("op", "args"),
    [
        (aten.item.default, (X[0, 0],)),
        (aten._local_scalar_dense.default, (X[0, 0],)),
        (aten.is_nonzero.default, (X[0, 0],)),
        (aten.equal.default, (X, X)),
    ],
)
def test_host_reads_are_refused_even_with_host_ops(
    op: OpOverload, args: tuple[object, ...], on_unsupported: str
) -> None:
    judge = Judge(TARGET, on_unsupported=on_unsupported)  # type: ignore[arg-type]
    with pytest.raises(UnsupportedOpError, match="reads a value on the host"):
        judge.call(op, args)


@pytest.mark.parametrize("on_unsupported", ["error", "host"])
def test_complex_never_lives_on_the_device(on_unsupported: str) -> None:
    judge = Judge(TARGET, on_unsupported=on_unsupported)  # type: ignore[arg-type]
    for op, args in ((aten.polar.default, (X, X)), (aten.mul.Tensor, (X.to(torch.complex64), 2))):
        with pytest.raises(UnsupportedOpError, match="complex"):
            judge.call(op, args)
    with pytest.raises(UnsupportedOpError, match="complex"):
        judge.enter(X.to(torch.complex64), "x")


@given(st.integers(-(2**40), 2**40), st.integers(-(2**20), 2**20))
def test_int64_is_computed_as_int32_in_lazy_mode_only(a: int, b: int) -> None:
    x, y = torch.tensor([a]), torch.tensor([b])
    for op, compute in ((aten.add.Tensor, operator.add), (aten.mul.Tensor, operator.mul)):
        lazy, kept = Judge(TARGET), Judge(TARGET, Mode.COMPILE)
        narrow, wide = lazy.call(op, (x, y)), kept.call(op, (x, y))
        assert isinstance(narrow, torch.Tensor)
        assert isinstance(wide, torch.Tensor)
        on_device = compute(wrapped(a), b)
        assert narrow.tolist() == [wrapped(compute(a, b))] == [wrapped(on_device)]
        assert wide.tolist() == [compute(a, b)]
        assert bool(lazy.overflowed) is (wrapped(a) != a or wrapped(on_device) != on_device)
        assert not kept.overflowed


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=8))
def test_float64_is_computed_as_float32(values: list[float]) -> None:
    x = torch.tensor(values, dtype=torch.float64)
    result = Judge(TARGET).call(aten.mul.Tensor, (x, 3.7))
    assert isinstance(result, torch.Tensor)
    assert result.dtype is torch.float32
    assert torch.equal(result, x.float() * 3.7)


def test_in_place_ops_reach_the_callers_tensor_narrowed() -> None:
    judge = Judge(TARGET)
    x = torch.tensor([2**31 - 1])
    judge.call(aten.add_.Tensor, (x, 1))
    assert x.tolist() == [-(2**31)]
    wide = torch.tensor([1.0], dtype=torch.float64)
    judge.call(aten.mul_.Tensor, (wide, 1 / 3))
    assert wide.tolist() == [torch.tensor(1 / 3).item()]


def test_in_place_ops_leave_what_they_only_read_alone() -> None:
    judge = Judge(TARGET)
    x, y = torch.tensor([1]), torch.tensor([2**32 + 5])
    judge.call(aten.add_.Tensor, (x, y))
    assert (x.tolist(), y.tolist()) == ([6], [2**32 + 5])


def test_composites_of_int64_tensors_read_nothing_on_the_host() -> None:
    x = torch.arange(6).view(2, 3)
    for op, args in ((aten.stack.default, ([x, x],)), (aten.reshape.default, (x, [6])), (aten.diagonal.default, (x,))):
        judge = Judge(TARGET)
        result = judge.call(op, args)
        assert isinstance(result, torch.Tensor)
        assert torch.equal(result, op(*args))
        assert judge.calls <= 2, "only the parts are counted, not our own range check"


def test_views_alias_their_base() -> None:
    x = torch.arange(6)
    view = Judge(TARGET).call(aten.view.default, (x, [2, 3]))
    assert isinstance(view, torch.Tensor)
    assert view.data_ptr() == x.data_ptr()


def test_judge_serves_a_dispatch_mode() -> None:
    judge = Judge(TARGET)

    class Device(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return judge.call(func, args, kwargs)

    with torch.no_grad(), Device():
        y = torch.softmax(X, -1) + torch.arange(4)
        with pytest.raises(UnsupportedOpError, match="on the host"):
            bool(y.sum() > 0)
    torch.testing.assert_close(y, torch.softmax(X, -1) + torch.arange(4))
