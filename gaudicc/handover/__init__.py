"""The kit that goes to whoever has a Gaudi and comes back: what its software runs, how long it takes, how the story goes there.

`gaudicc doctor --collect out.zip` makes one file there, `--apply out.zip` makes tables of it here. See docs/handover.md.
"""
