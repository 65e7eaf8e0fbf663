"""Bundle: weights, state, constants and examples <-> one safetensors file, written as a stream and read as a map.

What shares memory in the model shares it after loading: the file holds the used span of every distinct storage once,
the JSON holds every tensor as a view (dtype, shape, strides, offset) of one of them. Bytes are little-endian, as
safetensors rules. Saving copies nothing; loading maps the file copy-on-write: pages are read when they are first used.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from mmap import mmap
from typing import BinaryIO

import torch
from torch import Tensor, nn

from gaudicc.bundle.item import Item, parse

MAX_HEADER = 100_000_000  # the limit of safetensors itself
PAGE = 64  # bytes; data start at a multiple of this in the file
CHUNK = 1 << 26

_TYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "I32": torch.int32, "I64": torch.int64,
    "U16": torch.uint16, "U32": torch.uint32, "U64": torch.uint64, "F16": torch.float16, "BF16": torch.bfloat16,
    "F32": torch.float32, "F64": torch.float64, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
_TYPE_NAMES = {dtype: name for name, dtype in _TYPES.items()}
# Complex tensors are held as bytes: not every release of safetensors has a word for them.
_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in (*_TYPES.values(), torch.complex64, torch.complex128)}


@dataclass(frozen=True, slots=True)
class Region:
    """A safetensors file: from `start`, `size` bytes of a mapped file (all of it, or a member of a zip)."""

    data: mmap
    start: int
    size: int


@dataclass
class _Storage:
    """One distinct storage: its name in the file and the tensors that view it."""

    name: str
    tensors: list[Tensor] = field(default_factory=list)

    @property
    def plain(self) -> torch.dtype | None:
        """The dtype of all its tensors, where they have one that safetensors knows."""
        dtypes = {tensor.dtype for tensor in self.tensors}
        return self.tensors[0].dtype if len(dtypes) == 1 and dtypes <= _TYPE_NAMES.keys() else None

    @property
    def alignment(self) -> int:
        return self.plain.itemsize if self.plain else 16

    @property
    def span(self) -> tuple[int, int]:
        """First and last used byte of the storage; the first is aligned for all dtypes."""
        starts, ends = zip(*(_extent(tensor) for tensor in self.tensors), strict=True)
        return min(starts) - min(starts) % self.alignment, max(ends)

    @property
    def size(self) -> int:
        """Bytes in the file: the span, filled up to the alignment."""
        start, end = self.span
        return math.ceil((end - start) / self.alignment) * self.alignment

    def describe(self) -> dict[str, object]:
        """Its dtype and shape in the file: those of a tensor that covers it, or flat."""
        if self.plain is None:
            return {"dtype": "U8", "shape": [self.size]}
        whole = (t for t in self.tensors if t.is_contiguous() and t.numel() * t.element_size() == self.size)
        cover = next(whole, None)
        shape = [self.size // self.plain.itemsize] if cover is None else list(cover.shape)
        return {"dtype": _TYPE_NAMES[self.plain], "shape": shape}

    def chunks(self) -> Iterator[memoryview]:
        """Its bytes, without a copy where it lies in host memory."""
        start, end = self.span
        storage = self.tensors[0].untyped_storage()
        for at in range(start, end, CHUNK):
            count = min(CHUNK, end - at)
            flat = torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage, at, (count,), (1,))
            yield flat.cpu().numpy().data
        if self.size > end - start:
            yield memoryview(bytes(self.size - end + start))


def _extent(tensor: Tensor) -> tuple[int, int]:
    """First and last byte that a tensor uses of its storage."""
    start = int(tensor.storage_offset()) * tensor.element_size()
    return start, start + _length(tensor.shape, tensor.stride()) * tensor.element_size()


def _length(shape: Sequence[int], stride: Sequence[int]) -> int:
    """Elements from the first to the last that a view touches."""
    return 0 if 0 in shape else 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))


class TensorWriter:
    """Collects tensors, each distinct one once, and writes them.

    Attributes:
        tensors: the distinct tensors, in the order of their numbers.
    """

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []
        self._owners: list[_Storage] = []
        self._storages: dict[object, _Storage] = {}
        self._numbers: dict[object, int] = {}
        self._names = {"__metadata__"}

    def add(self, name: str, tensor: Tensor) -> int:
        """Adds a tensor.

        Args:
            name: what it is called in the model; names the storage if it is new.
            tensor: a strided tensor with data.

        Returns:
            Its number.

        Raises:
            TypeError: it is a subclass, has no data, or has a dtype or layout that no bundle holds.
        """
        if type(tensor) not in (Tensor, nn.Parameter):
            raise TypeError(f"{name} is a {type(tensor).__name__}, not a plain tensor")
        if tensor.layout is not torch.strided or tensor.dtype not in _DTYPES.values() or tensor.is_meta:
            raise TypeError(f"{name} ({tensor.dtype}, {tensor.layout}, {tensor.device}) cannot be saved")
        tensor = tensor.detach().resolve_conj().resolve_neg()
        storage = tensor.untyped_storage()
        home = (storage.data_ptr(), str(storage.device)) if tensor.numel() else object()
        key = (home, tensor.dtype, tensor.shape, tensor.stride(), tensor.storage_offset())
        if key not in self._numbers:
            if home not in self._storages:
                self._storages[home] = _Storage(self._unique(name))
            self._storages[home].tensors.append(tensor)
            self._owners.append(self._storages[home])
            self._numbers[key] = len(self.tensors)
            self.tensors.append(tensor)
        return self._numbers[key]

    def _unique(self, name: str) -> str:
        number, candidate = 1, name
        while candidate in self._names:
            number += 1
            candidate = f"{name}#{number}"
        self._names.add(candidate)
        return candidate

    def _ordered(self) -> list[_Storage]:
        # The widest alignment first, so that every storage is aligned without holes, which safetensors forbids.
        return sorted(self._storages.values(), key=lambda storage: -storage.alignment)

    def describe(self) -> dict[str, object]:
        """The table of storages and tensors for the JSON."""
        views = [
            {
                "storage": owner.name,
                "dtype": str(tensor.dtype).removeprefix("torch."),
                "shape": list(tensor.shape),
                "stride": list(tensor.stride()),
                "offset": tensor.storage_offset() * tensor.element_size() - owner.span[0],
            }
            for owner, tensor in zip(self._owners, self.tensors, strict=True)
        ]
        storages = {storage.name: storage.describe() for storage in self._ordered()}
        return {"file": self.file_name(), "storages": storages, "views": views}

    def file_name(self) -> str:
        """The file's name, made of a hash of its content: a new content never overwrites an old one in place."""
        digest = hashlib.blake2b(self._header(), digest_size=8)
        for storage in self._ordered():
            for chunk in storage.chunks():
                digest.update(chunk)
        return f"tensors-{digest.hexdigest()}.safetensors"

    def _header(self) -> bytes:
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        at = 0
        for storage in self._ordered():
            header[storage.name] = {**storage.describe(), "data_offsets": [at, at + storage.size]}
            at += storage.size
        return json.dumps(header, separators=(",", ":")).encode()

    def write(self, stream: BinaryIO, at: int) -> None:
        """Writes the safetensors file.

        Args:
            stream: where to.
            at: the position of the stream in the file on disk, for alignment.
        """
        header = self._header()
        header += b" " * (-(at + 8 + len(header)) % PAGE)
        stream.write(len(header).to_bytes(8, "little") + header)
        for storage in self._ordered():
            for chunk in storage.chunks():
                stream.write(chunk)


