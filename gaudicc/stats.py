"""What a compiled model counts, and what the machine model says of its buckets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from gaudicc.buckets import Bucket
from gaudicc.program import Program
from gaudicc.runtime.runner import Counters

# The machine model is imported when it is asked: a server that loads a bundle need not load it.


class ModelledSeconds(Mapping[Bucket, float]):
    """Bucket -> seconds that one call in it takes on the program's target, modelled: the window of `gaudicc profile`.

    Each is computed when it is first asked for, so that neither recordings nor calls wait for it. Empty where the machine model
    does not know the target.

    Args:
        programs: bucket -> its static program; buckets that are added later are in it too.
    """

    def __init__(self, programs: Mapping[Bucket, Program]) -> None:
        self._programs, self._known = programs, dict[Bucket, float]()

    def __getitem__(self, bucket: Bucket) -> float:
        program = self._programs[bucket]
        if not _is_modelled(program):
            raise KeyError(bucket)
        if bucket not in self._known:
            from gaudicc.modelled import modelled_seconds

            self._known[bucket] = modelled_seconds(program)
        return self._known[bucket]

    def __iter__(self) -> Iterator[Bucket]:
        return (bucket for bucket, program in self._programs.items() if _is_modelled(program))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        return f"<modelled seconds of {len(self)} buckets>"


def _is_modelled(program: Program) -> bool:
    from gaudicc.machine import CHIPS

    return program.target is not None and program.target.name in CHIPS


@dataclass
class Stats(Counters):
    """Counters of a compiled model.

    Attributes:
        calls: calls that ran.
        misses: calls that no bucket fitted.
        padded: elements of all user inputs that were launched.
        real: elements of all user inputs that were given.
        bytes_held: bytes that the recordings hold.
        copied_caches: caches copied into state, since a call brought others than the one before had returned.
        modelled_seconds: what a call in each bucket takes on the target, modelled and not measured.
    """

    calls: int = 0
    misses: int = 0
    padded: int = 0
    real: int = 0
    bytes_held: int = 0
    copied_caches: int = 0
    modelled_seconds: ModelledSeconds = field(default_factory=lambda: ModelledSeconds({}), compare=False)
