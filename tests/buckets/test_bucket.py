"""Bucket arithmetic: dominance, cheapest choice against brute force, misses that name the dim."""

import subprocess
import sys
import timeit
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gaudicc.buckets import Bucket, BucketSet, product_of_sizes
from gaudicc.errors import BucketMissError, InputError

DIMS = ("batch", "query", "context")
sizes = st.tuples(*[st.integers(0, 9)] * 3)
bucket_lists = st.lists(sizes, min_size=1, max_size=20)


def buckets_of(rows: Sequence[tuple[int, ...]]) -> list[Bucket]:
    return [Bucket(DIMS, row) for row in rows]


def test_bucket_is_a_key() -> None:
    assert Bucket.of({"b": 1, "s": 2}) == Bucket(("b", "s"), (1, 2))
    assert len({Bucket.of({"b": 1, "s": 2}), Bucket.of({"b": 1, "s": 2}), Bucket.of({"s": 2, "b": 1})}) == 2
    assert Bucket.of({"b": 4, "s": 0})["b"] == 4
    assert str(Bucket.of({"b": 4, "s": 0})) == "b=4, s=0"


@pytest.mark.parametrize(("dims", "row"), [(("a",), (1, 2)), (("a", "a"), (1, 2)), (("a",), (-1,)), (("a",), (True,))])
def test_malformed_buckets_are_refused(dims: Any, row: Any) -> None:
    with pytest.raises(InputError):
        Bucket(dims, row)


@given(bucket_lists, sizes)
def test_choose_is_the_cheapest_dominating_bucket(rows: Any, call: Any) -> None:
    buckets = buckets_of(rows)
    shape = dict(zip(DIMS, call, strict=True))
    fitting = [b for b in buckets if b.dominates(shape)]
    chosen = BucketSet(buckets)
    if not fitting:
        with pytest.raises(BucketMissError):
            chosen.choose(shape)
    else:
        assert chosen.choose(shape) == min(fitting, key=product_of_sizes)  # min keeps the first of equals


@given(bucket_lists, sizes)
def test_choose_split_is_the_cheapest_number_of_calls(rows: Any, call: Any) -> None:
    buckets = [b for b in buckets_of(rows) if b["batch"]]
    shape = dict(zip(DIMS, call, strict=True))
    if not buckets:
        return
    options = [
        (max(1, -(-shape["batch"] // b["batch"])) * product_of_sizes(b))
        for b in buckets
        if b["query"] >= shape["query"] and b["context"] >= shape["context"]
    ]
    if not options:
        with pytest.raises(BucketMissError):
            BucketSet(buckets).choose_split(shape, "batch")
    else:
        bucket, calls = BucketSet(buckets).choose_split(shape, "batch")
        assert calls * product_of_sizes(bucket) == min(options)
        assert calls * bucket["batch"] >= shape["batch"]


def test_a_miss_names_the_dim_and_its_bound() -> None:
    chosen = BucketSet(buckets_of([(8, 128, 0), (1, 2048, 0)]))
    with pytest.raises(BucketMissError, match="query=4096 is over its largest bucket, 2048"):
        chosen.choose({"batch": 1, "query": 4096, "context": 0})
    with pytest.raises(BucketMissError, match="query=2048 is over 128, its bound for batch=8"):
        chosen.choose({"batch": 8, "query": 2048, "context": 0})
    with pytest.raises(InputError, match="context"):
        chosen.choose({"batch": 8, "query": 2048})


def test_ties_go_to_the_first() -> None:
    a, b = Bucket.of({"x": 2, "y": 8}), Bucket.of({"x": 8, "y": 2})
    assert BucketSet([a, b]).choose({"x": 1, "y": 1}) is a
    assert BucketSet([b, a]).choose({"x": 1, "y": 1}) is b


def test_set_behaves_as_an_ordered_collection() -> None:
    rows = buckets_of([(1, 2, 3), (1, 2, 3), (4, 5, 6)])
    chosen = BucketSet(rows)
    assert (len(chosen), list(chosen), chosen[1], rows[0] in chosen) == (2, [rows[0], rows[2]], rows[2], True)
    assert chosen == BucketSet(rows[1:])
    assert hash(chosen) == hash(BucketSet(rows[1:]))
    with pytest.raises(InputError):
        BucketSet([])
    with pytest.raises(InputError):
        BucketSet([rows[0], Bucket.of({"batch": 1})])


def test_choose_takes_under_five_microseconds_for_128_buckets_in_three_dims() -> None:
    rows = [(b, q, c) for b in (1, 2, 4, 8) for q in (128, 256, 512, 1024) for c in range(0, 64, 8)]
    chosen = BucketSet(buckets_of(rows))
    calls = [{"batch": i % 8 + 1, "query": 37 * i % 1024 + 1, "context": 11 * i % 57} for i in range(1000)]
    best = min(timeit.repeat(lambda: [chosen.choose(call) for call in calls], number=1, repeat=20))
    assert len(chosen) == 128
    assert best / len(calls) < 5e-6


def test_bucket_arithmetic_loads_neither_numpy_nor_torch() -> None:
    code = "import sys, gaudicc.buckets; print([m for m in ('numpy', 'torch') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
