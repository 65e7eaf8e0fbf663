"""What capture refuses, by name, before anything is traced; and what it says about what it takes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gaudicc
from gaudicc.capture import capture
from gaudicc.capture.refusals import check_examples, hooks_of, is_static, leaf_paths
from gaudicc.errors import (
    AutocastError,
    CaptureError,
    GaudiccError,
    GradError,
    InputError,
    TrainingModeError,
    UnsupportedInputError,
)


class Marked(torch.Tensor):
    """A tensor subclass."""


def linear() -> nn.Linear:
    return nn.Linear(3, 3).eval()


def refusal(model: Any, *inputs: Any, **kwargs: Any) -> GaudiccError:
    with pytest.raises(GaudiccError) as caught:
        capture(model, inputs, kwargs)
    assert caught.value.todo, "every refusal says what to do"
    return caught.value


def test_training_mode_names_the_part_that_trains() -> None:
    model = nn.Sequential(linear(), nn.Dropout())
    error = refusal(model.train(), torch.randn(2, 3))
    assert isinstance(error, TrainingModeError)
    model = nn.Sequential(linear(), nn.Dropout()).eval()
    model[1].train()
    assert "1 is in training mode" in refusal(model, torch.randn(2, 3)).what
    capture(model.eval(), (torch.randn(2, 3),))


def test_autocast_around_capture_and_around_a_call() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert isinstance(refusal(linear(), torch.randn(2, 3)), AutocastError)
    compiled = gaudicc.compile(linear(), (torch.randn(2, 3),))
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(AutocastError, match="around the call"):
        compiled(torch.randn(2, 3))


def test_inputs_that_require_grad() -> None:
    error = refusal(lambda pair: pair["a"], {"a": torch.randn(2, requires_grad=True)})
    assert isinstance(error, GradError)
    assert "pair['a']" in error.what
    compiled = gaudicc.compile(linear(), (torch.randn(2, 3),))
    with pytest.raises(GradError, match="argument input"):
        compiled(torch.randn(2, 3, requires_grad=True))


def test_tensor_subclasses_among_inputs_and_weights() -> None:
    error = refusal(linear(), torch.randn(2, 3).as_subclass(Marked))
    assert "input is a tensor subclass" in error.what
    assert "Marked" in error.what
    model = linear()
    model.register_buffer("table", torch.randn(3).as_subclass(Marked))
    assert "table is a tensor subclass" in refusal(model, torch.randn(2, 3)).what


def test_sparse_tensors() -> None:
    assert "layout torch.sparse_coo" in refusal(lambda x: x, torch.eye(3).to_sparse()).what


@pytest.mark.parametrize("where", ["weights", "argument", "arguments"])
def test_mixed_devices_name_one_tensor_of_each(where: str) -> None:
    model: Any = linear()
    inputs: tuple[Tensor, ...] = (torch.randn(2, 3),)
    if where == "weights":
        model.register_buffer("table", torch.empty(3, device="meta"))
    elif where == "argument":
        inputs = (torch.empty(2, 3, device="meta"),)
    else:
        model, inputs = (lambda a, b: a + b), (torch.zeros(2), torch.empty(2, device="meta"))
    error = refusal(model, *inputs)
    assert isinstance(error, UnsupportedInputError)
    assert "on cpu" in error.what
    assert "on meta" in error.what


def test_a_device_map() -> None:
    model: Any = linear()
    model.hf_device_map = {"": 0, "lm_head": "cpu"}
    assert "device_map over ['0', 'cpu']" in refusal(model, torch.randn(2, 3)).what


def test_torchscript() -> None:
    scripted = torch.jit.trace(linear(), (torch.randn(2, 3),))
    assert "TorchScript" in refusal(scripted, torch.randn(2, 3)).what


@pytest.mark.parametrize("model", [3, None, "no-such-file.pt2", nn.Linear], ids=["number", "none", "path", "class"])
def test_what_is_no_model(model: Any) -> None:
    refusal(model, torch.randn(2, 3))


def test_a_class_is_named() -> None:
    assert "the class Linear" in refusal(nn.Linear, torch.randn(2, 3)).what


@pytest.mark.parametrize("value", [object(), {1, 2}, iter([1]), torch.Generator()], ids=lambda v: type(v).__name__)
def test_objects_that_are_neither_tensor_nor_plain(value: Any) -> None:
    error = refusal(lambda x, other: x, torch.randn(2), value)
    assert "argument other is a" in error.what
    assert type(value).__qualname__ in error.what


def test_a_default_that_is_no_plain_value() -> None:
    def model(x: Tensor, chosen: Any = object()) -> Tensor:  # noqa: B008
        return x

    with pytest.raises(GaudiccError, match="chosen"):
        capture(model, (torch.randn(2),))


@pytest.mark.parametrize(
    ("inputs", "kwargs", "reason"),
    [
        ((), {}, "missing a required argument: 'x'"),
        ((torch.ones(2),) * 3, {}, "too many positional arguments"),
        ((torch.ones(2),), {"z": 1}, "unexpected keyword argument 'z'"),
        ((torch.ones(2),), {"x": torch.ones(2)}, "multiple values for argument 'x'"),
    ],
)
def test_arguments_that_do_not_fit_the_signature(inputs: Any, kwargs: Any, reason: str) -> None:
    error = refusal(lambda x, y=1: x * y, *inputs, **kwargs)
    assert isinstance(error, InputError)
    assert reason in error.what
    assert "(x, y=1)" in error.todo


def test_example_inputs_in_every_form() -> None:
    x = torch.ones(2)
    assert check_examples(x, None) == ((x,), {})
    assert check_examples([x], None) == ((x,), {})
    assert check_examples({"x": x}, None) == ((), {"x": x})
    assert check_examples((x,), {"y": 1}) == ((x,), {"y": 1})
    with pytest.raises(InputError, match="example_kwargs is given too"):
        check_examples({"x": x}, {"y": 1})
    with pytest.raises(InputError, match="example_inputs is a int"):
        check_examples(3, None)


def test_static_values() -> None:
    plain = [None, True, 1, 1.5, 2j, "a", b"a", torch.float32, torch.device("cpu"), torch.strided, torch.channels_last]
    assert all(map(is_static, plain))
    assert not any(map(is_static, [object(), torch.ones(1), {1}, len]))


def test_paths_are_what_a_user_would_write() -> None:
    paths = [path for path, _ in leaf_paths(["a", "b"], (1, {"k": [2, 3]}, 4), {"c": (5,)})]
    assert paths == ["a", "b['k'][0]", "b['k'][1]", "args[0]", "c[0]"]


def doubled(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
    return output * 2


def test_hooks_are_captured_and_listed() -> None:
    model = nn.Sequential(linear(), nn.ReLU()).eval()
    model[0].register_forward_hook(doubled)
    model.register_forward_pre_hook(lambda _module, args: (args[0] + 1,))
    assert len(hooks_of(model)) == 2
    program = capture(model, (torch.randn(2, 3),))
    assert "forward hook doubled on 0 is captured with the model" in program.notes
    assert any("on Sequential is captured" in note for note in program.notes)
    compiled = gaudicc.compile(model, (torch.randn(2, 3),))
    x = torch.randn(2, 3)
    torch.testing.assert_close(compiled(x), model(x))
    assert set(program.notes) <= set(compiled.notes)


@pytest.mark.parametrize("error", [TrainingModeError, AutocastError, GradError, UnsupportedInputError])
def test_refusals_are_one_class_each(error: type[CaptureError]) -> None:
    assert issubclass(error, CaptureError)
    assert error.hint


def test_a_seed_inside_the_model() -> None:
    def noise(x: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(0)
        return x + torch.rand(2)

    error = refusal(noise, torch.randn(2))
    assert "torch.manual_seed" in error.what
    assert "test_refusals.py:" in str(error.where.source)
    assert torch.manual_seed.__module__ == "torch.random"


def test_an_op_of_which_torch_has_no_form_for_sizes_that_data_decides() -> None:
    def loss(chances: torch.Tensor, targets: torch.Tensor, inputs: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        return nn.functional.ctc_loss(chances, targets, inputs, lengths)

    chances, targets = torch.randn(8, 2, 5).log_softmax(-1), torch.randint(1, 5, (2, 3))
    error = refusal(loss, chances, targets, torch.tensor([8, 8]), torch.tensor([3, 2]))
    assert error.what == "the size of what aten._ctc_loss.Tensor gives depends on the values of a tensor"
    assert "test_refusals.py:" in str(error.where.source)
