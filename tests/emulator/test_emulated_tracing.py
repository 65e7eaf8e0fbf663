"""What `hpu_backend` needs of ops that torch cannot trace by itself, and what it says in lazy mode."""

from typing import Any

import pytest
import torch
from torch import nn

ENVIRONMENT = {"PT_HPU_LAZY_MODE": "0"}


def compiled(function: Any, **options: Any) -> Any:
    return torch.compile(function, backend="hpu_backend", **options)


def test_ops_that_torch_cannot_trace_by_itself() -> None:
    from habana_frameworks.torch.dynamo.compile_backend.passes import logger

    logger.set_store_data(True)
    options = {"use_eager_fallback": False}
    x = torch.tensor([[1.0, -2.0], [3.0, 0.5]], device="hpu")
    low, high = compiled(torch._aminmax, options=options)(x)
    assert (low.item(), high.item()) == (-2, 3)
    low, high = compiled(lambda t: torch._aminmax(t, 1, True), options=options)(x)
    assert (low.tolist(), high.tolist()) == ([[-2], [0.5]], [[1], [3]])
    assert compiled(lambda t: torch._VF._add_relu(t, 1.0, alpha=2), options=options)(x).tolist() == [[3, 0], [5, 2.5]]
    classes = torch.tensor([2, 0]).to("hpu")
    one_hot = compiled(lambda t: nn.functional.one_hot(t, num_classes=3), options=options)
    assert one_hot(classes).tolist() == [[0, 0, 1], [1, 0, 0]]
    assert compiled(lambda t, at: t[at], options=options)(x, classes.clamp(max=1)).tolist() == [[3, 0.5], [1, -2]]
    assert compiled(torch.linalg.cholesky)(torch.eye(2, device="hpu") * 4).tolist() == [[2, 0], [0, 2]]
    rows = torch.arange(8.0).view(8, 1).to("hpu")
    compiled(lambda t: torch.ops.hpu.in_place_interleave_(t))(rows)
    assert rows.flatten().tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    text = "\n".join(logger.data)
    for name in ("aten::_aminmax", "aten::_add_relu", "hpu::plain_index", "hpu::in_place_interleave"):
        assert f"{name}(" in text
    assert "aten::index(" not in text
    assert "requires fallback: True" not in text
    logger.set_store_data(True)
    compiled(lambda t: t + 1)(torch.ones(2))
    assert "requires fallback" not in "".join(logger.data), "of what is on the host, the log says nothing"


@pytest.mark.parametrize("environment", [{"PT_HPU_LAZY_MODE": "1"}])
def test_in_lazy_mode_the_backend_has_a_name_and_is_refused(environment: dict[str, str]) -> None:
    run = compiled(lambda x: x + 1)
    with pytest.raises(Exception, match="hpu_backend is not emulated in lazy mode"):
        run(torch.ones(2, device="hpu"))


@pytest.mark.parametrize("environment", [{"PT_HPU_LAZY_MODE": "1"}, {"PT_HPU_LAZY_MODE": "0"}])
def test_a_read_inside_a_composite_is_a_host_read(environment: dict[str, str]) -> None:
    import gaudicc.emulator
    from gaudicc.emulator.ledger import Kind

    with torch.library._scoped_library("gaudicc_test", "FRAGMENT") as library:
        library.define("clipped(Tensor x) -> Tensor")
        library.impl("clipped", lambda x: x.clamp(max=1) if bool((x > 1).any()) else x + 0, "CompositeExplicitAutograd")
        assert torch.ops.gaudicc_test.clipped(torch.tensor([0.0, 3.0]).to("hpu")).tolist() == [0, 1]
    assert gaudicc.emulator.account().count(Kind.HOST_READ) == 1
