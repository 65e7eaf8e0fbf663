"""Kernels in C for what ATen has several calls for, on request: `kernels.c`, compiled by this machine's own compiler.

Compiling takes half a second, once per machine. It runs beside the first answers: what is recorded before it is done is
recorded without.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import fx

from gaudicc.errors import InputError, Where
from gaudicc.runtime.cpu_calls import is_view
from gaudicc.runtime.cpu_edit import Editor, has_view, is_call

_aten = torch.ops.aten
_SOURCE = Path(__file__).with_name("kernels.c")
# Sums may be reordered; infinities and NaN keep their meaning.
_FLAGS = (
    *("-O3", "-march=native", "-shared", "-fPIC"),
    *("-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros", "-fassociative-math"),
)
_KERNELS = {"rms_norm": (3, 1), "rotate": (4, 0), "gated": (3, 0), "attend_one": (5, 1)}  # tensors, numbers
_GRAIN = 32768  # elements from which ATen shares a pointwise op among threads, which these kernels do not


class Kernels:
    """The compiled kernels, in `gaudicc` in the user's cache folder.

    Raises:
        InputError: there is no C compiler.
    """

    def __init__(self) -> None:
        compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
        if compiler is None:
            raise InputError("there is no C compiler for native kernels", hint="install gcc, or leave native out")
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gaudicc"
        key = "\n".join([_SOURCE.read_text(), *_FLAGS, compiler, _processor()])
        self._file = home / f"kernels-{hashlib.sha256(key.encode()).hexdigest()[:16]}.so"
        self._library: ctypes.CDLL | None = None
        self._compiling: subprocess.Popen[bytes] | None = None
        if not self._file.is_file():
            home.mkdir(parents=True, exist_ok=True)
            number, self._made = tempfile.mkstemp(suffix=".so", dir=home)
            os.close(number)
            command = [compiler, *_FLAGS, str(_SOURCE), "-o", self._made, "-lm"]
            self._compiling = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            weakref.finalize(self, _give_up, self._compiling, Path(self._made))

    def library(self, *, wait: bool = False) -> ctypes.CDLL | None:
        """The kernels, or None while they are being compiled.

        Args:
            wait: until they are compiled.

        Raises:
            InputError: the compiler failed.
        """
        if self._compiling is not None and (wait or self._compiling.poll() is not None):
            said, _ = self._compiling.communicate()
            if self._compiling.returncode:
                raise InputError(
                    f"the C compiler failed: {said.decode(errors='replace').strip()}",
                    where=Where(stage="compiling native kernels"),
                    hint="leave native out",
                )
            os.replace(self._made, self._file)  # whoever else compiled it meanwhile made the same
            self._compiling = None
        if self._compiling is None and self._library is None:
            self._library = ctypes.CDLL(str(self._file))
            for name, (tensors, numbers) in _KERNELS.items():
                kernel = getattr(self._library, name)
                kernel.argtypes = [ctypes.c_void_p] * (tensors + 2) + [ctypes.c_double] * numbers
                kernel.restype = None
        return self._library


def _give_up(compiling: subprocess.Popen[bytes], made: Path) -> None:
    """Leaves nothing of a compilation that failed or that nobody waits for any more."""
    compiling.kill()
    compiling.wait()
    if compiling.stdout is not None:
        compiling.stdout.close()
    made.unlink(missing_ok=True)


def _processor() -> str:
    """What tells processors apart that do not run each other's code."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())


Layout = Callable[..., list[int] | None]


