"""Every family of transformers with symbolic batch and sequence, six shapes, poisoned; a table of results.

python tests/padding/test_padding_zoo.py > docs/tables/padding_zoo.md
python tests/padding/test_padding_zoo.py causal:bamba encoder   # some rows, or some tasks
"""

from __future__ import annotations

import sys
import time
import warnings
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from gaudicc.buckets import Bucket, BucketSet
from gaudicc.capture import CapturedSide, capture_sides
from gaudicc.errors import NumericsError
from gaudicc.models import transformers_models as families
from gaudicc.models.transformers_models import Task
from gaudicc.padding import certificate_of
from gaudicc.padding.poison import check
from gaudicc.passes import BoundDynamicOps, CleanUp, Decompose, RecognizeAttention, RecognizeNorm
from gaudicc.passes.pad import Pad
from gaudicc.pipeline import Pipeline
from gaudicc.program import Program
from gaudicc.sided import admitted
from gaudicc.targets import load_target
from gaudicc.verify import Level, differs

SHAPES = (
    ((2, 9, 5), (4, 16, 8)),
    ((1, 16, 8), (1, 16, 8)),
    ((3, 5, 3), (4, 8, 8)),
    ((2, 2, 2), (2, 32, 4)),
    ((4, 11, 7), (5, 12, 9)),
    ((1, 3, 2), (2, 8, 4)),
)
TASKS: tuple[Task, ...] = ("causal", "encoder", "seq2seq")


class Plain(nn.Module):
    """A model by its tensor arguments, the others fixed; gives its first tensor."""

    def __init__(self, model: nn.Module, inputs: dict[str, Any]) -> None:
        super().__init__()
        self.model = model
        self.fixed = {key: value for key, value in inputs.items() if not isinstance(value, torch.Tensor)}
        self.eval()

    def call(self, **inputs: Any) -> torch.Tensor:
        if inputs.get("input_ids", torch.empty(())).dim() == 3:  # one row of ids per codebook
            inputs["input_ids"] = inputs["input_ids"].flatten(0, 1)
        output = self.model(**inputs, **self.fixed)
        tensors = (value for value in output.values() if isinstance(value, torch.Tensor) and value.is_floating_point())
        return next(tensors)


def example(model: nn.Module) -> dict[str, Any]:
    """Inputs of a model, text wherever it reads any."""
    if getattr(model, "main_input_name", "input_ids") == "inputs":  # perceiver reads what a preprocessor gives
        width = cast(Any, model.config).d_model
        return {"inputs": torch.randn(2, 16, width), "attention_mask": torch.ones(2, 16, dtype=torch.int64)}
    inputs = families.example_inputs(model)
    codebooks = getattr(model, "num_codebooks", 1)
    if codebooks > 1:  # `[batch, codebooks, sequence]`
        inputs["input_ids"] = inputs["input_ids"].unflatten(0, (-1, codebooks))
    return inputs


def dims(name: str, given: Tensor) -> dict[int, str]:
    """The dynamic dims of an input, by the names of their sizes."""
    last = given.dim() - (2 if given.is_floating_point() else 1)
    return {0: "batch", last: "target" if name.startswith("decoder") else "sequence"}


def symbolic(name: str, task: Task) -> tuple[list[CapturedSide], nn.Module]:
    """The programs of a tiny model, one for every side of its decisions, up to where padding comes; and the model itself."""
    model = families.build(name, task=task)
    inputs = example(model)
    tensors = {key: value for key, value in inputs.items() if isinstance(value, torch.Tensor)}
    names = ", ".join(tensors)
    scope: dict[str, Any] = {}  # export reads the names of dynamic arguments off the signature
    exec(f"def forward(self, {names}):\n    return self.call({', '.join(f'{name}={name}' for name in tensors)})", scope)
    plain = type("Model", (Plain,), {"forward": scope["forward"]})(model, inputs)
    sizes = {key: Dim(key, min=1, max=most) for key, most in (("batch", 16), ("sequence", 64), ("target", 32))}
    shapes = {key: {at: sizes[size] for at, size in dims(key, given).items()} for key, given in tensors.items()}
    with torch.no_grad():
        plain(
            **tensors
        )  # a model that scales its weights at its first call, as rwkv does, is to be called before capture
    return [prepared(side) for side in capture_sides(plain, tensors, dynamic_shapes=shapes)], plain


def prepared(side: CapturedSide) -> CapturedSide:
    side.program.target = load_target("gaudi3")
    passes = (RecognizeAttention(), RecognizeNorm(), BoundDynamicOps(), Decompose(), CleanUp())
    return replace(side, program=Pipeline(passes).run(side.program, level=Level.STRUCTURE)[0])


Calls = list[tuple[dict[str, torch.Tensor], dict[str, int]]]


