"""What is refused, before anything reaches the device."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import gaudicc
from gaudicc.errors import GaudiccError, InputError, ShapeError, TrainingModeError
from gaudicc.lm import CompiledLM, GenerationOptions
from gaudicc.lm.request import rows_of


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], "the prompt is empty"),
        ([5, 128], "id 128 at column 1"),
        ([-1], "id -1 at column 0"),
        ([1.5], "id 1.5"),
        ([True], "id True"),
        (torch.tensor([3.0]), "id 3.0"),
    ],
)
def test_ids_that_are_none(lm: CompiledLM, prompt: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        lm.submit(prompt)


@pytest.mark.parametrize(
    ("name", "value"),
    [("max_new_tokens", 0), ("temperature", 0.0), ("temperature", float("nan")), ("top_k", 0), ("top_p", 0.0),
     ("top_p", 1.5), ("seed", -1)],
)  # fmt: skip
def test_options_without_meaning(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=name):
        GenerationOptions(**{name: value})


def test_an_unknown_option_is_refused(lm: CompiledLM) -> None:
    with pytest.raises(InputError, match="num_beams"):
        lm.submit([3], num_beams=4)


def test_what_does_not_fit(lm: CompiledLM) -> None:
    with pytest.raises(ShapeError, match="129, the context holds 128"):
        lm.submit([4] * 100, max_new_tokens=29)
    with pytest.raises(ShapeError, match="5 rows, the model was compiled for 4"):
        lm.generate(torch.full((5, 3), 4))
    with pytest.raises(ShapeError, match="9 stop ids"):
        lm.submit([4], stop=tuple(range(9)))
    assert not lm.step()  # nothing was left behind


def test_one_bad_row_admits_none(lm: CompiledLM) -> None:
    before = lm.stats.requests
    with pytest.raises(InputError, match="id 999"):
        lm.generate(torch.tensor([[4, 5], [999, 5]]))
    assert not lm.step()
    assert lm.stats.requests == before


def test_a_full_context_is_served(lm: CompiledLM, reference: Any) -> None:
    prompt = [4 + i % 60 for i in range(100)]
    request = lm.submit(prompt, max_new_tokens=28)
    lm.run()
    assert request.tokens == reference(prompt, 28)


@pytest.mark.parametrize("ids", [torch.zeros(2, 2), torch.zeros(1, 1, 1, dtype=torch.int64), [[1, 2]]])
def test_ids_of_another_kind(ids: Any) -> None:
    with pytest.raises(InputError, match="input_ids"):
        rows_of(ids, None)


def test_pads_on_either_side_are_left_out() -> None:
    ids, mask = torch.tensor([[0, 7, 8], [7, 8, 0]]), torch.tensor([[0, 1, 1], [1, 1, 0]])
    assert rows_of(ids, mask) == [[7, 8], [7, 8]]
    with pytest.raises(InputError, match="attention_mask"):
        rows_of(ids, mask[:1])


@pytest.mark.parametrize("name", ["max_batch", "max_context", "chunk", "max_stop_ids"])
def test_sizes_that_are_none(llama: Any, name: str) -> None:
    with pytest.raises(InputError, match=name):
        gaudicc.compile_lm(llama, **{name: 0})  # type: ignore[arg-type]


def test_models_that_are_none(llama: Any) -> None:
    with pytest.raises(InputError, match="256 positions"):
        gaudicc.compile_lm(llama, max_context=1000)
    with pytest.raises(InputError, match="is a function"):
        gaudicc.compile_lm(lambda x: x)  # type: ignore[arg-type]
    with pytest.raises(GaudiccError, match="no language model"):
        gaudicc.compile_lm(torch.nn.Linear(2, 2).eval())
    llama.train()
    try:
        with pytest.raises(TrainingModeError):
            gaudicc.compile_lm(llama)
    finally:
        llama.eval()
