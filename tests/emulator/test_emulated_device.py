import io
from typing import Any

import pytest
import torch
from torch import nn

th: Any = torch
"""torch as a child process has it: with `torch.hpu`."""
EAGER = {"PT_HPU_LAZY_MODE": "0"}


def account() -> Any:
    import gaudicc.emulator

    return gaudicc.emulator.account()


def counts(kind: str) -> int:
    from gaudicc.emulator.ledger import Kind

    return int(account().count(Kind[kind]))


def test_module_is_torch_hpu() -> None:
    import habana_frameworks.torch as ht

    assert th.hpu is ht.hpu
    assert torch.ones(2, device="hpu").device == torch.device("hpu", 0)


def test_model_moves_and_computes_as_on_cpu() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 2)), torch.randn(3, 4)
    expected = model(x)
    weight = model[0].weight
    model.to("hpu")
    assert model[0].weight is weight, "parameters keep their identity, as on the device"
    result = model(x.to("hpu"))
    assert result.device.type == "hpu"
    torch.testing.assert_close(result.cpu(), expected)


def test_views_share_memory_and_gradients_flow() -> None:
    base = torch.zeros(2, 3, device="hpu")
    base.view(6)[4] = 5
    base.t()[0].add_(1)
    assert base.tolist() == [[1, 0, 0], [1, 5, 0]]
    leaf = torch.ones(3, device="hpu", requires_grad=True)
    (leaf * 2).sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.tolist() == [2, 2, 2]


def test_fallback_works_and_is_counted_with_its_bytes_and_line() -> None:
    from gaudicc.emulator.ledger import Kind

    x = torch.linspace(-2, 2, 12, device="hpu")
    result = torch.histc(x, 4)
    (entry,) = account().entries(Kind.FALLBACK)
    assert entry.bytes == 12 * 4 + 4 * 4
    assert entry.what.startswith("aten::histc")
    assert "test_emulated_device.py" in entry.source
    assert torch.equal(result.cpu(), torch.histc(torch.linspace(-2, 2, 12), 4))


@pytest.mark.parametrize("environment", [{"PT_HPU_PLACE_ON_CPU": "none"}])
def test_forbidden_fallback_raises(environment: dict[str, str]) -> None:
    with pytest.raises(RuntimeError, match="aten::histc"):
        torch.histc(torch.ones(3, device="hpu"), 2)


@pytest.mark.parametrize("environment", [{"PT_HPU_PLACE_ON_CPU": "histc"}])
def test_fallback_of_a_permitted_op(environment: dict[str, str]) -> None:
    torch.histc(torch.ones(3, device="hpu"), 2)
    with pytest.raises(RuntimeError, match="aten::mode"):
        torch.mode(torch.ones(3, device="hpu"))


def test_unknown_op_raises() -> None:
    with torch.library._scoped_library("aten", "FRAGMENT") as library:
        library.define("gaudicc_no_such_op(Tensor x) -> Tensor")
        with pytest.raises(NotImplementedError, match="'HPU' backend"):
            torch.ops.aten.gaudicc_no_such_op(torch.ones(2, device="hpu"))


def test_custom_op_with_a_cpu_kernel_falls_back() -> None:
    with torch.library._scoped_library("gaudicc_test", "FRAGMENT") as library:
        library.define("twice(Tensor x) -> Tensor")
        library.impl("twice", lambda x: x * 2, "CPU")
        assert torch.ops.gaudicc_test.twice(torch.ones(2, device="hpu")).tolist() == [2, 2]
        assert counts("FALLBACK") == 1


def test_a_dtype_that_the_vendors_tests_run_does_not_fall_back() -> None:
    small = torch.tensor([3, 200, 7], dtype=torch.uint8).to("hpu")
    assert small.clamp(5, 100).tolist() == [5, 100, 7]
    assert torch.tensor([-1, 2], dtype=torch.int32).to("hpu").abs().tolist() == [1, 2]
    assert counts("FALLBACK") == 0
    torch.tensor([1, 2], dtype=torch.uint8).to("hpu").erfinv()
    assert counts("FALLBACK") == 1, "no test of the vendor's speaks of this one"


# rule 10
def test_lazy_mode_copies_cpu_tensors_silently() -> None:
    x = torch.ones(3)
    assert torch.allclose(x, x.to("hpu"))
    assert torch.eq(x, x.to("hpu")).device.type == "hpu"
    assert nn.Linear(3, 2).to("hpu")(x).device.type == "hpu"
    assert counts("MIXED") >= 2


@pytest.mark.parametrize("environment", [EAGER, {"GAUDICC_EMULATOR_STRICT_DEVICES": "1"}])
def test_cpu_tensor_raises_elsewhere(environment: dict[str, str]) -> None:
    x = torch.ones(3)
    with pytest.raises(RuntimeError, match="same device"):
        x.to("hpu") + x
    assert (x.to("hpu") + torch.tensor(1.0)).tolist() == [2, 2, 2], "a 0-d tensor is a number"
    assert x.to("hpu")[torch.tensor([1])].tolist() == [1], "indices may be on the host"


