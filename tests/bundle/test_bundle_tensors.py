"""Tensors in a bundle: plain safetensors for others, the same sharing for us, no copy of large weights."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn

from gaudicc.bundle import read_bundle, write_bundle
from gaudicc.capture import capture
from gaudicc.program import Program


def holding(tensors: dict[str, Tensor]) -> Program:
    program = capture(lambda x: x + 1, (torch.zeros(1),))
    program.tensors = tensors
    return program


def trip(path: Path, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    write_bundle(path, {"p": holding(tensors)}, {})
    return read_bundle(path)[0]["p"].tensors


def bits(tensor: Tensor) -> Any:
    flat = tensor.detach().resolve_conj().resolve_neg().flatten().clone(memory_format=torch.contiguous_format)
    return flat.view(torch.uint8).tolist() if flat.numel() else []


DTYPES = (
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16, torch.bfloat16,
    torch.float32, torch.float64, torch.complex64, torch.complex128, torch.float8_e4m3fn, torch.float8_e5m2,
    torch.uint16,
)  # fmt: skip


def test_every_dtype_and_shape(tmp_path: Path) -> None:
    memory = torch.arange(64, dtype=torch.uint8)
    tensors = {str(dtype): memory[:32].clone().view(dtype) for dtype in DTYPES if dtype is not torch.bool}
    tensors |= {
        "bool": torch.tensor([True, False]), "scalar": torch.tensor(1.5), "empty": torch.empty(0, 3),
        "nan": torch.tensor(torch.nan),
        "parameter": nn.Parameter(torch.ones(3, 2).t()), "conjugate": torch.randn(3, dtype=torch.complex64).conj(),
        "expanded": torch.ones(1).expand(5, 4), "odd bytes": torch.zeros(3, dtype=torch.int8),
    }  # fmt: skip
    loaded = trip(tmp_path / "b", tensors)
    for name, tensor in tensors.items():
        found = loaded[name]
        assert (found.dtype, found.shape, bits(found)) == (tensor.dtype, tensor.shape, bits(tensor)), name
        assert found.stride() == tensor.detach().stride(), name
        assert found.data_ptr() % found.element_size() == 0, name


def test_others_can_read_the_tensors(tmp_path: Path) -> None:
    tensors = {"weight": torch.randn(3, 4), "bias": torch.randn(3).to(torch.bfloat16), "ids": torch.arange(5)}
    trip(tmp_path / "b", tensors)
    (file,) = (tmp_path / "b").glob("*.safetensors")
    for name, tensor in load_file(file).items():
        if name in tensors:
            assert torch.equal(tensor, tensors[name])
    assert tensors.keys() <= load_file(file).keys()


@st.composite
def views(draw: st.DrawFn) -> dict[str, Tensor]:
    """Views of two memories, of any dtype, which overlap, repeat or leave gaps."""
    found: dict[str, Tensor] = {}
    for memory in (torch.arange(96, dtype=torch.uint8), torch.arange(96, dtype=torch.uint8)):
        for _ in range(draw(st.integers(0, 4))):
            flat = memory.view(draw(st.sampled_from([torch.uint8, torch.float16, torch.float32, torch.complex128])))
            shape = draw(st.lists(st.integers(0, 2), max_size=2))
            stride = draw(st.lists(st.integers(0, 2), min_size=len(shape), max_size=len(shape)))
            found[f"t{len(found)}"] = flat.as_strided(shape, stride, draw(st.integers(0, 1)))
    return found


@settings(max_examples=60, deadline=None)
@given(tensors=views())
def test_views_stay_views(tensors: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> None:
    loaded = trip(tmp_path_factory.mktemp("views") / "b.zip", tensors)
    for name, tensor in tensors.items():
        assert (loaded[name].dtype, loaded[name].stride(), bits(loaded[name])) == (
            tensor.dtype,
            tensor.stride(),
            bits(tensor),
        )
        for other, second in tensors.items():
            if tensor.numel() and second.numel():
                tied = tensor.untyped_storage().data_ptr() == second.untyped_storage().data_ptr()
                distance = loaded[name].data_ptr() - loaded[other].data_ptr()
                found = loaded[name].untyped_storage().data_ptr() == loaded[other].untyped_storage().data_ptr()
                assert found == tied, (name, other)
                assert not tied or distance == tensor.data_ptr() - second.data_ptr()


def test_only_the_used_part_of_a_storage_is_saved(tmp_path: Path) -> None:
    trip(tmp_path / "b.zip", {"slice": torch.zeros(1_000_000)[500_000:500_010]})
    assert (tmp_path / "b.zip").stat().st_size < 20_000


def test_programs_share_tensors_and_store_them_once(tmp_path: Path) -> None:
    weight = torch.randn(1000)
    programs = {key: holding({"w": weight, "tied": weight}) for key in "abc"}
    write_bundle(tmp_path / "b.zip", programs, {})
    assert (tmp_path / "b.zip").stat().st_size < 2 * 4000 + 10_000
    loaded, _ = read_bundle(tmp_path / "b.zip")
    assert len({id(tensor) for program in loaded.values() for tensor in program.tensors.values()}) == 1


MEASURE = """
import resource, sys, torch
from pathlib import Path
from gaudicc.bundle import read_bundle, write_bundle
from gaudicc.capture import capture
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
program = capture(lambda x: x + 1, (torch.zeros(1),))
program.tensors = {"w": torch.ones(64, 2**20)}  # 256 MiB
path = Path(sys.argv[1])
write_bundle(path, {"p": program}, {})  # imports done, weights touched
before = peak()
write_bundle(path, {"p": program}, {})
saved = peak()
loaded, _ = read_bundle(path)
print(saved - before, peak() - saved)
"""


@pytest.mark.parametrize("name", ["b", "b.zip"])
def test_large_weights_are_not_copied(name: str, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", MEASURE, str(tmp_path / name)], capture_output=True, check=True)
    saving, loading = map(int, done.stdout.split())
    assert saving < 100, f"saving 256 MiB took {saving} MiB more"
    assert loading < 100, f"loading 256 MiB took {loading} MiB before anything was used"