def read_tensors(table: Item, region: Region, place: str) -> list[Tensor]:
    """Maps the tensors of a bundle.

    Args:
        table: what the JSON says of them.
        region: the safetensors file.
        place: the file, for errors.

    Returns:
        The tensors by number; writing to one changes this process's copy only.

    Raises:
        BundleError: the file and the table disagree, or one of them is damaged. Sizes are checked before anything is
            allocated.
    """
    fields = table.fields(("file", "storages", "views"))
    storages = _read_header(region, place)
    declared = fields["storages"].entries()
    if missing := [name for name in declared if name not in storages] or [n for n in storages if n not in declared]:
        fields["storages"].fail(f"{missing[0]!r:.80} stands in only one of the JSON and {place}")
    for name, item in declared.items():
        if item.value != storages[name][0]:
            item.fail(f"the JSON says {item.value!r:.80}, the file {storages[name][0]!r:.80}")
    bytes_of = {name: _bytes(region, start, end) for name, (_, start, end) in storages.items()}
    return [_read_view(item, bytes_of, storages) for item in fields["views"].items()]


def _read_header(region: Region, place: str) -> dict[str, tuple[dict[str, object], int, int]]:
    """Storage name -> (its dtype and shape, first byte, last byte), positions in the mapped file."""
    root = Item(None, place)
    if region.size < 8:
        root.fail("the file is cut short")
    length = int.from_bytes(region.data[region.start : region.start + 8], "little")
    if length > min(MAX_HEADER, region.size - 8):
        root.fail(f"the header claims {length:.3g} bytes, the file has {region.size}")
    begin = region.start + 8 + length
    header = parse(region.data[region.start + 8 : begin], place).entries()
    header.pop("__metadata__", None)
    found: dict[str, tuple[dict[str, object], int, int]] = {}
    at = 0
    for name, item in header.items():
        fields = item.fields(("dtype", "shape", "data_offsets"))
        start, end = (entry.integer() for entry in fields["data_offsets"].items(2))
        shape = [size.integer() for size in fields["shape"].items()]
        dtype = _TYPES[fields["dtype"].choice(_TYPES, "dtype")]
        if start != at or end - start != math.prod(shape) * dtype.itemsize:
            item.fail("offsets, shape and dtype disagree")
        at = end
        found[name] = ({"dtype": fields["dtype"].value, "shape": shape}, begin + start, begin + end)
    if begin + at != region.start + region.size:
        root.fail(f"the header describes {at} bytes of data, the file has {region.size - 8 - length}")
    return found


