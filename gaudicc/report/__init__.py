"""After the flow: a compile's trace -> one self-contained HTML page."""

from gaudicc.report.page import write_report

__all__ = ["write_report"]
