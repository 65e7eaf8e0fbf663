"""Before the flow: which model types of the installed transformers can be built and run here, as a table.

python -m gaudicc.models.zoo > docs/tables/model_zoo.md
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from gaudicc.models.transformers_models import Task, build, example_inputs, model_types

__all__ = ["NOT_BUILT", "Row", "survey"]

# (task, model type) -> why neither a tiny config nor text-only inputs do; everything else must build and run.
NOT_BUILT: dict[tuple[Task, str], str] = {
    ("causal", "gemma3n"): "the vision tower is timm's",
    ("causal", "gemma4_assistant"): "drafts for another model and reads that model's cache",
    ("causal", "gemma4_unified_assistant"): "drafts for another model and reads that model's cache",
    ("encoder", "perceiver"): "reads bytes of any kind as `inputs`",
    ("seq2seq", "voxtral_realtime"): "needs audio",
}


@dataclass(frozen=True)
class Row:
    """What became of one model type: an empty `failure` means that it was built twice alike and ran."""

    model_type: str
    model_class: str
    weights: int
    failure: str = ""


def survey(model_type: str, task: Task) -> Row:
    """Builds a tiny model twice, runs it, and compares."""
    try:
        first, second = build(model_type, task=task), build(model_type, task=task)
        with torch.no_grad():
            outputs = [_first_tensor(model(**example_inputs(model))) for model in (first, second)]
    except Exception as error:
        return Row(model_type, "", 0, f"{type(error).__name__}: {str(error).splitlines()[0]}")
    same = torch.equal(*outputs) and bool(torch.isfinite(outputs[0]).all())
    weights = sum(weight.numel() for weight in first.parameters())
    return Row(model_type, type(first).__name__, weights, "" if same else "outputs differ or are not finite")


def _first_tensor(output: Any) -> torch.Tensor:
    tensors = (value for value in output.values() if isinstance(value, torch.Tensor) and value.is_floating_point())
    return next(tensors)


def main() -> None:
    """Prints the table of all tasks."""
    import transformers

    transformers.logging.set_verbosity_error()
    print("<!-- python -m gaudicc.models.zoo > docs/tables/model_zoo.md -->\n")
    print(f"transformers {transformers.__version__}, torch {torch.__version__}; built twice from seed 0, run in eager.")
    tasks: tuple[Task, ...] = ("causal", "seq2seq", "encoder")
    for task in tasks:
        rows = [survey(name, task) for name in model_types(task)]
        print(f"\n## {task}: {sum(not row.failure for row in rows)} of {len(rows)} model types\n")
        print("| model type | class | weights | result |\n|---|---|---|---|")
        for row in rows:
            result = f"not built: {NOT_BUILT.get((task, row.model_type), row.failure)}" if row.failure else "runs"
            print(f"| {row.model_type} | {row.model_class} | {row.weights} | {result} |")


if __name__ == "__main__":
    main()
