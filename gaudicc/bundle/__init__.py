"""Bundle: Programs with their tensors <-> a folder or zip that holds data only."""

from gaudicc.bundle.bundle import read_bundle, write_bundle
from gaudicc.bundle.item import Item
from gaudicc.bundle.trees import Record

__all__ = ["Item", "Record", "read_bundle", "write_bundle"]
