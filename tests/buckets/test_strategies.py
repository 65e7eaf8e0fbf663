"""Strategy words against the field's published examples, and the laws that every form must keep."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gaudicc.buckets import Bucket, Buckets, BucketSet, expand, parse_buckets
from gaudicc.buckets.strategies import exponential, linear, padding_aware
from gaudicc.errors import InputError

BOUNDS = {"batch": (1, 8), "seq": (1, 4096)}


def test_exponential_matches_the_published_example() -> None:
    # vllm-gaudi, comment of warmup_range_with_limit: min 128, step 128, max 2048, ten buckets
    assert exponential(128, 128, 2048, 10) == (128, 256, 384, 512, 640, 896, 1152, 1536, 2048)


def test_linear_matches_the_published_examples() -> None:
    # vllm-gaudi, docs/features/bucketing_mechanism.md
    assert linear(2, 32, 64) == (2, 4, 8, 16, 32, 64)
    assert linear(128, 128, 512) == (128, 256, 384, 512)


def test_padding_aware_matches_the_published_examples() -> None:
    # vllm-gaudi, docstring of warmup_range_with_limits
    assert padding_aware(0, 8, 64, 0, 64)[-8:] == (8, 16, 24, 32, 40, 48, 56, 64)
    assert padding_aware(16, 16, 128, 25, 32) == (16, 32, 48, 64, 80, 96, 128)


@pytest.mark.parametrize("word", ["exp", "lin", "pad", "optimal"])
def test_words_hold_every_size_in_range_within_32_graphs(word: Any) -> None:
    chosen = parse_buckets(word, BOUNDS)
    assert 8 <= len(chosen) <= 32
    for call in ({"batch": 1, "seq": 1}, {"batch": 8, "seq": 4096}, {"batch": 8, "seq": 1}, {"batch": 1, "seq": 4096}):
        assert chosen.choose(call).dominates(call)


ranges = st.tuples(st.integers(0, 300), st.integers(0, 300)).map(sorted)


@given(ranges, st.integers(1, 40), st.integers(1, 12))
def test_every_axis_is_increasing_and_ends_at_the_maximum(span: Any, step: int, count: int) -> None:
    low, high = span
    for axis in (exponential(low, step, high, count), linear(low, step, high), padding_aware(low, step, high)):
        assert list(axis) == sorted(set(axis))
        assert axis[-1] == high
        assert axis[0] >= min(low, high)
    assert len(exponential(low, step, high, count)) <= max(count, 1)


@given(ranges, ranges, st.integers(1, 64), st.sampled_from(["exp", "lin", "pad"]))
def test_strategies_stay_within_max_graphs_and_cover(first: Any, second: Any, graphs: int, word: Any) -> None:
    bounds = {"a": tuple(first), "b": tuple(second)}
    chosen = expand(Buckets(word, max_graphs=graphs), bounds)
    assert len(chosen) <= graphs
    assert chosen.choose({"a": first[1], "b": second[1]}).sizes == (first[1], second[1])


def test_explicit_ranges_and_per_dim_values() -> None:
    chosen = parse_buckets(
        Buckets("lin", min=128, step={"seq": 128}, max={"seq": 512, "batch": 128}),
        {"batch": (128, 128), "seq": (1, 512)},
    )
    assert [b["seq"] for b in chosen] == [128, 256, 384, 512]


def test_lists_of_dicts_tuples_and_sets() -> None:
    bounds = {"batch": (1, 8), "seq": (1, 64)}
    wanted = BucketSet([Bucket(("batch", "seq"), (1, 32)), Bucket(("batch", "seq"), (8, 64))])
    assert parse_buckets([{"seq": 32, "batch": 1}, (8, 64)], bounds) == wanted
    assert parse_buckets(wanted, bounds) == wanted


@pytest.mark.parametrize(
    ("form", "words"),
    [
        ("log", "unknown bucketing strategy"),
        (Buckets("lin", step=1), "more than max_graphs"),
        (Buckets("exp", max={"sequence": 4}), "sequence"),
        ([{"batch": 1}], "size for each"),
        ([(1, 2, 3)], "one size for each"),
        ([], "at least one"),
        (Buckets("exp", min=5000), "min <= max"),
    ],
)
def test_malformed_forms_are_refused(form: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        parse_buckets(form, BOUNDS)


def test_static_models_have_one_empty_bucket() -> None:
    assert list(parse_buckets(None, {})) == [Bucket((), ())]
