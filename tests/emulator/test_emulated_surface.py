"""Names that programs and libraries for Gaudi reach for beside the everyday ones."""

import importlib
import math
import os
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from gaudicc.errors import DeviceError

EAGER = {"PT_HPU_LAZY_MODE": "0"}
TORCH = "habana_frameworks.torch"


def module(name: str) -> Any:
    return importlib.import_module(f"{TORCH}.{name}")


class Net(nn.Module):
    """`fixed` computes the same graph for each input shape; `selecting` gives as many values as are positive."""

    def __init__(self) -> None:
        super().__init__()
        self.fixed, self.selecting = nn.Linear(2, 2), Selecting()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept: torch.Tensor = self.selecting(self.fixed(x))
        return kept


class Selecting(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[x > 0] * 2


def test_modules_are_reached_through_others() -> None:
    core, root = module("core"), importlib.import_module(TORCH)
    assert core.hpu is module("hpu") is root.hpu
    assert root.torch is torch
    assert module("utils.experimental").htmem is module("hpu.memory")
    assert core.is_lazy()
    assert core.step_closure._mark_step_if_lazy is core.mark_step
    assert core.hpu_inference_set_env(model := nn.Linear(2, 2)) is model
    assert module("utils.library_loader").is_habana_available()
    version = module("utils.version_checker").is_pytorch_at_least
    assert version("2.5")
    assert version(torch.__version__.split("+")[0])
    assert not version("99.0")


def test_classes_have_the_names_of_their_files() -> None:
    kernels = module("hpex.kernels")
    file = importlib.import_module(f"{TORCH}.hpex.kernels.FusedSDPA")
    assert isinstance(kernels.FusedSDPA, type)
    assert file.FusedSDPA is kernels.FusedSDPA
    q, k, mask = torch.randn(1, 6, 3, 4), torch.randn(1, 2, 5, 4), torch.zeros(1, 6, 3, 5)
    assert file.is_gqa(q, k)
    assert not file.is_gqa(q, q)
    assert not file.is_gqa(q, k[:, :1]), "one key head needs no groups"
    grouped = file.gqa_input_reshape_fwd(q, k, k, mask)
    assert [tuple(each.shape) for each in grouped] == [
        (1, 2, 3, 3, 4),
        (1, 2, 1, 5, 4),
        (1, 2, 1, 5, 4),
        (1, 2, 3, 3, 5),
    ]
    assert torch.equal(file.gqa_output_reshape(grouped[0]), q)
    assert file.gqa_input_reshape_fwd(q, k, k, mask[:, :1])[3].shape == (1, 1, 1, 3, 5)


def test_rotary_embedding_of_the_first_features() -> None:
    p, angles = torch.randn(3, 2, 4, 8), torch.randn(5, 1, 2)
    cache = torch.stack((angles.cos(), angles.sin()), -1)
    found = module("hpex.kernels").RotaryPosEmbeddingHelperV3.apply(p.to("hpu"), cache.to("hpu")).cpu()
    pairs = torch.view_as_complex(p[..., :4].reshape(3, 2, 4, 2, 2).contiguous())
    turned = pairs * torch.polar(torch.ones(3, 1, 1, 2), angles[:3].unsqueeze(1))
    torch.testing.assert_close(found[..., :4], torch.view_as_real(turned).flatten(-2))
    assert torch.equal(found[..., 4:], p[..., 4:]), "the other features stay"


@pytest.mark.parametrize("environment", [{}, EAGER])
def test_recompilations_are_named_with_their_cause(environment: dict[str, str], tmp_path: Path) -> None:
    model = Net().eval().to("hpu")
    with torch.no_grad():
        model.fixed.weight.copy_(torch.eye(2))
        model.fixed.bias.zero_()
    watched = module("utils.experimental").detect_recompilation_auto_model(model, "Net", csv_out=str(tmp_path / "out"))
    inputs = ([[1.0, -1.0]], [[1.0, -1.0]], [[1.0, 1.0]])
    with torch.no_grad():
        for values in inputs:
            watched(torch.tensor(values, device="hpu"))
    watched.analyse_dynamicity()
    rows = [line.split(",") for line in (tmp_path / "out_1.csv").read_text().splitlines()]
    assert rows[0] == ["Step", "Recompiling modules", "New in", "New out", "Class", "Location", "Comment"]
    by_step = {(int(row[0]), row[1]): row for row in rows[1:]}
    assert set(by_step) == {(0, "Net"), (0, "Net/fixed"), (0, "Net/selecting"), (2, "Net"), (2, "Net/selecting")}
    assert by_step[2, "Net/selecting"][2:4] == ["False", "True"]
    assert "Maybe dyn ops" in by_step[2, "Net/selecting"][6]
    assert "dynamic child" not in by_step[2, "Net/selecting"][6]
    assert by_step[2, "Net"][6].endswith("Could be due to dynamic child")
    assert by_step[0, "Net/fixed"][6] == "Recompiled due to new input shape"
    assert "Net/selecting,2" in (tmp_path / "out_2.csv").read_text()
    assert sum("Recompilation!" in line for line in watched.raw_logs()) == 5


def test_shapes_of_a_loader() -> None:
    experimental = module("utils.experimental")
    loader = [torch.ones(2, 3), torch.ones(1, 3), torch.ones(2, 3), {"a": [torch.ones(2)]}]
    with redirect_stdout(StringIO()) as printed:
        assert experimental.data_dynamicity(loader)[2, 3] == 2
    assert "Number of unique shapes:  3" in printed.getvalue()
    assert [tuple(each.shape) for each in experimental.const_shape_dataloader(loader, 1)] == [(2, 3)]
    assert len(list(experimental.const_shape_dataloader(loader, 9))) == 2, "the most frequent"


def test_place_among_processes() -> None:
    place = module("distributed.hccl").initialize_distributed_hpu
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        os.environ.pop(name, None)
    assert place() == (1, -1, -1)
    os.environ.update(OMPI_COMM_WORLD_SIZE="4", OMPI_COMM_WORLD_RANK="3", OMPI_COMM_WORLD_LOCAL_RANK="1")
    assert place() == (4, 3, 1)
    os.environ["RANK"] = "2"
    assert place() == (4, 2, 1), "Open MPI's variables count only without the others"
    assert place(8, 7, 6) == (8, 7, 6)
    assert os.environ["RANK"] == "7"


def test_experts_are_measured() -> None:
    torch.manual_seed(3)
    hidden, routing = torch.randn(4, 6), torch.tensor([[0], [0], [2], [0]])
    w1, w2, w3 = ([torch.randn(*size) for _ in range(3)] for size in ((6, 5), (6, 5), (5, 6)))
    weights = [[each.to("hpu") for each in group] for group in (w1, w2, w3)]
    ones = torch.ones(4, 1).to("hpu")
    head = (hidden.to("hpu"), routing.to("hpu"), ones)
    ops = torch.ops.hpu.mixture_of_experts
    found, largest = ops.fp8_measurement(*head, *weights, False, "silu", 0, 2, True)
    assert torch.equal(found.cpu(), ops(*head, *weights, False, "silu", 0, 2).cpu())
    for expert in range(3):  # of all tokens, whichever chose it, and with its sign
        inner = nn.functional.silu(hidden @ w1[expert]) * (hidden @ w2[expert])
        torch.testing.assert_close(largest[expert].cpu(), inner.max())
    fused = [torch.cat((a, b), 1).to("hpu") for a, b in zip(w1, w2, strict=True)]
    again, same = ops.fp8_measurement_fused_weights(*head, fused, weights[2], False, "silu", 0, 2, True)
    torch.testing.assert_close(again.cpu(), found.cpu())
    torch.testing.assert_close(same.cpu(), largest.cpu())


def test_scales_that_a_hook_makes_need_no_mark() -> None:
    core = module("core")
    model: Any = nn.Linear(2, 2).to("hpu")
    model.register_state_dict_post_hook(lambda m, state, *_: state.update(scale=torch.ones(())))
    core.hpu_inference_initialize(model)
    late: Any = nn.Linear(2, 2).to("hpu")
    with pytest.raises(Exception, match="not marked as constant"):
        core._check_params_as_const(late)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_affine_quantisation_to_fp8_keeps_fractions(dtype: torch.dtype) -> None:
    importlib.import_module("torch.ao.quantization.fx._decomposed")
    ops = torch.ops.quantized_decomposed
    x, scales = torch.tensor([[0.3, 0.7], [1.2, 2.6]]), torch.tensor([0.5, 2.0])
    found = ops.quantize_per_tensor(x.to("hpu"), 0.5, 0, -240, 240, dtype)
    assert torch.equal(found.cpu().float(), (x / 0.5).to(dtype).float())
    back = ops.dequantize_per_tensor(found, 0.5, 0, -240, 240, dtype, out_dtype=torch.bfloat16)
    assert torch.equal(back.cpu(), (found.cpu().float() * 0.5).bfloat16())
    one = torch.zeros(1, device="hpu")
    rows = ops.quantize_per_channel(x.to("hpu"), scales.to("hpu"), one, 0, -240, 240, dtype)
    assert torch.equal(rows.cpu().float(), (x * scales.reciprocal()[:, None]).to(dtype).float())
    restored = ops.dequantize_per_channel(rows, scales.to("hpu"), one, 0, -240, 240, dtype)
    torch.testing.assert_close(restored.cpu(), rows.cpu().float() * scales[:, None])
    whole = ops.quantize_per_tensor(x.to("hpu"), 0.5, 3, -128, 127, torch.int8)
    assert whole.tolist() == [[math.floor(v / 0.5 + 0.5) + 3 for v in row] for row in x.tolist()], (
        "integers are rounded"
    )
    ends = ops.quantize_per_tensor(torch.tensor([900.0, -900.0]).to("hpu"), 1.0, 0, -100, 96, dtype)
    assert ends.cpu().float().tolist() == [96.0, torch.tensor(-100.0).to(dtype).float().item()]


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("habana_frameworks.mediapipe.mediapipe", "pictures are decoded"),
        (f"{TORCH}.core.quantizer", "quantisation through torch.export"),
        (f"{TORCH}.gpu_migration", "it turns calls of torch.cuda"),
    ],
)
def test_a_module_that_is_not_emulated_says_so(name: str, why: str) -> None:
    importlib.import_module(TORCH)
    with pytest.raises(ModuleNotFoundError, match=f"is not emulated: {why}"):
        importlib.import_module(name)


