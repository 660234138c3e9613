"""The test suite: truth by enumeration first (exact.py), bounded statistics second (stat.py)."""
