"""The matrix product as the MME model sees it: shapes, storage order, and whether its batch can be flattened."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod


@dataclass(frozen=True, slots=True)
class Gemm:
    """The problem C[batch, m, n] = A[batch, m, k] @ B[batch, k, n].

    Attributes:
        m: rows of the output.
        n: columns of the output.
        k: length of the sum.
        batch: sizes of the batch dimensions, the fastest first; () for a plain GEMM.
        dtype: of A and B: `bf16`, `fp16`, `fp32`, `tf32` or `fp8`.
        trans_a: A is stored [k, m].
        trans_b: B is stored [n, k].
        shared_b: B has no first batch dimension: all items use one B.
        strides_a: (row, batch...) strides of A as stored, in elements; None if dense.
        strides_b: the same of B.
        strides_c: the same of C.
        flatten: the engine may fold a batch that shares B into M.
    """

    m: int
    n: int
    k: int
    batch: tuple[int, ...] = ()
    dtype: str = "bf16"
    trans_a: bool = False
    trans_b: bool = False
    shared_b: bool = False
    strides_a: tuple[int, ...] | None = None
    strides_b: tuple[int, ...] | None = None
    strides_c: tuple[int, ...] | None = None
    flatten: bool = True

    @property
    def transposes_a(self) -> bool:
        """The engine itself must transpose A: A is stored with k innermost."""
        return not self.trans_a

    @property
    def transposes_b(self) -> bool:
        """The engine itself must transpose B: B is stored with k innermost."""
        return self.trans_b

    @property
    def element_bytes(self) -> int:
        """Bytes of one element of A or B."""
        return {"fp8": 1, "bf16": 2, "fp16": 2, "tf32": 4, "fp32": 4}[self.dtype]

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the whole problem."""
        return self.m * self.n * self.k * prod(self.batch)

    @property
    def flattens(self) -> bool:
        """The batch becomes rows of one tall GEMM: A's rows follow each other through the batch and B is shared."""
        if not self.flatten or not self.batch or self.batch[0] == 1 or self.trans_a or not self.shared_b:
            return False
        return _batch_follows_rows(self.strides_a, self.m) and _batch_follows_rows(self.strides_c, self.m)

    @property
    def rows(self) -> int:
        """M as the engine sees it: with the first batch dimension folded in where it flattens."""
        return self.m * self.batch[0] if self.flattens else self.m

    @property
    def items(self) -> tuple[int, ...]:
        """Batch dimensions left after flattening."""
        return self.batch[1:] if self.flattens else self.batch

    def strides(self, operand: str) -> tuple[int, ...]:
        """All strides of operand `"a"` or `"b"` above the innermost, in elements."""
        given = self.strides_a if operand == "a" else self.strides_b
        if given is not None:
            return given
        if operand == "a":
            inner, outer = (self.m, self.k) if self.trans_a else (self.k, self.m)
        else:
            inner, outer = (self.k, self.n) if self.trans_b else (self.n, self.k)
        return (inner, inner * outer) if self.batch else (inner,)


def _batch_follows_rows(strides: tuple[int, ...] | None, rows: int) -> bool:
    return strides is None or len(strides) < 2 or strides[1] == strides[0] * rows
