"""Dtype codes of the target tables, and what the device does with each dtype; used by every lookup.

Source: HabanaAI/gaudi-pytorch-bridge 1.19.0, `backend/helpers/tensor_utils.cpp`, `hpu_ops/supported_dtypes.cpp`.
torch is not imported here: dtypes are known by their printed names.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gaudicc.targets.model import Mode, Support

if TYPE_CHECKING:
    import torch

CODES: dict[str, str] = {
    "float32": "f32",
    "bfloat16": "bf16",
    "float16": "f16",
    "float8_e4m3fn": "f8e4m3",
    "float8_e5m2": "f8e5m2",
    "float64": "f64",
    "int64": "i64",
    "int32": "i32",
    "int16": "i16",
    "int8": "i8",
    "uint8": "u8",
    "bool": "bool",
    "complex32": "c32",
    "complex64": "c64",
    "complex128": "c128",
}
COMPLEX = frozenset({"c32", "c64", "c128"})
INTEGRAL = frozenset({"i64", "i32", "i16", "i8", "u8", "bool"})
DEVICE = frozenset(CODES.values()) - COMPLEX
"""What a tensor on the device can hold; a view or a documented `any` operand accepts these."""
TOKENS = DEVICE | {"f8", "index", "mask", "any", "?"}
"""What an operand may list: `f8` is a table that does not say which, `?` no evidence."""


def code(dtype: torch.dtype | str) -> str:
    """The code of a dtype; a dtype without one (quantised, uint16, ...) keeps its torch name."""
    name = str(dtype).removeprefix("torch.")
    return CODES.get(name, name)


def accepts(listed: str, dtype: str, mode: Mode) -> tuple[Support, str]:
    """Whether an operand that lists `listed` takes `dtype`.

    Args:
        listed: `f32|bf16`, `index`, `mask`, `any`, or `?`; any of them may end in `*`.
        dtype: a code.
        mode: lazy mode narrows int64 (`PT_ENABLE_INT64_SUPPORT` is off there by default, on in compile mode).

    Returns:
        The support, and what was narrowed or missing (empty when there is nothing to say).
    """
    names = frozenset(listed.removesuffix("*").split("|"))
    if dtype in COMPLEX or dtype not in DEVICE:
        return Support.NO, f"no tensor of {dtype} can live on the device"
    if dtype == "f64":
        support, note = accepts(listed, "f32", mode)
        return support, note or "float64 is stored and computed as float32"
    if "?" in names:
        return Support.PRESUMED, f"no source names the dtypes it takes, {dtype} among them"
    if "any" in names or dtype in names:
        return Support.EVIDENCED, ""
    if names == {"index"}:
        return _index(dtype)
    if names == {"mask"}:
        return (Support.EVIDENCED, "") if dtype == "bool" else (Support.NO, f"a mask must be bool, not {dtype}")
    return _unlisted(names, dtype, mode)


def _index(dtype: str) -> tuple[Support, str]:
    if dtype in ("i32", "i64"):
        return Support.EVIDENCED, ""
    return Support.NO, f"an index must be int32 or int64, not {dtype}"


def _unlisted(names: frozenset[str], dtype: str, mode: Mode) -> tuple[Support, str]:
    if dtype in ("f8e4m3", "f8e5m2") and "f8" in names:
        return Support.PRESUMED, "the operator table lists fp8 without saying which"
    if dtype == "i64" and "i32" in names:
        if mode is Mode.LAZY:
            return Support.EVIDENCED, ""
        return Support.PRESUMED, "only int32 is listed, and compile mode keeps int64"
    if dtype == "i32" and "i64" in names:
        return Support.PRESUMED, "only int64 is listed, which lazy mode computes as int32"
    if dtype == "bool" and "i8" in names:
        return Support.PRESUMED, "only int8 is listed, as which the device handles bool"
    return Support.NO, f"{dtype} is not among the listed {'|'.join(sorted(names))}"


def narrowed(dtypes: tuple[str, ...], mode: Mode) -> tuple[str, ...]:
    """The 64-bit dtypes among `dtypes` that the device computes in 32 bits in this mode, sorted."""
    wide = {"f64", "i64"} if mode is Mode.LAZY else {"f64"}
    return tuple(sorted(wide.intersection(dtypes)))
