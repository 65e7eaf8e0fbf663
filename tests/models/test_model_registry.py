"""The registry: every name loads, and nothing is imported before it is asked for."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import gaudicc.models
from gaudicc.errors import InputError
from gaudicc.models.cuda_style_llm import Transformer


@pytest.mark.parametrize("name", [*gaudicc.models.MODELS, "qwen3"])
def test_every_name_loads_and_runs(name: str) -> None:
    pytest.importorskip("transformers")
    model, inputs = gaudicc.models.load(name, batch=1, sequence=4)
    with torch.no_grad():
        model(**inputs)


def test_options_reach_the_model() -> None:
    model, inputs = gaudicc.models.load("cuda-style-llm", batch=3, sequence=5, early_exit=0.05)
    assert isinstance(model, Transformer)
    assert model.args.early_exit == 0.05
    assert inputs["tokens"].shape == (3, 5)


def test_unknown_name() -> None:
    with pytest.raises(InputError, match="no-such-model"):
        gaudicc.models.load("no-such-model")


def test_nothing_heavy_is_imported_before_it_is_asked_for() -> None:
    code = (
        "import sys, gaudicc.models as m; assert 'gaudicc.models.cuda_style_llm' not in sys.modules;"
        "m.load('cuda-style-llm'); assert 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
