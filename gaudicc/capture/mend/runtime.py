"""Capture, mending: the names that rewritten code may use; compilation puts this module into its constants."""

from __future__ import annotations

import operator
from builtins import slice
from collections.abc import Callable
from typing import Any

from gaudicc.capture.mend.builtin import function
from gaudicc.capture.mend.containers import contains, contains_not, getitem, store
from gaudicc.capture.mend.context import Access, Return, Signal
from gaudicc.capture.mend.control import call, finally_, if_, invoke
from gaudicc.capture.mend.iteration import for_, while_
from gaudicc.capture.mend.managers import manager
from gaudicc.capture.mend.methods import method
from gaudicc.capture.mend.operators import (
    all_of,
    and_,
    any_of,
    binary,
    bound,
    chain,
    compare,
    ifexp,
    inplace,
    is_,
    is_not,
    not_,
    or_,
    test_compare,
    test_not,
)
from gaudicc.capture.mend.partial import delete, delete_attribute, spread, text, unpack
from gaudicc.capture.mend.values import Undefined, undefined_local


def read_name(read: Callable[[], Any], name: str) -> Any:
    """The value of a name of an outer scope, or a stand-in while it is unbound."""
    try:
        return read()
    except NameError:
        return Undefined(NameError, f"name '{name}' is not defined")


__all__ = [
    "Access", "Return", "Signal", "all_of", "and_", "any_of", "binary", "bound", "call", "chain", "compare", "contains",
    "contains_not", "delete", "delete_attribute", "finally_", "for_", "function", "getitem", "if_", "ifexp", "inplace",
    "invoke", "is_", "is_not", "manager", "method", "not_", "operator", "or_", "read_name", "slice", "spread", "store",
    "test_compare", "test_not", "text", "undefined_local", "unpack", "while_",
]  # fmt: skip
