"""Capture, mending: marks of what a branch can change but mending cannot merge: such a change is noticed and refused.

Lists, dicts, sets and attributes are copied and merged (`heap.py`). Of iterators, classes, arrays, random generators and
the like only a mark is taken: if a path of the program changes it, capture stops with its name.
"""

from __future__ import annotations

import array
import functools
import io
import itertools
import operator
import random
import sys
from collections.abc import Iterable, Iterator
from types import GeneratorType
from typing import Any, NoReturn

import torch

from gaudicc.errors import DynamicControlFlowError

Marks = dict[int, tuple[Any, object]]
"""id of an object -> the object and its mark."""
_HEAP_TYPE = 1 << 9  # a class made by a class statement, whose attributes can be set
_MODES = "torch's modes (grad, default dtype, autocast) or a random generator"


def mark_of(value: Any) -> object:
    """What changes when an object of a kind that is not merged changes; None for all others."""
    if isinstance(value, type):
        return _of_class(value)
    if isinstance(value, GeneratorType):
        return None if value.gi_frame is None else value.gi_frame.f_lasti
    if isinstance(value, (bytearray, array.array)):
        return bytes(value)
    if isinstance(value, (io.StringIO, io.BytesIO)):
        return value.tell(), value.getvalue()
    if isinstance(value, functools._lru_cache_wrapper):
        return value.cache_info()
    if isinstance(value, itertools.count):
        return repr(value)
    if isinstance(value, Iterator):
        return operator.length_hint(value, -1)
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.ndarray):
        return value.tobytes()
    return _of_slots(value)


def _of_class(value: type) -> object:
    if not value.__flags__ & _HEAP_TYPE or value.__module__.split(".")[0] in (
        "torch",
        "collections",
        "abc",
        "typing",
        "enum",
    ):
        return None
    return tuple((name, id(held)) for name, held in vars(value).items() if not name.startswith("_abc_"))


def _of_slots(value: Any) -> object:
    names = [name for kind in type(value).__mro__ for name in _slots(kind)]
    return tuple(id(getattr(value, name, None)) for name in names) or None


def _slots(kind: type) -> Iterable[str]:
    names = vars(kind).get("__slots__", ()) if kind.__flags__ & _HEAP_TYPE else ()
    return (names,) if isinstance(names, str) else [name for name in names if not name.startswith("__")]


def modes() -> object:
    """The state of the interpreter's and torch's global modes and generators."""
    numpy = sys.modules.get("numpy")
    generators = (random.getstate(), numpy.random.get_state()[2] if numpy else None)
    return torch.is_grad_enabled(), torch.get_default_dtype(), torch.is_autocast_enabled("cpu"), generators


def refuse_changes(before: Marks, now: Marks) -> None:
    """Refuses what has another mark than before.

    Raises:
        DynamicControlFlowError: names the object's type.
    """
    for key, (value, mark) in before.items():
        if key in now and now[key][1] != mark:
            refuse(f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}")


def refuse_modes(before: object, after: object) -> None:
    """Refuses a change of global modes."""
    if before != after:
        refuse(_MODES)


def refuse(what: str) -> NoReturn:
    """Refuses a change that cannot be merged."""
    raise DynamicControlFlowError(
        f"{what} is changed in a branch on a tensor",
        hint="change it before or after the branch, or keep the value in a variable, list, dict or attribute of an object",
    )
