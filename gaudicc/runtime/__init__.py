"""The last step of compilation: static segments are recorded on a device once and replayed for every call."""