def test_cpu_tensor_cannot_be_written_to() -> None:
    with pytest.raises(RuntimeError, match="same device"):
        torch.ones(3).add_(torch.ones(3, device="hpu"))


# rule 11
def test_complex_results_live_on_the_host() -> None:
    x = torch.ones(2, device="hpu")
    result = torch.complex(x, x)
    assert (result.device.type, result.dtype) == ("cpu", torch.complex64)
    with pytest.raises(RuntimeError, match="complex"):
        result.to("hpu")


# rule 12
def test_extreme_values_go_to_the_device() -> None:
    floats = torch.tensor([float("inf"), float("-inf"), float("nan"), torch.finfo(torch.float32).max])
    torch.testing.assert_close(floats.to("hpu").cpu(), floats, equal_nan=True)
    ints = torch.tensor([torch.iinfo(torch.int32).max, torch.iinfo(torch.int32).min])
    assert torch.equal(ints.to("hpu").cpu(), ints)
    assert counts("OVERFLOW") == 0


def test_float64_keeps_its_name_and_loses_its_bits() -> None:
    third = torch.tensor([1.0], dtype=torch.float64).to("hpu") / 3
    assert third.dtype is torch.float64
    assert third.item() == (torch.ones(1) / 3).item()
    assert third.item() != 1 / 3


# rule 43
@pytest.mark.parametrize(
    ("environment", "value"),
    [
        ({}, (2**31 + 5) - 2**32),
        ({"PT_ENABLE_INT64_SUPPORT": "1"}, (2**31 + 5) - 2**32),
        (EAGER, 2**31 + 5),
        ({**EAGER, "PT_ENABLE_INT64_SUPPORT": "0"}, (2**31 + 5) - 2**32),
    ],
)
def test_int64_keeps_64_bits_only_where_supported(environment: dict[str, str], value: int) -> None:
    assert torch.tensor([2**31 + 5]).to("hpu").item() == value
    assert (torch.tensor([2**30], device="hpu") * 2 + 5).item() == value
    assert (counts("OVERFLOW") > 0) == (value < 0)


# rules 15 and 16
def test_resize_grows_and_keeps_old_values() -> None:
    x = torch.arange(4.0).to("hpu")
    view = x.view(2, 2)
    x.resize_(6)
    x[4:] = 9
    assert x.tolist() == [0, 1, 2, 3, 9, 9]
    view.resize_(3, 2)
    assert view.tolist() == [[0, 1], [2, 3], [9, 9]]
    with pytest.warns(UserWarning, match="An output with one or more elements was resized"):
        torch.add(x, 1, out=torch.ones(2, device="hpu"))


# rule 17
def test_data_assignment_points_to_other_memory() -> None:
    x, y = torch.zeros(2, device="hpu"), torch.arange(3).to("hpu")
    x.data = y
    assert (x.dtype, x.shape) == (torch.int64, (3,))
    y.add_(1)
    assert x.tolist() == [1, 2, 3]
    z = torch.zeros(1, device="hpu")
    z.data = x.data[1:]
    y.mul_(2)
    assert z.tolist() == [4, 6]
    on_cpu = nn.Parameter(torch.zeros(2))
    on_cpu.data = torch.ones(2, device="hpu")
    assert on_cpu.device.type == "hpu"
    assert isinstance(on_cpu, nn.Parameter)


# rule 18
def test_leaf_with_gradient_can_be_saved() -> None:
    leaf = torch.ones(2, device="hpu", requires_grad=True)
    (leaf * 3).sum().backward()
    file = io.BytesIO()
    torch.save(leaf, file)
    file.seek(0)
    loaded = torch.load(file)
    assert loaded.device.type == "hpu"
    assert loaded.requires_grad
    assert torch.equal(loaded.cpu(), leaf.cpu())


@pytest.mark.parametrize(("saved_on", "map_location", "found_on"), [
    ("cpu", "hpu", "hpu"), ("hpu", "cpu", "cpu"), ("hpu", None, "hpu"), ("cpu", None, "cpu"),
])  # fmt: skip
def test_state_dict_loads_where_it_is_asked_to(saved_on: str, map_location: str | None, found_on: str) -> None:
    file = io.BytesIO()
    torch.save(nn.Linear(2, 2).to(saved_on).state_dict(), file)
    file.seek(0)
    loaded = torch.load(file, map_location=map_location)
    assert {tensor.device.type for tensor in loaded.values()} == {found_on}
    nn.Linear(2, 2).load_state_dict(loaded)
    model = nn.Linear(2, 2).to("hpu")
    model.load_state_dict(loaded)
    assert model.weight.device.type == "hpu"