class NativeCall:
    """One kernel.

    Attributes:
        __name__: of the kernel.

    Args:
        kernel: of the library.
        layout: operands, as meta tensors, -> their sizes and strides as the kernel's comment lists them; None: it cannot read
            them.
        like: size, strides and dtype of the result.
        numbers: what it takes behind the sizes.
        scratch: how many floats it needs to work in.
    """

    takes_out = True

    def __init__(self, kernel: Any, layout: Layout, like: torch.Tensor, *numbers: float, scratch: int = 0) -> None:
        self.__name__ = str(kernel.__name__)
        self.layout = layout
        self._like, self._scratch = like, torch.empty(scratch)
        self._call: Callable[..., None] = kernel
        self._numbers = numbers
        self._sizes: Any = None
        self._rest: tuple[float, ...] = ()

    def settle(self, sizes: list[int]) -> None:
        """Takes what is known when nothing is rewritten any more: where the operands begin, their sizes and strides."""
        self._sizes = (ctypes.c_int64 * len(sizes))(*sizes)
        self._rest = (self._scratch.data_ptr(), ctypes.addressof(self._sizes), *self._numbers)

    def __call__(self, *tensors: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """Runs it.

        Args:
            tensors: float32, of the settled sizes and strides.
            out: the result; overlaps no operand.
        """
        if out is None:
            out = torch.empty_strided(self._like.shape, self._like.stride(), dtype=self._like.dtype)
        self._call(*[tensor.data_ptr() for tensor in tensors], out.data_ptr(), *self._rest)
        return out


def settle_native(editor: Editor) -> None:
    """Gives every kernel the layout of its operands; what one cannot read any more, a rewrite having moved it, is copied.

    A part of a product is read where the product lies: a slice of one takes longer than some of these kernels.
    """
    for node in editor.calls():
        if not isinstance(node.target, NativeCall):
            continue
        operands: Any = node.args
        sizes = node.target.layout(*(part.meta["val"] for part in operands))
        if sizes is None:
            contiguous = {"memory_format": torch.contiguous_format}
            operands = [editor.before(node).call(_aten.clone.default, part, **contiguous) for part in operands]
            sizes = node.target.layout(*(part.meta["val"] for part in operands))
            assert sizes is not None, "every kernel reads contiguous operands"
        roots, offsets = zip(*map(_part_of, operands), strict=True)
        node.args = roots
        node.target.settle([*offsets, *sizes])


def _part_of(node: fx.Node) -> tuple[fx.Node, int]:
    """The call whose result a value is a part of, and how many elements lie before the part."""
    views, root = [], node
    while root.op == "call_function" and is_view(root.target):
        views.append(root)
        root = root.args[0]  # type: ignore[assignment]  # the tensor that is viewed
    if root.op != "call_function":
        return node, 0
    value = root.meta["val"]
    for view in reversed(views):
        value = view.target(value, *view.args[1:], **view.kwargs)  # type: ignore[operator]
    return root, int(value.storage_offset())


def native_norm(editor: Editor, node: fx.Node, x: fx.Node, gain: fx.Node, eps: float) -> fx.Node | None:
    """`x / sqrt(mean(x ** 2) + eps) * gain`, float32, in one call."""
    like = node.meta["val"]

    def layout(value: torch.Tensor, weight: torch.Tensor) -> list[int] | None:
        width = value.shape[-1]
        return [value.numel() // width, width] if value.is_contiguous() and weight.is_contiguous() else None

    return _emitted(editor, node, "rms_norm", layout, like, (x, gain), eps) if like.is_contiguous() else None


def native_rotary(editor: Editor, node: fx.Node) -> fx.Node | None:
    """Rotary embedding of halves, `[batch, heads, length, width]`, with the same angles for all heads."""
    *operands, interleaved = node.args
    like = node.meta["val"]

    def layout(value: torch.Tensor, *angles: torch.Tensor) -> list[int] | None:
        turns = [part.expand(value.shape).stride() for part in angles]
        if any(steps[3] != 1 for steps in (value.stride(), *turns)):
            return None
        return [
            *value.shape,
            *value.stride()[:3],
            *like.stride()[:3],
            *(s for turn in turns for s in (turn[0], turn[2])),
        ]

    suits = like.dim() == 4 and not interleaved and like.shape[-1] % 2 == 0 and like.stride(-1) == 1
    one_for_all_heads = all(part.meta["val"].dim() == 4 and part.meta["val"].shape[1] == 1 for part in operands[1:])  # type: ignore[union-attr]
    if not suits or not one_for_all_heads:
        return None
    return _emitted(editor, node, "rotate", layout, like, tuple(operands))


def native_attention(
    editor: Editor, node: fx.Node, operands: tuple[fx.Node, fx.Node, fx.Node, fx.Node], scale: float
) -> fx.Node | None:
    """One query `[batch, heads, 1, width]` over keys and values `[batch, groups, keys, width]`, with a mask to add."""
    batch, heads, _, width = operands[0].meta["val"].shape
    like = torch.empty(batch, heads, 1, width, device="meta")

    def layout(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor) -> list[int] | None:
        if any(part.stride(3) != 1 for part in (query, key, value)):
            return None
        groups, keys = key.shape[1:3]
        added = mask.expand(batch, heads, 1, keys).stride()
        strides = [*query.stride()[:2], *key.stride()[:3], *value.stride()[:3], added[0], added[1], added[3]]
        return [batch, heads, heads // groups, keys, width, *strides, *like.stride()[:2]]

    keys = operands[1].meta["val"].shape[2]
    return _emitted(editor, node, "attend_one", layout, like, operands, scale, scratch=keys)


def join_gates(editor: Editor) -> None:
    """`silu(gate) * up` in one call."""
    for node in editor.calls() if editor.native is not None else ():
        if node.target is not _aten.mul.Tensor or node.kwargs or not all(isinstance(a, fx.Node) for a in node.args):
            continue
        for active, up in (node.args, reversed(node.args)):
            if is_call(active, _aten.silu.default) and (made := _gated(editor, node, active.args[0], up)) is not None:  # type: ignore[union-attr]
                editor.replace(node, made)
                break


def _gated(editor: Editor, node: fx.Node, gate: Any, up: Any) -> fx.Node | None:
    like = node.meta["val"]
    if up.meta["val"].shape != like.shape or gate.meta["val"].shape != like.shape or not like.is_contiguous():
        return None

    def layout(*values: torch.Tensor) -> list[int] | None:
        rows = like.numel() // like.shape[-1], like.shape[-1]
        readable = all(value.stride(-1) == 1 and has_view(value, rows) for value in values)
        return [*rows, *(value.view(rows).stride(0) for value in values)] if readable else None

    return _emitted(editor, node, "gated", layout, like, (gate, up))


def _emitted(
    editor: Editor, node: fx.Node, kernel: str, layout: Layout, like: torch.Tensor, operands: tuple[Any, ...],
    *numbers: float, scratch: int = 0,
) -> fx.Node | None:  # fmt: skip
    """The call, before `node`; None if there is no library, or its threads or other types make ATen the better choice."""
    values = [operand.meta["val"] for operand in operands]
    largest = max(values[0].numel(), like.numel())
    suits = {value.dtype for value in values} == {torch.float32} and largest and like.dim()
    if editor.native is None or not suits or (largest >= _GRAIN and torch.get_num_threads() > 1):
        return None
    if len({id(operand) for operand in operands}) < len(operands) or layout(*values) is None:
        return None
    call = NativeCall(getattr(editor.native, kernel), layout, like, *numbers, scratch=scratch)
    return editor.before(node).opaque(call, operands, like=like)
