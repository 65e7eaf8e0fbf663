"""Before the flow: example models to compile, and adapters to models of other libraries.

None of the modules is imported until asked for, because transformers costs seconds:

    from gaudicc.models import cuda_style_llm          # torch only
    from gaudicc.models import sentence_encoder        # real weights, needs transformers
    from gaudicc.models import transformers_models     # any transformers family, needs transformers

Tools that take a model by name use `load`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import nn

__all__ = ["MODELS", "Entry", "load"]


class Entry(NamedTuple):
    """A model that has a name of its own.

    Attributes:
        module: of this package, with `build` and `example_inputs`.
        arguments: that `build` is called with.
        summary: what it is, one line.
    """

    module: str
    arguments: tuple[str, ...]
    summary: str


MODELS: dict[str, Entry] = {
    "sentence-encoder": Entry("sentence_encoder", (), "all-MiniLM-L6-v2 with its trained weights"),
    "cuda-style-llm": Entry("cuda_style_llm", ("tiny",), "an LLM stack as a CUDA team writes it, 4 layers"),
    "cuda-style-llm-small": Entry("cuda_style_llm", ("small",), "the same, 8 layers and 7.7 M weights"),
}


def load(name: str, *, batch: int = 2, sequence: int = 16, **options: Any) -> tuple[nn.Module, dict[str, Any]]:
    """Builds a model by name, with example inputs.

    Args:
        name: a key of `MODELS`, or whatever `transformers_models.build` takes: a model type (`llama`), a reference
            config (`llama-3-8b`), a local folder.
        batch: rows of the example inputs.
        sequence: tokens a row.
        options: of the module's `build`, e.g. `early_exit=0.05` or `layers=4`.

    Returns:
        The model in eval mode and keyword arguments for its forward.

    Raises:
        InputError: nothing has this name.
        ModelFileError: weights are missing or cannot be read.
    """
    entry = MODELS.get(name, Entry("transformers_models", (name,), ""))
    module = import_module(f"gaudicc.models.{entry.module}")
    model = module.build(*entry.arguments, **options)
    return model, module.example_inputs(model, batch=batch, sequence=sequence)
