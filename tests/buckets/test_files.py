"""Plans as files: round trips, vllm-gaudi's format and its first-fit rule, and what is refused."""

import ast
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gaudicc.buckets import Bucket, BucketSet
from gaudicc.buckets.files import first_fit_cost, for_first_fit, plan_as_json, read_plan, vllm_bucket_file
from gaudicc.buckets.space import Rows, Sample, Space, total_cost
from gaudicc.errors import InputError

SPACE = Space(("b", "s"), (1, 1), (4, 6), (1, 1), (4, 6), cost=lambda b, s: 5.0 + b * s)
boxes = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 6)), min_size=1, max_size=5).map(np.array)


def read_as_vllm_does(text: str) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """Prefill and decode tuples, as the reader of VLLM_BUCKETING_FROM_FILE sees them."""
    rows = [ast.literal_eval(line) for line in text.splitlines() if line and not line.startswith("#")]
    return [row for row in rows if row[1] != 1], [row for row in rows if row[1] == 1]


@given(boxes, boxes)
def test_json_is_read_back(tmp_path_factory: pytest.TempPathFactory, first: Rows, second: Rows) -> None:
    phases = {"prefill": SPACE.bucket_set(first), "decode": SPACE.bucket_set(second)}
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    path.write_text(plan_as_json(phases, {"x": 1}))
    assert read_plan(path) == phases


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is no bucket plan"),
        ("[]", "is no bucket plan"),
        ('{"format": "gaudicc-buckets", "version": 99, "phases": {}}', "version 99"),
        ('{"format": "gaudicc-buckets", "version": 1, "phases": {"decode": {"dims": ["b"]}}}', "is no bucket plan"),
        (
            '{"format": "gaudicc-buckets", "version": 1, "phases": {"decode": {"dims": ["b"], "buckets": [[-1]]}}}',
            "0 or",
        ),
        (
            '{"format": "gaudicc-buckets", "version": 1, "phases": {"decode": {"dims": ["b"], "buckets": []}}}',
            "least one",
        ),
    ],
)
def test_damaged_plans_are_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(InputError, match=words):
        read_plan(path)
    with pytest.raises(InputError, match="cannot read"):
        read_plan(tmp_path / "none.json")


def test_vllm_file_is_read_back() -> None:
    flat, deep = np.array([[256, 3], [128, 0]]), np.array([[4, 128, 0], [1, 2048, 16]])
    decode = np.array([[16, 200], [4, 40]])
    assert read_as_vllm_does(vllm_bucket_file(flat, decode)) == (
        [(1, 128, 0), (1, 256, 3)],
        [(4, 1, 40), (16, 1, 200)],
    )
    assert read_as_vllm_does(vllm_bucket_file(deep, None)) == ([(1, 2048, 16), (4, 128, 0)], [])
    with pytest.raises(InputError, match="query 1"):
        vllm_bucket_file(np.array([[1, 0]]), None)


@given(boxes, st.lists(st.tuples(st.integers(1, 4), st.integers(1, 6)), min_size=1, max_size=6))
def test_first_fit_is_the_first_in_sorted_order_and_mending_it_never_costs(
    rows: Rows, shapes: list[tuple[int, int]]
) -> None:
    sample = Sample.of(shapes)
    whole = np.unique(np.concatenate([rows, [SPACE.limit]]), axis=0)
    by_hand = 0.0
    for shape, weight in zip(sample.shapes, sample.weights, strict=True):
        first = next(box for box in sorted(map(tuple, whole.tolist())) if all(np.array(box) >= shape))
        by_hand += weight * (5.0 + first[0] * first[1])
    assert first_fit_cost(SPACE, whole, sample) == pytest.approx(by_hand)
    mended = for_first_fit(SPACE, rows, sample)
    assert list(SPACE.limit) in mended.tolist()
    assert total_cost(SPACE, whole, sample) <= first_fit_cost(SPACE, mended, sample) * (1 + 1e-9)
    assert first_fit_cost(SPACE, mended, sample) <= by_hand * (1 + 1e-9)


def test_first_fit_misses_cost_infinitely() -> None:
    assert np.isinf(first_fit_cost(SPACE, np.array([[1, 1]]), Sample.of([[2, 2]])))


def test_json_says_what_it_is() -> None:
    document = json.loads(plan_as_json({"decode": BucketSet([Bucket(("b",), (1,))])}, {"graphs": 1}))
    assert (document["format"], document["version"]) == ("gaudicc-buckets", 1)
    assert document["phases"] == {"decode": {"dims": ["b"], "buckets": [[1]]}}
    assert document["figures"] == {"graphs": 1}
