"""Legalisation rules, one family a file, and what they and the recognisers match with."""