def test_an_op_that_is_not_emulated_says_so() -> None:
    importlib.import_module(TORCH)
    for name, why in (("sdpa_bwd", "serves training"), ("softmax_fa2", "release 1.19.0 has no such op")):
        with pytest.raises(AttributeError, match=rf"torch\.ops\.hpu\.{name} is not emulated: .*{why}"):
            getattr(torch.ops.hpu, name)
        assert not hasattr(torch.ops.hpu, name)


def test_a_refused_name_can_be_asked_about() -> None:
    engine: Any = importlib.import_module(f"{TORCH}.hpex.experimental.transformer_engine")
    assert not isinstance(nn.Linear(1, 1), engine.Linear)

    class Own(engine.Linear):  # type: ignore[misc]
        """A library derives from it long before anybody makes one."""

    for make in (engine.Linear, Own, engine.fp8_autocast.apply):
        with pytest.raises(DeviceError, match=r"transformer_engine\.\w+ is not emulated: it serves training"):
            make(1, 1)
    assert not hasattr(engine.fp8, "FP8GlobalStateManager")
    with pytest.raises(AttributeError, match=r"fp8\.FP8GlobalStateManager is not emulated: it serves training"):
        engine.fp8.FP8GlobalStateManager.is_fp8_enabled()


def test_migration_of_cuda_calls_is_refused() -> None:
    from gaudicc.emulator.settings import read_settings
    from gaudicc.errors import InputError

    with pytest.raises(InputError, match="PT_HPU_GPU_MIGRATION is not emulated"):
        read_settings({"PT_HPU_GPU_MIGRATION": "1"})
    assert read_settings({"PT_HPU_GPU_MIGRATION": "0"}).lazy
