"""Kernels in C for what ATen has several calls for, on request: `kernels*.c`, compiled by this machine's own compiler.

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

from gaudicc.errors import InputError, Where

_HERE = Path(__file__).parent
_SOURCES = [_HERE / name for name in ("kernels.c", "kernels_attention.c")]
# Sums may be reordered; infinities and NaN keep their meaning.
_FLAGS = (
    *("-O3", "-march=native", "-shared", "-fPIC"),
    *("-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros", "-fassociative-math"),
)
_KERNELS = {
    "rms_norm": (3, 1),
    "rotate": (4, 0),
    "gated": (3, 0),
    "store": (3, 0),
    "attend_one": (5, 1),
    "attend_causal": (4, 1),
    "weigh": (3, 0),
    "weigh_add": (4, 0),
}  # tensors, numbers


class Kernels:
    """The compiled kernels, in `gaudicc` in the user's cache folder.

    Raises:
        InputError: there is no C compiler, or the folder cannot be written.
    """

    def __init__(self) -> None:
        compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
        if compiler is None:
            raise InputError("there is no C compiler for native kernels", hint="install gcc, or leave native out")
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gaudicc"
        texts = [file.read_text() for file in (*_SOURCES, _HERE / "kernels.h")]
        key = "\n".join([*texts, *_FLAGS, compiler, _processor()])
        self._file = home / f"kernels-{hashlib.sha256(key.encode()).hexdigest()[:16]}.so"
        self._library: ctypes.CDLL | None = None
        self._compiling: subprocess.Popen[bytes] | None = None
        self._failure: InputError | None = None
        if not self._file.is_file():
            try:
                home.mkdir(parents=True, exist_ok=True)
                number, self._made = tempfile.mkstemp(suffix=".so", dir=home)
            except OSError as error:
                raise InputError(
                    f"native kernels cannot be kept in {home}: {error.strerror}",
                    hint="set XDG_CACHE_HOME to a folder that can be written, or leave native out",
                ) from error
            os.close(number)
            command = [compiler, *_FLAGS, *map(str, _SOURCES), "-o", self._made, "-lm"]
            self._compiling = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            weakref.finalize(self, _give_up, self._compiling, Path(self._made))

    def library(self, *, wait: bool = False) -> ctypes.CDLL | None:
        """The kernels, or None while they are being compiled.

        Args:
            wait: until they are compiled.

        Raises:
            InputError: the compiler failed; whoever asks again is told again.
        """
        if self._compiling is not None and (wait or self._compiling.poll() is not None):
            said, _ = self._compiling.communicate()
            if self._compiling.returncode:
                self._failure = InputError(
                    f"the C compiler failed: {said.decode(errors='replace').strip()}",
                    where=Where(stage="compiling native kernels"),
                    hint="leave native out",
                )
            else:
                os.replace(self._made, self._file)  # whoever else compiled it meanwhile made the same
            self._compiling = None
        if self._failure is not None:
            raise self._failure
        if self._compiling is None and self._library is None:
            self._library = ctypes.CDLL(str(self._file))
            for name, (tensors, numbers) in _KERNELS.items():
                kernel = getattr(self._library, name)
                kernel.argtypes = [ctypes.c_void_p] * (tensors + 2) + [ctypes.c_double] * numbers
                kernel.restype = None
            self._library.use_threads(*_threads())
        return self._library


def _give_up(compiling: subprocess.Popen[bytes], made: Path) -> None:
    """Leaves nothing of a compilation that failed or that nobody waits for any more."""
    compiling.kill()
    compiling.wait()
    if compiling.stdout is not None:
        compiling.stdout.close()
    made.unlink(missing_ok=True)


def _threads() -> list[Any]:
    """What shares work among the threads that PyTorch computes on; nothing where it brings no OpenMP that all can see."""
    found = ctypes.CDLL(None)
    names = ("omp_get_max_threads", "omp_get_thread_num", "omp_get_num_threads", "GOMP_parallel")
    known = all(hasattr(found, name) for name in names)
    return [ctypes.cast(getattr(found, name), ctypes.c_void_p) if known else None for name in names]


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
        layout: see below.
        scratch: how many floats a thread needs to work in.
        whole: how many of its first operands it takes as they are; of the others it may be given what they are a part of.

    Args:
        kernel: of the library.
        layout: operands, as meta tensors, -> their sizes and strides as the kernel's comment lists them; None: it cannot read
            them.
        like: size, strides and dtype of the result.
        numbers: what it takes behind the sizes.
        scratch: see above.
    """

    takes_out = True
    whole = 0

    def __init__(self, kernel: Any, layout: Layout, like: torch.Tensor, *numbers: float, scratch: int = 0) -> None:
        self.__name__ = str(kernel.__name__)
        self.layout, self.scratch = layout, scratch
        self._like = like
        self._call: Callable[..., None] = kernel
        self._numbers = numbers
        self._sizes: Any = None
        self._rest: tuple[float, ...] = ()

    def settle(self, sizes: list[int], work: torch.Tensor) -> None:
        """Takes what is known when nothing is rewritten any more: where the operands begin, their sizes and strides.

        Args:
            sizes: where each operand begins, then what the kernel's comment lists.
            work: memory to work in, a row a thread, which other kernels of the recording may have used before.
        """
        sizes = [*work.shape, *sizes]
        self._sizes, self._work = (ctypes.c_int64 * len(sizes))(*sizes), work
        self._rest = (work.data_ptr(), ctypes.addressof(self._sizes), *self._numbers)

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


class NativeStore(NativeCall):
    """The kernel that writes rows of one tensor into places of another.

    Attributes:
        index: which argument says the places.
    """

    takes_out = False
    whole = 2
    index = 1

    def write(self, rows: torch.Tensor, places: torch.Tensor, values: torch.Tensor) -> None:
        """Writes in place.

        Args:
            rows: float32 `[rows, width]`, contiguous.
            places: int64, one per row of `values`, all within `rows`.
            values: float32, up to four dims, of the settled strides.
        """
        self._call(rows.data_ptr(), places.data_ptr(), values.data_ptr(), *self._rest)

    def __call__(self, *tensors: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """The rows with the values in their places, `rows` being left as it is.

        Raises:
            IndexError: a place lies outside; those of state are checked before any write of all.
        """
        rows, places, values = tensors
        smallest, largest = map(int, places.aminmax())
        if smallest < 0 or largest >= len(rows):
            raise IndexError(f"index {smallest if smallest < 0 else largest} is out of bounds for {len(rows)} rows")
        copy = rows.clone()
        self.write(copy, places, values)
        return copy
