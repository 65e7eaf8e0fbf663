"""Bundle: the folder or zip on disk. Two files: `bundle.json` and the safetensors file that it names.

A save is a rename: of the whole zip, or of a folder's `bundle.json`, once the tensors that it names lie beside it under
a name of their own. Whatever interrupts a save, what `bundle.json` names is complete. Several processes may save and load
one path: saves to a folder take turns, and the last one stays.
"""

from __future__ import annotations

import os
import re
import stat
import struct
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from mmap import ACCESS_COPY, mmap
from pathlib import Path
from typing import BinaryIO, cast

from gaudicc.bundle.item import error
from gaudicc.bundle.tensors import Region, TensorWriter
from gaudicc.errors import BundleError
from gaudicc.whole_files import replace_file

if sys.platform != "win32":
    import fcntl

JSON_NAME = "bundle.json"
MAX_JSON = 1 << 28
TENSORS_NAME = re.compile(r"tensors-[0-9a-f]{16}\.safetensors")

_LOCAL_HEADER = struct.Struct("<4s22xHH")
_SIGNATURE = b"PK\x03\x04"
_EPOCH = (1980, 1, 1, 0, 0, 0)  # one content, one zip: no times


def save(path: Path, text: bytes, name: str, tensors: TensorWriter) -> None:
    """Writes a bundle: a zip if the path ends in `.zip`, else a folder.

    Args:
        path: where to; what is there stays whole until the new one is.
        text: the content of `bundle.json`.
        name: the name of the safetensors file, as in `text`.
        tensors: writes it.

    Raises:
        BundleError: the files cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".zip":
            replace_file(path, lambda stream: _write_zip(stream, text, name, tensors))
        else:
            _save_folder(path, text, name, tensors)
    except OSError as problem:
        hint = "make room or choose another path; what was there before is unchanged"
        raise error(f"the bundle cannot be written: {problem}", str(path), hint) from problem


def _save_folder(path: Path, text: bytes, name: str, tensors: TensorWriter) -> None:
    path.mkdir(exist_ok=True)
    try:
        with _turn(path):
            before = set(path.iterdir())
            try:
                replace_file(path / name, lambda stream: tensors.write(stream, 0))
                replace_file(path / JSON_NAME, lambda stream: stream.write(text))
            except BaseException:
                if path / name not in before:
                    (path / name).unlink(missing_ok=True)
                raise
            for old in before - {path / name}:
                if TENSORS_NAME.fullmatch(old.name):
                    old.unlink()
    except BaseException:
        with suppress(OSError):
            path.rmdir()  # only where nothing is in it
        raise


@contextmanager
def _turn(folder: Path) -> Iterator[None]:
    """A block that one process at a time is in; what removes a process ends its turn."""
    if sys.platform == "win32":  # a folder cannot be locked there: one process saves at a time
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _write_zip(stream: BinaryIO, text: bytes, name: str, tensors: TensorWriter) -> None:
    # Stored, not deflated: weights do not shrink, they can be mapped in place, and no small file claims a huge content.
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        with archive.open(zipfile.ZipInfo(name, _EPOCH), "w", force_zip64=True) as member:
            tensors.write(cast(BinaryIO, member), stream.tell())
        archive.writestr(zipfile.ZipInfo(JSON_NAME, _EPOCH), text)


@contextmanager
def opened(path: Path) -> Iterator[Folder | Archive]:
    """Opens a bundle for reading.

    Raises:
        BundleError: there is none, or it cannot be read.
    """
    try:
        if path.is_dir():
            yield Folder(path)
        elif path.exists():
            with _regular(path) as stream, zipfile.ZipFile(stream) as archive:
                yield Archive(path, stream, archive)
        else:
            raise error("there is no bundle", str(path), "check the path; `save` writes a folder or a .zip")
    except BundleError:
        raise
    except (
        OSError,
        zipfile.BadZipFile,
        ValueError,
        NotImplementedError,
        EOFError,
        struct.error,
        OverflowError,
    ) as problem:
        raise error(f"the bundle cannot be read: {problem}", str(path)) from problem


def _regular(path: Path) -> BinaryIO:
    """Opens a regular file; a link or a device could stand for anything."""
    if not path.parent.is_dir() or not os.path.lexists(path):
        raise error("the file is missing", str(path))
    if not stat.S_ISREG(path.lstat().st_mode):
        raise error("this is no regular file", str(path))
    return path.open("rb")


def _mapped(stream: BinaryIO, path: Path) -> mmap:
    if os.fstat(stream.fileno()).st_size == 0:
        raise error("the file is empty", str(path))
    return mmap(stream.fileno(), 0, access=ACCESS_COPY)


class Folder:
    """A bundle that is a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def text(self) -> bytes:
        """The content of `bundle.json`."""
        with _regular(self.path / JSON_NAME) as stream:
            if os.fstat(stream.fileno()).st_size > MAX_JSON:
                raise error(f"{JSON_NAME} is larger than {MAX_JSON} bytes", str(self.path))
            return stream.read(MAX_JSON)

    def tensors(self, name: str) -> Region:
        """The safetensors file."""
        with _regular(self.path / name) as stream:
            data = _mapped(stream, self.path / name)
        return Region(data, 0, len(data))


class Archive:
    """A bundle that is a zip: exactly two members, stored, under the names that we write."""

    def __init__(self, path: Path, stream: BinaryIO, archive: zipfile.ZipFile) -> None:
        self.path, self.stream, self.archive = path, stream, archive
        names = [info.filename for info in archive.infolist()]
        for info in archive.infolist():
            self._check(info)
        if len(names) != 2 or names.count(JSON_NAME) != 1:
            raise error(f"a bundle has two members, this zip has {len(names)}: {names[:4]!r:.200}", str(path))

    def _check(self, info: zipfile.ZipInfo) -> None:
        if info.filename != JSON_NAME and not TENSORS_NAME.fullmatch(info.filename):
            raise error(f"the zip holds {info.filename!r:.200}, which no bundle does", str(self.path))
        mode = info.external_attr >> 16
        if info.is_dir() or (stat.S_IFMT(mode) and not stat.S_ISREG(mode)):
            raise error(f"{info.filename} is no regular file", str(self.path))
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 or info.compress_size != info.file_size:
            raise error(f"{info.filename} is compressed or encrypted; bundles are stored as they are", str(self.path))
        if info.file_size > os.fstat(self.stream.fileno()).st_size:
            raise error(f"{info.filename} claims {info.file_size:.3g} bytes, more than the whole file", str(self.path))

    def text(self) -> bytes:
        """The content of `bundle.json`; its checksum is checked."""
        if self.archive.getinfo(JSON_NAME).file_size > MAX_JSON:
            raise error(f"{JSON_NAME} is larger than {MAX_JSON} bytes", str(self.path))
        return self.archive.read(JSON_NAME)

    def tensors(self, name: str) -> Region:
        """The safetensors file, in place."""
        if name not in self.archive.namelist():
            raise error(f"{name} is missing", str(self.path))
        info = self.archive.getinfo(name)
        data = _mapped(self.stream, self.path)
        header = data[info.header_offset : info.header_offset + _LOCAL_HEADER.size]
        signature, name_length, extra_length = _LOCAL_HEADER.unpack(header)
        start = info.header_offset + _LOCAL_HEADER.size + name_length + extra_length
        if signature != _SIGNATURE or start + info.file_size > len(data):
            raise error(f"{name} is not where the zip says", str(self.path))
        return Region(data, start, info.file_size)
