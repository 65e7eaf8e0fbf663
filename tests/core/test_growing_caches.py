"""Caches held as state, from the caller's side: prefill and decode, restarts, strangers, sessions, errors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.export import Dim

import gaudicc
from gaudicc.compiled import CompiledModel
from gaudicc.errors import BundleError, InputError, ShapeError, StateError
from gaudicc.runtime.runner import Runner
from tests.growing import Layer, Pair

HIGH = 20


class Stack(nn.Module):
    """Three layers with a legacy cache, and what a broken input does: it raises after the caches were written."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(3))

    def forward(self, x: torch.Tensor, cache: list[Pair]) -> dict[str, Any]:
        grown = []
        for layer, past in zip(self.layers, cache, strict=True):
            x, kept = layer(x, past)
            grown.append(kept)
        if not x.isfinite().all():
            raise ValueError("not finite")
        return {"y": x, "cache": grown, "kind": "stack"}


def caches(rows: int) -> list[Pair]:
    return [(torch.randn(1, 2, rows, 4), torch.randn(1, 2, rows, 4)) for _ in range(3)]


@pytest.fixture(scope="module")
def model() -> Stack:
    torch.manual_seed(0)
    return Stack().eval()


@pytest.fixture(scope="module")
def compiled(model: Stack) -> CompiledModel:
    past, new = Dim("past", min=0, max=HIGH), Dim("new", min=1, max=8)
    return gaudicc.compile(
        model, (torch.randn(1, 3, 8), caches(5)), dynamic_shapes={"x": {1: new}, "cache": [({2: past}, {2: past})] * 3},
        buckets=[{"new": 2, "past": HIGH}, {"new": 8, "past": 4}, {"new": 8, "past": HIGH}], static_state=True,
        verify="poison",
    )  # fmt: skip


@pytest.fixture
def session(compiled: CompiledModel) -> CompiledModel:
    return compiled.session()


def step(model: Any, rows: int, cache: Any, scale: float = 1.0) -> dict[str, Any]:
    x = torch.randn(1, rows, 8, generator=torch.Generator().manual_seed(rows)) * scale
    with torch.no_grad():
        found: dict[str, Any] = model(x, cache)
    return found


