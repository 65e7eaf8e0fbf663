"""Sweep: every text model type of the installed transformers builds and runs, but for those that are listed."""

from __future__ import annotations

import pytest

pytest.importorskip("transformers", reason="needs gaudicc[models]")

from gaudicc.models.transformers_models import Task, model_types
from gaudicc.models.zoo import NOT_BUILT, survey

TASKS: tuple[Task, ...] = ("causal", "seq2seq", "encoder")
CASES = [(task, name) for task in TASKS for name in model_types(task)]


@pytest.mark.sweep
@pytest.mark.filterwarnings("ignore")  # a few families warn of their own code
@pytest.mark.parametrize(("task", "name"), CASES)
def test_model_type(task: Task, name: str) -> None:
    assert bool(survey(name, task).failure) == ((task, name) in NOT_BUILT), survey(name, task)


def test_a_sample_and_a_failure_are_told_apart() -> None:
    assert survey("mamba", "causal").failure == ""
    assert survey("mamba", "causal").weights > 0
    assert "InputError" in survey("no-such-type", "causal").failure


def test_what_is_listed_exists() -> None:
    assert set(NOT_BUILT) <= set(CASES)
