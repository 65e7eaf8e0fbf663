"""What a model's generation config says holds where a request says nothing; what is not compiled is refused by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import gaudicc
from gaudicc.errors import UnsupportedInputError
from gaudicc.lm import CompiledLM
from gaudicc.lm.defaults import Defaults, defaults_of
from gaudicc.models.transformers_models import build

PROMPT = torch.tensor([[5, 17, 9]])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("encoder_repetition_penalty", 1.05),
        ("no_repeat_ngram_size", 3),
        ("forced_eos_token_id", 2),
        ("typical_p", 0.1),
        ("num_beams", 4),
        ("suppress_tokens", [7]),
        ("min_new_tokens", 5),
    ],
)
def test_what_changes_tokens_and_is_not_compiled_is_refused(name: str, value: object) -> None:
    model: Any = build("llama", task="causal")
    setattr(model.generation_config, name, value)
    with pytest.raises(UnsupportedInputError, match=f"{name}=") as refused:
        gaudicc.compile_lm(model, max_context=64)
    assert f"generation_config.{name} = None" in str(refused.value)


@pytest.mark.parametrize(("name", "off"), [("repetition_penalty", 1.0), ("num_beams", 1), ("suppress_tokens", [])])
def test_values_that_mean_off_are_taken(name: str, off: object) -> None:
    model: Any = build("llama", task="causal")
    setattr(model.generation_config, name, off)
    defaults_of(model)


def test_options_stops_and_pad_are_read() -> None:
    model: Any = build("llama", task="causal")
    for name, value in {
        "do_sample": True,
        "temperature": 0.6,
        "top_p": 0.9,
        "top_k": 0,
        "eos_token_id": [2, 9],
    }.items():
        setattr(model.generation_config, name, value)
    model.generation_config.pad_token_id = 4
    assert defaults_of(model) == Defaults({"do_sample": True, "temperature": 0.6, "top_p": 0.9}, (2, 9), 4)
    assert defaults_of(torch.nn.Identity()) == Defaults()


def test_a_request_that_says_nothing_is_continued_as_the_config_says(
    lm: CompiledLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = lm.generate(PROMPT, max_new_tokens=6, do_sample=True, temperature=0.7, top_k=5, seed=3)
    greedy = lm.generate(PROMPT, max_new_tokens=6)
    monkeypatch.setattr(
        lm, "defaults", Defaults({"do_sample": True, "temperature": 0.7, "top_k": 5, "max_new_tokens": 6})
    )
    assert torch.equal(torch.as_tensor(lm.generate(PROMPT, seed=3)), torch.as_tensor(wanted))
    assert torch.equal(torch.as_tensor(lm.generate(PROMPT, do_sample=False)), torch.as_tensor(greedy))