def same(a: Any, b: Any) -> None:
    torch.testing.assert_close(a["y"], b["y"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(a["cache"], b["cache"], rtol=1e-5, atol=1e-5)
    assert a["kind"] == b["kind"]


def test_prefill_and_decode_copy_nothing(model: Stack, session: CompiledModel) -> None:
    expected, got = step(model, 5, caches(0)), step(session, 5, caches(0))
    assert session.stats.copied_caches == 6
    storage = got["cache"][0][0].untyped_storage().data_ptr()
    for rows in (1, 1, 7, 1, 2, 1, 1):
        expected, got = step(model, rows, expected["cache"]), step(session, rows, got["cache"])
        same(got, expected)
        assert got["cache"][0][0].untyped_storage().data_ptr() == storage
    assert session.stats.copied_caches == 6
    assert session.stats.calls == session.stats.replays == 8


def test_nothing_of_the_size_of_a_cache_is_passed(session: CompiledModel, monkeypatch: pytest.MonkeyPatch) -> None:
    got = step(session, 3, caches(0))
    passed: list[torch.Tensor] = []
    run = Runner.run

    def noted(runner: Runner, inputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        passed.extend(inputs)
        return run(runner, inputs)

    monkeypatch.setattr(Runner, "run", noted)
    step(session, 4, got["cache"])
    assert [tuple(tensor.shape) for tensor in passed] == [(1, 8, 8), (1, 1, 4, 1), (), ()]


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_any_sequence_of_calls_is_eager(model: Stack, compiled: CompiledModel, data: st.DataObject) -> None:
    """Going on, starting anew with or without rows, and going back to a copy that was kept."""
    session = compiled.session()
    kept: list[Any] = []
    expected: Any = None
    got: Any = None
    for _ in range(data.draw(st.integers(3, 7))):
        rows = data.draw(st.integers(1, 8))
        move = data.draw(st.sampled_from(["go on", "start", "go back"]))
        if move == "go on" and got is not None and got["cache"][0][0].shape[2] <= HIGH:
            before = expected["cache"], got["cache"]
        elif move == "go back" and kept:
            before = data.draw(st.sampled_from(kept))
        else:
            fresh = caches(data.draw(st.sampled_from([0, 1, 6, HIGH])))
            before = fresh, fresh
        expected, got = step(model, rows, before[0]), step(session, rows, before[1])
        same(got, expected)
        if got["cache"][0][0].shape[2] <= HIGH:
            copy = [tuple(part.clone() for part in pair) for pair in got["cache"]]
            kept.append((copy, copy))


def test_sessions_do_not_see_each_other(model: Stack, compiled: CompiledModel) -> None:
    runs = [(compiled.session(), rows) for rows in (2, 5)]
    states = [(step(model, rows, caches(0)), step(one, rows, caches(0))) for one, rows in runs]
    for _ in range(3):
        states = [
            (step(model, rows, a["cache"]), step(one, rows, b["cache"]))
            for (one, rows), (a, b) in zip(runs, states, strict=True)
        ]
        for a, b in states:
            same(b, a)


def test_a_cache_of_another_session_is_copied(model: Stack, compiled: CompiledModel) -> None:
    one, two = compiled.session(), compiled.session()
    got = step(one, 4, caches(0))
    expected = step(model, 1, [tuple(part.clone() for part in pair) for pair in got["cache"]])
    moved = step(two, 1, got["cache"])
    same(moved, expected)
    step(one, 2, caches(0))
    with pytest.raises(StateError, match="may have been overwritten"):
        step(two, 1, got["cache"])
    assert two.stats.copied_caches == 6


def test_an_earlier_view_is_refused(session: CompiledModel) -> None:
    first = step(session, 3, caches(0))
    last = step(session, 2, first["cache"])
    with pytest.raises(
        StateError, match=r"argument cache\[0\]\[0\] is a view of a compiled model's state.*\n.*\n.*clone"
    ):
        step(session, 1, first["cache"])
    cropped = [tuple(part[:, :, :2] for part in pair) for pair in last["cache"]]
    with pytest.raises(StateError, match="may have been overwritten"):
        step(session, 1, cropped)
    assert step(session, 1, last["cache"])["cache"][0][0].shape[2] == 6, "the state is as it was"


def test_no_rows_of_the_state_are_nothing(model: Stack, session: CompiledModel) -> None:
    last = step(session, 3, caches(0))
    empty = [tuple(part[:, :, :0] for part in pair) for pair in last["cache"]]
    same(step(session, 2, empty), step(model, 2, caches(0)))


def test_a_part_of_a_cache_may_be_replaced(model: Stack, session: CompiledModel) -> None:
    last = step(session, 3, caches(0))
    own = [tuple(part.clone() for part in pair) for pair in last["cache"]]
    own[1] = (own[1][0] * 2, own[1][1])
    mixed = [last["cache"][0], (own[1][0], last["cache"][1][1]), last["cache"][2]]
    before = session.stats.copied_caches
    same(step(session, 2, mixed), step(model, 2, own))
    assert session.stats.copied_caches == before + 1


def test_too_long_is_refused_and_the_state_stays(model: Stack, session: CompiledModel) -> None:
    got = step(session, 8, caches(HIGH - 6))
    assert got["cache"][0][0].shape[2] == HIGH + 2, "what comes back may be longer than what may be passed"
    kept = got["cache"][0][0].clone()
    with pytest.raises(ShapeError, match=f"is {HIGH + 2}, past runs from 0 to {HIGH}"):
        step(session, 1, got["cache"])
    with pytest.raises(ShapeError, match=f"is {HIGH + 1}, past runs from 0 to {HIGH}"):
        step(session, 1, caches(HIGH + 1))
    assert torch.equal(got["cache"][0][0], kept)


def test_rows_must_agree(session: CompiledModel) -> None:
    got = step(session, 3, caches(0))
    with pytest.raises(ShapeError, match="another input says past is 3"):
        step(session, 1, [got["cache"][0], got["cache"][1], caches(2)[2]])
    with pytest.raises(ShapeError, match=r"cache\[2\]\[0\] has 3 rows, but another cache has 2"):
        step(session, 1, [*caches(2)[:2], got["cache"][2]])


def test_a_cache_of_another_kind_is_refused(session: CompiledModel) -> None:
    wrong = caches(2)
    wrong[1] = (wrong[1][0].double(), wrong[1][1])
    with pytest.raises(InputError, match=r"argument cache\[1\]\[0\] is f64\[1, 2, 2, 4\]"):
        step(session, 1, wrong)
    wrong[1] = (torch.randn(1, 3, 2, 4), wrong[1][1])
    with pytest.raises(ShapeError, match=r"cache\[1\]\[0\] has shape \[1, 3, 2, 4\]"):
        step(session, 1, wrong)


@pytest.mark.parametrize("strangers", [False, True])
def test_after_an_exception_the_state_is_as_it_was(model: Stack, session: CompiledModel, strangers: bool) -> None:
    last = step(session, 6, caches(0))
    kept = [tuple(part.clone() for part in pair) for pair in last["cache"]]
    for rows in (1, 8):
        with pytest.raises(ValueError, match="not finite"):
            step(session, rows, caches(3) if strangers else last["cache"], scale=float("nan"))
        torch.testing.assert_close(last["cache"], kept, rtol=0, atol=0)
    same(step(session, 2, last["cache"]), step(model, 2, kept))


@settings(max_examples=15, deadline=None)
@given(
    moves=st.lists(st.tuples(st.sampled_from(["go on", "start", "fail", "fail anew"]), st.integers(1, 8)), max_size=6)
)
def test_rows_behind_the_valid_ones_are_zero(compiled: CompiledModel, moves: list[tuple[str, int]]) -> None:
    """What the padding's proof takes for granted, after any sequence of calls."""
    session = compiled.session()
    cache: Any = step(session, 6, caches(0))["cache"]
    for move, rows in moves:
        given = cache if move in ("go on", "fail") and cache[0][0].shape[2] <= HIGH else caches(3)
        if move.startswith("fail"):
            with pytest.raises(ValueError, match="not finite"):
                step(session, rows, given, scale=float("nan"))
        else:
            cache = step(session, rows, given)["cache"]
        valid = cache[0][0].shape[2]
        assert all(not buffer[:, :, valid:].any() for buffer in session._state.values())
        assert all(buffer[:, :, :valid].isfinite().all() for buffer in session._state.values())


def test_guards_speak_of_the_caches_themselves(compiled: CompiledModel) -> None:
    lines = compiled.guards
    assert "assert 0 <= cache[0][0].shape[2] <= 20  # the range of past" in lines
    assert "assert cache[2][1].shape[1] == 2  # captured with this size of cache[2][1]" in lines
    assert "assert cache[2][1].shape[2] == cache[0][0].shape[2]  # both are past" in lines
    assert "cache[0][0].shape[1] == 1" not in lines


def test_the_certificate_proves_the_state(compiled: CompiledModel) -> None:
    assert sum("none after it" in line for line in compiled.certificate.padding) == 6
    assert any("poison run" in note for note in compiled.notes)


def test_a_bundle_holds_the_caches_too(model: Stack, compiled: CompiledModel, tmp_path: Path) -> None:
    compiled.save(tmp_path / "stack.zip")
    loaded = gaudicc.load(tmp_path / "stack.zip")
    expected, got = step(model, 3, caches(0)), step(loaded, 3, caches(0))
    for rows in (1, 2):
        expected, got = step(model, rows, expected["cache"]), step(loaded, rows, got["cache"])
        same(got, expected)
    assert loaded.stats.copied_caches == 6


@pytest.mark.parametrize(("old", "new"), [('"dimension":"past"', '"dimension":"other"'), ('"dim":2', '"dim":7')])
def test_a_doctored_bundle_is_refused(compiled: CompiledModel, tmp_path: Path, old: str, new: str) -> None:
    compiled.save(tmp_path / "stack")
    (found,) = (tmp_path / "stack").glob("*.json")
    text = found.read_text().replace('": ', '":')
    assert old in text
    found.write_text(text.replace(old, new, 1))
    with pytest.raises(BundleError):
        gaudicc.load(tmp_path / "stack")