def calls(side: CapturedSide) -> Calls:
    """Calls that the side serves, in buckets that end where it does. User masks have left, right and no padding in turn."""
    generator = torch.Generator().manual_seed(0)
    program, found = side.program, []
    for number, (lengths, bucket) in enumerate(SHAPES):
        sizes = dict(zip(("batch", "sequence", "target"), lengths, strict=True))
        if not side.serves(sizes):
            continue
        inputs = {}
        for spec in program.user_inputs():
            given = program.example[spec.name]
            named = dims(spec.name, given)
            rows = [sizes[named[at]] if at in named else size for at, size in enumerate(given.shape)]
            if "mask" in spec.name:
                inputs[spec.name] = torch.ones(rows, dtype=torch.int64)
                pad = min(3, rows[1] - 1)
                hidden = (slice(0, pad), slice(rows[1] - pad, None), slice(0))[number % 3]
                inputs[spec.name][0, hidden] = 0
            elif given.is_floating_point():
                inputs[spec.name] = torch.randn(rows, generator=generator)
            else:
                inputs[spec.name] = torch.randint(3, 90, rows, generator=generator)
        upto = dict(zip(("batch", "sequence", "target"), bucket, strict=True))
        physical = Bucket.of({dim.name: min(upto[dim.name], dim.high) for dim in program.dimensions})
        found.append((inputs, next(iter(admitted(side, BucketSet([physical])))).as_dict()))
    return found


def like_eager(program: Program, model: nn.Module, served: Calls) -> None:
    """The unpadded program, to which `check` compares the padded one, gives what the model gives."""
    for inputs, _ in served:
        with torch.no_grad():
            expected = model(**{spec.source: inputs[spec.name] for spec in program.user_inputs()})
        if difference := differs(expected, program.run(inputs)[0], bitwise=False):
            raise NumericsError(f"the captured program differs from eager: {difference}")


def stable_topk(x: Tensor, k: int, dim: int = -1, largest: bool = True, _sorted: bool = True) -> tuple[Tensor, Tensor]:
    values, indices = x.sort(stable=True, dim=dim, descending=largest)
    return values.narrow(dim, 0, k).contiguous(), indices.narrow(dim, 0, k).contiguous()


def stable_ties(program: Program) -> Program:
    """The program with topk that takes the first of equals; which ones PyTorch takes depends on the size it is given."""
    stable = program.copy()
    for _, module in stable.graphs():
        for node in module.graph.nodes:
            if node.target is torch.ops.aten.topk.default:
                node.target = stable_topk
        module.recompile()
    return stable


def check_but_for_ties(padded: Program, program: Program, served: Calls) -> bool:
    """The poison run; whether only a choice among equals tells the padded program from eager."""
    try:
        check(padded, program, served)
    except NumericsError:
        check(padded, stable_ties(program), served)
        return True
    return False


def row(name: str, task: Task) -> tuple[str, str]:
    """What became of one family: the stage reached, and the details."""
    stage = "not built"
    try:
        stage = "not captured"
        sides, model = symbolic(name, task)
        if not sides[0].program.dimensions:
            return stage, "no size stayed dynamic"
        details = []
        for side in sides:
            stage = "refused"
            padded = Pad().run(side.program).program if side.program.dimensions else side.program
            stage = "wrong"
            served = calls(side)
            ties = side.program.dimensions and check_but_for_ties(padded, side.program, served)
            like_eager(side.program, model, served)
            details.append(_summary(padded, bool(ties)))
    except Exception as error:
        first = next((line for line in str(error).splitlines() if line), "")
        place = getattr(getattr(error, "where", None), "source", None)
        return stage, f"{type(error).__name__}: {first[:110]}{f' ({place})' if place else ''}"
    return "proved", f"{len(sides)} sides: {'; '.join(details)}" if len(sides) > 1 else details[0]


def _summary(padded: Program, ties: bool) -> str:
    if padded.padded is None:
        return "static"
    certificate = certificate_of(padded)
    masks, edits = len(certificate.masks), len(certificate.edits)
    return f"{masks} masks, {edits - masks} other edits{', topk takes other ones of equals' if ties else ''}"


@pytest.mark.sweep
@pytest.mark.parametrize("task", TASKS)
def test_zoo(task: Task) -> None:
    results = {name: row(name, task) for name in families.model_types(task)}
    assert not {name: result for name, result in results.items() if result[0] == "wrong"}


def rows_of(asked: list[str]) -> dict[Task, list[str]]:
    """Task -> model types, from words that name a task or, as `causal:bamba`, one row of it; no word: all there are."""
    chosen: dict[Task, list[str]] = {}
    for word in asked or TASKS:
        task, _, name = word.partition(":")
        chosen.setdefault(cast(Task, task), []).extend([name] if name else families.model_types(cast(Task, task)))
    return chosen


def main() -> None:
    """Prints the table, or the rows that are asked for."""
    import transformers

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    print("<!-- python tests/padding/test_padding_zoo.py > docs/tables/padding_zoo.md -->\n")
    print(f"transformers {transformers.__version__}, torch {torch.__version__}, tiny random weights, measured on CPU.")
    for task, names in rows_of(sys.argv[1:]).items():
        print(f"\n## {task}\n\n| model type | result | details | seconds |\n|---|---|---|---|")
        counts: dict[str, int] = {}
        for name in names:
            started = time.perf_counter()
            result, details = row(name, task)
            counts[result] = counts.get(result, 0) + 1
            print(
                f"| {name} | {result} | {details.replace('|', '/')} | {time.perf_counter() - started:.1f} |", flush=True
            )
        print(f"\n{', '.join(f'{number} {result}' for result, number in sorted(counts.items()))}")


if __name__ == "__main__":
    main()
