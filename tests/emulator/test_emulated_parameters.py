"""Classes of parameters that programs make keep what they are when they move to the device and back."""

from typing import Any

import torch
from torch import nn


class Tagged(nn.Parameter):
    """A parameter with something of its own, as libraries that quantise have it."""

    tag: str

    def __new__(cls, data: torch.Tensor, requires_grad: bool = True, tag: str = "") -> "Tagged":
        made = torch.Tensor._make_subclass(cls, data, requires_grad)
        made.tag = tag
        return made

    def to(self, *args: Any, **named: Any) -> "Tagged":
        return Tagged(super().to(*args, **named), self.requires_grad, self.tag)


class Loaded(nn.Parameter):
    """A parameter whose class leaves the making to torch."""

    def __new__(cls, data: torch.Tensor, *_: Any) -> "Loaded":
        return super().__new__(cls, data, requires_grad=False)

    def __init__(self, data: torch.Tensor, loader: str) -> None:
        self.loader = loader


def test_parameters_keep_class_identity_attributes_and_gradient_on_the_device() -> None:
    model: Any = nn.Module()
    model.plain = nn.Parameter(torch.ones(2))
    model.tagged, model.loaded = Tagged(torch.ones(2), False, "t"), Loaded(torch.ones(2), "l")
    model.plain.note, model.plain.grad = "n", torch.full((2,), 3.0)
    before = dict(model.named_parameters())
    for device in ("hpu", "cpu", "hpu"):
        model.to(device)
        for name, parameter in model.named_parameters():
            assert parameter is before[name]
            assert (parameter.device.type, isinstance(parameter, nn.Parameter)) == (device, True)
            assert (parameter + 1).tolist() == [2, 2]
        assert (type(model.tagged).__name__, isinstance(model.tagged, Tagged), model.tagged.tag) == (
            "Tagged",
            True,
            "t",
        )
        assert (isinstance(model.loaded, Loaded), model.loaded.loader, model.loaded.requires_grad) == (True, "l", False)
        assert (model.plain.note, model.plain.grad.tolist(), model.plain.grad.device.type) == ("n", [3, 3], device)
    made = Loaded(torch.zeros(1).to("hpu"), "made there")
    assert isinstance(made, Loaded)
    assert (made.device.type, made.loader) == ("hpu", "made there")
    again = type(made)(torch.zeros(1), "on the host")
    assert (type(again), again.device.type) == (Loaded, "cpu")
    model.plain.data = torch.zeros(2)
    assert (model.plain.device.type, model.plain.note) == ("cpu", "n")
