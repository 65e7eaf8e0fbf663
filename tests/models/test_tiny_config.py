"""The laws of shrinking a config."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gaudicc.models.tiny_config import _one_of_each_kind, tiny_config


@given(st.lists(st.sampled_from("ABCDE"), min_size=3, max_size=12), st.integers(1, 16))
def test_kept_layers_have_every_kind(kinds: list[str], layers: int) -> None:
    kept = _one_of_each_kind([(kind,) for kind in kinds], layers)
    distinct = len(set(kinds))
    assert len(kept) == max(layers, min(distinct, 4)) or {kinds[i] for i in kept} == set(kinds)
    assert len(kept) >= layers
    assert all(0 <= i < len(kinds) for i in kept)
    assert len({kinds[i] for i in kept}) >= min(distinct, 4)


def test_the_first_layers_are_kept_when_they_have_every_kind() -> None:
    assert _one_of_each_kind([("a",), ("b",), ("a",), ("b",)], 3) == [0, 1, 2]
    assert _one_of_each_kind([("a",), ("a",), ("a",), ("b",)], 2) == [0, 3]
    assert _one_of_each_kind([("a",), ("a",), ("a",), ("b",)], 6) == [0, 1, 2, 3, 0, 1]


def test_overrides_win_and_pattern_fits_the_layers() -> None:
    from transformers import Gemma3TextConfig

    config = tiny_config(Gemma3TextConfig, 4, {"vocab_size": 99}, lambda _: None)
    assert config.vocab_size == 99
    assert len(config.layer_types) == config.num_hidden_layers == 4


def test_a_config_that_refuses_every_size_raises_its_own_error() -> None:
    class Stubborn:
        model_type = "stubborn"

        def __init__(self, **arguments: object) -> None:
            if arguments:
                raise ValueError("no other sizes than mine")

        def to_dict(self) -> dict[str, int]:
            return {"num_hidden_layers": 12, "vocab_size": 1000}

    with pytest.raises(ValueError, match="no other sizes"):
        tiny_config(Stubborn, 2, {}, lambda _: None)


def test_a_model_that_refuses_small_sizes_keeps_more_of_its_defaults() -> None:
    from transformers import LlamaConfig

    def accept(config: LlamaConfig) -> None:
        if config.hidden_size < 4096:
            raise ValueError("too narrow")

    config = tiny_config(LlamaConfig, 2, {}, accept)
    assert (config.hidden_size, config.num_hidden_layers, config.vocab_size) == (4096, 2, 128)
