"""How results lie in memory, and tensors that Python code makes from device tensors."""

import warnings
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

EAGER = {"PT_HPU_LAZY_MODE": "0"}
BOTH = pytest.mark.parametrize("environment", [{}, EAGER])


@BOTH
def test_results_are_dense_whatever_the_operands_strides(environment: dict[str, str]) -> None:
    @settings(max_examples=40, deadline=None)
    @given(st.permutations(range(4)), st.sampled_from(["mul", "neg", "softmax", "cast", "where", "matmul"]))
    def check(order: list[int], op: str) -> None:
        x = torch.arange(24.0).view(1, 2, 3, 4).permute(order)
        on_device = torch.arange(24.0, device="hpu").view(1, 2, 3, 4).permute(order)
        run: dict[str, Any] = {
            "mul": lambda t: t * 2,
            "neg": lambda t: -t,
            "softmax": lambda t: t.softmax(1),
            "cast": lambda t: t.to(torch.bfloat16),
            "where": lambda t: torch.where(t > 3, t, t + 1),
            "matmul": lambda t: t.transpose(-1, -2) @ t,
        }
        found = run[op](on_device)
        last = found.is_contiguous(memory_format=torch.channels_last)
        assert found.is_contiguous() or last
        assert torch.allclose(found.cpu().float(), run[op](x).float())
        if op != "matmul" and not last:
            found.view(-1)  # which the CPU's result, laid out as the operand is, may not allow

    check()


@BOTH
def test_channels_last_stays_and_writes_keep_the_tensor(environment: dict[str, str]) -> None:
    image = torch.ones(2, 3, 4, 5).to(memory_format=torch.channels_last).to("hpu")
    assert torch.relu(image).is_contiguous(memory_format=torch.channels_last)
    turned = torch.zeros(2, 3, device="hpu").t()
    assert turned.add_(1) is turned
    assert turned.stride() == (1, 3), "what is written to stays where it is"
    assert turned.t()[:, 1:].stride() == (3, 1), "so do views"


@BOTH
def test_device_values_in_python_lists(environment: dict[str, str]) -> None:
    import gaudicc.emulator
    from gaudicc.emulator.ledger import Kind

    x, y = torch.tensor(2.0, device="hpu"), torch.tensor([3.0], device="hpu")
    before = gaudicc.emulator.account().count(Kind.HOST_READ)
    assert torch.tensor([x, y]).tolist() == [2.0, 3.0]
    assert gaudicc.emulator.account().count(Kind.HOST_READ) == before + 2
    assert torch.tensor([x, 1.0], device="hpu").device.type == "hpu"
    assert torch.Tensor([1 / y]).tolist() == pytest.approx([1 / 3])


def test_the_class_of_a_parameter_makes_parameters() -> None:
    model = torch.nn.Linear(2, 2).to("hpu")
    kind: Any = type(model.weight)
    for values in (torch.ones(2), torch.ones(2, device="hpu"), torch.ones(2, device="meta")):
        made = kind(values, requires_grad=False)
        assert isinstance(made, torch.nn.Parameter)
        assert (made.device.type, made.requires_grad) == (values.device.type, False)
    assert kind(torch.ones(2, device="hpu"), requires_grad=True).requires_grad


@BOTH
def test_ops_that_write_to_lists_are_counted_and_priced(environment: dict[str, str]) -> None:
    import gaudicc.emulator
    from gaudicc.emulator.ledger import Kind

    both = [torch.ones(3, device="hpu"), torch.ones(2, device="hpu")]
    torch._foreach_add_(both, 1.0)
    torch._foreach_mul_(both, torch._foreach_add(both, both))
    torch._foreach_copy_(both[:1], both[:1])
    torch._assert_async(both[0].sum() > 0)
    assert [each.tolist() for each in both] == [[8.0] * 3, [8.0] * 2]
    ran = {entry.what: entry.seconds for entry in gaudicc.emulator.account().entries(Kind.RUN)}
    assert ran["aten::_foreach_add_.Scalar"] > 0
    assert ran["aten::_foreach_mul_.List"] > 0


@BOTH
def test_inference_mode_sees_views_of_plain_tensors(environment: dict[str, str]) -> None:
    model = torch.nn.Linear(3, 2).to("hpu")
    model.register_buffer("positions", torch.arange(8).expand(1, -1).to("hpu"))
    plain: Any = model.positions
    with torch.inference_mode():
        part = plain[:, 2:5]
        assert part.tolist() == [[2, 3, 4]]
        assert not part.is_inference()
        assert model.weight.t()[1].shape == (2,)
        made = plain + 1
        assert made.is_inference()
        assert made[:, 1:].is_inference()
    assert (part + 1).tolist() == [[3, 4, 5]]


@BOTH
def test_no_sparse_tensor_is_on_the_device(environment: dict[str, str]) -> None:
    for make in (
        lambda: torch.eye(2).to_sparse().to("hpu"),
        lambda: torch.eye(2, device="hpu").to_sparse(),
        lambda: torch.eye(2, device="hpu").to_sparse_csr(),
    ):
        with pytest.raises(RuntimeError, match="holds no sparse tensor"):
            make()


@BOTH
def test_packed_sequences_have_their_sizes_on_the_host(environment: dict[str, str]) -> None:
    x, lengths = torch.randn(2, 3, 4), torch.tensor([3, 2])
    packed = torch.nn.utils.rnn.pack_padded_sequence(x.to("hpu"), lengths, batch_first=True)
    assert packed.batch_sizes.device.type == "cpu"
    assert packed.batch_sizes.tolist() == [2, 2, 1]
    assert packed.data.device.type == "hpu"
    rnn = torch.nn.LSTM(4, 5, batch_first=True)
    expected = torch.nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
    wanted = torch.nn.utils.rnn.pad_packed_sequence(rnn(expected)[0], batch_first=True)[0].detach()
    found = torch.nn.utils.rnn.pad_packed_sequence(rnn.to("hpu")(packed)[0], batch_first=True)[0].detach()
    torch.testing.assert_close(found.cpu(), wanted)


@BOTH
def test_the_device_that_torch_calls_the_accelerator(environment: dict[str, str]) -> None:
    import gaudicc.emulator
    from gaudicc.emulator.ledger import Kind

    found: Any = torch.accelerator.current_accelerator()
    assert found.type == "hpu"
    x = torch.ones(5, device="hpu") + 1
    before = gaudicc.emulator.account().count(Kind.COMPILE)
    torch.accelerator.synchronize()
    assert gaudicc.emulator.account().count(Kind.COMPILE) == before + (not environment), "it flushes"
    if hasattr(torch.accelerator, "memory_allocated"):  # torch 2.9 and later
        assert torch.accelerator.memory_allocated() >= x.nbytes


@BOTH
def test_row_numbers_below_zero_count_from_the_end(environment: dict[str, str]) -> None:
    rows = torch.arange(6.0, device="hpu").view(3, 2)
    index = torch.tensor([-1, 0], device="hpu")
    assert rows.index_select(0, index).tolist() == [[4, 5], [0, 1]]
    assert rows.clone().index_copy_(0, index, torch.zeros(2, 2, device="hpu")).tolist() == [[0, 0], [2, 3], [0, 0]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls it a beta
        most = torch.full((3, 2), -1.0, device="hpu").index_reduce_(0, index, rows[:2], "amax")
    assert most.tolist() == [[2, 3], [-1, -1], [0, 1]]
    with pytest.raises(IndexError):
        rows.index_select(0, torch.tensor([-4], device="hpu"))
