"""What was proved of a padded program, as data."""

from __future__ import annotations

from dataclasses import dataclass

from gaudicc.errors import InputError, PaddingError
from gaudicc.program import OutputKind, Program


@dataclass(frozen=True, slots=True)
class Edit:
    """One thing the pass inserted: a mask, a gather by logical positions, a length in place of a size.

    Attributes:
        what: `mask`, `relayout`, `length` or `rewrite`.
        op: the op that demanded it.
        reason: the rule's demand.
        source: the user's line.
    """

    what: str
    op: str
    reason: str
    source: str | None


@dataclass(frozen=True)
class OutputProof:
    """What is proved of one output.

    Attributes:
        name: `output 0`, or the state buffer, argument or flag that it is written to.
        dims: per dim its logical size; the valid positions are the first ones of each factor.
        proved: the sentence.
    """

    name: str
    dims: tuple[str, ...]
    proved: str


def proof_of(name: str, kind: OutputKind, dims: tuple[tuple[str, ...], ...]) -> OutputProof:
    """What the claims on one output prove.

    Args:
        name: what the user knows it by.
        kind: what it is for.
        dims: per dim its factors, as text.

    Raises:
        PaddingError: a state buffer has pads, so that nothing can be said of it before a call.
    """
    sizes = tuple(" * ".join(factors) for factors in dims)
    fixed = all(size.isdigit() for size in sizes)
    if kind is OutputKind.STATE and not fixed:
        raise PaddingError(f"state {name} has a dynamic size", hint="give the buffer its largest size")
    sentence = (
        "no pads: every element depends on valid positions only"
        if fixed
        else "valid positions depend on valid positions only"
    )
    if kind is OutputKind.STATE:
        sentence = "holds no pads before a call, and none after it: what pads would write is dropped"
    return OutputProof(name, sizes, sentence)


@dataclass(frozen=True)
class PadCertificate:
    """The certificate of a padded program.

    Attributes:
        outputs: one proof per output of the root.
        edits: every mask, move and length that was inserted, with the rule's demand and the user's line.
        finite: where a claim rests on pads being finite (empty in strict mode).
        strict: whether such claims were forbidden.
    """

    outputs: tuple[OutputProof, ...]
    edits: tuple[Edit, ...]
    finite: tuple[str, ...]
    strict: bool

    @property
    def masks(self) -> tuple[Edit, ...]:
        """The masks among the edits."""
        return tuple(edit for edit in self.edits if edit.what == "mask")

    def __str__(self) -> str:
        lines = [f"{proof.name} [{', '.join(proof.dims)}]: {proof.proved}" for proof in self.outputs]
        lines += [f"{edit.what} for {edit.op} at {edit.source}: {edit.reason}" for edit in self.edits]
        lines += [f"rests on finite pads: {place}" for place in self.finite]
        return "\n".join(lines)


NOT_PADDED = "not padded, so that a call must have the exact sizes of a bucket: "


def refusal_note(reason: str) -> str:
    """The note on a program that was left unpadded."""
    return f"{NOT_PADDED}{' '.join(reason.split())}"


def refusal_of(program: Program) -> str:
    """Why a program is not padded, as its notes say it."""
    told = (note.removeprefix(NOT_PADDED) for note in program.notes if note.startswith(NOT_PADDED))
    return next(told, "no pass padded it")


def certificate_of(program: Program) -> PadCertificate:
    """The certificate of a padded program, symbolic or specialized.

    Raises:
        InputError: the program was not padded.
    """
    if program.padded is None:
        raise InputError("the program was not padded", hint="put Pad() into the pipeline")
    certificate: PadCertificate = program.padded.certificate
    return certificate
