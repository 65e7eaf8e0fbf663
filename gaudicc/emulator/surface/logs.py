"""Logging of the bridge: `utils._debug_C`, `utils.debug.logger`, and the logger of `compile_backend`.

Nothing is logged unless a program asks for it; what is then logged goes to `pytorch_log.txt` in the folder `HABANA_LOGS`.
Source of names and forms: HabanaAI/gaudi-pytorch-bridge 1.19.0, `utils/debug/logger.py`, `utils/debug/csrc/bindings.cpp`.
"""

from __future__ import annotations

import os
from enum import IntEnum
from pathlib import Path
from typing import Any

__all__ = [
    "Logger",
    "enable_logging",
    "get_log_level",
    "get_pt_logging_levels",
    "is_log_python_enabled",
    "log_level",
    "log_python",
]


class log_level(IntEnum):
    """How much a message matters."""

    trace = 0
    debug = 1
    info = 2
    warn = 3
    error = 4
    critical = 5


_LEVELS = {"PT_PYTHON": log_level.critical}


def get_log_level(logger_level: str) -> log_level:
    """The level of a name.

    Raises:
        AssertionError: no level has it.
    """
    if logger_level not in log_level.__members__:
        raise AssertionError(f"unsupported logger_level = {logger_level}")
    return log_level[logger_level]


def enable_logging(logger_name: str, logger_level: str | log_level) -> None:
    """Log messages of a level and above; `LOG_LEVEL_ALL` and `LOG_LEVEL_ALL_PT` stand for every logger."""
    level = logger_level if isinstance(logger_level, log_level) else get_log_level(logger_level)
    name = logger_name.removeprefix("LOG_LEVEL_")
    for each in _LEVELS if name in ("ALL", "ALL_PT") else [name]:
        _LEVELS[each] = level


def get_pt_logging_levels() -> dict[str, int]:
    """The level of each logger."""
    return {name: int(level) for name, level in _LEVELS.items()}


def is_log_python_enabled(level: int) -> bool:
    """Whether messages of a level are logged."""
    return level >= _LEVELS["PT_PYTHON"]


def log_python(level: int, message: str) -> None:
    """Log a message, if its level is."""
    folder = os.environ.get("HABANA_LOGS")
    if folder and is_log_python_enabled(level):
        with (Path(folder) / "pytorch_log.txt").open("a", encoding="utf-8") as file:
            file.write(f"[{log_level(level).name}] {message}\n")


class Logger:
    """Keeps messages when asked to, and logs those whose level is on.

    Args:
        type: stands before each logged message.
    """

    def __init__(self, type: str) -> None:
        self.type = type
        self.store_data = False
        self.data: list[str] = []

    def set_store_data(self, enable: bool) -> None:
        """Keep messages from now on, or no longer; those kept are forgotten."""
        self.store_data = enable
        self.data = []

    def log(self, level: log_level, args: tuple[Any, ...]) -> None:
        """Takes in a message: values, or a format with `{}` or `%` and its values."""
        if self.store_data or is_log_python_enabled(level):
            message = f"[{self.type}] {_formatted(args)}"
            log_python(level, message)
            if self.store_data:
                self.data.append(message)

    def trace(self, *args: Any) -> None:
        """A message of this level, as are the next."""
        self.log(log_level.trace, args)

    def debug(self, *args: Any) -> None:
        """See `trace`."""
        self.log(log_level.debug, args)

    def info(self, *args: Any) -> None:
        """See `trace`."""
        self.log(log_level.info, args)

    def warn(self, *args: Any) -> None:
        """See `trace`."""
        self.log(log_level.warn, args)

    def error(self, *args: Any) -> None:
        """See `trace`."""
        self.log(log_level.error, args)

    def critical(self, *args: Any) -> None:
        """See `trace`."""
        self.log(log_level.critical, args)


def _formatted(args: tuple[Any, ...]) -> str:
    if len(args) > 1 and isinstance(args[0], str):
        if "{}" in args[0]:
            return args[0].format(*map(str, args[1:]))
        if "%" in args[0]:
            return args[0] % args[1:]
    return ", ".join(map(str, args))
