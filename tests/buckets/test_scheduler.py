"""The laws of the server simulator: work is conserved, limits hold, shapes are legal."""

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gaudicc.buckets.scheduler import Server, at_load, clipped, replay
from gaudicc.buckets.trace import Trace
from gaudicc.errors import InputError

SERVERS = {
    "one": Server(max_model_len=1024, max_num_batched_tokens=256, max_num_seqs=4, kv_blocks=12, load=None),
    "many": Server(
        max_model_len=1024, max_num_batched_tokens=512, max_prefill_seqs=3, max_num_seqs=4, kv_blocks=12, load=None
    ),
}
servers = pytest.mark.parametrize("server", SERVERS.values(), ids=SERVERS.keys())


@st.composite
def traces(draw: st.DrawFn) -> Trace:
    request = st.tuples(st.integers(0, 90), st.integers(1, 1500), st.integers(1, 300), st.integers(0, 1500))
    rows = sorted(draw(st.lists(request, min_size=1, max_size=12)))
    arrival, prompt, output, cached = (np.array(column) for column in zip(*rows, strict=True))
    return Trace((arrival - arrival[0]) / 100, prompt, output, cached)


@servers
@settings(max_examples=40)
@given(traces())
def test_every_token_is_served_once(server: Server, raw: Trace) -> None:
    trace = clipped(raw, server)
    steps = replay(trace, server)
    assert steps.decode[:, 0].sum() == (trace.output_len - 1).sum()
    work = (trace.input_len - trace.cached_len).sum()
    if server.max_prefill_seqs == 1:
        assert steps.prefill[:, 0].sum() == work
    else:
        assert (steps.prefill[:, 0] * steps.prefill[:, 1]).sum() >= work


@servers
@settings(max_examples=40)
@given(traces())
def test_calls_are_legal_within_limits_and_in_order(server: Server, raw: Trace) -> None:
    steps = replay(clipped(raw, server), server)
    prefill, decode = server.prefill_space(), server.decode_space()
    assert prefill.is_legal(prefill.round_up(steps.prefill)).all()
    assert decode.is_legal(steps.decode).all()
    assert (np.diff(steps.prefill_time) > 0).all()
    assert (np.diff(steps.decode_time) > 0).all()
    assert not len(steps.until(0.0).prefill)
    assert len(steps.until(1.0).decode) + len(steps.since(1.0).decode) == len(steps.decode)


def test_a_single_request_by_hand() -> None:
    trace = Trace(np.zeros(1), np.array([300]), np.array([90]), np.array([128]))
    steps = replay(trace, SERVERS["one"])
    assert steps.prefill.tolist() == [[172, 1]]
    # 300 tokens and the first new one lie in 3 blocks; the 385th token opens the fourth
    assert steps.decode.tolist() == [[1, 3]] * 84 + [[1, 4]] * 5


def test_long_prompts_are_chunked_and_see_what_is_cached() -> None:
    trace = Trace(np.zeros(1), np.array([600]), np.array([1]), np.array([0]))
    steps = replay(trace, SERVERS["one"])
    assert steps.prefill.tolist() == [[256, 0], [256, 2], [88, 4]]
    assert not len(steps.decode)


@pytest.mark.parametrize("dims", ["one", "many"])
def test_ranges_hold_a_legal_shape_exactly_if_one_of_theirs_is(dims: str) -> None:
    server = Server(
        max_model_len=256, max_num_batched_tokens=256, max_prefill_seqs=3 if dims == "many" else 1, max_num_seqs=3,
        kv_blocks=5,
    )  # fmt: skip
    for space in (server.prefill_space(), server.decode_space()):
        axes = [range(low, high + 1, a) for low, high, a in zip(space.low, space.limit, space.align, strict=True)]
        points = np.array(list(itertools.product(*axes)))
        legal = space.is_legal(points)
        assert legal.sum() > 0
        pairs = [(a, b) for a in points for b in points if (a <= b).all()]
        held = space.holds_legal(np.array([a for a, _ in pairs]), np.array([b for _, b in pairs]))
        expected = [bool(legal[((points >= a) & (points <= b)).all(axis=1)].any()) for a, b in pairs]
        assert held.tolist() == expected


def test_load_scales_arrivals_to_the_saturated_throughput() -> None:
    rng = np.random.default_rng(1)
    raw = Trace(np.sort(rng.random(200)), rng.integers(1, 900, 200), rng.integers(1, 90, 200), np.zeros(200, np.int64))
    half, full = (Server(load=load, max_num_seqs=8) for load in (0.5, 1.0))
    spans = [at_load(clipped(raw, server), server).arrival[-1] for server in (half, full)]
    assert spans[0] == pytest.approx(2 * spans[1])
    unscaled = Server(load=None)
    assert at_load(raw, unscaled) is raw


@pytest.mark.parametrize(
    "wrong",
    [
        {"kv_blocks": 10},
        {"max_num_batched_tokens": 100},
        {"max_num_seqs": 0},
        {"max_prefill_seqs": 0},
        {"max_model_len": 1},
        {"max_num_batched_tokens": 0},
        {"load": -1.0},
        {"load": float("nan")},
    ],
)
def test_impossible_servers_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        Server(**wrong)