# rule 19
def test_dtype_views_keep_bits() -> None:
    flags = torch.tensor([True, False, True, True]).to("hpu")
    assert flags.view(torch.uint8).tolist() == [1, 0, 1, 1]
    expected = torch.tensor([True, False, True, True]).view(torch.uint8).view(torch.float32)
    assert torch.equal(flags.view(torch.uint8).view(torch.float32).cpu(), expected)
    floats = torch.tensor([1.5, -2.0])
    bits = floats.view(torch.bool).to("hpu")
    assert torch.equal(bits.view(torch.float32).view(-1).cpu(), floats), "a bool's byte crosses as it is"
    assert torch.equal(bits.cpu().view(torch.float32), floats)


# rule 46
def test_unique_gives_none_for_what_was_not_asked() -> None:
    x = torch.tensor([3, 1, 3]).to("hpu")
    values, inverse, tally = torch.ops.aten._unique2(x, True, False, True)
    assert values.tolist() == [1, 3]
    assert inverse is None
    assert tally.tolist() == [1, 2]


# rule 47
def test_set_points_to_another_memory() -> None:
    x, y = torch.zeros(2, device="hpu"), torch.ones(3, device="hpu")
    before, storage = x.data_ptr(), x.untyped_storage()
    x.set_(y)  # type: ignore[call-overload]
    assert x.data_ptr() == y.data_ptr() != before
    x.set_(storage, 0, (2,), (1,))
    assert x.data_ptr() == before


# rules 39, 40, 42
def test_dtype_freedoms() -> None:
    half = torch.ones(2, dtype=torch.float16, device="hpu")
    assert torch.equal((half * 65536).cpu(), torch.ones(2, dtype=torch.float16) * 65536)
    table = torch.arange(6.0).view(3, 2).to("hpu")
    rows = torch.tensor([2, 0], dtype=torch.int32).to("hpu")
    assert table.index_select(0, rows).tolist() == [[4, 5], [0, 1]]
    assert table.take(rows).tolist() == [2, 0]
    edges = torch.tensor([1.0, 2.0]).to("hpu")
    assert torch.bucketize(edges, edges, out_int32=True).dtype is torch.int32
    assert torch.bucketize(edges, edges).dtype is torch.int64
    low = torch.tensor([1.0], dtype=torch.bfloat16).to("hpu")
    sixteenth = torch.tensor([2**-9], dtype=torch.bfloat16).to("hpu")
    assert torch._VF._add_relu(low, sixteenth).item() == (low + sixteenth).item()
    assert set(torch.zeros(64, dtype=torch.int32, device="hpu").uniform_(0, 4).tolist()) == {0, 1, 2, 3}


# rule 48 is left to the op database of the rule interpreter


def test_tensors_are_made_while_a_mode_of_the_users_looks_on() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counted:
        made = torch.tensor([[1.0, 2.0], [3.0, 4.0]], device="hpu")
        result = made @ made.new_tensor([[1.0], [0.0]])
    assert result.cpu().tolist() == [[1.0], [3.0]]
    assert counted.get_total_flops() == 2 * 2 * 2


def test_a_loss_is_printed_as_a_number() -> None:
    loss, before = torch.tensor(2.345, device="hpu", requires_grad=True), counts("HOST_READ")
    assert f"{loss:.2f} {loss.detach()}" == f"2.35 {torch.tensor(2.345).item()}"
    assert counts("HOST_READ") - before == 2
    assert f"{torch.ones(1, device='hpu')}" == "tensor([1.], device='hpu:0')"
    assert str(nn.Parameter(loss.detach())).startswith("Parameter containing:\ntensor(2.3450, device='hpu:0', requires")
    for other in (torch.ones(1, device="hpu"), nn.Parameter(loss.detach())):
        with pytest.raises(TypeError, match="unsupported format string"):
            f"{other:.2f}"


def test_numpy_needs_the_host() -> None:
    with pytest.raises(TypeError, match="can't convert hpu:0 device type tensor to numpy"):
        torch.ones(2, device="hpu").numpy()
    assert torch.ones(2, device="hpu").cpu().numpy().sum() == 2


def test_host_reads_and_copies_are_counted() -> None:
    x = torch.arange(4.0).to("hpu")
    assert (counts("TO_DEVICE"), counts("TO_HOST"), counts("HOST_READ")) == (1, 0, 0)
    float(x.sum())
    bool((x > 2).any())
    x.cpu()
    assert (counts("TO_HOST"), counts("HOST_READ")) == (1, 2)
    x[x > 1]
    x.nonzero()
    assert counts("HOST_READ") == 4
    assert counts("FALLBACK") == 0, "the device reads a size; the op itself stays on it"
