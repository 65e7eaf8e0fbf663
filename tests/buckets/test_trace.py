"""Reading traces: what is a trace, what is refused and how, and what resampling keeps."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gaudicc.buckets.trace import Trace, read_trace, resampled, unseen, with_cached_prefixes
from gaudicc.errors import GaudiccError

HEAD = "arrival_s,input_len,output_len"


def test_reads_in_order_of_arrival_from_zero(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(f"{HEAD},cached_len\n7.5,30,3,\n5.0,10,1,128\n")
    trace = read_trace(path)
    assert trace.arrival.tolist() == [0.0, 2.5]
    assert trace.input_len.tolist() == [10, 30]
    assert trace.cached_len.tolist() == [128, 0]
    assert len(trace) == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds no request"),
        (HEAD, "holds no request"),
        ("arrival_s,input_len\n1,2\n", "output_len"),
        (f"{HEAD}\n1,two,3\n", "two"),
        (f"{HEAD}\n1,2\n", "is not a trace"),
        (f"{HEAD}\n1,-2,3\n", "negative"),
        (f"{HEAD}\nnan,2,3\n", "negative"),
        (f"{HEAD}\n1,inf,3\n", "not below"),
        (f"{HEAD}\n1,1e30,3\n", "not below"),
        (f"{HEAD}\n1,2,3\n\x00\udcff", "is not a trace"),
    ],
)
def test_what_is_no_trace_is_refused_by_name(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(text, errors="surrogateescape")
    with pytest.raises(GaudiccError, match=words) as refusal:
        read_trace(path)
    assert str(path) in str(refusal.value)


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GaudiccError, match="cannot read the trace"):
        read_trace(tmp_path / "none.csv")


@given(st.integers(1, 200), st.integers(0, 9))
def test_resampling_keeps_requests_and_whole_cached_blocks(size: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    prompt = rng.integers(1, 4000, size)
    cached = (prompt * rng.random(size) / 128).astype(np.int64) * 128
    trace = Trace(np.cumsum(rng.random(size)), prompt, prompt % 17, cached)
    other = resampled(trace, rng)
    assert len(other) == size
    assert set(other.input_len.tolist()) <= set(prompt.tolist())
    assert (other.output_len == other.input_len % 17).all()
    assert (np.diff(other.arrival) >= 0).all()
    assert (other.cached_len % 128 == 0).all()
    assert (other.cached_len <= other.input_len).all()


def test_cached_prefixes_are_whole_blocks_of_the_share_asked_for() -> None:
    n = 4000
    trace = Trace(np.zeros(n), np.full(n, 1280), np.ones(n, np.int64), np.zeros(n, np.int64))
    prefixed = with_cached_prefixes(trace, 0.5, 0.9, 128, np.random.default_rng(0))
    assert set(prefixed.cached_len.tolist()) == {128 * i for i in range(9)}
    assert (prefixed.cached_len > 0).mean() == pytest.approx(0.5 * 8 / 9, abs=0.03)
    assert with_cached_prefixes(trace, 0.0, 0.9, 128, np.random.default_rng(0)) is trace
    with pytest.raises(GaudiccError, match="within 0 and 1"):
        with_cached_prefixes(trace, 1.5, 0.9, 128, np.random.default_rng(0))


@given(st.integers(1, 200), st.integers(2, 100_000), st.integers(0, 9))
def test_unseen_prompts_are_of_any_length_and_keep_all_else(size: int, longest: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    prompt = rng.integers(1, 4000, size)
    trace = Trace(np.cumsum(rng.random(size)), prompt, prompt % 17, prompt // 256 * 128)
    other = unseen(trace, longest, rng)
    assert (other.arrival == trace.arrival).all()
    assert (other.output_len == trace.output_len).all()
    assert ((other.input_len >= 1) & (other.input_len <= longest)).all()
    assert ((other.cached_len <= other.input_len) & (other.cached_len % 128 == 0)).all()


def test_unseen_prompts_are_log_uniform() -> None:
    rng = np.random.default_rng(0)
    trace = Trace(np.arange(4000.0), np.ones(4000, int), np.ones(4000, int), np.zeros(4000, int))
    lengths = unseen(trace, 10_000, rng).input_len
    assert [np.mean((lengths >= low) & (lengths < 10 * low)) for low in (1, 10, 100, 1000)] == pytest.approx(
        [0.25] * 4, abs=0.03
    )
