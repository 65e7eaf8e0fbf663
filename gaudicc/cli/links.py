"""Start-up check: gaudicc/passes and gaudicc/models are links to folders, which some archives turn into text files."""

from __future__ import annotations

from pathlib import Path

from gaudicc.errors import ModelFileError, Where

PACKAGE = Path(__file__).parent.parent
NAMES = ("passes", "models")


def broken_links(package: Path = PACKAGE) -> tuple[str, ...]:
    """The names that are no folder with a package in it.

    Args:
        package: the folder of the package gaudicc.
    """
    return tuple(name for name in NAMES if not (package / name / "__init__.py").is_file())


def require_links(package: Path = PACKAGE) -> None:
    """Refuses to start from a broken checkout.

    Raises:
        ModelFileError: a link is missing or has become a text file.
    """
    if broken := broken_links(package):
        name = broken[0]
        what = "a text file" if (package / name).is_file() else "missing"
        raise ModelFileError(
            f"gaudicc/{name} is {what}; it must be a link to the folder {name}/ at the top",
            where=Where(source=str(package / name), stage="start-up"),
            hint=f"clone with git instead of unpacking an archive, or: ln -sfn ../{name} gaudicc/{name}",
        )
