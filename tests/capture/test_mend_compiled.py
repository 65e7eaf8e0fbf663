"""Mended models through the whole pipeline: compiled, called, saved and loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gaudicc
from gaudicc.capture.mend import export_mending
from gaudicc.capture.mend.oracle import differences
from gaudicc.errors import LoopOverflowError, ModelRaisedError
from gaudicc.models import cuda_style_llm
from gaudicc.program import OutputKind


class CustomError(Exception):
    """An exception that only the user's code knows."""


class Raising(nn.Module):
    """Raises depending on data, between two writes to its state."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Tensor
        self.register_buffer("seen", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        if x[0] > 2:
            raise ValueError("big")
        if x[1] > 2:
            raise CustomError("second", 2)
        self.seen += x
        return self.seen * 1


def outcome(call: Any, x: Tensor) -> Any:
    try:
        return call(x).tolist()
    except (ValueError, CustomError) as error:
        return type(error), error.args


def test_the_users_exception_is_raised_and_state_is_as_eager_left_it() -> None:
    eager, compiled = Raising().eval(), gaudicc.compile(Raising().eval(), (torch.ones(3),))
    assert [spec.kind for spec in compiled.program.outputs].count(OutputKind.FLAG) == 1
    for first, second in [(1.0, 1.0), (3.0, 1.0), (1.0, 1.0), (1.0, 3.0), (3.0, 3.0), (0.0, 0.0)] * 2:
        x = torch.tensor([first, second, 0.5])
        assert outcome(compiled, x) == outcome(eager, x)


def test_the_cause_names_the_line() -> None:
    compiled = gaudicc.compile(Raising().eval(), (torch.ones(3),))
    with pytest.raises(ValueError, match="big") as caught:
        compiled(torch.full((3,), 3.0))
    assert isinstance(caught.value.__cause__, ModelRaisedError)
    line = Raising.forward.__code__.co_firstlineno + 3
    assert caught.value.__cause__.where.source == f"capture/test_mend_compiled.py:{line}"


def test_a_loaded_bundle_raises_by_name(tmp_path: Path) -> None:
    gaudicc.compile(Raising().eval(), (torch.ones(3),)).save(tmp_path / "m.zip")
    loaded = gaudicc.load(tmp_path / "m.zip")
    with pytest.raises(ValueError, match="big"):
        loaded(torch.full((3,), 3.0))
    with pytest.raises(Exception, match="CustomError"):  # its class is code, and no bundle holds code
        loaded(torch.tensor([1.0, 3.0, 1.0]))


def test_rewritten_functions_are_noted_and_found_by_check() -> None:
    compiled = gaudicc.compile(Raising().eval(), (torch.ones(3),))
    assert any("Raising.forward (capture/test_mend_compiled.py:" in note for note in compiled.notes)
    found = gaudicc.check(Raising().eval(), (torch.ones(3),)).dynamic
    assert any(construct.startswith("a decision on a tensor in Raising.forward") for construct in found)


@pytest.mark.parametrize("early_exit", [0.05, pytest.param(1.1, marks=pytest.mark.sweep)])
def test_the_cuda_style_model_exits_early_as_in_eager(early_exit: float) -> None:
    model = cuda_style_llm.build("tiny", early_exit=early_exit)
    compiled = gaudicc.compile(model, cuda_style_llm.example_inputs(model))
    for seed in range(10):
        tokens = torch.randint(256, (2, 16), generator=torch.Generator().manual_seed(seed))
        with torch.inference_mode():
            logits, cache = model(tokens)
        got, grown = compiled(tokens)
        torch.testing.assert_close(got, logits, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(grown, cache, rtol=1e-4, atol=1e-4)


def sequential(count: int) -> nn.Module:
    """`count` decisions one after the other, each with a write in place and an early return."""
    lines = ["def forward(self, x):", "    y = x.clone()"]
    for i in range(count):
        lines += [f"    if y.sum() > {i}:", "        y.mul_(0.5)", f"    if y[0] > {100 + i}:", "        return y"]
    return generated("\n".join([*lines, "    return y\n"]), f"sequential_{count}.py")


def generated(source: str, name: str) -> nn.Module:
    import linecache

    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    names: dict[str, Any] = {}
    exec(compile(source, name, "exec"), names)
    model: nn.Module = type("Generated", (nn.Module,), {"forward": names["forward"]})().eval()
    return model


def test_sequential_decisions_cost_linearly() -> None:
    sizes = {}
    for count in (8, 16, 32):
        model = sequential(count)
        mended = export_mending(model, (torch.ones(4),))
        assert differences(model, mended, [(torch.randn(4) * scale,) for scale in (0.1, 1.0, 10.0, 300.0)]) == []
        sizes[count] = len(mended.exported.graph.nodes)
    assert sizes[32] - sizes[16] <= 2.1 * (sizes[16] - sizes[8])


class Logits(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Any:
        return self.model(input_ids=ids).logits


@pytest.mark.parametrize("family", ["Mixtral", pytest.param("Qwen3Moe", marks=pytest.mark.sweep)])
def test_eager_experts_become_static(family: str) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(
        vocab_size=32, hidden_size=16, intermediate_size=32, moe_intermediate_size=16, num_hidden_layers=1, head_dim=8,
        num_attention_heads=2, num_key_value_heads=1, num_local_experts=4, num_experts=4, num_experts_per_tok=2,
        max_position_embeddings=32, use_cache=False, experts_implementation="eager",
    )  # fmt: skip
    model = Logits(getattr(transformers, f"{family}ForCausalLM")(config)).eval()
    calls = [(torch.randint(0, 32, (2, 5)),) for _ in range(10)]
    with torch.no_grad():
        mended = export_mending(model, calls[0])
        assert len(mended.rewritten) == 1
        assert differences(model, mended, calls) == []
        compiled = gaudicc.compile(model, calls[0])
        for call in calls:
            torch.testing.assert_close(compiled(*call), model(*call), rtol=1e-5, atol=1e-6)


def test_a_declared_maximum_raises_and_never_truncates() -> None:
    class Halving(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            while x.abs().max() > 1:
                x = x / 2
            return x

    mended = export_mending(Halving().eval(), (torch.ones(2),), max_trips=3)
    assert mended.run(torch.tensor([8.0, 1.0])).tolist() == [1.0, 0.125]
    with pytest.raises(LoopOverflowError):
        mended.run(torch.tensor([9.0, 1.0]))
