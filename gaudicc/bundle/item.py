"""Bundle, reading: JSON text -> values that know their place, so that every check can say where the file is wrong."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import NoReturn

from gaudicc.errors import BundleError, Where

MAX_TEXT = 65_536
MAX_INT = 2**64

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,511}")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


def error(what: str, place: str, hint: str | None = None) -> BundleError:
    """A BundleError that points at a file or at a place in the JSON."""
    return BundleError(
        what, where=Where(source=place.removesuffix(": "), stage="saving or loading a bundle"), hint=hint
    )


@dataclass(frozen=True, slots=True)
class Item:
    """One JSON value and its place in the file.

    Every method raises BundleError when the value is not of the form asked for.

    Attributes:
        value: what json gave: a dict, list, str, int, float, bool or None.
        place: `model.zip: programs.captured.graphs[0]`.
    """

    value: object
    place: str

    def fail(self, what: str) -> NoReturn:
        """Raises a BundleError about this place."""
        raise error(what, self.place)

    def fields(self, required: Collection[str], optional: Collection[str] = ()) -> dict[str, Item]:
        """The fields of an object: exactly `required`, and any of `optional`."""
        found = self.entries()
        if missing := [name for name in required if name not in found]:
            self.fail(f"the field {missing[0]!r} is missing")
        if unknown := [name for name in found if name not in required and name not in optional]:
            self.fail(f"unknown field {unknown[0][:80]!r}")
        return found

    def entries(self) -> dict[str, Item]:
        """All entries of an object."""
        if not isinstance(self.value, dict):
            self.fail(f"an object is expected, found {_kind(self.value)}")
        dot = "" if self.place.endswith(": ") else "."
        return {key: Item(value, f"{self.place}{dot}{key[:80]}") for key, value in self.value.items()}

    def items(self, length: int | None = None) -> list[Item]:
        """The entries of an array, of the given length if one is given."""
        if not isinstance(self.value, list):
            self.fail(f"an array is expected, found {_kind(self.value)}")
        if length is not None and len(self.value) != length:
            self.fail(f"{length} entries are expected, found {len(self.value)}")
        return [Item(value, f"{self.place}[{i}]") for i, value in enumerate(self.value)]

    def text(self) -> str:
        """A string without control characters other than tab and newline."""
        if not isinstance(self.value, str):
            self.fail(f"a string is expected, found {_kind(self.value)}")
        if len(self.value) > MAX_TEXT or _CONTROL.search(self.value):
            self.fail("the string is too long or holds control characters")
        return self.value

    def identifier(self) -> str:
        """A plain ASCII name.

        torch.fx writes names unquoted into the Python that it generates and runs, so nothing else may pass here.
        """
        name = self.text()
        if not _IDENTIFIER.fullmatch(name):
            self.fail(f"{name[:80]!r} is no plain name")
        return name

    def integer(self, low: int = 0, high: int = MAX_INT) -> int:
        """An integer in `low .. high`."""
        if not isinstance(self.value, int) or isinstance(self.value, bool):
            self.fail(f"an integer is expected, found {_kind(self.value)}")
        if not low <= self.value <= high:
            self.fail(f"{self.value:.3g} is outside {low} .. {high:.3g}")
        return self.value

    def index(self, count: int, what: str) -> int:
        """An index below `count`."""
        if count == 0 or not isinstance(self.value, int) or not 0 <= self.value < count:
            self.fail(f"there is no {what} {self.value!r:.80}")
        return self.integer(0, count - 1)

    def boolean(self) -> bool:
        """True or false."""
        if not isinstance(self.value, bool):
            self.fail(f"true or false is expected, found {_kind(self.value)}")
        return self.value

    def choice(self, words: Collection[str], what: str) -> str:
        """One of the given words."""
        word = self.text()
        if word not in words:
            self.fail(f"unknown {what} {word[:80]!r}")
        return word


def parse(text: bytes, place: str) -> Item:
    """Parses JSON: no duplicate names, no NaN.

    Raises:
        BundleError: the text is not JSON.
    """
    try:
        return Item(json.loads(text.decode(), object_pairs_hook=_unique, parse_constant=_no_constant), place)
    except (ValueError, RecursionError) as problem:
        raise error(f"the JSON cannot be read: {problem}", place) from problem


def render(value: object) -> bytes:
    """JSON text of a value: compact, one form for one value.

    Raises:
        ValueError: the value holds NaN or an infinity.
        TypeError: the value is not JSON.
    """
    return json.dumps(value, allow_nan=False, ensure_ascii=True, separators=(",", ":")).encode()


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name {twice[:80]!r} stands twice in an object")
    return found


def _no_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is no JSON")


def _kind(value: object) -> str:
    names = {dict: "an object", list: "an array", str: "a string", bool: "a truth value", type(None): "null"}
    return names.get(type(value), "a number")
