"""What engines do and when: modelled from a compiled model, or read from a real trace, and shown side by side."""

from gaudicc.profile.activity import Activity, Profile, profile_of

__all__ = ["Activity", "Profile", "profile_of"]
