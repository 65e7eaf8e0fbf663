"""What programs see as `habana_frameworks.torch`: one file for each part of the real package."""
