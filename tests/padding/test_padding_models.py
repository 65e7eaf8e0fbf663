"""Whole models: six shapes each, user masks with left padding, right padding and none."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import Dim

from gaudicc.capture import capture
from gaudicc.models import transformers_models as families
from gaudicc.padding import certificate_of
from gaudicc.padding.poison import check
from gaudicc.passes import CleanUp, Decompose, InsertBucketGuards, RecognizeAttention, RecognizeNorm, Specialize
from gaudicc.passes.pad import Pad
from gaudicc.pipeline import Pipeline
from gaudicc.program import Program
from gaudicc.targets import load_target
from gaudicc.verify import Level

SYMBOLIC = (RecognizeAttention(), RecognizeNorm(), Decompose(), CleanUp())
# batch, sequence, target of a decoder; then the bucket
SHAPES = (
    ((2, 9, 5), (4, 16, 8)),
    ((1, 16, 8), (1, 16, 8)),
    ((3, 5, 3), (4, 8, 8)),
    ((2, 2, 2), (2, 32, 4)),
    ((4, 11, 7), (5, 12, 9)),
    ((1, 1, 1), (2, 8, 4)),
)
MODELS: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 4},
    "gpt2": {},
    "t5": {},
    "mixtral": {},
}


class Encoder(nn.Module):
    """BERT by the two arguments of every encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.model = families.build("bert")
        self.eval()

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        return self.model(input_ids=input_ids, attention_mask=attention_mask)


@lru_cache
def symbolic(name: str, with_mask: bool = True) -> Program:
    model = Encoder() if name == "bert" else families.build(name, **MODELS[name])
    inputs = families.example_inputs(model.model if isinstance(model, Encoder) else model)
    if name == "bert":
        inputs.pop("use_cache", None)
    if not with_mask:
        inputs.pop("attention_mask")
    batch, sequence, target = Dim("batch", min=1, max=16), Dim("sequence", min=1, max=64), Dim("target", min=1, max=32)
    shapes = {
        key: {0: batch, 1: target if key.startswith("decoder") else sequence}
        for key, value in inputs.items()
        if isinstance(value, torch.Tensor)
    }
    program = capture(model, inputs, dynamic_shapes=shapes)
    program.target = load_target("gaudi3")
    return Pipeline(SYMBOLIC).run(program, level=Level.STRUCTURE)[0]


def calls(program: Program) -> Iterator[tuple[dict[str, torch.Tensor], dict[str, int]]]:
    generator = torch.Generator().manual_seed(0)
    for number, (lengths, bucket) in enumerate(SHAPES):
        batch, sequence, target = lengths
        inputs = {}
        for spec in program.user_inputs():
            if "mask" in spec.name:
                mask = torch.ones(batch, sequence, dtype=torch.int64)
                pad = min(3, sequence - 1)
                if number % 3 == 0:
                    mask[0, :pad] = 0
                elif number % 3 == 1:
                    mask[0, sequence - pad :] = 0
                inputs[spec.name] = mask
            else:
                size = (batch, target if spec.name.startswith("decoder") else sequence)
                inputs[spec.name] = torch.randint(3, 90, size, generator=generator)
        sizes = dict(zip(("batch", "sequence", "target"), bucket, strict=True))
        yield inputs, {dim.name: sizes[dim.name] for dim in program.dimensions}


SLOW = ("mistral", "t5", "mixtral")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.sweep) if name in SLOW else name for name in (*MODELS, "bert")]
)
def test_models(name: str) -> None:
    program = symbolic(name)
    padded, _ = Pipeline((Pad(),)).run(program, level=Level.NUMERICS)
    check(padded, program, calls(padded))


@pytest.mark.parametrize("name", ["llama", pytest.param("t5", marks=pytest.mark.sweep)])
def test_strict(name: str) -> None:
    program = symbolic(name)
    padded = Pad(strict=True).run(program).program
    assert not certificate_of(padded).finite
    check(padded, program, calls(padded))


def test_without_a_user_mask() -> None:
    program = symbolic("llama", with_mask=False)
    padded = Pad().run(program).program
    assert len(certificate_of(padded).masks) == 3  # keys, values and the model's own causal mask
    check(padded, program, calls(padded))


def test_the_static_program_is_the_same() -> None:
    """Specialized to a bucket, with lengths below it, the program gives what the unpadded one gives."""
    from gaudicc.padding import HostPadding

    program = symbolic("llama")
    pipeline = Pipeline((Pad(), InsertBucketGuards()))
    padded, _ = pipeline.run(program, level=Level.NUMERICS)
    bucket = {"batch": 4, "sequence": 16}
    static = Pipeline((Specialize(tuple(bucket.items())), CleanUp()), initial=pipeline.ensured)
    bound, _ = static.run(padded, level=Level.NUMERICS)
    inputs, _ = next(calls(program))
    host = HostPadding(bound)
    lengths = {"batch": 2, "sequence": 9}
    (given,) = host.slice(bound.run(host.pad(inputs, bucket, lengths)), bucket, lengths)
    (expected,) = program.run(inputs)
    torch.testing.assert_close(given, expected)
