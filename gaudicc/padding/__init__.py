"""Padding that is proved harmless: claims on pads, a rule per op, the certificate, the oracle and the host's part.

Used by the pass `pad`; the runtime uses `HostPadding` only.
"""

from gaudicc.padding.analysis import Analysis
from gaudicc.padding.certificate import OutputProof, PadCertificate, certificate_of
from gaudicc.padding.host import HostPadding

__all__ = ["Analysis", "HostPadding", "OutputProof", "PadCertificate", "certificate_of"]
