"""From compile to call: few buckets serve every size in range, equal to eager, with no mask written by hand."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.export import Dim
from torch.utils import _pytree as pytree

import gaudicc
from gaudicc.compiled import CompiledModel
from gaudicc.errors import BucketMissError, NumericsError, PaddingError, ShapeError
from gaudicc.models import transformers_models as families
from gaudicc.passes import STATIC, SYMBOLIC, Pad
from gaudicc.passes.insert_bucket_guards import InsertBucketGuards
from gaudicc.pipeline import PassResult
from gaudicc.program import Program

SHAPES = ((2, 9, 5), (1, 16, 8), (3, 5, 3), (2, 2, 2), (4, 23, 7), (1, 1, 1))  # batch, sequence, decoder's sequence
FAMILIES: dict[str, dict[str, Any]] = {name: {} for name in families.families()}
FAMILIES["mistral"] = {"sliding_window": 4}
FAMILIES["gemma3_text"] = {"sliding_window": 4}
FIRST = ("llama", "bert")  # the others take their time


def calls(inputs: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Six shapes; masks with left padding, right padding and none in turn."""
    generator = torch.Generator().manual_seed(0)
    for number, (batch, sequence, target) in enumerate(SHAPES):
        call = dict(inputs)
        for name, value in inputs.items():
            if isinstance(value, torch.Tensor) and "mask" in name:
                call[name] = torch.ones(batch, sequence, dtype=value.dtype)
                pad = min(3, sequence - 1)
                where = (slice(0, pad), slice(sequence - pad, None), slice(0))[number % 3]
                call[name][0, where] = 0
            elif isinstance(value, torch.Tensor):
                size = (batch, target if name.startswith("decoder") else sequence)
                call[name] = torch.randint(3, 90, size, generator=generator)
        yield call


def tensors(output: Any) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(dict(output)) if isinstance(leaf, torch.Tensor)]


