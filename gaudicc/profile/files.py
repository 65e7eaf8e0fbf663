"""Files of profilers: packed or not, JSON or CSV."""

from __future__ import annotations

import gzip
import zlib
from math import isfinite
from pathlib import Path

from gaudicc.errors import InputError
from gaudicc.profile.activity import Activity
from gaudicc.profile.chrome import parse_chrome
from gaudicc.profile.native import parse_native

_PACKED = b"\x1f\x8b"


def read_trace(path: Path) -> list[Activity]:
    """Reads what the engines did: Chrome trace JSON, or either native CSV, packed with gzip or not; told by what is in it.

    Args:
        path: the file.

    Returns:
        What each engine did, in seconds.

    Raises:
        InputError: the file cannot be read, is cut off or none of these, names no engine, or has times that are none.
    """
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if data.startswith(_PACKED) else data).decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}", hint="give the trace that the profiler wrote") from error
    if not text.strip():
        raise InputError(f"{path} is empty", hint="give the trace that the profiler wrote")
    is_json = text.lstrip()[0] in "{[" or ".json" in path.suffixes
    found = (parse_chrome if is_json else parse_native)(text, path)
    for entry in found:
        if not isfinite(entry.start) or not isfinite(entry.end) or entry.end < entry.start:
            raise InputError(
                f"{path}: {entry.name} on {entry.lane} lasts from {entry.start * 1e6} to {entry.end * 1e6} us",
                hint="the trace is damaged; profile again",
            )
    return found
