"""The user's own tables: a folder, named by `GAUDICC_TABLES`, whose files win over those that are shipped.

`gaudicc doctor --apply` makes such a folder from what a Gaudi said: `gaudi3.overlay.json` (docs/targets.md), `gaudi3.chip.json`.
"""

from __future__ import annotations

import os
from pathlib import Path

VARIABLE = "GAUDICC_TABLES"


def own_table(file: str) -> Path | None:
    """A file of the folder, if there are both."""
    folder = os.environ.get(VARIABLE)
    path = Path(folder, file) if folder else None
    return path if path is not None and path.is_file() else None
