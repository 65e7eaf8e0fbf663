"""What happens on the request path: misses, late recordings, warm-up, many calls and many threads."""

from __future__ import annotations

import logging
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import gaudicc
from gaudicc.buckets import Bucket
from gaudicc.compiled import CompiledModel
from gaudicc.errors import BucketMissError, InputError, RecordForbiddenError


class Scores(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(50, 8), nn.Linear(8, 3)

    def forward(self, ids: Tensor) -> Tensor:
        scores: Tensor = self.head(self.embed(ids)).softmax(1)  # over the sequence: its pads must be masked
        return scores


SHAPES = {"ids": {0: Dim("batch", min=1, max=6), 1: Dim("seq", min=1, max=40)}}
BUCKETS = [{"batch": batch, "seq": seq} for batch in (2, 4) for seq in (8, 16)]


def compiled(model: nn.Module, **options: Any) -> CompiledModel:
    return gaudicc.compile(model, (torch.ones(2, 3, dtype=torch.int64),), dynamic_shapes=SHAPES, **options)


@pytest.fixture
def model() -> nn.Module:
    return Scores().eval()


def ids(batch: int, seq: int) -> Tensor:
    return torch.randint(0, 50, (batch, seq))


def assert_eager(served: CompiledModel, model: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        torch.testing.assert_close(served(x), model(x), rtol=1e-5, atol=1e-6)


def test_a_miss_is_refused_and_the_next_call_is_fine(model: nn.Module) -> None:
    served = compiled(model, buckets=BUCKETS)
    with pytest.raises(BucketMissError, match="seq"):
        served(ids(2, 17))
    assert served.stats.misses == 1
    assert_eager(served, model, ids(2, 16))


def test_a_miss_can_be_recorded_and_the_log_says_so(model: nn.Module, caplog: pytest.LogCaptureFixture) -> None:
    served = compiled(model, buckets=BUCKETS, on_miss="record")
    with caplog.at_level(logging.WARNING, "gaudicc"):
        assert_eager(served, model, ids(5, 17))
    assert "no bucket fits, compiling batch=6, seq=32 during a call" in caplog.text
    assert Bucket.of({"batch": 6, "seq": 32}) in served.buckets
    assert served.stats.misses == 1
    for batch, seq in [(6, 32), (5, 20), (1, 40), (2, 8)]:
        assert_eager(served, model, ids(batch, seq))
    assert served.stats.misses == 2  # (1, 40)
    assert "batch=6, seq=32" in str(served.certificate)


def test_a_program_that_is_not_padded_records_exactly_what_was_missed() -> None:
    class Kernel(nn.Module):  # mode has no rule: exact shapes only
        def forward(self, x: Tensor) -> Tensor:
            return x.mode(0).values

    x = torch.randn(3, 2)
    shapes = {"x": {0: Dim("n", min=1, max=9)}}
    served = gaudicc.compile(Kernel().eval(), (x,), dynamic_shapes=shapes, buckets=[{"n": 3}], on_miss="record")
    assert served.program.padded is None
    y = torch.randn(5, 2)
    assert torch.equal(served(y), y.mode(0).values)
    assert [bucket["n"] for bucket in served.buckets] == [3, 5]


def test_recording_during_a_call_is_said_and_can_be_forbidden(
    model: nn.Module, caplog: pytest.LogCaptureFixture
) -> None:
    served = compiled(model, buckets=BUCKETS, on_miss="record")
    with caplog.at_level(logging.WARNING, "gaudicc"):
        served(ids(2, 8))
    assert "recording bucket batch=2, seq=8 during a call" in caplog.text
    served.forbid_records()
    with pytest.raises(RecordForbiddenError, match="batch=4, seq=16"):
        served(ids(4, 16))
    with pytest.raises(BucketMissError):
        served(ids(4, 17))
    assert served.stats.records == 1
    served.warm_up()
    assert_eager(served, model, ids(4, 16))


def test_an_interrupted_warm_up_goes_on_where_it_was(model: nn.Module) -> None:
    served = compiled(model, buckets=BUCKETS)

    def interrupt(done: int, _total: int, _bucket: Bucket) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        served.warm_up(interrupt)
    assert served.stats.records == 2
    served.warm_up()
    assert served.stats.records == len(BUCKETS)


def test_the_policy_has_a_name_that_is_known(model: nn.Module) -> None:
    with pytest.raises(InputError, match="on_miss is 'guess'"):
        compiled(model, on_miss="guess")


def test_threads_share_a_stateless_model(model: nn.Module) -> None:
    served = compiled(model, buckets=BUCKETS)
    served.warm_up()
    served.forbid_records()

    def serve(seed: int) -> None:
        random = Random(seed)
        for _ in range(100):
            assert_eager(served, model, torch.full((random.randint(1, 4), random.randint(1, 16)), random.randrange(50)))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(serve, range(8)))
    assert served.stats.records == len(BUCKETS)
    assert served.stats.calls == 800


STREAM = """
import resource, random, torch
from tests.core.test_misses import BUCKETS, Scores, assert_eager, compiled, ids

model = Scores().eval()
served = compiled(model, buckets=BUCKETS)
served.warm_up()
served.forbid_records()
random.seed(0)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for number in range(10_000):
    x = ids(random.randint(1, 4), random.randint(1, 16))
    if number % 50 == 0:
        assert_eager(served, model, x)
    else:
        served(x)
    if number == 100:
        first = peak()
assert served.stats.records == len(BUCKETS), served.stats
assert served.stats.calls == 10_000
assert peak() <= 1.05 * first, (first, peak())
"""


def test_ten_thousand_calls_record_nothing_and_keep_no_memory() -> None:
    subprocess.run([sys.executable, "-c", STREAM], check=True, timeout=300)