@pytest.mark.parametrize(
    "name", [name if name in FIRST else pytest.param(name, marks=pytest.mark.sweep) for name in FAMILIES]
)
def test_families_of_transformers(name: str) -> None:
    model = families.build(name, **FAMILIES[name])
    inputs = families.example_inputs(model)
    batch, sequence, target = Dim("batch", min=1, max=4), Dim("sequence", min=1, max=32), Dim("target", min=1, max=16)
    shapes = {
        key: {0: batch, 1: target if key.startswith("decoder") else sequence}
        for key, value in inputs.items()
        if isinstance(value, torch.Tensor)
    }
    buckets = [{"batch": 4, "sequence": size} for size in (16, 32)]
    if "decoder_input_ids" in inputs:
        buckets = [{**bucket, "target": 16} for bucket in buckets]
    compiled = gaudicc.compile(model, inputs, dynamic_shapes=shapes, buckets=buckets, verify="poison")
    compiled.warm_up()
    recorded = compiled.stats.records
    for call in calls(inputs):
        with torch.no_grad():
            expected = model(**call)
        given = compiled(**call)
        assert type(given) is type(expected)
        assert given.keys() == expected.keys()
        for a, b in zip(tensors(given), tensors(expected), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
            assert torch.equal(a.argmax(-1), b.argmax(-1))
            assert a.is_contiguous()
    assert compiled.stats.records == recorded == 2
    assert any("poison run: 8 calls over 2 buckets" in note for note in compiled.notes)
    assert any("valid positions depend on valid positions only" in line for line in compiled.certificate.padding)


class Pool(nn.Module):
    """Softmax-weighted mean over the sequence, and the batch's mean length."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.score = nn.Linear(4, 1)
        self.eval()

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        weights = self.score(x).softmax(1)
        return (weights * x.exp()).sum(1), x[:, -1], torch.full((), x.shape[1])


DIMS = {"x": {0: Dim("b", min=1, max=8), 1: Dim("s", min=1, max=16)}}
BUCKETS = [{"b": 8, "s": 16}, {"b": 2, "s": 16}, {"b": 8, "s": 4}, {"b": 2, "s": 4}]


@lru_cache
def pool() -> CompiledModel:
    return gaudicc.compile(Pool(), (torch.randn(2, 6, 4),), dynamic_shapes=DIMS, buckets=BUCKETS)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 8), st.integers(1, 16), st.integers(0, 999))
def test_any_size_in_range_goes_to_the_cheapest_bucket_that_holds_it(b: int, s: int, seed: int) -> None:
    compiled = pool()
    x = torch.randn(b, s, 4, generator=torch.Generator().manual_seed(seed))
    launched = compiled.stats.padded
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), Pool()(x))
    cheapest = min(entry["b"] * entry["s"] for entry in BUCKETS if entry["b"] >= b and entry["s"] >= s)
    assert compiled.stats.padded - launched == cheapest * 4


@given(st.integers(1, 8), st.integers(1, 16))
def test_the_guards_are_a_program_that_chooses_as_the_runtime_does(b: int, s: int) -> None:
    scope: dict[str, Any] = {"x": torch.empty(b, s, 4), "BucketMissError": BucketMissError}
    exec(pool().guards, scope)
    assert scope["bucket"] == pool()._choose({"b": b, "s": s}).as_dict()


def test_what_comes_back_is_the_callers_own() -> None:
    compiled = pool()
    x = torch.randn(2, 3, 4)
    _, last, length = compiled(x)
    length.fill_(99)
    last.fill_(99)
    assert int(compiled(x)[2]) == 3
    assert torch.equal(compiled(x)[1], x[:, -1])


def test_borrowed_outputs_are_views() -> None:
    model = Pool()
    compiled = gaudicc.compile(
        model, (torch.randn(2, 6, 4),), dynamic_shapes=DIMS, buckets=BUCKETS[:1], outputs="borrow"
    )
    x = torch.randn(3, 5, 4)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x))


def test_eight_threads() -> None:
    compiled, model = pool(), Pool()
    wrong: list[tuple[int, int]] = []

    def work(seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for _ in range(25):
            b, s = (int(torch.randint(1, high, (), generator=generator)) for high in (9, 17))
            x = torch.randn(b, s, 4, generator=generator)
            with torch.no_grad():
                if not all(map(torch.allclose, compiled(x), model(x))):
                    wrong.append((b, s))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_bundle_keeps_padding_and_its_proof(tmp_path: Path) -> None:
    compiled = pool()
    compiled.save(tmp_path / "pool.zip")
    loaded = gaudicc.load(tmp_path / "pool.zip")
    x = torch.randn(3, 7, 4)
    for a, b in zip(loaded(x), compiled(x), strict=True):
        assert torch.equal(a, b)
    assert loaded.guards == compiled.guards
    assert str(loaded.certificate) == str(compiled.certificate)


@pytest.mark.parametrize(("shape", "reason"), [((9, 4, 4), "b runs from 1 to 8"), ((2, 17, 4), "s runs from 1 to 16")])
def test_a_size_over_the_bound_is_refused_and_the_next_call_is_fine(shape: tuple[int, ...], reason: str) -> None:
    compiled, model = pool(), Pool()
    with pytest.raises(ShapeError, match=reason):
        compiled(torch.randn(shape))
    x = torch.randn(2, 3, 4)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x))


class Mode(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mode(1).values


def test_an_op_without_a_rule_is_refused_by_name() -> None:
    with pytest.raises(PaddingError, match=r"aten.mode.*no padding rule") as caught:
        gaudicc.compile(Mode().eval(), (torch.randn(2, 6),), dynamic_shapes=DIMS)
    assert "test_padding_compiled.py" in str(caught.value.where.source)
    assert "list buckets" in str(caught.value)


def test_listed_buckets_serve_their_exact_sizes_where_padding_is_refused(tmp_path: Path) -> None:
    model = Mode().eval()
    compiled = gaudicc.compile(
        model, (torch.randn(2, 6),), dynamic_shapes=DIMS, buckets=[{"b": 2, "s": 5}, {"b": 3, "s": 7}]
    )
    compiled.save(tmp_path / "mode")
    for served in (compiled, gaudicc.load(tmp_path / "mode")):
        x = torch.randn(3, 7)
        assert torch.equal(served(x), model(x))
        with pytest.raises(BucketMissError, match=r"exactly b=2, s=6.*aten.mode.*test_padding_compiled.py"):
            served(torch.randn(2, 6))
        assert served.stats.misses == 1
        (line,) = served.certificate.padding
        assert "aten.mode" in line
        assert "b == 2 and s == 5" in served.guards


class Forgetful(Pad):
    """Forgets its masks."""

    def run(self, program: Program) -> PassResult:
        result = super().run(program)
        for node in [n for n in result.program.root.graph.nodes if n.target is torch.ops.aten.where.self]:
            node.replace_all_uses_with(node.args[1])
            result.program.root.graph.erase_node(node)
        result.program.root.recompile()
        return result


def test_the_poison_level_finds_a_forgotten_mask() -> None:
    passes = (*(Forgetful() if isinstance(step, Pad) else step for step in SYMBOLIC), *STATIC)
    arguments: dict[str, Any] = {"dynamic_shapes": DIMS, "buckets": BUCKETS, "passes": passes}
    with pytest.raises(NumericsError):
        gaudicc.compile(Pool(), (torch.randn(2, 6, 4),), **arguments, verify="poison")


def test_without_the_pass_only_exact_sizes_are_served() -> None:
    passes = (InsertBucketGuards(), *STATIC)
    compiled = gaudicc.compile(Pool(), (torch.randn(2, 6, 4),), dynamic_shapes=DIMS, buckets=BUCKETS, passes=passes)
    with pytest.raises(BucketMissError, match="no pass padded it"):
        compiled(torch.randn(2, 3, 4))


class Ratio(nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (x // y).sum(0) + (x % y).sum(0)


def test_no_pad_divides_by_zero() -> None:
    n = Dim("n", min=1, max=8)
    x, y = torch.arange(5), torch.arange(1, 6)
    compiled = gaudicc.compile(
        Ratio().eval(), (x, y), dynamic_shapes={"x": {0: n}, "y": {0: n}}, buckets=[{"n": 8}], verify="poison"
    )
    assert torch.equal(compiled(x, y), Ratio()(x, y))


class Shift(nn.Module):
    """Writes to its argument."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x.sub_(x.mean(0))
        return x.sum(0)


def test_a_mutated_argument_gets_its_valid_part() -> None:
    compiled = gaudicc.compile(
        Shift().eval(), (torch.randn(4, 3),), dynamic_shapes={"x": {0: Dim("n", min=1, max=8)}}, buckets=[{"n": 8}]
    )
    x = torch.randn(5, 3)
    other = x.clone()
    torch.testing.assert_close(compiled(x), Shift()(other))
    torch.testing.assert_close(x, other)