def _bytes(region: Region, start: int, end: int) -> torch.UntypedStorage:
    if start == end:
        return torch.UntypedStorage(0)
    return torch.frombuffer(region.data, dtype=torch.uint8, count=end - start, offset=start).untyped_storage()


def _read_view(
    item: Item, bytes_of: dict[str, torch.UntypedStorage], storages: dict[str, tuple[dict[str, object], int, int]]
) -> Tensor:
    fields = item.fields(("storage", "dtype", "shape", "stride", "offset"))
    name = fields["storage"].choice(bytes_of, "storage")
    dtype = _DTYPES[fields["dtype"].choice(_DTYPES, "dtype")]
    shape = [size.integer(0, 2**63 - 1) for size in fields["shape"].items()]
    stride = [step.integer(0, 2**63 - 1) for step in fields["stride"].items(len(shape))]
    offset = fields["offset"].integer(0, 2**63 - 1)
    used = offset + _length(shape, stride) * dtype.itemsize
    if offset % dtype.itemsize or (0 not in shape and storages[name][1] % dtype.itemsize):
        item.fail("the tensor is not aligned")
    if used > bytes_of[name].nbytes():
        item.fail(f"the tensor needs {used:.3g} bytes, its storage has {bytes_of[name].nbytes()}")
    try:
        return torch.empty(0, dtype=dtype).set_(bytes_of[name], offset // dtype.itemsize, shape, stride)
    except RuntimeError as problem:  # sizes whose product does not fit 64 bits, which an expanded view may claim
        item.fail(f"this is no tensor: {str(problem).splitlines()[0][:200]}")
