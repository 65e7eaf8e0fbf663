"""`gaudicc generate` from the command line."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gaudicc.bench.lm import markdown
from gaudicc.cli.app import main
from gaudicc.cli.options_lm import BenchLmOptions
from tests.lm.conftest import Reference


def test_generate_prints_what_the_model_says(capsys: pytest.CaptureFixture[str], reference: Reference) -> None:
    assert main(["generate", "llama", "--prompt", "5 6 7", "9,8", "--max-new-tokens", "6", "--json"]) == 0
    said: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert [answer["tokens"] for answer in said["answers"]] == [reference([5, 6, 7], 6), reference([9, 8], 6)]
    assert said["buckets"]["decode"] == ["batch=2, context=9"]
    assert said["replays"] == 6


@pytest.mark.parametrize("prompt", ["hello", ""])
def test_text_without_a_tokenizer_is_refused(capsys: pytest.CaptureFixture[str], prompt: str) -> None:
    assert main(["generate", "llama", "--prompt", prompt]) == 1
    assert "no list of token ids" in capsys.readouterr().err


def test_an_id_outside_the_vocabulary_is_a_user_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "llama", "--prompt", "5000"]) == 1
    assert "id 5000" in capsys.readouterr().err


def test_the_table_names_everyone_who_was_measured() -> None:
    turn, stream = (
        {"wall_s": 0.01, "cpu_s": 0.009},
        dict.fromkeys(("first_wall_s", "first_cpu_s", "second_wall_s", "second_cpu_s"), 1.0),
    )
    names = ("gaudicc", "eager", "torch.compile")
    floors = {"decode": turn, "prefill": turn, "weight_mb": 168.0, "decode_gb_s": 20.0, "prefill_gflop_s": 90.0}
    result = {
        "threads": 1, "decode": dict.fromkeys(names, turn), "prefill": dict.fromkeys(names, turn),
        "stream": dict.fromkeys(names, stream), "floors": floors, "overhead_us": 20.0,
        "tiny": {"gaudicc": turn, "eager": turn},
    }  # fmt: skip
    table = markdown(BenchLmOptions(), [result])
    for name in (*names, "floor"):
        assert f"| {name} | 10.0 (9.0) |" in table
