"""Padding that is proved harmless: claims on pads, a rule per op, the certificate, the oracle and the host's part.

Importing this package brings what the runtime needs; the rules come with `gaudicc.padding.analysis`.
"""

from gaudicc.padding.certificate import Edit, OutputProof, PadCertificate, certificate_of, refusal_note, refusal_of
from gaudicc.padding.host import HostPadding
from gaudicc.padding.parts import Divisible, in_parts

__all__ = [
    "Divisible",
    "Edit",
    "HostPadding",
    "OutputProof",
    "PadCertificate",
    "certificate_of",
    "in_parts",
    "refusal_note",
    "refusal_of",
]
