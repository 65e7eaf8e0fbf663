"""The command line. `main` picks a command; each loads torch only once its arguments are understood."""

from gaudicc.cli.app import main

__all__ = ["main"]
